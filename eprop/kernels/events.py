"""Products with presynaptic activity that is 0 or 1: a row of a matrix for each 1.

Rows are added in their order, so the same sum is the same number wherever it is formed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float, Int

from .call import Operation
from .language import INDEX, Array, Code, Number

TOGETHER = 4
"""Rows that are added at a time: they come from memory side by side, and the sum is read once."""
TILE = 2**17
"""Numbers of `post` that a sum over steps looks at again and again: what fits into the cache."""
STEP = (np.int32, 1)
"""The type of a step's number among a program's arguments."""


def each_event(code: Code, events: Array, write: Callable[[Number], None]) -> None:
    """Writes what to do for the index of each 1 of a row, eight of which are looked at together."""
    n = events.shape[0]
    n_words = n / 8
    with code.loop(n_words) as word, code.each_byte(events.eight(word * 8)) as i:
        write(word * 8 + i)
    with code.loop(n, n_words * 8) as i, code.when(events[i]):
        write(i)


class Counter:
    """A whole number that a program counts up. Ask for it before any loop."""

    def __init__(self, code: Code):
        self.code, self._memory = code, code.scratch(np.int64, 1)

    def reset(self) -> None:
        self._memory[0] = self.code.index(0)

    @property
    def value(self) -> Number:
        return self._memory[0]

    def next(self) -> Number:
        """The value, which goes up by 1."""
        value = self.value
        self._memory[0] = value + 1
        return value


class EventList:
    """Where there is a 1 among up to so many. Ask for it before any loop."""

    def __init__(self, code: Code, longest: Any):
        self.code, self.count = code, Counter(code)
        self.indices = code.scratch(np.int64, longest)

    def find(self, events: Array) -> None:
        """Writes: the list is that of these events."""
        self.count.reset()

        def append(i: Number) -> None:
            self.indices[self.count.next()] = i

        each_event(self.code, events, append)

    def add_rows(self, rows: Array, total: Array) -> None:
        """Writes: to `total` add the rows of the list."""
        add_rows(self.code, self.indices, self.count.value, rows, total)


def add_rows(
    code: Code,
    indices: Array,
    count: Number,
    rows: Array,
    total: Array,
    columns: tuple[Any, Any] | None = None,
) -> None:
    """Writes: to `total` add the rows of the first `count` indices."""
    first, last = columns or (0, total.shape[0])
    n_whole = count / TOGETHER

    def add(which: list[Number]) -> None:
        with code.loop(last, first) as j:
            x = total[j]
            for i in which:
                x = x + rows[i, j]
            total[j] = x

    with code.loop(n_whole) as group:
        add([indices[group * TOGETHER + k] for k in range(TOGETHER)])
    with code.loop(count, n_whole * TOGETHER) as k:
        add([indices[k]])


class Rows(NamedTuple):
    """A matrix of weights: for each event a row is added to the currents.

    This is the array of a call, or the same in a program that is being written.
    """

    weights: Any
    """`[n_pre, n_post]`"""

    @staticmethod
    def types(dtype: Any) -> list[tuple[Any, int]]:
        return [(dtype, 2)]

    @property
    def n_pre(self) -> Any:
        return self.weights.shape[0]

    def add(self, found: EventList, current: Array) -> None:
        """Writes: to the currents of a step its events are added."""
        found.add_rows(self.weights, current)


class SortedEvents:
    """When each of some presynaptic neurons was 1. Ask for it before any loop."""

    def __init__(self, code: Code, n_pre: Number, most: Number):
        """**Arguments:** `most`: how many events there may be."""
        self.code, self.n_pre, self._count = code, n_pre, Counter(code)
        self._begins, self._filled = (code.scratch(np.int64, n_pre + 1) for _ in range(2))
        self._neurons, self._noted, self._sorted = (code.scratch(np.int64, most) for _ in range(3))

    @contextlib.contextmanager
    def begun(self) -> Iterator[Callable[[Number, Number], None]]:
        """Inside, write for each event `note(neuron, when)`; they are sorted at the end."""
        code, begins = self.code, self._begins
        self._count.reset()
        with code.loop(self.n_pre + 1) as i:
            begins[i] = code.index(0)

        def note(i: Number, when: Number) -> None:
            k = self._count.next()
            self._neurons[k], self._noted[k] = i, when
            begins[i + 1] = begins[i + 1] + 1

        yield note
        with code.loop(self.n_pre) as i:
            self._filled[i] = begins[i]
            begins[i + 1] = begins[i + 1] + begins[i]
        with code.loop(self._count.value) as k:
            i = self._neurons[k]
            at = self._filled[i]
            self._sorted[at] = self._noted[k]
            self._filled[i] = at + 1

    def of(self, i: Number) -> Array:
        """When a neuron was 1, in the order of the notes."""
        return self._sorted.between(self._begins[i], self._begins[i + 1])


class Events(NamedTuple):
    """Activity that is 0 or 1, step by step."""

    now: Bool[JaxArray, "time batch n_pre"]
    before: Bool[JaxArray, "batch n_pre"] | None = None
    """If given, what is seen at each step is the activity of the step before: this at the first."""

    @property
    def arrays(self) -> list[JaxArray]:
        return [self.now] if self.before is None else [self.now, self.before]

    @property
    def is_late(self) -> bool:
        return self.before is not None


class WrittenEvents:
    """`Events`, in a program that is being written."""

    def __init__(self, is_late: bool, arrays: Iterator[Array]):
        self.now, self.before = next(arrays), next(arrays) if is_late else None

    @staticmethod
    def types(is_late: bool) -> list[tuple[Any, int]]:
        return [(bool, 3), (bool, 2)] if is_late else [(bool, 3)]

    def at(self, t: Number, b: Number) -> Array:
        """What is seen by an example in a step."""
        if self.before is None:
            return self.now.part(t, b)
        return self.now.part(t - 1, b).when(t > 0, self.before.part(b))


@functools.cache
def _sum(dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        events, rows, _, totals = arrays  # the total so far is where the result is to be
        found = EventList(code, events.shape[1])
        with code.loop(last, first) as item:
            found.find(events.part(item))
            found.add_rows(rows, totals.part(item))

    return Operation("currents", [(bool, 2), (dtype, 2), (dtype, 2)], [(dtype, 2)], (0, 0), body)


@functools.cache
def _product(is_late: bool, dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        given = iter(arrays)
        first_step, first_row = (next(given)[0].to(INDEX) for _ in range(2))
        events = WrittenEvents(is_late, given)
        post, _, totals = given  # the total so far is where the result is to be
        n_items, (_, batch, n_pre) = post.shape[0], events.now.shape
        found = SortedEvents(code, n_pre, n_items * n_pre)  # items: steps of examples
        with found.begun() as note, code.loop(n_items / batch) as t, code.loop(batch) as b:
            each_event(code, events.at(first_step + t, b), lambda i: note(i, t * batch + b))
        # So many columns at a time that those of all items stay in the cache.
        width = (code.index(TILE) / n_items).at_least(64)
        with code.loop((last - first + width - 1) / width) as tile:
            columns = first + tile * width, (first + tile * width + width).at_most(last)
            with code.loop(n_pre) as i:
                items, total = found.of(i), totals.part(first_row + i)
                add_rows(code, items, items.shape[0], post, total, columns)

    types = [STEP, STEP, *WrittenEvents.types(is_late), (dtype, 2), (dtype, 2)]
    return Operation("gradient", types, [(dtype, 2)], (len(types) - 1, 1), body, pieces=1)


def event_currents(
    events: Bool[JaxArray, "time batch n_pre"],
    rows: Float[JaxArray, "n_pre n_post"],
    start: Float[JaxArray, "time batch n_post"],
) -> Float[JaxArray, "time batch n_post"]:
    """`start` + events @ rows."""
    n_items = start.shape[0] * start.shape[1]
    flat = start.reshape(n_items, -1)
    (totals,) = _sum(rows.dtype)(
        events.reshape(n_items, -1), rows, flat, shapes=[flat.shape], in_place={-1: 0}
    )
    return totals.reshape(start.shape)


def event_product(
    events: Events,
    post: Float[JaxArray, "time batch n_post"],
    first_step: int | JaxArray,
    total: Float[JaxArray, "rows n_post"],
    first_row: int = 0,
) -> Float[JaxArray, "rows n_post"]:
    """`total` + Σ_t eventsᵀ_t post_t, over the batch, too, in the rows from `first_row` on.

    `post` begins at `first_step`.
    """
    n_items = post.shape[0] * post.shape[1]
    (totals,) = _product(events.is_late, post.dtype)(
        step(first_step),
        step(first_row),
        *events.arrays,
        post.reshape(n_items, -1),
        total,
        shapes=[total.shape],
        in_place={-1: 0},
    )
    return totals


def step(t: int | JaxArray) -> Int[JaxArray, " 1"]:
    """The number of a step, as programs take it."""
    return jnp.full(1, t, jnp.int32)
