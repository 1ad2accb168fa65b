"""E-prop of one layer a window of steps at a time: the reverse pass, and traces between windows.

What came before the window enters by the carried eligibility vectors, times the costates before
its first step. What leaves it are the old vectors, led through the window by the derivatives of
its last hidden variables (unit signals of the reverse pass), and what has arrived in it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .cells import Port, hidden_variables
from .common_vectors import CommonVector, common_traces, lead_common
from .compiled import compiled
from .constant_traces import ConstantTraces, collect_constants, lead_constants
from .kernels import Events, event_traces
from .layer import Layer
from .record import Block, whole_run
from .replay import neurons_of
from .reverse import reverse
from .sequences import Blocks, leaky_filter, scan_blocks
from .signals import CreditSignal, LayerGradients, Signals, UnitSignal
from .synapses import AbstractSynapses
from .traces import (
    Credit,
    LayerTraces,
    PortTraces,
    by_synapse,
    sum_of_products,
    sum_over_batch,
)


def window_gradients(
    layer: Layer,
    w: dict[str, Array],
    b: Float[Array, "n n_out"],
    blocks: Blocks,
    signals: Signals,
    traces: LayerTraces,
    kappa: float,
    gain: float,
) -> tuple[LayerTraces, LayerGradients]:
    """One window of a layer. Returns the traces after it, and its share of the gradient."""
    nothing = jnp.zeros_like(signals.error[0])
    error = leaky_filter(signals.error, kappa, nothing, reverse=True)
    error_before = kappa * error[0]  # of the readout before the first step, [batch, n_out]
    ages = np.arange(len(error) - 1, -1, -1)
    fading = jnp.asarray(gain * kappa**ages, layer.dtype)  # of z_t in the readout at the end

    commons = [common_traces(cell) for cell in layer.neurons.cells]
    units, unit_of = _unit_signals(layer, commons, signals.error.shape[1], fading)
    on_z = len(units) - 1
    credit_error = None
    if signals.credit is not None:  # what F is of, as one more function of the spikes
        credit_error = leaky_filter(signals.credit.error, kappa, nothing, reverse=True)
        units.append(UnitSignal(gain * credit_error @ b.T, units[on_z].at_end))
    result = reverse(
        layer,
        w,
        b,
        blocks,
        signals._replace(error=gain * error, credit=None),
        units=units,
    )

    start, below, spikes = whole_run(blocks)
    fast = compiled(layer, len(error)) if spikes.dtype == bool else None
    pre = layer.presynaptic(start, below, spikes.astype(layer.dtype))
    n_steps, batch = signals.error.shape[:2]
    faded = kappa**n_steps

    def weighted(kind: str, weights: Float[np.ndarray, "time m"]) -> Float[Array, "batch n_pre m"]:
        """Σ_t (what synapses have seen) · weights_t."""
        by_time = jnp.asarray(weights, layer.dtype)
        if fast is None or kind != "dense":
            return jnp.einsum("tbi,tm->bim", pre[kind], by_time)
        shape = (n_steps, batch, weights.shape[1])
        nothing = jnp.zeros((batch, pre[kind].shape[-1], weights.shape[1]), layer.dtype)
        by_time = jnp.broadcast_to(by_time[:, None], shape)
        return fast.arrived(start, below, spikes, by_time, nothing)

    def before(synapses: AbstractSynapses, port: Port, old: PortTraces) -> Array:
        """What the signals of the window make of the traces from before it."""
        costates = layer.neurons.hidden_of(port.population, result.costates)
        readout = (error_before @ b.T)[:, port.neurons]
        vectors = [by_synapse(synapses, x, port) for x in old.vectors]
        return sum_over_batch([*costates, readout], [*vectors, old.filtered])

    def lead(
        unit: int, kind: str, synapses: AbstractSynapses, port: Port, old: PortTraces
    ) -> Float[Array, "batch fan_in n"]:
        """The derivative of a unit signal with respect to each synapse, in each example."""
        vectors = [by_synapse(synapses, x, port) for x in old.vectors]
        of_port = layer.neurons.hidden_of(port.population, result.unit_costates[unit])
        r = result.unit_currents[unit][..., port.columns]
        led = sum_of_products(of_port, vectors)
        if fast is not None and kind == "dense":
            return fast.arrived(start, below, spikes, r, led)
        return led + _arrived(synapses, port, pre[kind], r)

    def after(kind: str, synapses: AbstractSynapses, port: Port, old: PortTraces) -> PortTraces:
        """The traces at the end of the window."""
        here = (kind, synapses, port, old)
        common = commons[port.population][port.current]
        units_here = unit_of[port.population]
        leading = lead_common(common, old.vectors, n_steps, functools.partial(weighted, kind))
        new = [lead(units_here[k], *here) if x is None else x for k, x in enumerate(leading)]
        return PortTraces(new, faded * old.filtered + lead(on_z, *here))

    def credit_after(old: Credit, signal: CreditSignal, error: Array) -> Credit:
        """F at the end of the window; `error` is the signal's, led back through the leak."""
        before = kappa * error[0]  # of the readout before the first step, [batch, n_out]
        on_filtered = before @ b.T

        def of_port(kind: str, synapses: AbstractSynapses, i: int, port: Port) -> Array:
            past = traces.synapses[kind][i]
            led = on_filtered[:, None, port.neurons] * past.filtered
            led = led + lead(on_z + 1, kind, synapses, port, past)
            return signal.decay * old.synapses[kind][i] + led

        of_synapses = {
            kind: [of_port(kind, synapses, *port) for port in enumerate(layer.neurons.ports)]
            for kind, synapses in layer.synapses.items()
        }
        led = traces.spikes[:, :, None] * before[:, None]
        led = led + jnp.einsum("tbj,tbk->bjk", spikes.astype(layer.dtype), gain * error)
        return Credit(of_synapses, signal.decay * old.readout + led)

    weights, new_traces = {}, {}
    for kind, synapses in layer.synapses.items():
        ports = list(zip(layer.neurons.ports, traces.synapses[kind], strict=True))
        sums = jnp.concatenate([before(synapses, *port) for port in ports], axis=1)
        weights[kind] = result.gradients.weights[kind] + synapses.collect(sums)
        new_traces[kind] = [after(kind, synapses, *port) for port in ports]

    of_constants = [
        jnp.einsum("bj,bpj->pj", *pair)
        for pair in zip(result.costates, traces.constants.vectors, strict=True)
    ]
    sums = layer.neurons.over_neurons(of_constants)
    sums = sums + jnp.einsum("bj,bpj->pj", error_before @ b.T, traces.constants.filtered)
    constants = jax.tree.map(jnp.add, result.gradients.constants, collect_constants(layer, sums))
    readout = result.gradients.readout + traces.spikes.T @ error_before
    after_window = LayerTraces(
        new_traces,
        _constants_after(layer, w, blocks, traces.constants, kappa, gain),
        faded * traces.spikes + _faded_spikes(fading, spikes, is_compiled=fast is not None),
    )
    if traces.credit is not None and signals.credit is not None and credit_error is not None:
        credit = credit_after(traces.credit, signals.credit, credit_error)
        after_window = after_window._replace(credit=credit)
    return after_window, LayerGradients(weights, constants, readout)


def _unit_signals(
    layer: Layer,
    commons: list[list[list[CommonVector | None]]],
    batch: int,
    fading: Float[Array, " time"],
) -> tuple[list[UnitSignal], list[dict[int, int]]]:
    """A unit signal on each hidden variable at the end whose vectors differ by neuron, and on z.

    The last one is that on all z_t, as they are in the readout at the end. Returns also, for each
    population, which signal is that of its k-th hidden variable.
    """
    hidden = hidden_variables(layer.init(batch).neurons)
    zeros = [jnp.zeros_like(x) for x in hidden]
    units, unit_of, index = [], [], 0
    for of_population in commons:
        unit_of.append({})
        for k in range(len(of_population[0])):
            if any(of_current[k] is None for of_current in of_population):
                unit_of[-1][k] = len(units)
                at_end = [x + float(i == index) for i, x in enumerate(zeros)]
                units.append(UnitSignal(None, at_end))
            index += 1
    return [*units, UnitSignal(fading, zeros)], unit_of


def _arrived(
    synapses: AbstractSynapses,
    port: Port,
    pre: Float[Array, "time batch n_pre"],
    r: Float[Array, "time batch n"],
) -> Float[Array, "batch fan_in n"]:
    """Σ_t (what a synapse has seen) · r_t, with r_t = d(unit)/dI_t."""

    def seen(pre_t):
        return by_synapse(synapses, pre_t, port)

    batch, fan_in, width = jax.eval_shape(seen, pre[0]).shape
    if width == 1:
        return jnp.einsum("tbf,tbj->bfj", jax.vmap(seen)(pre)[..., 0], r)

    def add(total, now):
        pre_t, r_t = now
        return total + seen(pre_t) * r_t[:, None], None

    return jax.lax.scan(add, jnp.zeros((batch, fan_in, width), r.dtype), (pre, r))[0]


def _faded_spikes(
    fading: Float[Array, " time"], spikes: Shaped[Array, "time batch n"], *, is_compiled: bool
) -> Float[Array, "batch n"]:
    """Σ_t fading_t z_t."""
    if not is_compiled:
        return jnp.tensordot(fading, spikes.astype(fading.dtype), 1)
    by_time = jnp.broadcast_to(fading[:, None, None], (*spikes.shape[:2], 1))
    nothing = jnp.zeros((*spikes.shape[1:], 1), fading.dtype)
    return event_traces(Events(spikes), by_time, 0, nothing)[..., 0]


def _constants_after(
    layer: Layer,
    w: dict[str, Array],
    blocks: Blocks,
    traces: ConstantTraces,
    kappa: float,
    gain: float,
) -> ConstantTraces:
    if traces.filtered.shape[1] == 0:
        return traces

    def of_block(traces: ConstantTraces, block: Block):
        pre = layer.presynaptic(block.start, block.below, block.spikes.astype(layer.dtype))
        run = neurons_of(layer, w, block, pre, with_states=False)
        return lead_constants(layer, run, block.start, traces, kappa, gain)[0], None

    return scan_blocks(of_block, traces, blocks)[0]
