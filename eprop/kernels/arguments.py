"""What the programs of neurons are given: currents that drive them, and what comes back to them.

Each is named twice: the arrays of a call, and the same in a program that is being written.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array as JaxArray
from jaxtyping import Float

from .events import EventList, Events, Rows, WrittenEvents
from .language import TYPES, Array, Code, Number
from .sparse import Outgoing


def take(arrays: Iterator[Any], count: int) -> list[Any]:
    """The next so many."""
    return list(itertools.islice(arrays, count))


Weights = Rows | Outgoing
"""What synapses make of events: each kind adds them to the currents in its own way."""
DriveKind = tuple[int, tuple[tuple[bool, type[Weights]], ...]]


class Drive(NamedTuple):
    """Input currents: `start`, and what weights add to it for each event."""

    start: Float[JaxArray, "time batch n_post"] | Float[JaxArray, " n_post"]
    """Of each step, or the same for all."""
    sources: Sequence[tuple[Events, Weights]] = ()

    @property
    def kind(self) -> DriveKind:
        """What a program must know of it."""
        sources = tuple((events.is_late, type(weights)) for events, weights in self.sources)
        return self.start.ndim, sources

    @property
    def arrays(self) -> list[JaxArray]:
        of_sources = ((*events.arrays, *weights) for events, weights in self.sources)
        return [self.start, *itertools.chain(*of_sources)]


class WrittenDrive:
    """A `Drive`, in a program that is being written."""

    def __init__(self, code: Code, kind: DriveKind, arrays: Iterator[Array]):
        self.code, self.start, self.of_each_step = code, next(arrays), kind[0] > 1
        self.sources = []
        for is_late, of_weights in kind[1]:
            events = WrittenEvents(is_late, arrays)
            weights = of_weights(*take(arrays, len(of_weights._fields)))
            self.sources.append((events, weights, EventList(code, weights.n_pre)))

    @staticmethod
    def types(kind: DriveKind, dtype: Any) -> list[tuple[Any, int]]:
        of_sources = [
            [*WrittenEvents.types(is_late), *weights.types(dtype)] for is_late, weights in kind[1]
        ]
        return [(dtype, kind[0]), *itertools.chain(*of_sources)]

    def add(self, t: Number, b: Number, current: Array, first_step: Number | int = 0) -> None:
        """Writes: `current` is that of a step of an example, counted from `first_step` on."""
        code = self.code
        code.copy(self.start.part(t, b) if self.of_each_step else self.start, current)
        for events, weights, found in self.sources:
            found.find(events.at(t + first_step, b))
            weights.add(found, current)


class Cotangents(NamedTuple):
    """The derivative of a function of a run with respect to what the neurons did."""

    after: list[Float[JaxArray, "batch _"]]
    """dE/ds after the last step."""
    spikes: Float[JaxArray, "time batch n"] | Float[JaxArray, " time"] | None = None
    """∂E/∂z_t, of each neuron or the same for all; `None` for zero."""
    states: list[Float[JaxArray, "time batch _"]] | None = None
    """∂E/∂s_t of each hidden variable; `None` for zero."""
    error: tuple[Float[JaxArray, "time batch n_out"], Float[JaxArray, "n_out n"]] | None = None
    """The readout's error and what feeds it back; their product is added to ∂E/∂z_t."""
    currents: Float[JaxArray, "steps batch n_post"] | None = None
    """Of all steps, to be overwritten by r_t of those that are gone through; if `None`, r_t of
    these has an array of its own."""

    @property
    def kind(self) -> tuple[int, bool, bool, bool]:
        """What a program must know of it."""
        ndim = 0 if self.spikes is None else self.spikes.ndim
        with_states, with_error = self.states is not None, self.error is not None
        return ndim, with_states, with_error, self.currents is not None

    @property
    def arrays(self) -> list[JaxArray]:
        spikes = [] if self.spikes is None else [self.spikes]
        currents = [] if self.currents is None else [self.currents]
        return [*self.after, *spikes, *(self.states or []), *(self.error or []), *currents]


class PulledBack(NamedTuple):
    """The same with respect to what the neurons' run came from."""

    arrays: list[JaxArray]
    """dE/d(trained arrays)."""
    before: list[Float[JaxArray, "batch _"]]
    """dE/ds before the first step."""
    currents: Float[JaxArray, "time batch n_post"]
    """r_t = dE/dI_t, where `Cotangents.currents` were given in their place."""


class WrittenCotangents:
    """`Cotangents`, in a program that is being written."""

    def __init__(self, kind: tuple[int, bool, bool, bool], n_hidden: int, arrays: Iterator[Array]):
        self.ndim, with_states, with_error, self.of_all_steps = kind
        self.after = take(arrays, n_hidden)
        self.spikes = take(arrays, int(self.ndim > 0))
        self.states = take(arrays, n_hidden * with_states)
        self.error = take(arrays, 2 * with_error)
        take(arrays, int(self.of_all_steps))  # it is where the result is to be

    @staticmethod
    def types(
        kind: tuple[int, bool, bool, bool], dtype: Any, hidden: Sequence[Any]
    ) -> list[tuple[Any, int]]:
        ndim, with_states, with_error, of_all_steps = kind
        return [
            *((x, 2) for x in hidden),
            *[(dtype, ndim)] * (ndim > 0),
            *((x, 3) for x in hidden if with_states),
            *[(dtype, 3), (dtype, 2)] * with_error,
            *[(dtype, 3)] * of_all_steps,
        ]

    def write_spikes(self, code: Code, t: Number, b: Number, d_spikes: Array) -> None:
        """Writes dE/dz_t of an example, `[n]`."""
        if self.ndim == 3:
            code.copy(self.spikes[0].part(t, b), d_spikes)
        else:
            nothing = code.number(0, TYPES[d_spikes.dtype])
            same = self.spikes[0][t] if self.ndim == 1 else nothing
            with code.loop(d_spikes.shape[0]) as j:
                d_spikes[j] = same
        if self.error:
            error, feedback = self.error
            with code.loop(error.shape[2]) as k:
                error_k = error[t, b, k]
                with code.loop(d_spikes.shape[0]) as j:
                    d_spikes[j] = d_spikes[j] + error_k * feedback[k, j]
