"""E-prop of one layer a window of steps at a time: the reverse pass, and traces between windows.

What came before the window enters by the carried eligibility vectors, times the costates before
its first step. What leaves it are the old vectors, led through the window by the derivatives of
its last hidden variables (unit signals of the reverse pass), and what has arrived in it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .cells import Port, hidden_variables
from .common_vectors import CommonVector, common_traces, lead_common
from .compiled import compiled
from .constant_traces import ConstantTraces, collect_constants, lead_constants
from .kernels import Leads, Traces, faded_spikes
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
    share_weights,
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
    so_far: LayerGradients,
) -> tuple[LayerTraces, LayerGradients]:
    """One window of a layer. Returns the traces after it, and its gradient added to `so_far`."""
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
        so_far=so_far,
        units=units,
        leaves_dense=True,
    )

    start, below, spikes = whole_run(blocks)
    fast = compiled(layer, len(error)) if spikes.dtype == bool else None
    seen = {} if fast is None else fast.seen(start, below, spikes)
    pre = layer.presynaptic(start, below, spikes.astype(layer.dtype))
    n_steps = len(signals.error)
    faded = kappa**n_steps

    def arrived(
        kind: str, synapses: AbstractSynapses, port: Port, r: Array, total: Array
    ) -> Float[Array, "batch fan_in n"]:
        """`total` + Σ_t (what a synapse of a port has seen) · r_t, with r_t = d(unit)/dI_t."""
        if fast is not None and (kind == "dense" or kind in seen):
            return fast.arrived(kind, start, below, seen, r, total, port.columns)
        return total + _arrived(synapses, port, pre[kind], r[..., port.columns])

    def lead(
        kind: str, synapses: AbstractSynapses, port: Port, old: PortTraces, total: Array
    ) -> tuple[PortTraces, Float[Array, "fan_in n"]]:
        """The traces at the end of the window; `total` + what the signals make of those before."""
        costates = layer.neurons.hidden_of(port.population, result.costates)
        common, units_here = commons[port.population][port.current], unit_of[port.population]
        is_common = tuple(row is not None for row in common)
        of_leads = [*(units_here[k] for k, same in enumerate(is_common) if not same), on_z]
        leads = Leads(
            [*costates, (error_before @ b.T)[:, port.neurons]],
            None if result.currents is None else result.currents[..., port.columns],
            [
                layer.neurons.hidden_of(port.population, result.unit_costates[unit])
                for unit in of_leads
            ],
            [result.unit_currents[unit][..., port.columns] for unit in of_leads],
            faded,
            *lead_common(common, n_steps),
            is_common,
        )
        shared, full = ([x for x in old.vectors if x.ndim == rank] for rank in (2, 3))
        traces = Traces(shared, full, old.filtered)
        if fast is not None and kind == "dense":
            traces, total = fast.lead(start, below, seen, traces, leads, total)
        else:
            vectors = [by_synapse(synapses, x, port) for x in old.vectors]
            total = total + sum_over_batch(leads.signals, [*vectors, old.filtered])
            led = _led(traces, vectors, leads)
            currents = [result.unit_currents[unit] for unit in of_leads]
            *full, filtered = (
                arrived(kind, synapses, port, r, x) for r, x in zip(currents, led, strict=True)
            )
            traces = Traces(_common_after(traces, pre[kind], leads), full, filtered)
        of_common, of_full = iter(traces.common), iter(traces.full)
        vectors = [next(of_common if same else of_full) for same in is_common]
        return PortTraces(vectors, traces.filtered), total

    def credit_after(old: Credit, signal: CreditSignal, error: Array) -> Credit:
        """F at the end of the window; `error` is the signal's, led back through the leak."""
        before = kappa * error[0]  # of the readout before the first step, [batch, n_out]
        on_filtered = before @ b.T

        def of_port(kind: str, synapses: AbstractSynapses, i: int, port: Port) -> Array:
            past = traces.synapses[kind][i]
            costates = layer.neurons.hidden_of(port.population, result.unit_costates[on_z + 1])
            vectors = [by_synapse(synapses, x, port) for x in past.vectors]
            factors = [*costates, on_filtered[:, port.neurons]]
            led = signal.decay * old.synapses[kind][i]
            led = led + sum_of_products(factors, [*vectors, past.filtered])
            return arrived(kind, synapses, port, result.unit_currents[on_z + 1], led)

        def of_weights(kind: str, synapses: AbstractSynapses) -> Float[Array, "batch *w"]:
            """Of synapses that share weights: for each weight, without one F for each synapse."""
            costates, r = result.unit_costates[on_z + 1], result.unit_currents[on_z + 1]
            seen, of_seen, of_full = [pre[kind]], [r], []
            for port, past in zip(layer.neurons.ports, traces.synapses[kind], strict=True):
                factors = layer.neurons.hidden_of(port.population, costates)
                full = [(on_filtered[:, port.neurons], past.filtered)]
                for factor, vector in zip(factors, past.vectors, strict=True):
                    if vector.ndim == 3:
                        full.append((factor, vector))
                        continue
                    seen.append(vector[None])  # as if it were seen in one more step
                    of_seen.append(jnp.zeros_like(r[:1]).at[0, :, port.columns].set(factor))
                of_full.append(sum_of_products(*zip(*full, strict=True)))
            led = jax.vmap(synapses.collect)(jnp.concatenate(of_full, axis=-1))
            of_old = old.synapses[kind]
            assert not isinstance(of_old, list)
            led = signal.decay * of_old + led
            return led + _by_weight(synapses, jnp.concatenate(seen), jnp.concatenate(of_seen))

        def of_kind(kind: str, synapses: AbstractSynapses) -> Any:
            if share_weights(synapses):
                return of_weights(kind, synapses)
            return [of_port(kind, synapses, *port) for port in enumerate(layer.neurons.ports)]

        of_synapses = {kind: of_kind(kind, synapses) for kind, synapses in layer.synapses.items()}
        led = traces.spikes[:, :, None] * before[:, None]
        led = led + jnp.einsum("tbj,tbk->bjk", spikes.astype(layer.dtype), gain * error)
        return Credit(of_synapses, signal.decay * old.readout + led)

    weights, new_traces = {}, {}
    for kind, synapses in layer.synapses.items():
        ports = list(zip(layer.neurons.ports, traces.synapses[kind], strict=True))
        total, is_dense = result.gradients.weights[kind], kind == "dense"
        nothing = jnp.zeros((), layer.dtype)
        led = [
            lead(kind, synapses, port, old, total[:, port.columns] if is_dense else nothing)
            for port, old in ports
        ]
        new_traces[kind] = [of_port for of_port, _ in led]
        sums = jnp.concatenate([x for _, x in led], axis=1)
        weights[kind] = sums if is_dense else total + synapses.collect(sums)

    of_constants = [
        jnp.einsum("bj,bpj->pj", *pair)
        for pair in zip(result.costates, traces.constants.vectors, strict=True)
    ]
    sums = layer.neurons.over_neurons(of_constants)
    sums = sums + jnp.einsum("bj,bpj->pj", error_before @ b.T, traces.constants.filtered)
    constants = jax.tree.map(jnp.add, result.gradients.constants, collect_constants(layer, sums))
    readout = result.gradients.readout + traces.spikes.T @ error_before
    if fast is None:
        arriving = jnp.tensordot(fading, spikes.astype(layer.dtype), 1)
    else:
        arriving = faded_spikes(fading, spikes)
    after_window = LayerTraces(
        new_traces,
        _constants_after(layer, w, blocks, traces.constants, kappa, gain),
        faded * traces.spikes + arriving,
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


def _led(
    traces: Traces, vectors: list[Float[Array, "batch fan_in _"]], leads: Leads
) -> list[Float[Array, "batch fan_in n"]]:
    """What the window leaves of ε and ē; `vectors` are ε of each synapse before it."""
    *full, last = (sum_of_products(factors, vectors) for factors in leads.factors)
    return [*full, leads.faded * traces.filtered + last]


def _common_after(
    traces: Traces, pre: Float[Array, "time batch n_pre"], leads: Leads
) -> list[Float[Array, "batch n_pre"]]:
    """The common ε after the window."""
    power, response = (jnp.asarray(x, pre.dtype) for x in (leads.power, leads.response))
    return [
        sum(x * y for x, y in zip(of_common, traces.common, strict=True))
        + jnp.tensordot(weights, pre, 1)
        for of_common, weights in zip(power, response.T, strict=True)
    ]


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
    n_seen = jax.eval_shape(synapses.seen, pre[0]).shape[-1]
    if n_seen < width == synapses.n_post:

        def of_example(now: tuple[Array, Array]) -> Float[Array, "fan_in n"]:
            pre, r = now

            def add(total: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
                seen_t, r_t = now  # [fan_in, n_seen], [n]
                each = seen_t[..., None] * r_t.reshape(1, n_seen, -1)
                return total + each.reshape(total.shape), None

            nothing = jnp.zeros((fan_in, width), r.dtype)
            return jax.lax.scan(add, nothing, (synapses.seen(pre), r))[0]

        # One example after the other: its sum stays in the cache.
        return jax.lax.map(of_example, (pre.swapaxes(0, 1), r.swapaxes(0, 1)))

    def add(total, now):
        pre_t, r_t = now
        return total + seen(pre_t) * r_t[:, None], None

    return jax.lax.scan(add, jnp.zeros((batch, fan_in, width), r.dtype), (pre, r))[0]


def _by_weight(
    synapses: AbstractSynapses,
    pre: Float[Array, "time batch n_pre"],
    r: Float[Array, "time batch n_post"],
) -> Float[Array, "batch *w"]:
    """Σ_t (what a synapse has seen) · r_t of each example, added up for each weight."""
    w = jax.eval_shape(synapses.effective)

    def of_example(now: tuple[Array, Array]) -> Array:
        pre, r = now
        _, pullback = jax.vjp(lambda w: synapses.currents(w, pre), jnp.zeros(w.shape, w.dtype))
        return pullback(r)[0]

    return jax.lax.map(of_example, (pre.swapaxes(0, 1), r.swapaxes(0, 1)))


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
