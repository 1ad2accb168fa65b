"""E-prop of one layer in reverse: backpropagation through the neurons, not the network.

With the recurrent spikes held fixed a layer is a set of separate neurons, each driven by its
input currents I_t. Their derivatives need no weights: one reverse scan over neurons turns the
learning signals ℓ_t on their spikes into r_t = dE/dI_t, and the gradient of the synapses is the
reverse-mode derivative of their currents: for a weight matrix the product Σ_t pre_tᵀ r_t.
The proof that this is the recursion's number is in the documentation, under "Derivation".

Memory, not arithmetic, sets the time. So a long sequence is worked through in blocks of steps
that fit into the processor's cache: the forward pass keeps the spikes, one byte each, and the
state at the start of each block. With the spikes known, the reverse pass runs the neurons of a
block again from there; their input currents are one product, or kept where that is cheaper.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .cells import hidden_variables
from .compiled import compiled, tiled
from .compiled_reverse import reverse_compiled
from .layer import Layer, trained_constants
from .record import Block, all_spikes
from .replay import neurons_of
from .sequences import Blocks, cut, join, preceding, scan_blocks
from .sharding import by_neuron, n_parts
from .signals import (
    Later,
    LayerGradients,
    Reversed,
    Signals,
    UnitSignal,
    before_delay,
)
from .synapses import Dense

KEPT_BYTES = 2**24
"""Currents are kept if they are no larger than this (beyond, memory is fresh at each call) ..."""

KEPT_INPUTS = 512
"""... or if each is the sum of more inputs than this, so that adding them up again takes longer."""


def keeps_currents(layer: Layer, n_steps: int, batch: int) -> bool:
    """Whether the input currents of a run are kept, or computed again from the spikes."""
    n_inputs = sum(synapses.n_pre for synapses in layer.synapses.values())
    n_bytes = n_steps * batch * layer.neurons.n_post * jnp.dtype(layer.dtype).itemsize
    is_worth_it = n_bytes <= KEPT_BYTES or n_inputs > KEPT_INPUTS
    if tiled(layer, n_steps) is not None:  # they are what the program saw, to the last bit
        return True
    return is_worth_it and compiled(layer, n_steps) is None  # where only spikes are added up again


def reverse(
    layer: Layer,
    w: dict[str, Array],
    b: Float[Array, "n n_out"],
    blocks: Blocks,
    signals: Signals,
    *,
    so_far: LayerGradients,
    units: Sequence[UnitSignal] = (),
    of_below: bool = False,
    leaves_dense: bool = False,
) -> Reversed:
    """From the last block to the first.

    **Arguments:** `b`: the feedback matrix; `signals`: with the error led back through the
    readout's leak; `so_far`: a sum of gradients, to which this one is added; `units`: other
    functions whose derivatives with respect to the currents are wanted; `of_below`: whether that
    of the loss with respect to the activity below is; `leaves_dense`: whether compiled programs may
    leave what dense synapses make of events to the caller, and give their `currents` instead: where
    all is one block.
    """
    fast = compiled(layer, len(signals.error))
    if fast is not None and blocks.whole.spikes.dtype == bool:
        return reverse_compiled(
            fast,
            w,
            b,
            blocks,
            signals,
            so_far=so_far,
            units=units,
            of_below=of_below,
            leaves_dense=leaves_dense,
        )

    on_gpu = tiled(layer, len(signals.error)) if blocks.whole.currents is not None else None

    def of_block(later: Later, now: tuple[Block, Signals, Array, Any]):
        block, signals, error_tm1, fading = now
        spikes = block.spikes.astype(layer.dtype)
        pre = layer.presynaptic(block.start, block.below, spikes)
        # The neurons of the block again, each by itself, under the currents that they got.
        run = neurons_of(layer, w, block, pre, with_states=signals.states is not None)
        if on_gpu is not None:
            pullback = on_gpu.pullback(run, block.start)
        else:
            at = (trained_constants(layer), hidden_variables(block.start.neurons), run.currents)
            _, pullback = jax.vjp(run, *at)

        d_spikes = signals.error @ b.T  # ℓ_t, [time, batch, n]
        if signals.spikes is not None:
            d_spikes = d_spikes + signals.spikes
        d_constants, costates, r = pullback((d_spikes, signals.states, later.costates))

        d_weights, d_readout = _of_weights(layer, w, pre, spikes, r, signals.error, error_tm1)
        here = LayerGradients(d_weights, d_constants, d_readout)
        gradients = jax.tree.map(jnp.add, later.gradients, here)
        d_pre = None
        if of_below:
            seen = layer.share("below", pre, axis=-1)
            _, of_pre = jax.vjp(lambda x: layer.below.currents(w["below"], x), seen)
            (d_pre,) = of_pre(r)

        unit_costates, unit_currents = [], []
        for unit, on_spikes in zip(later.units, fading, strict=True):
            on_spikes = jnp.zeros(len(spikes), layer.dtype) if on_spikes is None else on_spikes
            on_spikes = on_spikes if on_spikes.ndim == 3 else on_spikes[:, None, None]
            on_spikes = jnp.broadcast_to(on_spikes, spikes.shape)
            on_states = jax.tree.map(jnp.zeros_like, signals.states)
            _, before, of_currents = pullback((on_spikes, on_states, unit))
            unit_costates.append(before)
            unit_currents.append(of_currents)
        return Later(costates, gradients, unit_costates), (d_pre, unit_currents)

    length = blocks.whole.spikes.shape[1]
    error_tm1 = preceding(jnp.zeros_like(signals.error[0]), signals.error)
    with_time = cut((signals, error_tm1, [unit.fading for unit in units]), length)
    together = Blocks(
        (blocks.whole, *with_time.whole),
        None if blocks.rest is None else (blocks.rest, *with_time.rest),
    )
    if _sees_all_spikes(layer):  # the last z_t, which is no later step's z_{t-1}
        last_spikes = all_spikes(blocks)[-1].astype(layer.dtype)
        so_far = so_far._replace(readout=so_far.readout + last_spikes.T @ signals.error[-1])
    of_blocks = hidden_variables(blocks.whole.start.neurons)
    costates = [jnp.zeros_like(x[0]) for x in of_blocks]
    last = Later(costates, so_far, [unit.at_end for unit in units])
    first, by_step = scan_blocks(of_block, last, together, reverse=True)
    d_pre, unit_currents = join(by_step)
    d_below = None if d_pre is None else before_delay(layer, d_pre)
    return Reversed(first.costates, first.gradients, d_below, first.units, unit_currents)


def _of_weights(
    layer: Layer,
    w: dict[str, Array],
    pre: dict[str, Array],
    spikes: Float[Array, "time batch n"],
    r: Float[Array, "time batch n_post"],
    error: Float[Array, "time batch n_out"],
    error_tm1: Float[Array, "time batch n_out"],
) -> tuple[dict[str, Array], Float[Array, "n n_out"]]:
    """The gradient of the synapses from cotangents r_t, and of the readout, Σ_t z_tᵀ error_t.

    Few and large products are fastest: the readout's comes with that of the dense synapses, where
    the recurrent ones see all spikes, though a step later than the readout does.
    """
    others = {kind: x for kind, x in w.items() if kind not in layer.rows}
    _, of_others = jax.vjp(lambda others: layer.currents(pre, w | others), others)
    (gradients,) = of_others(r)
    if layer.rows:
        with_readout = _sees_all_spikes(layer)
        post = jnp.concatenate([r, error_tm1], axis=-1) if with_readout else r
        product = _product(pre["dense"], post)
        gradients["dense"] = by_neuron(product[:, : r.shape[-1]])
        if with_readout:
            return gradients, product[layer.rows["recurrent"], r.shape[-1] :]
    return gradients, _product(error, spikes).T  # XLA transposes the first factor: the smaller


def _sees_all_spikes(layer: Layer) -> bool:
    """Whether what the recurrent synapses see is z_{t-1} of all neurons, in a dense product."""
    is_dense = isinstance(layer.recurrent, Dense) and "recurrent" not in layer.delays
    return is_dense and n_parts() == 1  # else the product's columns are with other devices


def _product(
    pre: Float[Array, "time batch n_pre"], post: Float[Array, "time batch n_post"]
) -> Float[Array, "n_pre n_post"]:
    return jnp.tensordot(pre, post, axes=((0, 1), (0, 1)))
