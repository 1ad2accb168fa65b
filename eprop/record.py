"""The run of a layer, block by block, and what is kept of it.

Memory, not arithmetic, sets the time. So a long sequence is worked through in blocks of steps
that fit into the processor's cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layer import Layer, LayerState
from .sequences import Blocks, block_length, cut, join, scan_blocks

BLOCK_BYTES = 2**20
"""About how large a float array over the steps of a block, the batch and the neurons may be.

What is needed for some steps only is computed for a block of them, in memory that stays in the
cache.
"""


class Block(NamedTuple):
    """What the forward pass keeps of some steps."""

    start: LayerState
    below: Array
    spikes: Array
    """z_t, booleans if so asked for."""
    currents: Array | None
    """I_t; `None` to have them computed again."""


class Ran(NamedTuple):
    """What came of a stretch of a layer's run."""

    end: LayerState
    blocks: Blocks
    """Of `Block`."""
    drive: Float[Array, "time batch n_out"] | None
    """z_t W_out of this layer; `None` if the readout does not see it."""
    spikes: Array
    """z_t, booleans if the layer is spiking."""
    states: tuple[Any, ...]


def all_spikes(blocks: Blocks) -> Array:
    """z_t of all steps, from the blocks of a run."""
    return join(Blocks(blocks.whole.spikes, None if blocks.rest is None else blocks.rest.spikes))


def block_steps(layer: Layer, n_steps: int, batch: int) -> int:
    """How many steps to work on at a time, for their arrays to fit into the cache.

    The arrays are no smaller than the synapses' gradient, which each block is added to, and the
    steps about as many as the longest delay's, whose history each block begins with.
    """
    weights = jax.tree.leaves(jax.eval_shape(layer.effective))
    itemsize = jnp.dtype(layer.dtype).itemsize
    gradient_bytes = sum(x.size for x in weights) * itemsize
    longest_delay = max([1, *(int(steps.max()) for steps in layer.delays.values())])
    fitting = max(BLOCK_BYTES, gradient_bytes) // (batch * layer.n * itemsize)
    return block_length(n_steps, max(longest_delay, fitting))


def run_layer(
    layer: Layer,
    w: dict[str, Array],
    w_out: Float[Array, "n n_out"] | None,
    start: LayerState,
    below: Array,
    *,
    stop_z_gradients: bool,
    as_bytes: bool,
    keep_currents: bool,
    perturbation: Float[Array, "time batch n"] | None = None,
) -> Ran:
    """Runs a layer with its `effective` weights `w`, as `Layer.unroll` does a block.

    **Arguments:** `w_out`: the readout's weights of these neurons, if it sees them; `as_bytes`:
    whether the spikes of a spiking layer are kept as one byte each, which carry no gradient;
    `keep_currents`: whether I_t is kept.
    """
    as_bytes = as_bytes and layer.neurons.spiking

    def of_block(state, now):
        below, perturbation = now
        end, z, states, currents = layer.unroll(
            state, below, w, stop_z_gradients=stop_z_gradients, perturbation=perturbation
        )
        spikes = z > 0 if as_bytes else z
        drive = None if w_out is None else z @ w_out
        block = Block(state, below, spikes, currents if keep_currents else None)
        return end, (block, (drive, states))

    blocks = cut((below, perturbation), block_steps(layer, *below.shape[:2]))
    end, results = scan_blocks(of_block, start, blocks)
    (whole, seen), (rest, last) = results.whole, results.rest or (None, None)
    drive, states = join(Blocks(seen, last))
    records = Blocks(whole, rest)
    return Ran(end, records, drive, all_spikes(records), states)
