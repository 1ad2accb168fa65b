"""A layer on compiled, event-driven programs: what it costs follows from the spikes there are.

For layers of spiking neurons on a processor: a row of weights is added for each spike, forward and
once more for the derivative, and a row of the neurons' cotangents for each spike to the gradient.
The numbers are those of `Layer` but for rounding.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .kernels import Neurons, NotTranslatable, event_currents, event_product, neurons_of
from .layer import Layer, LayerState, Unrolled, trained_constants
from .sequences import preceding
from .synapses import Dense

__all__ = ["programs", "without_kernels"]

_ENABLED = contextvars.ContextVar("compiled programs are used", default=True)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Inside, what is traced runs on XLA alone: to compare the two."""
    token = _ENABLED.set(False)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def compiled(layer: Layer, n_steps: int) -> "CompiledLayer | None":
    """The layer as compiled programs; `None` if it is to run on XLA."""
    if n_steps < 2 or not _ENABLED.get():
        return None
    found = programs(layer)
    return None if isinstance(found, str) else CompiledLayer(layer, found)


def programs(layer: Layer) -> Neurons | str:
    """The programs of a layer's neurons, or why it runs on XLA."""
    if jax.default_backend() != "cpu":
        return f"the device is a {jax.default_backend()}"
    if os.name != "posix":
        return f"the system is {os.name}"
    if not layer.neurons.spiking:
        return "its neurons send more than 0 or 1"
    if layer.recurrent is not None and not isinstance(layer.recurrent, Dense):
        return "its recurrent synapses are no matrix"
    if "recurrent" in layer.delays:
        return "its recurrent synapses have delays"
    try:
        neurons = neurons_of(layer.neurons.cells, layer.dtype)
    except NotTranslatable as error:
        return f"its cell has {error}"
    return neurons


class CompiledLayer:
    """The programs of a layer, with its methods."""

    def __init__(self, layer: Layer, neurons: Neurons):
        self.layer, self.neurons = layer, neurons
        self.constants: list[Array] = jax.tree.leaves(trained_constants(layer))

    def unroll(self, start: LayerState, below: Array, w: dict[str, Array]) -> Unrolled:
        """`Layer.unroll`, with booleans for spikes."""
        layer = self.layer
        drive = self._drive(start, below, w)
        w_rec = None if layer.recurrent is None else w["recurrent"]
        spikes, neurons = self.neurons.run(
            drive, w_rec, start.spikes > 0, start.neurons, self.constants
        )
        as_numbers = spikes.astype(layer.dtype)
        end = LayerState(neurons, as_numbers[-1], layer.past_after(start, below, as_numbers))
        z_tm1 = self._z_tm1(start, spikes)
        currents = self._with_recurrent(drive, z_tm1, w)
        states = self.neurons.replay(currents, z_tm1, start.neurons, self.constants)
        return Unrolled(end, spikes, states, currents)

    def again(self, start: LayerState, below: Array, spikes: Array, w: dict[str, Array]) -> "Again":
        """The layer once more, to be differentiated."""
        return Again(self, start, below, spikes, w)

    def _z_tm1(self, start: LayerState, spikes: Array) -> Bool[Array, "time batch n"]:
        return preceding(start.spikes > 0, spikes)

    def events_below(self, start: LayerState, below: Array) -> Bool[Array, "time batch _"] | None:
        """What the synapses from below see, if it is 0 or 1 and they are a matrix."""
        if below.dtype != bool or not isinstance(self.layer.below, Dense):
            return None
        if "below" not in self.layer.delays:
            return below
        return self.layer.delayed_below(start, below) > 0

    def _drive(self, start: LayerState, below: Array, w: dict[str, Array]) -> Array:
        layer, seen = self.layer, self.events_below(start, below)
        if seen is None:
            return layer.drive(layer.delayed_below(start, below), w)
        shape = (*below.shape[:2], layer.neurons.n_post)
        first = w["bias"][None] if layer.bias is not None else jnp.zeros((), layer.dtype)
        return event_currents(seen, w["below"], jnp.broadcast_to(first, shape))

    def _with_recurrent(self, drive: Array, z_tm1: Array, w: dict[str, Array]) -> Array:
        if self.layer.recurrent is None:
            return drive
        return event_currents(z_tm1, w["recurrent"], drive)


class Again:
    """Some steps of a compiled layer, to be differentiated."""

    def __init__(
        self,
        compiled: CompiledLayer,
        start: LayerState,
        below: Array,
        spikes: Array,
        w: dict[str, Array],
    ):
        self.compiled, self.start, self.spikes, self.w = compiled, start, spikes, w
        self.below = below
        self.seen_below = compiled.events_below(start, below)
        self.z_tm1 = compiled._z_tm1(start, spikes)
        self.currents = compiled._with_recurrent(compiled._drive(start, below, w), self.z_tm1, w)

    def pullback(
        self, cotangents: tuple[Array, list[Array] | None, list[Array]]
    ) -> tuple[Any, list[Array], Array]:
        """From dE/dz_t, ∂E/∂s_t and dE/ds at the end: dE/d(constants), dE/ds before, r_t."""
        compiled, start = self.compiled, self.start.neurons
        found = compiled.neurons.back(
            self.currents, self.z_tm1, start, compiled.constants, *cotangents
        )
        d_arrays, d_before, r = found
        constants = trained_constants(self.compiled.layer)
        return jax.tree.unflatten(jax.tree.structure(constants), d_arrays), d_before, r

    def of_weights(self, pre: dict[str, Array], r: Array) -> dict[str, Array]:
        """The gradient of all synapses, from what they have seen and from cotangents r_t."""
        layer = self.compiled.layer
        others = {kind: x for kind, x in self.w.items() if kind not in layer.rows}
        _, of_others = jax.vjp(lambda others: layer.currents(pre, self.w | others), others)
        (gradients,) = of_others(r)
        of_dense = {
            "below": lambda: self._of_below(pre, r),
            "recurrent": lambda: event_product(self.z_tm1, r),
            "bias": lambda: r.sum((0, 1))[None],
        }
        if layer.rows:
            gradients["dense"] = jnp.concatenate([of_dense[kind]() for kind in layer.rows])
        return gradients

    def _of_below(self, pre: dict[str, Array], r: Array) -> Array:
        if self.seen_below is not None:
            return event_product(self.seen_below, r)
        seen = self.compiled.layer.share("below", pre, axis=-1)
        return jnp.tensordot(seen, r, axes=((0, 1), (0, 1)))

    def of_readout(self, error: Array) -> Float[Array, "n n_out"]:
        """Σ_t z_tᵀ error_t."""
        return event_product(self.spikes, error)
