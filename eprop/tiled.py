"""A layer on programs for a GPU: time is inside them, where XLA would start some at each step.

What is put into the place of `Layer`'s are the two loops over time, that of a run and that of its
derivative in reverse. All else, the products before and after them, is the same and XLA's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .kernels import Tiles
from .layer import Layer, LayerState, Unrolled, trained_constants
from .replay import NeuronsOf
from .sequences import preceding


class TiledLayer:
    """The programs of a layer of one population."""

    def __init__(self, layer: Layer, tiles: Tiles):
        self.layer, self.tiles = layer, tiles
        arrays, self._structure = jax.tree.flatten(trained_constants(layer))
        self.arrays: list[Array] = arrays

    def unroll(self, start: LayerState, below: Array, w: dict[str, Array]) -> Unrolled:
        """`Layer.unroll`."""
        layer = self.layer
        drive = layer.drive(layer.delayed_below(start, below), w)
        (state,) = start.neurons
        spikes, currents, state = self.tiles.run(
            drive, w.get("recurrent"), start.spikes, state, self.arrays
        )
        z = spikes.astype(layer.dtype)
        states = self._states(start, currents, preceding(start.spikes, z))
        end = LayerState((state,), z[-1], layer.past_after(start, below, z))
        return Unrolled(end, z, states, currents)

    def _states(
        self,
        start: LayerState,
        currents: Float[Array, "time batch n_post"],
        z_tm1: Float[Array, "time batch n"],
    ) -> tuple[Any, ...]:
        """Those of all steps, once more: where nobody looks at them, XLA leaves this out."""

        def step(states: Any, now: Any) -> Any:
            states, _ = self.layer.neurons.step(states, *now)
            return states, states

        return jax.lax.scan(step, start.neurons, (currents, z_tm1))[1]

    def pullback(self, run: NeuronsOf, start: LayerState) -> Callable[[Any], Any]:
        """`jax.vjp(run, ...)[1]` of the neurons of a block that begins with `start`."""
        (state,) = start.neurons
        z_tm1 = (run.z_tm1 > 0).astype(jnp.int8)

        def pull_back(cotangents: Any) -> Any:
            d_spikes, d_states, d_after = cotangents
            d_arrays, d_before, r = self.tiles.back(
                run.currents, z_tm1, state, self.arrays, d_spikes, d_states, d_after
            )
            return self._structure.unflatten(d_arrays), d_before, r

        return pull_back
