"""E-prop of one layer in reverse, on compiled programs: see `reverse`, whose numbers these are.

The record is not cut: programs are told at which step of it a block begins.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .cells import hidden_variables
from .compiled import CompiledLayer
from .kernels import Cotangents, Events, event_product
from .layer import trained_constants
from .record import Block, whole_run
from .sequences import Blocks, cut, join, scan_blocks
from .signals import (
    Later,
    LayerGradients,
    Reversed,
    Signals,
    UnitSignal,
    before_delay,
)


def reverse_compiled(
    layer: CompiledLayer,
    w: dict[str, Array],
    b: Float[Array, "n n_out"],
    blocks: Blocks,
    signals: Signals,
    *,
    units: Sequence[UnitSignal],
    of_below: bool,
) -> Reversed:
    """From the last block to the first."""
    start, below, spikes = whole_run(blocks)
    events = layer.events_below(start, below)
    seen = None if events is None else Events(events)
    z_t, z_tm1 = Events(spikes), Events(spikes, start.spikes > 0)

    def of_block(later: Later, now: tuple[Int[Array, " time"], Block, Signals, Any]):
        steps, block, signals, fading = now
        graded = None
        if seen is None or of_below:
            graded = layer.layer.delayed_below(block.start, block.below)
        drive = layer.drive(w, events, graded)
        drive = layer.with_recurrent(drive, z_tm1, w)

        error = signals.error, b.T  # whose product is ℓ_t, [time, batch, n]
        functions = [
            Cotangents(later.costates, signals.spikes, signals.states, error),
            *map(Cotangents, later.units, fading),
        ]
        states, n_steps = block.start.neurons, len(steps)
        of_loss, *of_units = layer.neurons.back(
            drive, z_tm1, steps[0], n_steps, states, layer.constants, functions
        )
        r = of_loss.currents

        so_far = later.gradients
        weights = dict(so_far.weights)
        if "recurrent" in w:
            weights["recurrent"] = event_product(z_tm1, r, steps[0], weights["recurrent"])
        if "bias" in w:
            weights["bias"] = weights["bias"] + r.sum((0, 1))[None]
        if seen is not None:
            weights["below"] = event_product(seen, r, steps[0], weights["below"])
        d_pre = None
        if graded is not None:
            _, of_currents = jax.vjp(layer.layer.below.currents, w["below"], graded)
            d_below, d_pre = of_currents(r)
            if seen is None:
                weights["below"] = weights["below"] + d_below
        gradients = LayerGradients(
            weights,
            jax.tree.map(jnp.add, so_far.constants, of_loss.arrays),
            event_product(z_t, signals.error, steps[0], so_far.readout),
        )

        of_pre = d_pre if of_below else None
        earlier = Later(of_loss.before, gradients, [unit.before for unit in of_units])
        return earlier, (of_pre, [unit.currents for unit in of_units])

    length = blocks.whole.spikes.shape[1]
    of_time = cut((jnp.arange(len(spikes)), signals, [unit.fading for unit in units]), length)
    together = Blocks(*map(_with_block, of_time, blocks))
    constants, structure = jax.tree.flatten(trained_constants(layer.layer))
    nothing = LayerGradients(
        jax.tree.map(jnp.zeros_like, w),
        [jnp.zeros_like(x) for x in constants],
        jnp.zeros_like(b),
    )
    costates = [jnp.zeros_like(x) for x in hidden_variables(start.neurons)]
    last = Later(costates, nothing, [unit.at_end for unit in units])
    first, by_step = scan_blocks(of_block, last, together, reverse=True)
    d_pre, unit_currents = join(by_step)
    found = first.gradients
    gradients = LayerGradients(
        layer.layer.joined(found.weights), structure.unflatten(found.constants), found.readout
    )
    d_below = None if d_pre is None else before_delay(layer.layer, d_pre)
    return Reversed(first.costates, gradients, d_below, first.units, unit_currents)


def _with_block(of_time: Any, block: Block | None) -> Any:
    return None if block is None else (of_time[0], block, *of_time[1:])
