"""Neurons: what happens inside one, given the current that flows into it.

A cell knows neither weights nor the network. Its `step` is the paper's M,

    s_t = M(s_{t-1}, I_t, z_{t-1}),        z_t = output(s_t),

and draws the line that e-prop needs: what a neuron takes from its own `state` is the neuron's
and keeps its gradient; what comes in by `current` and `z_tm1` has been through the network, and
e-prop stops its gradient there.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, Float, Int

from . import checks
from .checks import Parameter
from .surrogate import AbstractSurrogate, Triangular


class Jacobians(NamedTuple):
    """A neuron's own derivatives at one time step; d is the number of its hidden variables.

    `state[k, l]` is D = ∂s^k_t/∂s^l_{t-1}, `current[k]` is b = ∂s^k_t/∂I_t and `output[k]` is
    c = ∂z_t/∂s^k_t, each with one entry per example and neuron.
    """

    state: Float[Array, "d d batch n"]
    current: Float[Array, "d batch n"]
    output: Float[Array, "d batch n"]


class AbstractCell(eqx.Module):
    """A population of `n` neurons of one kind, elementwise over neurons.

    Subclass it with `init`, `step` and `output`; e-prop for the new neuron follows from these.

    The state is a NamedTuple of arrays `[batch, n]`. Its floating-point fields are the hidden
    variables that eligibility vectors follow; integer and boolean fields (a refractory counter)
    are carried along without a gradient.
    """

    n: AbstractVar[int]
    dt: AbstractVar[float]
    """Length of a time step in ms."""
    spiking: ClassVar[bool] = False
    """Whether the output is always 0 or 1, so that one byte will do to keep it."""

    @abstractmethod
    def init(self, batch: int) -> Any:
        """The state before the first step, a NamedTuple of arrays `[batch, n]`."""

    @abstractmethod
    def step(self, state: Any, current: Array, z_tm1: Array) -> Any:
        """The state at t from the state at t - 1.

        **Arguments:** `state`: as from `init`; `current`: I_t `[batch, n]`, from the synapses;
        `z_tm1`: z_{t-1} `[batch, n]`, the neuron's last output as the network has it. Use it for
        a reset, whose gradient e-prop leaves out. For an influence of the neuron's own spike
        whose gradient e-prop keeps (a threshold adaptation) use `self.output(state)`.
        """

    @abstractmethod
    def output(self, state: Any) -> Array:
        """z_t `[batch, n]`, what the neuron sends: its spike, by a surrogate's `spike`."""

    def jacobians(self, state_tm1: Any, current: Array, z_tm1: Array | None = None) -> Jacobians:
        """D, b and c of the step from `state_tm1` under `current` `[batch, n]`.

        By forward differentiation of `step` and `output`, in units of the state's own fields.
        `z_tm1` is the last output as the network has it, `output(state_tm1)` by default.
        """
        if z_tm1 is None:
            z_tm1 = jax.lax.stop_gradient(self.output(state_tm1))
        rows = self.linear_step(state_tm1, current, z_tm1)
        state = self.step(state_tm1, current, z_tm1)
        return Jacobians(
            state=jnp.stack([jnp.stack(row[:-1]) for row in rows]),
            current=jnp.stack([row[-1] for row in rows]),
            output=jnp.stack(_directions(self.output, state)),
        )

    def linear_step(self, state_tm1: Any, current: Array, z_tm1: Array) -> list[list[Array]]:
        """The rows of D, each with its entry of b at the end, as separate arrays `[batch, n]`."""
        by_state = _directions(lambda s: hidden_variables(self.step(s, current, z_tm1)), state_tm1)
        by_current = _directions(
            lambda i: hidden_variables(self.step(state_tm1, i, z_tm1)), current
        )
        return [list(row) for row in zip(*by_state, *by_current, strict=True)]


def _directions(function: Callable[[Any], Any], at: Any) -> list[Any]:
    """The derivatives of an elementwise `function` along each floating-point leaf of `at`."""
    floats, rest = eqx.partition(at, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(floats)

    def along(k):
        tangents = [jnp.full_like(x, float(k == i)) for i, x in enumerate(leaves)]
        return jax.jvp(
            lambda *leaves: function(eqx.combine(structure.unflatten(leaves), rest)),
            tuple(leaves),
            tuple(tangents),
        )[1]

    return [along(k) for k in range(len(leaves))]


def hidden_variables(state: Any) -> list[Array]:
    """The floating-point fields of a cell's state, in their order: its hidden variables."""
    return jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))


class LIFState(NamedTuple):
    """State of a `LIF` population."""

    v: Float[Array, "batch n"]
    """Membrane potential."""
    refractory: Int[Array, "batch n"]
    """Steps, this one included, in which the neuron can't spike."""


class ALIFState(NamedTuple):
    """State of an `ALIF` population."""

    v: Float[Array, "batch n"]
    """Membrane potential."""
    a: Float[Array, "batch n"]
    """Threshold adaptation: the neuron's spikes, filtered by ρ."""
    refractory: Int[Array, "batch n"]
    """Steps, this one included, in which the neuron can't spike."""


class CurrentLIFState(NamedTuple):
    """State of a `CurrentLIF` population."""

    i: Float[Array, "batch n"]
    """Synaptic current."""
    v: Float[Array, "batch n"]
    """Membrane potential."""
    refractory: Int[Array, "batch n"]
    """Steps, this one included, in which the neuron can't spike."""


class LIF(AbstractCell):
    r"""Leaky integrate-and-fire neurons.

        v_t = α v_{t-1} + ζ I_t - v_th z_{t-1}          α = exp(-dt/τ_v)
        z_t = 1 if v_t > v_th and not refractory        ζ = 1, or 1 - α

    After a spike a neuron is silent, with no pseudo-derivative, for `n_refractory - 1` steps
    (0 and 1: no such time). Source: Bellec et al. 2020, equations (6) and (7), and the
    reference implementation's refractory counter.
    """

    n: int = eqx.field(static=True)
    tau_v: Parameter = eqx.field(static=True)
    v_th: Parameter = eqx.field(static=True)
    n_refractory: int | tuple[int, ...] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    scale_current: bool = eqx.field(static=True)
    surrogate: AbstractSurrogate
    spiking: ClassVar[bool] = True

    def __init__(
        self,
        n: int,
        *,
        tau_v: Any = 20.0,
        v_th: Any = 0.6,
        n_refractory: Any = 5,
        dt: float = 1.0,
        scale_current: bool = False,
        surrogate: AbstractSurrogate = Triangular(),  # noqa: B008 (immutable)
    ):
        """**Arguments** (τ_v, v_th and n_refractory are one number, or one per neuron):

        - `n`: number of neurons.
        - `tau_v`: membrane time constant τ_v in ms.
        - `v_th`: threshold, in units of the membrane potential.
        - `n_refractory`: length of the refractory period in steps of dt, the spike's included.
        - `dt`: time step in ms.
        - `scale_current`: whether the input is scaled by ζ = 1 - α (else ζ = 1).
        - `surrogate`: the spike function and its pseudo-derivative.

        Raises `ValueError` for a parameter of another shape or out of range.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.tau_v = checks.parameter("tau_v", tau_v, n, above=0)
        self.v_th = checks.parameter("v_th", v_th, n, above=0)
        self.n_refractory = checks.steps("n_refractory", n_refractory, n)
        self.scale_current = scale_current
        self.surrogate = checks.instance("surrogate", surrogate, AbstractSurrogate, "Triangular()")

    def init(self, batch: int) -> LIFState:
        """Potential 0, not refractory."""
        return LIFState(jnp.zeros((batch, self.n)), jnp.zeros((batch, self.n), jnp.int32))

    def step(self, state: LIFState, current: Array, z_tm1: Array) -> LIFState:
        return LIFState(
            v=_membrane(self, state.v, current, z_tm1),
            refractory=_count_down(self, state.refractory, z_tm1),
        )

    def output(self, state: LIFState) -> Array:
        return _spike(self, state.v, 0.0, state.refractory)


class ALIF(AbstractCell):
    r"""Adaptive leaky integrate-and-fire neurons: each spike raises the threshold for a while.

        v_t = α v_{t-1} + ζ I_t - v_th z_{t-1}          α = exp(-dt/τ_v)
        a_t = ρ a_{t-1} + z_{t-1}                       ρ = exp(-dt/τ_a)
        z_t = 1 if v_t > v_th + β a_t and not refractory

    With β = 0 for some neurons those are LIF neurons. The pseudo-derivative is taken in units
    of the base threshold: ψ = h((v - v_th - β a) / v_th) / v_th.
    Source: Bellec et al. 2020, equations (6) to (10).
    """

    n: int = eqx.field(static=True)
    tau_v: Parameter = eqx.field(static=True)
    v_th: Parameter = eqx.field(static=True)
    n_refractory: int | tuple[int, ...] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    scale_current: bool = eqx.field(static=True)
    tau_a: Parameter = eqx.field(static=True)
    beta: Parameter = eqx.field(static=True)
    surrogate: AbstractSurrogate
    spiking: ClassVar[bool] = True

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
        surrogate: AbstractSurrogate = Triangular(),  # noqa: B008 (immutable)
    ):
        """**Arguments** as for `LIF`, and, one number or one per neuron:

        - `tau_a`: time constant of the adaptation τ_a in ms.
        - `beta`: β, by how much a spike raises the threshold, in units of the membrane potential.

        Raises `ValueError` for a parameter of another shape or out of range.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.tau_v = checks.parameter("tau_v", tau_v, n, above=0)
        self.v_th = checks.parameter("v_th", v_th, n, above=0)
        self.n_refractory = checks.steps("n_refractory", n_refractory, n)
        self.scale_current = scale_current
        self.tau_a = checks.parameter("tau_a", tau_a, n, above=0)
        self.beta = checks.parameter("beta", beta, n)
        self.surrogate = checks.instance("surrogate", surrogate, AbstractSurrogate, "Triangular()")

    def init(self, batch: int) -> ALIFState:
        """Potential and adaptation 0, not refractory."""
        zeros = jnp.zeros((batch, self.n))
        return ALIFState(zeros, zeros, jnp.zeros((batch, self.n), jnp.int32))

    def step(self, state: ALIFState, current: Array, z_tm1: Array) -> ALIFState:
        own_spike = self.output(state)
        return ALIFState(
            v=_membrane(self, state.v, current, z_tm1),
            a=_decay(self.tau_a, self.dt, state.a) * state.a + own_spike,
            refractory=_count_down(self, state.refractory, z_tm1),
        )

    def output(self, state: ALIFState) -> Array:
        shift = _like(self.beta, state.a) * state.a
        return _spike(self, state.v, shift, state.refractory)


class CurrentLIF(AbstractCell):
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
    tau_v: Parameter = eqx.field(static=True)
    v_th: Parameter = eqx.field(static=True)
    n_refractory: int | tuple[int, ...] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    scale_current: bool = eqx.field(static=True)
    tau_i: Parameter = eqx.field(static=True)
    surrogate: AbstractSurrogate
    spiking: ClassVar[bool] = True

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
        surrogate: AbstractSurrogate = Triangular(),  # noqa: B008 (immutable)
    ):
        """**Arguments** as for `LIF`, and, one number or one per neuron:

        - `tau_i`: time constant of the synaptic current τ_i in ms.

        Raises `ValueError` for a parameter of another shape or out of range.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.tau_v = checks.parameter("tau_v", tau_v, n, above=0)
        self.v_th = checks.parameter("v_th", v_th, n, above=0)
        self.n_refractory = checks.steps("n_refractory", n_refractory, n)
        self.scale_current = scale_current
        self.tau_i = checks.parameter("tau_i", tau_i, n, above=0)
        self.surrogate = checks.instance("surrogate", surrogate, AbstractSurrogate, "Triangular()")

    def init(self, batch: int) -> CurrentLIFState:
        """Current and potential 0, not refractory."""
        zeros = jnp.zeros((batch, self.n))
        return CurrentLIFState(zeros, zeros, jnp.zeros((batch, self.n), jnp.int32))

    def step(self, state: CurrentLIFState, current: Array, z_tm1: Array) -> CurrentLIFState:
        return CurrentLIFState(
            i=_decay(self.tau_i, self.dt, state.i) * state.i + current,
            v=_membrane(self, state.v, state.i, z_tm1),
            refractory=_count_down(self, state.refractory, z_tm1),
        )

    def output(self, state: CurrentLIFState) -> Array:
        return _spike(self, state.v, 0.0, state.refractory)


# The equations that these cells share, each written once.


def _like(constant: Any, x: Array) -> Array:
    """A constant of the cell, or one per neuron, in x's dtype; x is `[batch, n]`."""
    array = jnp.asarray(constant, x.dtype)
    return array if array.ndim == 0 else array[None]


def _decay(tau: Parameter, dt: float, x: Array) -> Array:
    return _like(np.exp(-dt / np.asarray(tau)), x)


def _membrane(cell: LIF | ALIF | CurrentLIF, v_tm1: Array, current: Array, z_tm1: Array) -> Array:
    alpha = _decay(cell.tau_v, cell.dt, v_tm1)
    if cell.scale_current:
        current = _like(-np.expm1(-cell.dt / np.asarray(cell.tau_v)), v_tm1) * current
    return alpha * v_tm1 + current - _like(cell.v_th, v_tm1) * z_tm1


def _count_down(cell: LIF | ALIF | CurrentLIF, refractory: Array, z_tm1: Array) -> Array:
    n_refractory = _like(cell.n_refractory, refractory)
    started = n_refractory * (z_tm1 > 0).astype(refractory.dtype)
    return jnp.clip(refractory + started - 1, 0, n_refractory)


def _spike(
    cell: LIF | ALIF | CurrentLIF, v: Array, shift: Array | float, refractory: Array
) -> Array:
    v_th = _like(cell.v_th, v)
    return cell.surrogate.spike((v - v_th - shift) / v_th, silent=refractory > 0)
