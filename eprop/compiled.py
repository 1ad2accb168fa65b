"""A layer on compiled, event-driven programs: what it costs follows from the spikes there are.

For layers of spiking neurons on a processor: for each spike its weights are added to the currents,
forward and once more for the derivative, and the neurons' cotangents to the weights' gradient. The
numbers are those of `Layer` but for rounding.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .delays import delayed
from .event_synapses import event_synapses
from .kernels import (
    Drive,
    Events,
    Leads,
    Neurons,
    NotTranslatable,
    Tiles,
    Traces,
    UnderWay,
    Weights,
    lead_traces,
    neurons_of,
    readout_drive,
    tiles_of,
)
from .layer import Layer, LayerState, Unrolled, trained_constants
from .record import Block
from .sequences import Blocks, cut, preceding
from .sharding import n_parts, n_shares
from .synapses import Dense, Sparse
from .tiled import TiledLayer
from .trajectory import LayerTrajectory, NetworkState, Response, Trajectory, of_one

__all__ = ["gpu_kernels", "programs", "without_kernels"]

_ENABLED = contextvars.ContextVar("compiled programs are used", default=True)
_GPU = contextvars.ContextVar[bool | None](
    "those for a GPU: None for no, or interpreted", default=None
)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Inside, what is traced runs on XLA alone: to compare the two."""
    token = _ENABLED.set(False)
    try:
        yield
    finally:
        _ENABLED.reset(token)


@contextlib.contextmanager
def gpu_kernels(*, interpret: bool = False) -> Iterator[None]:
    """Inside, layers that fit are traced for programs on a GPU (NVIDIA's, by Pallas and Triton).

    `interpret`: whether XLA is to do what these programs say, on any device: slow, to look into it.
    """
    token = _GPU.set(interpret)
    try:
        yield
    finally:
        _GPU.reset(token)


def compiled(layer: Layer, n_steps: int) -> "CompiledLayer | None":
    """The layer as compiled programs; `None` if it is to run on XLA."""
    if n_steps < 2 or not _ENABLED.get():
        return None
    found = programs(layer)
    return CompiledLayer(layer, found) if isinstance(found, Neurons) else None


def are_compiled(layers: Sequence[Layer], n_steps: int) -> bool:
    """Whether all spikes are those of compiled programs, on one device."""
    return n_shares() == 1 and all(compiled(layer, n_steps) is not None for layer in layers)


def tiled(layer: Layer, n_steps: int) -> TiledLayer | None:
    """The layer as programs for a GPU; `None` if it is to run otherwise."""
    if n_steps < 2 or _GPU.get() is None or not _ENABLED.get():
        return None
    found = programs(layer)
    return TiledLayer(layer, found) if isinstance(found, Tiles) else None


def programs(layer: Layer) -> Neurons | Tiles | str:
    """The programs of a layer's neurons, or why it runs on XLA.

        >>> import eprop, jax
        >>> layer = eprop.Layer(eprop.LeakyTanh(9), n_in=5, key=jax.random.key(0))
        >>> eprop.compiled.programs(layer)
        'its neurons send more than 0 or 1'

    What runs on XLA is as exact, and slower.
    """
    interpret = _GPU.get()
    if interpret is None and jax.default_backend() != "cpu":
        return f"the device is a {jax.default_backend()}, and this is outside of gpu_kernels()"
    if (n := n_parts()) > 1:
        return f"its neurons are divided over {n} devices"
    if os.name != "posix":
        return f"the system is {os.name}"
    if not layer.neurons.spiking:
        return "its neurons send more than 0 or 1"
    if interpret is not None and not isinstance(layer.recurrent, Dense | None):
        return "its recurrent synapses are no matrix"
    if interpret is not None and "recurrent" in layer.delays:
        return "its recurrent synapses have delays"
    if not isinstance(layer.recurrent, Dense | Sparse | None):
        return "its recurrent synapses are neither a matrix nor sparse"
    cells = layer.neurons.cells
    try:
        if interpret is None:
            return neurons_of(cells, layer.dtype)
        if len(cells) != 1:
            return "it has several populations"
        return tiles_of(cells[0], layer.dtype, interpret=interpret)
    except NotTranslatable as error:
        return f"its cell has {error}"


class CompiledLayer:
    """The programs of a layer, with its methods."""

    def __init__(self, layer: Layer, neurons: Neurons):
        self.layer, self.neurons = layer, neurons
        self.constants: list[Array] = jax.tree.leaves(trained_constants(layer))
        self.synapses = event_synapses(layer.kinds, layer.rows)

    def unroll(
        self, start: LayerState, below: Array, w: dict[str, Array], length: int
    ) -> tuple[Unrolled, Blocks]:
        """`Layer.unroll`, with booleans for spikes, and its record in blocks of `length` steps."""
        layer, weights = self.layer, self.weights(w)
        events = self.events_below(start, below)
        seen = {} if events is None else {"below": Events(events)}
        graded = layer.delayed_below(start, below) if events is None else None
        z_before, n_steps = start.spikes > 0, len(below)
        spikes, neurons, starts = self.neurons.run(
            self.drive(w, weights, seen, graded),
            weights.get("recurrent"),
            self._under_way(start),
            z_before,
            start.neurons,
            self.constants,
            n_steps,
            length,
        )
        z_tm1 = Events(spikes, z_before)
        seen["recurrent"] = self.arriving(start, spikes)
        drive = self.drive(w, weights, seen, graded)
        states = self.neurons.replay(drive, z_tm1, start.neurons, self.constants)
        after = LayerState(
            neurons,
            spikes[-1].astype(layer.dtype),
            layer.past_after(start, below, spikes.astype(layer.dtype)),
        )
        return Unrolled(after, spikes, states, None), self._record(
            start, starts, below, spikes, length
        )

    def _record(
        self, start: LayerState, starts: Any, below: Array, spikes: Array, length: int
    ) -> Blocks:
        """A run in blocks, from the neurons' states before each."""
        n_blocks, dtype = -(-len(spikes) // length), self.layer.dtype
        later = spikes[length - 1 :: length][: n_blocks - 1]
        z_before = jnp.concatenate([start.spikes[None] > 0, later])

        activity = {"below": below, "recurrent": preceding(start.spikes > 0, spikes)}

        def before(past, now):
            is_binary, under_way = now.dtype == bool, jnp.moveaxis(past, 1, 0)
            under_way = under_way > 0 if is_binary else under_way
            known = jnp.concatenate([under_way, now if is_binary else now.astype(dtype)])
            steps = length * np.arange(n_blocks)[:, None] + np.arange(past.shape[1])
            return jnp.moveaxis(known[steps], 1, 2).astype(dtype)

        past = {kind: before(past, activity[kind]) for kind, past in start.past.items()}
        states = LayerState(starts, z_before.astype(dtype), past)
        seen = cut((below, spikes), length)
        below, spikes = seen.whole
        n_whole = len(spikes)
        whole = Block(jax.tree.map(lambda x: x[:n_whole], states), below, spikes, None)
        if seen.rest is None:
            return Blocks(whole, None)
        below, spikes = seen.rest
        return Blocks(whole, Block(jax.tree.map(lambda x: x[-1], states), below, spikes, None))

    def weights(self, w: dict[str, Array]) -> dict[str, Weights]:
        """The weights of each kind as programs take them."""
        return {kind: synapses.weights(w[kind]) for kind, synapses in self.synapses.items()}

    def seen(self, start: LayerState, below: Array, spikes: Array) -> dict[str, Events]:
        """What each kind of synapses sees, if it is 0 or 1 and they can do with events."""
        seen = {"recurrent": self.arriving(start, spikes)}
        seen["bias"] = Events(jnp.ones((*spikes.shape[:2], 1), bool))
        if (events := self.events_below(start, below)) is not None:
            seen["below"] = Events(events)
        return {kind: seen[kind] for kind in self.synapses if kind in seen}

    def arriving(self, start: LayerState, spikes: Bool[Array, "time batch n"]) -> Events:
        """What the recurrent synapses see."""
        z_before = start.spikes > 0
        if (under_way := self._under_way(start)) is None:
            return Events(spikes, z_before)
        z_tm1 = preceding(z_before, spikes)
        known = jnp.concatenate([under_way.past.swapaxes(0, 1), z_tm1])
        return Events(delayed(known, self.layer.delays["recurrent"], len(spikes)))

    def _under_way(self, start: LayerState) -> UnderWay | None:
        """What the recurrent synapses are still to see, if they have delays."""
        steps = self.layer.delays.get("recurrent")
        if steps is None:
            return None
        return UnderWay(start.past["recurrent"] > 0, jnp.asarray(steps, jnp.int32))

    def events_below(self, start: LayerState, below: Array) -> Bool[Array, "time batch _"] | None:
        """What the synapses from below see, if it is 0 or 1 and they can do with events."""
        if below.dtype != bool or "below" not in self.synapses:
            return None
        if "below" not in self.layer.delays:
            return below
        seen = self.layer.delayed_below(start, below)
        return eqx.error_if(
            seen > 0,
            jnp.any((seen != 0) & (seen != 1)),
            "inputs are booleans, but the state that they go on from has other inputs than 0 and "
            "1 on their way in delays: give all of them as numbers",
        )

    def drive(
        self,
        w: dict[str, Array],
        weights: Mapping[str, Weights],
        seen: Mapping[str, Events],
        graded: Array | None,
    ) -> Drive:
        """The currents of events and of the bias; where "below" sees none, of `graded` activity."""
        layer = self.layer
        kinds = [x for x in ("below", "recurrent") if x in seen and x in weights]
        sources = [(seen[kind], weights[kind]) for kind in kinds]
        if "below" not in seen:
            assert graded is not None
            return Drive(layer.drive(graded, w), sources)
        nothing = jnp.zeros(layer.neurons.n_post, layer.dtype)
        return Drive(nothing if layer.bias is None else w["bias"][0], sources)

    def lead(
        self,
        start: LayerState,
        below: Array,
        seen: Mapping[str, Events],
        traces: Traces,
        leads: Leads,
        total: Float[Array, "n_pre n"],
    ) -> tuple[Traces, Float[Array, "n_pre n"]]:
        """`lead_traces` of all dense synapses."""
        rows, graded = self.layer.rows, None
        if "below" in rows and "below" not in seen:
            graded = self.layer.delayed_below(start, below)
            seen = {**seen, "below": Events(jnp.zeros((0, *graded.shape[1:]), bool))}  # no steps
        traces, total = lead_traces([seen[kind] for kind in rows], traces, leads, total)
        if graded is not None:
            traces = _with_graded(traces, rows["below"], graded, leads)
        return traces, total

    def arrived(
        self,
        name: str,
        start: LayerState,
        below: Array,
        seen: Mapping[str, Events],
        r: Float[Array, "time batch n_post"],
        total: Float[Array, "batch fan_in n"],
        columns: slice,
    ) -> Float[Array, "batch fan_in n"]:
        """`total` + Σ_t (what a synapse has seen) · r_t of each example, in some `columns`.

        `name` is one of the layer's `synapses`, "dense" or of a kind that sees events.
        """
        for kind, synapses in self.synapses.items():
            if synapses.name != name:
                continue
            if kind in seen:
                total = synapses.add_traces(seen[kind], r, total, columns)
            else:
                rows, graded = self.layer.rows[kind], self.layer.delayed_below(start, below)
                of_rows = jnp.einsum("tbf,tbj->bfj", graded, r[..., columns])
                total = total.at[:, rows].add(of_rows)
        return total


def is_event_driven(
    programs: Sequence[CompiledLayer | None], inputs: Array, kept: Sequence[Array | None] | None
) -> TypeGuard[Sequence[CompiledLayer]]:
    """Whether all layers are compiled and receive nothing but 0 and 1."""
    has_dropout = kept is not None and any(mask is not None for mask in kept)
    is_compiled = all(x is not None and "below" in x.synapses for x in programs)
    return is_compiled and inputs.dtype == bool and not has_dropout


def at_once(
    network: Any,
    programs: Sequence[CompiledLayer],
    start: NetworkState,
    inputs: Bool[Array, "time batch n_in"],
    length: int,
) -> Response:
    """`respond` where it `is_event_driven`: layer by layer, the record alone in blocks."""
    below, drive = inputs, jnp.zeros((*inputs.shape[:2], network.n_out), network.dtype)
    ends, records, layers = [], [], []
    for layer, before, w_out in zip(programs, start.layers, network.readout_weights(), strict=True):
        run, blocks = layer.unroll(before, below, layer.layer.effective(), length)
        if w_out is not None:
            drive = readout_drive(run.spikes, w_out, drive)
        ends.append(run.end)
        records.append(blocks)
        layers.append(LayerTrajectory(run.spikes.astype(network.dtype), of_one(run.states)))
        below = run.spikes
    outputs = network.readout(drive, start.outputs)
    end = NetworkState(tuple(ends), outputs[-1])
    return Response(end, Trajectory(outputs, tuple(layers)), tuple(records))


def _with_graded(traces: Traces, rows: slice, graded: Array, leads: Leads) -> Traces:
    """The traces, and what the window makes of presynaptic activity that is not 0 or 1."""
    response = jnp.asarray(leads.response, graded.dtype)
    common = [
        x.at[:, rows].add(jnp.einsum("tbf,t->bf", graded, of_common))
        for x, of_common in zip(traces.common, response.T, strict=True)
    ]
    *full, filtered = (
        x.at[:, rows].add(jnp.einsum("tbf,tbj->bfj", graded, r))
        for x, r in zip([*traces.full, traces.filtered], leads.r, strict=True)
    )
    return Traces(common, full, filtered)
