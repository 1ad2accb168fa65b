"""Products with presynaptic activity that is 0 or 1: a row of a matrix for each 1.

Rows are added in their order, so the same sum is the same number wherever it is formed.
"""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float

from .call import Operation
from .language import TYPES, Array, Code, Number


def each_event(
    code: Code, events: Array, write: Callable[[Number], None], end: Any, begin: Any = 0
) -> None:
    """Writes what to do for each index from `begin` to before `end` at which there is a 1.

    Eight are looked at together: mostly all are 0.
    """
    begin = code.index(begin)
    n_words = (code.index(end) - begin) / 8
    with code.loop(n_words) as word:
        first = word * 8 + begin
        some = events.eight(first).compare("!=", 0)
        with code.when(some), code.loop(first + 8, first) as i, code.when(events[i]):
            write(i)
    with code.loop(end, n_words * 8 + begin) as i, code.when(events[i]):
        write(i)


def add_rows(code: Code, events: Array, rows: Array, total: Array) -> None:
    """Writes: to `total` add the rows of the events."""

    def add(i: Number) -> None:
        with code.loop(total.shape[0]) as j:
            total[j] = total[j] + rows[i, j]

    each_event(code, events, add, events.shape[0])


@functools.cache
def _sum(dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        events, rows, start, totals = arrays
        with code.loop(last, first) as item:
            begin, total = start.part(item), totals.part(item)
            with code.loop(total.shape[0]) as j:
                total[j] = begin[j]
            add_rows(code, events.part(item), rows, total)

    return Operation("currents", [(bool, 2), (dtype, 2), (dtype, 2)], [(dtype, 2)], (0, 0), body)


@functools.cache
def _product(dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        events, post, totals = arrays
        n_post = totals.shape[1]
        with code.loop(last, first) as i, code.loop(n_post) as j:
            totals[i, j] = code.number(0, TYPES[totals.dtype])
        with code.loop(events.shape[0]) as item:

            def add(i: Number) -> None:
                with code.loop(n_post) as j:
                    totals[i, j] = totals[i, j] + post[item, j]

            each_event(code, events.part(item), add, last, first)

    return Operation("gradient", [(bool, 2), (dtype, 2)], [(dtype, 2)], (0, 1), body)


def event_currents(
    events: Bool[JaxArray, "time batch n_pre"],
    rows: Float[JaxArray, "n_pre n_post"],
    start: Float[JaxArray, "time batch n_post"],
) -> Float[JaxArray, "time batch n_post"]:
    """`start` + events @ rows."""
    n_items = start.shape[0] * start.shape[1]
    flat = start.reshape(n_items, -1)
    (totals,) = _sum(rows.dtype)(events.reshape(n_items, -1), rows, flat, shapes=[flat.shape])
    return totals.reshape(start.shape)


def event_product(
    events: Bool[JaxArray, "time batch n_pre"], post: Float[JaxArray, "time batch n_post"]
) -> Float[JaxArray, "n_pre n_post"]:
    """Σ_t eventsᵀ_t post_t, over the batch, too."""
    n_items = post.shape[0] * post.shape[1]
    shape = (events.shape[-1], post.shape[-1])
    flat = events.reshape(n_items, -1), post.reshape(n_items, -1)
    (totals,) = _product(post.dtype)(*flat, shapes=[shape])
    return totals
