"""Leaky integrate-and-fire neurons with exponential synapses."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import checks
from ..surrogate import AbstractSurrogate, Triangular
from .constants import AbstractConstant, constant, decay, time_constant
from .membrane import AbstractIntegrateAndFire


class CurrentLIFState(NamedTuple):
    """State of a `CurrentLIF` population."""

    i: Float[Array, "batch n"]
    """Synaptic current."""
    v: Float[Array, "batch n"]
    """Membrane potential."""
    refractory: Int[Array, "batch n"]
    """Steps, this one included, in which the neuron can't spike."""


class CurrentLIF(AbstractIntegrateAndFire):
    r"""Leaky integrate-and-fire neurons with exponential synapses: a spike's current fades.

        i_t = η i_{t-1} + I_t                           η = exp(-dt/τ_i)
        v_t = α v_{t-1} + ζ i_{t-1} - v_th z_{t-1}      α = exp(-dt/τ_v)
        z_t = 1 if v_t > v_th and not refractory        ζ = 1, or 1 - α

    The potential sees the current of the step before, as in the source, so a presynaptic spike
    takes a step longer than with `LIF`. Source: Neftci, Mostafa & Zenke, "Surrogate gradient
    learning in spiking neural networks", IEEE Signal Processing Magazine 2019; in their tutorial
    SpyTorch τ_i is 5 ms and τ_v 10 ms, and there is no refractory time.
    """

    n: int = eqx.field(static=True)
    tau_v: AbstractConstant
    v_th: AbstractConstant
    n_refractory: int | tuple[int, ...] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    scale_current: bool = eqx.field(static=True)
    tau_i: AbstractConstant
    v_init: AbstractConstant
    surrogate: AbstractSurrogate

    def __init__(
        self,
        n: int,
        *,
        tau_v: Any = 20.0,
        v_th: Any = 0.6,
        n_refractory: Any = 5,
        dt: float = 1.0,
        scale_current: bool = False,
        tau_i: Any = 5.0,
        v_init: Any = 0.0,
        surrogate: AbstractSurrogate = Triangular(),  # noqa: B008 (immutable)
    ):
        """**Arguments** as for `LIF`, and likewise:

        - `tau_i`: time constant of the synaptic current τ_i in ms.

        Raises `ValueError` for a parameter of another shape or out of range.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.tau_v = time_constant("tau_v", tau_v, n, self.dt)
        self.v_th = constant("v_th", v_th, n, positive=True)
        self.n_refractory = checks.steps("n_refractory", n_refractory, n)
        self.scale_current = checks.switch("scale_current", scale_current)
        self.tau_i = time_constant("tau_i", tau_i, n, self.dt)
        self.v_init = constant("v_init", v_init, n)
        self.surrogate = checks.instance("surrogate", surrogate, AbstractSurrogate, "Triangular()")

    def init(self, batch: int) -> CurrentLIFState:
        """No current, potential `v_init`, not refractory."""
        v, refractory = self.at_rest(batch)
        return CurrentLIFState(jnp.zeros_like(v), v, refractory)

    def step(self, state: CurrentLIFState, current: Array, z_tm1: Array) -> CurrentLIFState:
        return CurrentLIFState(
            i=decay(self.tau_i, self.dt, state.i) * state.i + current,
            v=self.integrate(state.v, state.i, z_tm1),
            refractory=self.count_down(state.refractory, z_tm1),
        )

    def output(self, state: CurrentLIFState) -> Array:
        return self.spike(state.v, 0.0, state.refractory)
