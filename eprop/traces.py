"""Eligibility traces: how each synapse has changed its neuron's state, forward in time.

    ε_t = D_t ε_{t-1} + b_t pre_t        the eligibility vector, one entry per hidden variable
    e_t = c_t · ε_t                      the eligibility trace
    ē_t = κ ē_{t-1} + g e_t              the trace as the readout filters it

with the Jacobians D, b and c of the neuron's own equations. For `ALIF` this is formula (25) of
Bellec et al. 2020. A constant θ of the cell that is trained has a trace as well, one per neuron:
its ε_t = D_t ε_{t-1} + ∂s_t/∂θ and e_t = c_t · ε_t + ∂z_t/∂θ.

Take `ALIF`, with hidden variables (v, a). Its D is [[α, 0], [ψ, ρ - ψβ]] and its b is (1, 0). So
ε_v is the presynaptic activity filtered by α, whatever the postsynaptic neuron does: a *common*
vector, `[batch, n_pre]`. ε_a depends on the neuron's ψ: `[batch, fan_in, n]`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .cells import AbstractCell, Jacobians, Port, hidden_variables
from .layer import Layer, LayerState
from .replay import NeuronsOf, trained_constants
from .synapses import AbstractSynapses


class PortTraces(NamedTuple):
    """The traces of some synapses that lead to one current of one population."""

    vectors: list[Array]
    """ε, one array per hidden variable of the cell: `[batch, n_pre]` if it is common (see
    `common_traces`), else `[batch, fan_in, n]`."""
    filtered: Float[Array, "batch fan_in n"]
    """ē."""


class ConstantTraces(NamedTuple):
    """The traces of the constants that are trained, as many as there are `directions`."""

    vectors: list[Float[Array, "batch directions _"]]
    """ε of each hidden variable of each population."""
    filtered: Float[Array, "batch directions n"]
    """ē."""


class LayerTraces(NamedTuple):
    """All traces of a layer. Every array has a leading axis of examples."""

    synapses: dict[str, list[PortTraces]]
    """Of the layer's `synapses`, for each port of the neurons."""
    constants: ConstantTraces
    spikes: Float[Array, "batch n"]
    """κ-filtered g z_t: the trace of the layer's synapses onto the readout."""


def init_traces(layer: Layer, batch: int) -> LayerTraces:
    """Before the first step: nothing has come from a synapse; constants may set the first state."""

    def of_port(synapses: AbstractSynapses, port: Port) -> PortTraces:
        n = port.neurons.stop - port.neurons.start
        fan_in = jax.eval_shape(synapses.spread, jax.eval_shape(synapses.effective)).shape[0]
        zeros = jnp.zeros((batch, fan_in, n), layer.dtype)
        common = jnp.zeros((batch, synapses.n_pre), layer.dtype)
        commons = common_traces(layer.neurons.cells[port.population])[port.current]
        return PortTraces([zeros if x is None else common for x in commons], zeros)

    synapses = {
        kind: [of_port(synapses, port) for port in layer.neurons.ports]
        for kind, synapses in layer.synapses.items()
    }
    nothing = jnp.zeros((batch, layer.n), layer.dtype)
    return LayerTraces(synapses, _init_constants(layer, batch), nothing)


# Vectors that are the same for all postsynaptic neurons.


class CommonVector(NamedTuple):
    """ε_t = Σ_l D_l ε^l_{t-1} + b pre_t, with D and b the same number for all neurons."""

    state: tuple[float, ...]
    """D_l of each hidden variable, 0 for those that are not common."""
    current: float
    """b."""


def common_traces(cell: AbstractCell) -> list[list[CommonVector | None]]:
    """For each current and each hidden variable the constants of its vector, if that is common.

    It is where D and b are constants, equal for all neurons, that lead from the current and from
    other such variables only. The cell's arrays count as unknown, whether they are traced or not.
    """
    with jax.ensure_compile_time_eval():
        state = cell.init(1)
        z = jnp.zeros_like(hidden_variables(state)[0])
        current = z if cell.n_currents == 1 else jnp.stack([z] * cell.n_currents)
    by_state, by_current = _constants(cell, state, current, z)
    of_currents = range(cell.n_currents)
    return [_common(by_state, [row[k] for row in by_current]) for k in of_currents]


def _common(
    by_state: list[list[np.ndarray | None]], by_current: list[np.ndarray | None]
) -> list[CommonVector | None]:
    common = [True] * len(by_state)

    def is_common(row, b):
        relevant = [x for x, known in zip(row, common, strict=True) if known]
        others = [x for x, known in zip(row, common, strict=True) if not known]
        equal = all(x is not None and (x == x.flat[0]).all() for x in [*relevant, b])
        return equal and all(x is not None and not x.any() for x in others)

    for _ in by_state:  # one variable found to differ makes those that it drives differ
        common = [is_common(row, b) for row, b in zip(by_state, by_current, strict=True)]
    return [
        CommonVector(
            tuple(float(x.flat[0]) if x is not None else 0.0 for x in row), float(b.flat[0])
        )
        if known and b is not None
        else None
        for row, b, known in zip(by_state, by_current, common, strict=True)
    ]


def _constants(cell: AbstractCell, *args: Any) -> Any:
    """The entries of the cell's `linear_step`, `None` for those that are no constants."""
    arrays, rest = eqx.partition(cell, eqx.is_array)

    def linear_step(arrays, *args):
        return eqx.combine(arrays, rest).linear_step(*args)

    jaxpr, shapes = jax.make_jaxpr(linear_step, return_shape=True)(arrays, *args)
    varying = {id(x) for x in jaxpr.jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(x) in varying for x in equation.invars):
            varying |= {id(x) for x in equation.outvars}
    with jax.ensure_compile_time_eval():
        values = jax.tree.leaves(linear_step(arrays, *args))
    leaves = [
        None if id(variable) in varying or isinstance(value, jax.core.Tracer) else np.asarray(value)
        for variable, value in zip(jaxpr.jaxpr.outvars, values, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def lead_common(
    common: Sequence[CommonVector | None],
    vectors: list[Array],
    pre: Float[Array, "time batch n_pre"],
) -> list[Float[Array, "batch n_pre"] | None]:
    """The common vectors after some steps: Σ_t D^(K-t) b pre_t + D^K ε; `None` for the others."""
    d = len(common)
    matrix = np.array([row.state if row else [0.0] * d for row in common])
    b = np.array([row.current if row else 0.0 for row in common])
    response, power = [], np.eye(d)
    for _ in range(len(pre)):  # from the last step back
        response.append(power @ b)
        power = power @ matrix
    weights = jnp.asarray(np.array(response[::-1]), pre.dtype)  # [time, d]

    def lead(k):
        old = sum(float(power[k, i]) * vectors[i] for i, row in enumerate(common) if row)
        return old + jnp.tensordot(weights[:, k], pre, 1)

    return [None if row is None else lead(k) for k, row in enumerate(common)]


def _step_common(
    common: CommonVector, vectors: list[Array], pre: Float[Array, "batch n_pre"]
) -> Float[Array, "batch n_pre"]:
    """The same for one step."""
    terms = [d * x for d, x in zip(common.state, vectors, strict=True) if d != 0]
    return functools.reduce(jnp.add, terms, common.current * pre)


# Synapse by synapse.


def by_synapse(
    synapses: AbstractSynapses, vector: Array, port: Port
) -> Float[Array, "batch fan_in _"]:
    """ε of each synapse that leads to a port: `[batch, fan_in, n]`, or `[batch, fan_in, 1]`."""
    if vector.ndim == 3:
        return vector
    seen = synapses.seen(vector)
    return seen if seen.shape[-1] == 1 else seen[..., port.columns]


def step_traces(
    synapses: AbstractSynapses,
    port: Port,
    common: Sequence[CommonVector | None],
    traces: PortTraces,
    jacobians: Jacobians,
    pre: Float[Array, "batch n_pre"],
    kappa: float,
    gain: float,
) -> tuple[PortTraces, Float[Array, "batch fan_in n"]]:
    """One step of the recursion; returns the new traces, and e_t."""
    d, n = jacobians.state.shape[0], jacobians.state.shape[-1]
    b = jacobians.current.reshape(d, -1, *pre.shape[:1], n)[:, port.current]  # [d, batch, n]
    old = [by_synapse(synapses, x, port) for x in traces.vectors]
    seen = by_synapse(synapses, pre, port)
    vectors = [
        sum_of_products(jacobians.state[k], old) + b[k][:, None] * seen
        if constants is None
        else _step_common(constants, traces.vectors, pre)
        for k, constants in enumerate(common)
    ]
    now = [by_synapse(synapses, x, port) for x in vectors]
    trace = sum_of_products(jacobians.output, now)
    filtered = kappa * traces.filtered + gain * trace
    return PortTraces(vectors, filtered), trace


def sum_of_products(
    factors: Sequence[Float[Array, "batch n"]] | Float[Array, "d batch n"],
    vectors: Sequence[Float[Array, "batch fan_in _"]],
) -> Float[Array, "batch fan_in n"]:
    """Σ_k factor_k · vector_k, the factors being those of the postsynaptic neurons."""
    products = (x[:, None] * vector for x, vector in zip(factors, vectors, strict=True))
    return functools.reduce(jnp.add, products)


def sum_over_batch(
    signals: Sequence[Float[Array, "batch n"]],
    traces: Sequence[Float[Array, "batch fan_in _"]],
) -> Float[Array, "fan_in n"]:
    """Σ_b Σ_k signal_k,bj trace_k,bij: what the traces make of the signals on their neurons.

    One example after the other: every trace is read once, and the sum stays in the cache.
    """

    def add(total, example):
        return total + sum(
            signal[None] * trace for signal, trace in zip(*example, strict=True)
        ), None

    shape = (traces[0].shape[1], signals[0].shape[1])
    nothing = jnp.zeros(shape, signals[0].dtype)
    return jax.lax.scan(add, nothing, (list(signals), list(traces)))[0]


# The trained constants of the cells.


class _Constant(NamedTuple):
    """A trained array, and the neurons of its population."""

    array: Array
    neurons: slice

    @property
    def is_per_neuron(self) -> bool:
        n = self.neurons.stop - self.neurons.start
        return self.array.ndim > 0 and self.array.shape[-1] == n

    @property
    def shape_of_directions(self) -> tuple[int, ...]:
        return self.array.shape[:-1] if self.is_per_neuron else self.array.shape

    @property
    def n_directions(self) -> int:
        return math.prod(self.shape_of_directions)


def _each_constant(layer: Layer) -> list[_Constant]:
    of_populations = [port.neurons for port in layer.neurons.ports if port.current == 0]
    return [
        _Constant(array, neurons)
        for cell, neurons in zip(trained_constants(layer).cells, of_populations, strict=True)
        for array in jax.tree.leaves(cell)
    ]


def directions(layer: Layer) -> tuple[Any, int]:
    """All directions in which the trained constants can move: arrays with such an axis first.

    An array `[..., n]` of a population of n neurons has a direction for each of its leading
    entries: all neurons are moved at once, as each is changed by its own number only. Any other
    array has one for each entry. Returns the number of directions, too.
    """
    constants, begin, moved = _each_constant(layer), 0, []
    count = sum(x.n_directions for x in constants)
    for x in constants:
        basis = np.zeros((count, x.n_directions))
        basis[begin : begin + x.n_directions] = np.eye(x.n_directions)
        basis = basis.reshape(count, *x.shape_of_directions, *[1] * x.is_per_neuron)
        moved.append(jnp.broadcast_to(jnp.asarray(basis, x.array.dtype), (count, *x.array.shape)))
        begin += x.n_directions
    return jax.tree.unflatten(jax.tree.structure(trained_constants(layer)), moved), count


def collect_constants(layer: Layer, of_directions: Float[Array, "directions n"]) -> Any:
    """A sum for each direction and neuron as one for each entry of the trained constants."""
    begin, collected = 0, []
    for x in _each_constant(layer):
        sums = of_directions[begin : begin + x.n_directions, x.neurons]
        sums = sums if x.is_per_neuron else sums.sum(-1)
        collected.append(sums.reshape(x.array.shape))
        begin += x.n_directions
    return jax.tree.unflatten(jax.tree.structure(trained_constants(layer)), collected)


def _init_constants(layer: Layer, batch: int) -> ConstantTraces:
    moved, count = directions(layer)
    arrays = trained_constants(layer)

    def first_state(arrays):
        return hidden_variables(eqx.combine(arrays, layer.neurons).init(batch))

    def along(direction):
        return jax.jvp(first_state, (arrays,), (direction,))[1]

    if count == 0:
        vectors = [x[:, None][:, :0] for x in first_state(arrays)]
    else:
        vectors = jax.vmap(along, out_axes=1)(moved)
    vectors = [x.astype(layer.dtype) for x in vectors]
    return ConstantTraces(vectors, jnp.zeros((batch, count, layer.n), layer.dtype))


def lead_constants(
    layer: Layer,
    run: NeuronsOf,
    start: LayerState,
    traces: ConstantTraces,
    kappa: float,
    gain: float,
) -> tuple[ConstantTraces, Float[Array, "time batch directions n"]]:
    """The traces after some steps, and e_t of each: forward differentiation of the neurons."""
    moved, count = directions(layer)
    hidden = hidden_variables(start.neurons)
    if count == 0:
        n_steps, batch, n = run.z_tm1.shape
        return traces, jnp.zeros((n_steps, batch, 0, n), layer.dtype)

    def along(direction, vectors):
        def of_constants(arrays, hidden):
            spikes, _, last = run(arrays, hidden, run.currents)
            return spikes, last

        at = (trained_constants(layer), hidden)
        return jax.jvp(of_constants, at, (direction, vectors))[1]

    trace, vectors = jax.vmap(along, in_axes=(0, 1), out_axes=(2, 1))(moved, traces.vectors)
    ages = np.arange(len(trace) - 1, -1, -1)
    fading = jnp.asarray(gain * kappa**ages, trace.dtype)
    filtered = kappa ** len(trace) * traces.filtered + jnp.tensordot(fading, trace, 1)
    return ConstantTraces(vectors, filtered), trace
