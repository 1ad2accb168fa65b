"""The neurons of a layer once more, each by itself, under the currents that they got.

What the network did is known, so nothing here needs the recurrence: it is how the neurons are
differentiated, in reverse and forward.
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .cells import hidden_variables
from .layer import Layer
from .record import Block
from .sequences import preceding


class NeuronsOf(eqx.Module):
    """The neurons of a layer over a block, as a function to differentiate.

    `(cells' arrays, hidden variables at first, I_t) -> (z_t, s_t or None, hidden variables
    at last)`, with the z_{t-1} that the network saw.
    """

    layer: Layer
    counters: Any
    z_tm1: Float[Array, "time batch n"]
    currents: Float[Array, "time batch n_post"]
    with_states: bool = eqx.field(static=True)

    def __call__(self, arrays: Any, hidden: list[Array], currents: Array) -> Any:
        neurons = eqx.combine(arrays, self.layer.neurons)

        def step(states, now):
            states, z = neurons.step(states, *now)
            return states, (z, hidden_variables(states) if self.with_states else None)

        structure = jax.tree.structure(self.counters, is_leaf=lambda x: x is None)
        leaves = jax.tree.leaves(self.counters, is_leaf=lambda x: x is None)
        floats = iter(hidden)
        start = structure.unflatten([next(floats) if x is None else x for x in leaves])
        last, (spikes, states) = jax.lax.scan(step, start, (currents, self.z_tm1))
        return spikes, states, hidden_variables(last)


def neurons_of(
    layer: Layer, w: dict[str, Array], block: Block, pre: dict[str, Array], *, with_states: bool
) -> NeuronsOf:
    """The neurons of a block again, under the currents that they got."""
    spikes = block.spikes.astype(layer.dtype)
    currents = layer.currents(pre, w) if block.currents is None else block.currents
    counters = eqx.filter(block.start.neurons, eqx.is_inexact_array, inverse=True)
    z_tm1 = preceding(block.start.spikes, spikes)
    return NeuronsOf(layer, counters, z_tm1, currents, with_states)
