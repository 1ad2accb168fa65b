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
from .kernels import Cotangents, Events, readout_gradient
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
    so_far: LayerGradients,
    units: Sequence[UnitSignal],
    of_below: bool,
    leaves_dense: bool,
) -> Reversed:
    """From the last block to the first."""
    is_alone = blocks.rest is None and len(blocks.whole.spikes) == 1  # this block
    leaves_dense = leaves_dense and is_alone and bool(layer.layer.rows)
    start, below, spikes = whole_run(blocks)
    weights, seen = layer.weights(w), layer.seen(start, below, spikes)
    event_driven = {kind: layer.synapses[kind] for kind in seen}
    z_tm1 = Events(spikes, start.spikes > 0)

    def of_block(
        so_far: tuple[Later, list[Array | None]],
        now: tuple[Int[Array, " time"], Block, Signals, Any],
    ) -> Any:
        later, of_units = so_far
        steps, block, signals, fading = now
        graded = None
        if "below" not in seen or of_below:
            graded = layer.layer.delayed_below(block.start, block.below)
        drive = layer.drive(w, weights, seen, graded)

        error = signals.error, b.T  # whose product is ℓ_t, [time, batch, n]
        functions = [
            Cotangents(later.costates, signals.spikes, signals.states, error),
            *(
                Cotangents(unit, of_unit, currents=r)
                for unit, of_unit, r in zip(later.units, fading, of_units, strict=True)
            ),
        ]
        states, n_steps = block.start.neurons, len(steps)
        of_loss, *of_units = layer.neurons.back(
            drive, z_tm1, steps[0], n_steps, states, layer.constants, functions
        )
        r = of_loss.currents

        of_weights, constants, readout = later.gradients
        of_weights, d_pre = dict(of_weights), None
        for kind, synapses in event_driven.items():
            if leaves_dense and synapses.name == "dense":
                continue
            total = of_weights[synapses.name]
            of_weights[synapses.name] = synapses.add_product(seen[kind], r, steps[0], total)
        if graded is not None:
            _, of_currents = jax.vjp(layer.layer.below.currents, w["below"], graded)
            d_below, d_pre = of_currents(r)
            if "below" in layer.layer.rows and "below" not in seen:
                rows = layer.layer.rows["below"]
                of_weights["dense"] = of_weights["dense"].at[rows].add(d_below)
            elif "below" not in seen:
                of_weights["below"] = of_weights["below"] + d_below
        gradients = LayerGradients(
            of_weights,
            jax.tree.map(jnp.add, constants, structure.unflatten(of_loss.arrays)),
            readout_gradient(spikes, signals.error, steps[0], readout),
        )

        by_step = d_pre if of_below else None, r if leaves_dense else None
        earlier = Later(of_loss.before, gradients, [unit.before for unit in of_units])
        return (earlier, [unit.currents for unit in of_units]), by_step

    length = blocks.whole.spikes.shape[1]
    of_time = cut((jnp.arange(len(spikes)), signals, [unit.fading for unit in units]), length)
    together = Blocks(*map(_with_block, of_time, blocks))
    structure = jax.tree.structure(trained_constants(layer.layer))
    costates = [jnp.zeros_like(x) for x in hidden_variables(start.neurons)]
    ordered = {x.name: x.ordered(so_far.weights[x.name]) for x in event_driven.values()}
    so_far = so_far._replace(weights=so_far.weights | ordered)
    last = Later(costates, so_far, [unit.at_end for unit in units])
    shape = (*spikes.shape[:2], layer.layer.neurons.n_post)
    # Where there is one block its r_t are all there are; else they are written into these.
    nothing = None if is_alone else jnp.zeros(shape, layer.layer.dtype)
    begin = last, [nothing for _ in units]
    (first, unit_currents), by_step = scan_blocks(of_block, begin, together, reverse=True)
    sums = first.gradients.weights
    restored = {x.name: x.restored(sums[x.name]) for x in event_driven.values()}
    gradients = first.gradients._replace(weights=sums | restored)
    d_pre, currents = join(by_step)
    d_below = None if d_pre is None else before_delay(layer.layer, d_pre)
    return Reversed(first.costates, gradients, d_below, first.units, unit_currents, currents)


def _with_block(of_time: Any, block: Block | None) -> Any:
    return None if block is None else (of_time[0], block, *of_time[1:])
