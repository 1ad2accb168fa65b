"""Eligibility traces: how each synapse has changed its neuron's state, forward in time.

    ε_t = D_t ε_{t-1} + b_t pre_t        the eligibility vector, one entry per hidden variable
    e_t = c_t · ε_t                      the eligibility trace
    ē_t = κ ē_{t-1} + g e_t              the trace as the readout filters it
    F_t = γ F_{t-1} + L_t ē_t            where one learns from rewards: `eprop.rewards`

with the Jacobians D, b and c of the neuron's own equations. For `ALIF` this is formula (25) of
Bellec et al. 2020.

Take `ALIF`, with hidden variables (v, a). Its D is [[α, 0], [ψ, ρ - ψβ]] and its b is (1, 0). So
ε_v is the presynaptic activity filtered by α, whatever the postsynaptic neuron does: a *common*
vector, `[batch, n_pre]`. ε_a depends on the neuron's ψ: `[batch, fan_in, n]`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .cells import Jacobians, Port
from .common_vectors import CommonVector, common_traces, step_common
from .constant_traces import ConstantTraces, init_constants
from .layer import Layer
from .synapses import AbstractSynapses


class PortTraces(NamedTuple):
    """The traces of some synapses that lead to one current of one population."""

    vectors: list[Array]
    """ε, one array per hidden variable of the cell: `[batch, n_pre]` if it is common (see
    `common_traces`), else `[batch, fan_in, n]`."""
    filtered: Float[Array, "batch fan_in n"]
    """ē."""


class Credit(NamedTuple):
    """F: learning signals times traces, filtered by γ; each synapse's part in rewards to come."""

    synapses: dict[str, list[Float[Array, "batch fan_in n"]] | Float[Array, "batch *w"]]
    """Of the layer's `synapses`, for each port of the neurons; of those that share weights added up
    for each weight, since a reward is the same for all of an example's."""
    readout: Float[Array, "batch n n_out"]
    """Of the layer's synapses onto the readout."""


class LayerTraces(NamedTuple):
    """All traces of a layer. Every array has a leading axis of examples."""

    synapses: dict[str, list[PortTraces]]
    """Of the layer's `synapses`, for each port of the neurons."""
    constants: ConstantTraces
    spikes: Float[Array, "batch n"]
    """κ-filtered g z_t: the trace of the layer's synapses onto the readout."""
    credit: Credit | None = None
    """F, where one learns from rewards."""


def init_traces(layer: Layer, batch: int) -> LayerTraces:
    """Before the first step: nothing has come from a synapse."""

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
    return LayerTraces(synapses, init_constants(layer, batch), nothing)


def by_synapse(
    synapses: AbstractSynapses, vector: Array, port: Port
) -> Float[Array, "batch fan_in _"]:
    """ε of each synapse that leads to a port: `[batch, fan_in, n]`, or `[batch, fan_in, 1]`."""
    if vector.ndim == 3:
        return vector
    seen = synapses.seen(vector)
    if seen.shape[-1] == 1:
        return seen
    return jnp.repeat(seen, synapses.n_post // seen.shape[-1], axis=-1)[..., port.columns]


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
        else step_common(constants, traces.vectors, pre)
        for k, constants in enumerate(common)
    ]
    now = [by_synapse(synapses, x, port) for x in vectors]
    trace = sum_of_products(jacobians.output, now)
    filtered = kappa * traces.filtered + gain * trace
    return PortTraces(vectors, filtered), trace


def share_weights(synapses: AbstractSynapses) -> bool:
    """Whether there are more synapses than weights."""
    w = jax.eval_shape(synapses.effective)
    return jax.eval_shape(synapses.spread, w).size > w.size


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


def trace_norms(layer: Layer, traces: LayerTraces) -> list[Float[Array, ""]]:
    """Root of the summed squares of ε of all synapses, of each population's hidden variables."""
    norms = []
    for population in range(len(layer.neurons.cells)):
        squares = [
            [_square(synapses, x, port) for x in of_port.vectors]
            for kind, synapses in layer.synapses.items()
            for port, of_port in zip(layer.neurons.ports, traces.synapses[kind], strict=True)
            if port.population == population
        ]
        norms += [jnp.sqrt(sum(of_variable)) for of_variable in zip(*squares, strict=True)]
    return norms


def _square(synapses: AbstractSynapses, vector: Array, port: Port) -> Array:
    """Summed squares of the vectors of all synapses that lead to a port."""
    vectors = by_synapse(synapses, vector, port)
    n = port.columns.stop - port.columns.start
    return jnp.sum(vectors**2) * (n // vectors.shape[-1])
