"""A layer: neurons, and the synapses that lead to them from below and from themselves."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, Shaped

from . import checks
from .cells import AbstractCell, Populations
from .delays import AbstractDelayLine, RotatingBuffer, delayed
from .dropout import Dropout
from .sequences import preceding
from .sharding import by_neuron, everywhere
from .synapses import AbstractSynapses, Dense, Joined
from .weights import Initializer, KeyOf, fan_in_normal, weight


class LayerState(NamedTuple):
    """What one step of a layer hands to the next. Every array has a leading axis of examples."""

    neurons: tuple[Any, ...]
    """s_t, the state of each population."""
    spikes: Float[Array, "batch n"]
    """z_t."""
    past: dict[str, Float[Array, "batch _ _"]]
    """By kind of synapses, if they are delayed, their presynaptic activity of the last steps, the
    oldest first."""


class Unrolled(NamedTuple):
    """A stretch of a layer's run."""

    end: LayerState
    spikes: Float[Array, "time batch n"]
    states: tuple[Any, ...]
    currents: Float[Array, "time batch n_post"] | None
    """I_t, where they have been formed."""


class Layer(eqx.Module):
    """Neurons under the currents of their synapses.

        I_t = below_{t-d} W_in + z_{t-1-d} W_rec + bias
        s_t, z_t: the cell's

    `below` is the activity of the layer below in the same step, or the network's input; d = 0, or
    a delay of each presynaptic neuron. Every W may be any `AbstractSynapses`.

        >>> import eprop, jax
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> below = eprop.Layer(eprop.LIF(20), n_in=5, w_rec=None, key=keys[0])
        >>> above = eprop.Layer([eprop.LIF(6), eprop.ALIF(4)], n_in=20, key=keys[1])
        >>> network = eprop.Network([below, above], n_out=2, readout_of="all", key=keys[2])
        >>> network.n, network.w_out.shape
        (30, (30, 2))
    """

    neurons: Populations
    below: AbstractSynapses
    recurrent: AbstractSynapses | None
    bias: Dense | None
    """Synapses that see a presynaptic 1."""
    delay_in: checks.Parameter = eqx.field(static=True)
    delay_rec: checks.Parameter = eqx.field(static=True)
    delay_line: AbstractDelayLine
    dropout: Dropout | None

    def __init__(
        self,
        cell: AbstractCell | Sequence[AbstractCell],
        *,
        n_in: int | None = None,
        w_in: ArrayLike | Initializer | AbstractSynapses = fan_in_normal,
        w_rec: ArrayLike | Initializer | AbstractSynapses | None = fan_in_normal,
        bias: ArrayLike | Initializer | None = None,
        autapses: bool = False,
        delay_in: ArrayLike = 0.0,
        delay_rec: ArrayLike = 0.0,
        delay_line: AbstractDelayLine = RotatingBuffer(),  # noqa: B008 (immutable)
        dropout: Dropout | None = None,
        key: PRNGKeyArray | None = None,
    ):
        """**Arguments:**

        - `cell`: the neurons; or several cells, populations side by side.
        - `n_in`: number of neurons of the layer below, or of inputs; need not be said if `w_in`
          tells.
        - `w_in`, `w_rec`: weights `[n_in, n_post]` and `[n, n_post]`, each an array, an
          initializer of `jax.nn.initializers`, or `AbstractSynapses`. n_post is n, or for cells
          with several currents Σ n_currents · n. `w_rec=None` for no recurrent synapses. The
          paper's weights by default: N(0, 1) / sqrt(n_pre).
        - `bias`: a current `[n_post]`, an array or an initializer; `None` for none.
        - `autapses`: whether a neuron has a synapse to itself. If not, their weights in a matrix
          `w_rec` are structurally zero, whatever is stored there, and so are their gradients.
        - `delay_in`, `delay_rec`: delays of the synapses of `w_in` and `w_rec` in ms, multiples of
          dt: one number, or one for each presynaptic neuron. A recurrent spike takes one step
          anyway; its delay comes on top.
        - `delay_line`: how spikes wait where the layer runs on XLA, `RotatingBuffer()` or
          `ConcatenatedBuffer()`: the same numbers, the same gradients.
        - `dropout`: of what the layer receives from below, `Dropout(rate)`; `None` for none.
        - `key`: random key for the initializers; not needed if every weight is given.

        Raises `ValueError` or `TypeError` for a weight of another shape, of an integer dtype, or
        not finite, and for a cell that breaks the contract of `AbstractCell`.
        """
        self.neurons = Populations(cell)
        n, n_post, dt = self.neurons.n, self.neurons.n_post, self.neurons.dt
        if isinstance(w_in, AbstractSynapses):
            n_in = w_in.n_pre if n_in is None else n_in
        if n_in is None:
            raise TypeError("n_in is missing: give the number of inputs, Layer(cell, n_in=40)")
        n_in = checks.positive_int("n_in", n_in)
        keys = KeyOf(key)
        self.below = _synapses("w_in", w_in, (n_in, n_post), keys(0))
        self.recurrent = None
        if w_rec is not None:
            sizes = tuple((cell.n, cell.n_currents) for cell in self.neurons.cells)
            left_out = () if checks.switch("autapses", autapses) else sizes
            self.recurrent = _synapses("w_rec", w_rec, (n, n_post), keys(1), left_out)
        self.bias = None
        if bias is not None:
            self.bias = Dense(weight("bias", bias, (n_post,), keys(4))[None])
        self.delay_in = checks.delay("delay_in", delay_in, n_in, dt, "inputs")
        self.delay_rec = checks.delay("delay_rec", delay_rec, n, dt, "neurons")
        self.delay_line = checks.instance(
            "delay_line", delay_line, AbstractDelayLine, "RotatingBuffer()"
        )
        if dropout is not None:
            checks.instance("dropout", dropout, Dropout, "Dropout(0.2)")
        self.dropout = dropout

    @property
    def n_in(self) -> int:
        """Number of neurons below, or of inputs."""
        return self.below.n_pre

    @property
    def n(self) -> int:
        """Number of neurons."""
        return self.neurons.n

    @property
    def dtype(self) -> Any:
        """Of weights and states."""
        return self.below.weights.dtype

    @property
    def kinds(self) -> dict[str, AbstractSynapses]:
        """The synapses by what they see: "below", "recurrent" and "bias", where there are such."""
        kinds = {"below": self.below, "recurrent": self.recurrent, "bias": self.bias}
        return {kind: synapses for kind, synapses in kinds.items() if synapses is not None}

    @property
    def synapses(self) -> dict[str, AbstractSynapses]:
        """The synapses as they are traced: those that are dense are one matrix, "dense"."""
        dense = [x for x in self.kinds.values() if isinstance(x, Dense)]
        others = {kind: x for kind, x in self.kinds.items() if not isinstance(x, Dense)}
        return {"dense": Joined(dense), **others} if dense else others

    def effective(self) -> dict[str, Array]:
        """The weights as they act, of each of the `kinds`."""
        weights = {kind: synapses.effective() for kind, synapses in self.kinds.items()}
        is_matrix = {kind: x.shape[-1] == self.neurons.n_post for kind, x in weights.items()}
        return {kind: by_neuron(x) if is_matrix[kind] else x for kind, x in weights.items()}

    @property
    def rows(self) -> dict[str, slice]:
        """Where each kind of dense synapses is in the matrix of all."""
        rows, begin = {}, 0
        for kind, synapses in self.kinds.items():
            if isinstance(synapses, Dense):
                rows[kind] = slice(begin, begin + synapses.n_pre)
                begin += synapses.n_pre
        return rows

    def share(self, kind: str, of_synapses: dict[str, Array], axis: int) -> Array:
        """Of something for all `synapses`, with an axis of presynaptic neurons, that of a kind."""
        if kind not in self.rows:
            return of_synapses[kind]
        rows = self.rows[kind]
        return jax.lax.slice_in_dim(of_synapses["dense"], rows.start, rows.stop, axis=axis)

    def joined(self, of_kinds: dict[str, Array]) -> dict[str, Array]:
        """From something for all `kinds`, each with rows of presynaptic neurons, to `synapses`."""
        others = {kind: x for kind, x in of_kinds.items() if kind not in self.rows}
        dense = [of_kinds[kind] for kind in self.rows]
        return {"dense": jnp.concatenate(dense), **others} if dense else others

    @property
    def delays(self) -> dict[str, Int[np.ndarray, " _"]]:
        """The delay of each presynaptic neuron in steps, of the synapses that have any."""
        in_ms = {"below": self.delay_in, "recurrent": self.delay_rec}
        delays = {
            kind: np.round(np.broadcast_to(in_ms[kind], synapses.n_pre) / self.neurons.dt)
            for kind, synapses in self.kinds.items()
            if kind in in_ms
        }
        return {kind: steps.astype(int) for kind, steps in delays.items() if steps.any()}

    def init(self, batch: int) -> LayerState:
        """The layer at rest, in the dtype of its weights."""
        neurons = jax.tree.map(
            lambda x: x.astype(self.dtype) if eqx.is_inexact_array(x) else x,
            self.neurons.init(batch),
        )
        past = {
            kind: jnp.zeros((batch, steps.max(), len(steps)), self.dtype)
            for kind, steps in self.delays.items()
        }
        return LayerState(neurons, jnp.zeros((batch, self.n), self.dtype), past)

    def unroll(
        self,
        start: LayerState,
        below: Shaped[Array, "time batch n_in"],
        w: dict[str, Array],
        *,
        stop_z_gradients: bool,
        perturbation: Float[Array, "time batch n"] | None = None,
    ) -> Unrolled:
        """Continue from `start` under activity `below`, with the `effective` weights `w`.

        With `stop_z_gradients` the gradient of z_{t-1} is stopped where it enters the recurrent
        current and the reset. `perturbation` is added to each z_t as the network sees it: the
        derivative with respect to it, at zero, is the total derivative dE/dz_t.
        """
        # One product for all steps, [time, batch, n_post].
        drive = self.drive(self.delayed_below(start, below), w)
        steps, line = self.delays.get("recurrent"), None
        if steps is not None:
            line = self.delay_line.init(jnp.moveaxis(start.past["recurrent"], 1, 0))

        def step(carry, now):
            states, z_tm1, line = carry
            current, shift = now
            if stop_z_gradients:
                z_tm1, line = jax.lax.stop_gradient((z_tm1, line))
            if self.recurrent is not None:
                arriving = z_tm1
                if steps is not None:
                    line, arriving = self.delay_line.step(line, z_tm1, steps)
                is_binary = self.neurons.spiking and stop_z_gradients
                arriving = everywhere(arriving, is_binary=is_binary)
                current = current + self.recurrent.currents(w["recurrent"], arriving)
            states, z = self.neurons.step(states, current, z_tm1)
            z = z if shift is None else z + shift
            return (states, z, line), (z, states, current)

        (states, z, _), (spikes, all_states, currents) = jax.lax.scan(
            step, (start.neurons, start.spikes, line), (drive, perturbation)
        )
        end = LayerState(states, z, self.past_after(start, below, spikes))
        return Unrolled(end, spikes, all_states, currents)

    def drive(self, below: Array, w: dict[str, Array]) -> Float[Array, "time batch n_post"]:
        """The currents from below and of the bias."""
        drive = self.below.currents(w["below"], below)
        return drive if self.bias is None else drive + w["bias"][None]

    def currents(
        self, pre: dict[str, Array], w: dict[str, Array]
    ) -> Float[Array, "time batch n_post"]:
        """I_t under what all synapses see, in `unroll`'s order of sums: the same bits."""
        drive = self.drive(self.share("below", pre, axis=-1), w)
        if self.recurrent is None:
            return drive
        return drive + self.recurrent.currents(
            w["recurrent"], self.share("recurrent", pre, axis=-1)
        )

    def presynaptic(
        self,
        start: LayerState,
        below: Shaped[Array, "time batch n_in"],
        spikes: Float[Array, "time batch n"],
    ) -> dict[str, Float[Array, "time batch _"]]:
        """What the `synapses` see at each step: delayed, and a bias a 1.

        `start` is the layer before the first step.
        """
        pre = {"below": self.delayed_below(start, below)}
        if self.recurrent is not None:
            z_tm1 = preceding(start.spikes, spikes)
            arriving = self._delayed("recurrent", start, z_tm1)
            pre["recurrent"] = everywhere(arriving, is_binary=self.neurons.spiking)
        if self.bias is not None:
            pre["bias"] = jnp.ones((*below.shape[:2], 1), self.dtype)
        dense = [pre.pop(kind) for kind in self.rows]
        return {"dense": jnp.concatenate(dense, axis=-1), **pre} if dense else pre

    def delayed_below(
        self, start: LayerState, below: Shaped[Array, "time batch n_in"]
    ) -> Float[Array, "time batch n_in"]:
        """What the synapses from below see at each step."""
        return self._delayed("below", start, below.astype(self.dtype))

    def _delayed(self, kind: str, start: LayerState, activity: Array) -> Array:
        if kind not in start.past:
            return activity
        known = jnp.concatenate([jnp.moveaxis(start.past[kind], 1, 0), activity])
        return delayed(known, self.delays[kind], len(activity))

    def past_after(self, start: LayerState, below: Array, spikes: Array) -> dict[str, Array]:
        """What is still under way after some steps."""

        def last(kind, past):
            now = below.astype(self.dtype) if kind == "below" else preceding(start.spikes, spikes)
            return jnp.concatenate([past, jnp.moveaxis(now, 0, 1)], axis=1)[:, -past.shape[1] :]

        return {kind: last(kind, past) for kind, past in start.past.items()}


def trained_constants(layer: Layer) -> Any:
    """The floating-point arrays of the layer's cells, `None` for all else."""
    return eqx.filter(layer.neurons, eqx.is_inexact_array)


def _synapses(
    name: str,
    given: Any,
    shape: tuple[int, int],
    key: Callable[[str], PRNGKeyArray],
    without_autapses_of: tuple[tuple[int, int], ...] = (),
) -> AbstractSynapses:
    if not isinstance(given, AbstractSynapses):
        dense = Dense(weight(name, given, shape, key), without_autapses_of=without_autapses_of)
        # Zero where they are stored, too: what is looked at is what acts.
        return eqx.tree_at(lambda s: s.weights, dense, dense.effective())
    if (given.n_pre, given.n_post) != shape:
        raise ValueError(
            f"{name} leads from {given.n_pre} neurons to {given.n_post} currents, but "
            f"{shape[0]} and {shape[1]} are needed here"
        )
    if without_autapses_of and isinstance(given, Dense):
        return Dense(
            given.weights,
            mask=given.mask,
            signs=given.signs,
            without_autapses_of=without_autapses_of,
        )
    return given
