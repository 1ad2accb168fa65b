"""Rate neurons."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import checks
from .abstract import AbstractCell
from .constants import (
    AbstractConstant,
    at_start,
    beside,
    complement,
    constant,
    decay,
    time_constant,
)


class LeakyTanhState(NamedTuple):
    """State of a `LeakyTanh` population."""

    v: Float[Array, "batch n"]
    """Membrane potential."""


class LeakyTanh(AbstractCell):
    r"""Rate neurons: a leaky membrane, and a rate that saturates.

        v_t = α v_{t-1} + (1 - α) (I_t + b)             α = exp(-dt/τ_v)
        z_t = tanh(v_t)

    The exact solution of τ_v dv/dt = -v + I + b for a current that is constant within a step.
    """

    n: int = eqx.field(static=True)
    tau_v: AbstractConstant
    bias: AbstractConstant
    v_init: AbstractConstant
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        n: int,
        *,
        tau_v: Any = 20.0,
        bias: Any = 0.0,
        v_init: Any = 0.0,
        dt: float = 1.0,
    ):
        """**Arguments** (one number or one per neuron; trained if given as a JAX array):

        - `n`: number of neurons.
        - `tau_v`: time constant τ_v in ms.
        - `bias`: b, in units of the current.
        - `v_init`: membrane potential before the first step.
        - `dt`: time step in ms.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.tau_v = time_constant("tau_v", tau_v, n, self.dt)
        self.bias = constant("bias", bias, n)
        self.v_init = constant("v_init", v_init, n)

    def init(self, batch: int) -> LeakyTanhState:
        """Potential `v_init`."""
        return LeakyTanhState(at_start(self.v_init, batch, self.n))

    def step(self, state: LeakyTanhState, current: Array, z_tm1: Array) -> LeakyTanhState:
        drive = complement(self.tau_v, self.dt, state.v) * (
            current + beside(self.bias.value, state.v)
        )
        return LeakyTanhState(decay(self.tau_v, self.dt, state.v) * state.v + drive)

    def output(self, state: LeakyTanhState) -> Array:
        return jnp.tanh(state.v)
