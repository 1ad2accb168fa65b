"""What is kept of the run of a layer, block by block.

Memory, not arithmetic, sets the time. So a long sequence is worked through in blocks of steps
that fit into the processor's cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .layer import Layer, LayerState
from .sequences import Blocks, block_length, join
from .synapses import Convolution

BLOCK_BYTES = 2**21
"""About how large a float array over the steps of a block, the batch and the neurons may be.

What is needed for some steps only is computed for a block of them, in memory that stays in the
cache.
"""

GPU_BLOCK_BYTES = 2**25
"""The same on a GPU, whose programs go through a block without being started again."""

EXAMPLE_BYTES = 2**18
"""The same for one example, which compiled programs go through by itself."""

CONVOLVED_BYTES = 2**25
"""A run of a layer with convolutions is one block if such an array is no larger than this: a
gradient in smaller ones takes 10 to 30 % longer."""


class Block(NamedTuple):
    """What the forward pass keeps of some steps."""

    start: LayerState
    below: Array
    spikes: Array
    """z_t, booleans if so asked for."""
    currents: Array | None
    """I_t; `None` to have them computed again."""


def all_spikes(blocks: Blocks) -> Array:
    """z_t of all steps, from the blocks of a run."""
    return join(Blocks(blocks.whole.spikes, None if blocks.rest is None else blocks.rest.spikes))


def whole_run(blocks: Blocks) -> tuple[LayerState, Array, Array]:
    """The state before the first step, the activity below and the spikes of all steps."""
    start = jax.tree.map(lambda x: x[0], blocks.whole.start)
    rest = blocks.rest
    below = join(Blocks(blocks.whole.below, None if rest is None else rest.below))
    return start, below, all_spikes(blocks)


def block_steps(layers: Sequence[Layer], n_steps: int, batch: int, *, for_gpu: bool = False) -> int:
    """How many steps to work on at a time, for their arrays to fit into the cache.

    The arrays of the widest layer are no smaller than its synapses' gradient, which each block is
    added to, and the steps about as many as the longest delay's, whose history each block begins
    with.
    """

    def fitting(layer):
        weights = jax.tree.leaves(jax.eval_shape(layer.effective))
        example_bytes = layer.n * jnp.dtype(layer.dtype).itemsize
        gradient_bytes = sum(x.size for x in weights) * jnp.dtype(layer.dtype).itemsize
        step_bytes = batch * example_bytes
        if for_gpu:
            return max(GPU_BLOCK_BYTES // step_bytes, gradient_bytes // step_bytes)
        within = min(BLOCK_BYTES // step_bytes, EXAMPLE_BYTES // example_bytes)
        has_convolution = any(isinstance(x, Convolution) for x in layer.kinds.values())
        if has_convolution and n_steps * step_bytes <= CONVOLVED_BYTES:
            within = n_steps
        return max(within, gradient_bytes // step_bytes)

    delays = [int(steps.max()) for layer in layers for steps in layer.delays.values()]
    return block_length(n_steps, max([*delays, min(map(fitting, layers))]))
