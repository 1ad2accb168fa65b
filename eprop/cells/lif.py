"""Leaky integrate-and-fire neurons."""

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, Int

from .. import checks
from ..surrogate import AbstractSurrogate, Triangular
from .constants import AbstractConstant, constant, time_constant
from .membrane import AbstractIntegrateAndFire


class LIFState(NamedTuple):
    """State of a `LIF` population."""

    v: Float[Array, "batch n"]
    """Membrane potential."""
    refractory: Int[Array, "batch n"]
    """Steps, this one included, in which the neuron can't spike."""


class LIF(AbstractIntegrateAndFire):
    r"""Leaky integrate-and-fire neurons.

        v_t = α v_{t-1} + ζ I_t - v_th z_{t-1}          α = exp(-dt/τ_v)
        z_t = 1 if v_t > v_th and not refractory        ζ = 1, or 1 - α

    After a spike a neuron is silent, with no pseudo-derivative, for `n_refractory - 1` steps
    (0 and 1: no such time). Source: Bellec et al. 2020, equations (6) and (7), and the
    reference implementation's refractory counter.
    """

    n: int = eqx.field(static=True)
    tau_v: AbstractConstant
    v_th: AbstractConstant
    n_refractory: int | tuple[int, ...] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    scale_current: bool = eqx.field(static=True)
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
        v_init: Any = 0.0,
        surrogate: AbstractSurrogate = Triangular(),  # noqa: B008 (immutable)
    ):
        """**Arguments** (`tau_v`, `v_th`, `v_init`, `n_refractory`: one number, or one per neuron):

        - `n`: number of neurons.
        - `tau_v`: membrane time constant τ_v in ms.
        - `v_th`: threshold, in units of the membrane potential.
        - `n_refractory`: length of the refractory period in steps of dt, the spike's included.
        - `dt`: time step in ms.
        - `scale_current`: whether the input is scaled by ζ = 1 - α (else ζ = 1).
        - `v_init`: membrane potential before the first step.
        - `surrogate`: the spike function and its pseudo-derivative.

        `tau_v`, `v_th` and `v_init` are constants of the compiled program, or trained if they are
        given as JAX arrays: τ_v and v_th through their logarithms, so they stay positive.

        Raises `ValueError` for a parameter of another shape or out of range.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.tau_v = time_constant("tau_v", tau_v, n, self.dt)
        self.v_th = constant("v_th", v_th, n, positive=True)
        self.n_refractory = checks.steps("n_refractory", n_refractory, n)
        self.scale_current = checks.switch("scale_current", scale_current)
        self.v_init = constant("v_init", v_init, n)
        self.surrogate = checks.instance("surrogate", surrogate, AbstractSurrogate, "Triangular()")

    def init(self, batch: int) -> LIFState:
        """Potential `v_init`, not refractory."""
        return LIFState(*self.at_rest(batch))

    def step(self, state: LIFState, current: Array, z_tm1: Array) -> LIFState:
        return LIFState(
            v=self.integrate(state.v, current, z_tm1),
            refractory=self.count_down(state.refractory, z_tm1),
        )

    def output(self, state: LIFState) -> Array:
        return self.spike(state.v, 0.0, state.refractory)
