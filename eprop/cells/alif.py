"""Adaptive leaky integrate-and-fire neurons."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import checks
from ..surrogate import AbstractSurrogate, Triangular
from .constants import AbstractConstant, beside, constant, decay, time_constant
from .membrane import AbstractIntegrateAndFire


class ALIFState(NamedTuple):
    """State of an `ALIF` population."""

    v: Float[Array, "batch n"]
    """Membrane potential."""
    a: Float[Array, "batch n"]
    """Threshold adaptation: the neuron's spikes, filtered by ρ."""
    refractory: Int[Array, "batch n"]
    """Steps, this one included, in which the neuron can't spike."""


class ALIF(AbstractIntegrateAndFire):
    r"""Adaptive leaky integrate-and-fire neurons: each spike raises the threshold for a while.

        v_t = α v_{t-1} + ζ I_t - v_th z_{t-1}          α = exp(-dt/τ_v)
        a_t = ρ a_{t-1} + z_{t-1}                       ρ = exp(-dt/τ_a)
        z_t = 1 if v_t > v_th + β a_t and not refractory

    With β = 0 for some neurons those are LIF neurons. The pseudo-derivative is taken in units
    of the base threshold: ψ = h((v - v_th - β a) / v_th) / v_th.
    Source: Bellec et al. 2020, equations (6) to (10).
    """

    n: int = eqx.field(static=True)
    tau_v: AbstractConstant
    v_th: AbstractConstant
    n_refractory: int | tuple[int, ...] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    scale_current: bool = eqx.field(static=True)
    tau_a: AbstractConstant
    beta: AbstractConstant
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
        tau_a: Any = 2000.0,
        beta: Any = 0.0174,
        v_init: Any = 0.0,
        surrogate: AbstractSurrogate = Triangular(),  # noqa: B008 (immutable)
    ):
        """**Arguments** as for `LIF`, and likewise:

        - `tau_a`: time constant of the adaptation τ_a in ms.
        - `beta`: β, by how much a spike raises the threshold, in units of the membrane potential.

        Raises `ValueError` for a parameter of another shape or out of range.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.tau_v = time_constant("tau_v", tau_v, n, self.dt)
        self.v_th = constant("v_th", v_th, n, positive=True)
        self.n_refractory = checks.steps("n_refractory", n_refractory, n)
        self.scale_current = checks.switch("scale_current", scale_current)
        self.tau_a = time_constant("tau_a", tau_a, n, self.dt)
        self.beta = constant("beta", beta, n)
        self.v_init = constant("v_init", v_init, n)
        self.surrogate = checks.instance("surrogate", surrogate, AbstractSurrogate, "Triangular()")

    def init(self, batch: int) -> ALIFState:
        """Potential `v_init`, no adaptation, not refractory."""
        v, refractory = self.at_rest(batch)
        return ALIFState(v, jnp.zeros_like(v), refractory)

    def step(self, state: ALIFState, current: Array, z_tm1: Array) -> ALIFState:
        own_spike = self.output(state)
        return ALIFState(
            v=self.integrate(state.v, current, z_tm1),
            a=decay(self.tau_a, self.dt, state.a) * state.a + own_spike,
            refractory=self.count_down(state.refractory, z_tm1),
        )

    def output(self, state: ALIFState) -> Array:
        adaptation = beside(self.beta.value, state.a) * state.a
        return self.spike(state.v, adaptation, state.refractory)
