"""A layer on compiled, event-driven programs: what it costs follows from the spikes there are.

For layers of spiking neurons on a processor: a row of weights is added for each spike, forward and
once more for the derivative, and a row of the neurons' cotangents for each spike to the gradient.
The numbers are those of `Layer` but for rounding.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .kernels import (
    Drive,
    Events,
    Leads,
    Neurons,
    NotTranslatable,
    Tiles,
    Traces,
    event_currents,
    event_traces,
    lead_traces,
    neurons_of,
    tiles_of,
)
from .layer import Layer, LayerState, Unrolled, trained_constants
from .record import Block
from .sequences import Blocks, cut
from .sharding import n_parts
from .synapses import Dense
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
    if layer.recurrent is not None and not isinstance(layer.recurrent, Dense):
        return "its recurrent synapses are no matrix"
    if "recurrent" in layer.delays:
        return "its recurrent synapses have delays"
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

    def unroll(
        self, start: LayerState, below: Array, w: dict[str, Array], length: int
    ) -> tuple[Unrolled, Blocks]:
        """`Layer.unroll`, with booleans for spikes, and its record in blocks of `length` steps."""
        layer = self.layer
        events = self.events_below(start, below)
        drive = self.drive(w, events, layer.delayed_below(start, below) if events is None else None)
        w_rec = None if layer.recurrent is None else w["recurrent"]
        z_before, n_steps = start.spikes > 0, len(below)
        spikes, neurons, starts = self.neurons.run(
            drive, w_rec, z_before, start.neurons, self.constants, n_steps, length
        )
        z_tm1 = Events(spikes, z_before)
        drive = self.with_recurrent(drive, z_tm1, w)
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

        is_binary = below.dtype == bool

        def before(past):  # of what comes from below: recurrent delays are not compiled
            under_way = jnp.moveaxis(past, 1, 0)
            under_way = under_way > 0 if is_binary else under_way
            known = jnp.concatenate([under_way, below if is_binary else below.astype(dtype)])
            steps = length * np.arange(n_blocks)[:, None] + np.arange(past.shape[1])
            return jnp.moveaxis(known[steps], 1, 2).astype(dtype)

        past = {kind: before(past) for kind, past in start.past.items()}
        states = LayerState(starts, z_before.astype(dtype), past)
        seen = cut((below, spikes), length)
        below, spikes = seen.whole
        n_whole = len(spikes)
        whole = Block(jax.tree.map(lambda x: x[:n_whole], states), below, spikes, None)
        if seen.rest is None:
            return Blocks(whole, None)
        below, spikes = seen.rest
        return Blocks(whole, Block(jax.tree.map(lambda x: x[-1], states), below, spikes, None))

    def events_below(self, start: LayerState, below: Array) -> Bool[Array, "time batch _"] | None:
        """What the synapses from below see, if it is 0 or 1 and they are a matrix."""
        if below.dtype != bool or not isinstance(self.layer.below, Dense):
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

    def lead(
        self,
        start: LayerState,
        below: Array,
        spikes: Array,
        traces: Traces,
        leads: Leads,
        total: Float[Array, "n_pre n"],
    ) -> tuple[Traces, Float[Array, "n_pre n"]]:
        """`lead_traces` of all dense synapses."""
        for rows, events, graded in self._seen(start, below, spikes):
            traces, total = lead_traces(events, rows.start, traces, leads, total)
            if graded is not None:
                traces = _with_graded(traces, rows, graded, leads)
        return traces, total

    def arrived(
        self,
        start: LayerState,
        below: Array,
        spikes: Array,
        post: Float[Array, "time batch n"],
        total: Float[Array, "batch n_pre n"],
    ) -> Float[Array, "batch n_pre n"]:
        """`total` + Σ_t (what a dense synapse has seen) · post_t of each example."""
        for rows, events, graded in self._seen(start, below, spikes):
            if graded is None:
                total = event_traces(events, post, rows.start, total)
            else:
                total = total.at[:, rows].add(jnp.einsum("tbf,tbj->bfj", graded, post))
        return total

    def _seen(
        self, start: LayerState, below: Array, spikes: Array
    ) -> Iterator[tuple[slice, Events, Array | None]]:
        """Of each kind of dense synapses its rows and what they see, which may be graded.

        Then the events are of no step.
        """
        for kind, rows in self.layer.rows.items():
            if kind == "recurrent":
                yield rows, Events(spikes, start.spikes > 0), None
            elif kind == "bias":
                yield rows, Events(jnp.ones((*spikes.shape[:2], 1), bool)), None
            elif (events := self.events_below(start, below)) is not None:
                yield rows, Events(events), None
            else:
                no_step = jnp.zeros((0, spikes.shape[1], rows.stop - rows.start), bool)
                yield rows, Events(no_step), self.layer.delayed_below(start, below)

    def drive(
        self, w: dict[str, Array], events: Array | None, graded: Array | None = None
    ) -> Drive:
        """The currents from below and of the bias: what is seen below are events, or graded."""
        layer = self.layer
        if events is None:
            assert graded is not None
            return Drive(layer.drive(graded, w))
        nothing = jnp.zeros(layer.neurons.n_post, layer.dtype)
        start = nothing if layer.bias is None else w["bias"][0]
        return Drive(start, [(Events(events), w["below"])])

    def with_recurrent(self, drive: Drive, z_tm1: Events, w: dict[str, Array]) -> Drive:
        """All currents."""
        if self.layer.recurrent is None:
            return drive
        return Drive(drive.start, [*drive.sources, (z_tm1, w["recurrent"])])


def is_event_driven(
    programs: Sequence[CompiledLayer | None], inputs: Array, kept: Sequence[Array | None] | None
) -> TypeGuard[Sequence[CompiledLayer]]:
    """Whether all layers are compiled and receive nothing but 0 and 1, by matrices."""
    has_dropout = kept is not None and any(mask is not None for mask in kept)
    is_compiled = all(x is not None and isinstance(x.layer.below, Dense) for x in programs)
    return is_compiled and inputs.dtype == bool and not has_dropout


def at_once(
    network: Any,
    programs: Sequence[CompiledLayer],
    start: NetworkState,
    inputs: Bool[Array, "time batch n_in"],
    length: int,
) -> Response:
    """`network.respond` where it `is_event_driven`: layer by layer, the record alone in blocks."""
    below, drive = inputs, jnp.zeros((*inputs.shape[:2], network.n_out), network.dtype)
    ends, records, layers = [], [], []
    for layer, before, w_out in zip(programs, start.layers, network.readout_weights(), strict=True):
        run, blocks = layer.unroll(before, below, layer.layer.effective(), length)
        if w_out is not None:
            drive = event_currents(run.spikes, w_out, drive)
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
