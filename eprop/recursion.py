"""E-prop as the paper writes it: one step at a time, traces carried forward per synapse.

Each step costs (d + 1) · batch · n_pre · n_post numbers read and written, and no step is kept.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .common_vectors import common_traces
from .constant_traces import collect_constants, lead_constants
from .layer import Layer
from .record import Block
from .replay import neurons_of
from .sequences import Blocks
from .signals import LayerGradients, Signals
from .traces import LayerTraces, by_synapse, step_traces, sum_over_batch


def step_gradients(
    layer: Layer,
    w: dict[str, Array],
    b: Float[Array, "n n_out"],
    blocks: Blocks,
    signals: Signals,
    traces: LayerTraces,
    kappa: float,
    gain: float,
    so_far: LayerGradients,
) -> tuple[LayerTraces, LayerGradients]:
    """One step of a layer, the only one of its `blocks`: the traces after it, and its gradient.

    That is added to those `so_far`.
    """
    block: Block = jax.tree.map(lambda x: x[0], blocks.whole)
    spikes = block.spikes.astype(layer.dtype)
    pre = layer.presynaptic(block.start, block.below, spikes)
    run = neurons_of(layer, w, block, pre, with_states=False)
    jacobians = [
        cell.jacobians(*of_cell)
        for cell, *of_cell in zip(
            layer.neurons.cells,
            block.start.neurons,
            layer.neurons.currents_of_cells(run.currents[0]),
            layer.neurons.by_neurons(run.z_tm1[0]),
            strict=True,
        )
    ]
    commons = [common_traces(cell) for cell in layer.neurons.cells]

    # L ē + (∂E/∂z) e + (∂E/∂s) · ε, for every kind of synapses and every port.
    error = signals.error[0]
    readout = error @ b.T  # L, [batch, n]
    direct = None if signals.spikes is None else signals.spikes[0]
    of_states = None if signals.states is None else [x[0] for x in signals.states]

    def of_port(synapses, port, traces, pre):
        common = commons[port.population][port.current]
        traces, trace = step_traces(
            synapses, port, common, traces, jacobians[port.population], pre[0], kappa, gain
        )
        pairs = [(readout[:, port.neurons], traces.filtered)]
        if direct is not None:
            pairs.append((direct[:, port.neurons], trace))
        if of_states is not None:
            here = layer.neurons.hidden_of(port.population, of_states)
            vectors = [by_synapse(synapses, x, port) for x in traces.vectors]
            pairs += zip(here, vectors, strict=True)
        return traces, sum_over_batch(*map(list, zip(*pairs, strict=True)))

    after, weights = {}, {}
    for kind, synapses in layer.synapses.items():
        ports = zip(layer.neurons.ports, traces.synapses[kind], strict=True)
        results = [of_port(synapses, port, old, pre[kind]) for port, old in ports]
        after[kind] = [traces for traces, _ in results]
        weights[kind] = synapses.collect(jnp.concatenate([sums for _, sums in results], axis=1))

    # The same of the trained constants, whose traces are [batch, directions, n].
    constants, trace = lead_constants(layer, run, block.start, traces.constants, kappa, gain)
    sums = jnp.einsum("bj,bpj->pj", readout, constants.filtered)
    if direct is not None:
        sums = sums + jnp.einsum("bj,bpj->pj", direct, trace[0])
    if of_states is not None:
        products = [
            jnp.einsum("bj,bpj->pj", *pair)
            for pair in zip(of_states, constants.vectors, strict=True)
        ]
        sums = sums + layer.neurons.over_neurons(products)
    filtered_spikes = kappa * traces.spikes + gain * spikes[0]
    gradients = LayerGradients(weights, collect_constants(layer, sums), filtered_spikes.T @ error)
    traces = LayerTraces(after, constants, filtered_spikes)
    return traces, jax.tree.map(jnp.add, so_far, gradients)
