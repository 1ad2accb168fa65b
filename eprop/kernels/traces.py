"""Eligibility traces led through a window of steps at once, and what has arrived in it.

Rows of traces are those of presynaptic neurons. A window reads and writes each of them once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Float

from .arguments import take
from .call import Operation
from .events import STEP, Counter, Events, WrittenEvents, add_rows, each_event, step
from .language import INDEX, Array, Code, Number


class Lead(NamedTuple):
    """How a window takes a trace over: led = Σ_k factor_k ε^k, and r_t for each event."""

    factors: list[Float[JaxArray, "batch n"]]
    """Of each hidden variable's vector, before the window."""
    r: Float[JaxArray, "time batch n"]


def event_traces(
    events: Events,
    post: Float[JaxArray, "time batch n_post"],
    first_row: int,
    total: Float[JaxArray, "batch rows n_post"],
) -> Float[JaxArray, "batch rows n_post"]:
    """`total` + Σ_t events_t ⊗ post_t of each example, in the rows from `first_row` on."""
    (totals,) = _traces(events.is_late, post.dtype)(
        step(first_row), *events.arrays, post, total, shapes=[total.shape], in_place={-1: 0}
    )
    return totals


@functools.cache
def _traces(is_late: bool, dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        given = iter(arrays)
        first_row, events = next(given)[0].to(INDEX), WrittenEvents(is_late, given)
        post, _, totals = given  # the total so far is where the result is to be
        with code.loop(last, first) as b, code.loop(post.shape[0]) as t:
            now = post.part(t, b)

            def add(i: Number) -> None:
                total = totals.part(b, first_row + i)
                with code.loop(total.shape[0]) as j:
                    total[j] = total[j] + now[j]

            each_event(code, events.at(t, b), add)

    types = [STEP, *WrittenEvents.types(is_late), (dtype, 3), (dtype, 3)]
    return Operation("traces", types, [(dtype, 3)], (len(types) - 1, 0), body)


def lead_traces(
    events: Events,
    first_row: int,
    vectors: Sequence[Float[JaxArray, "batch rows n"] | Float[JaxArray, "batch rows"]],
    filtered: Float[JaxArray, "batch rows n"],
    signals: Sequence[Float[JaxArray, "batch n"]],
    leads: Sequence[Lead],
    faded: float,
    total: Float[JaxArray, "rows n"],
) -> tuple[list[Float[JaxArray, "batch rows n"]], JaxArray, JaxArray]:
    """The traces of the synapses from the neurons of `events`, in the rows from `first_row` on.

    **Arguments:** `vectors`: ε of each hidden variable, common ones `[batch, rows]`, which stay as
    they are; `filtered`: ē; `signals`: what the loss makes of each ε and of ē; `leads`: of each ε
    that is not common and of ē, of which `faded` is left besides; `total`: to which the gradient
    is added, Σ_b signals · (ε, ē).

    Returns the vectors that are not common, ē, and the total.
    """
    common = [x for x in vectors if x.ndim == 2]
    full = [x for x in vectors if x.ndim == 3]
    kind = tuple(x.ndim == 2 for x in vectors)
    n_items = leads[0].r.shape[0] * leads[0].r.shape[1]
    given = [
        step(first_row),
        *events.arrays,
        jnp.full(1, faded, filtered.dtype),
        *signals,
        *(x for lead in leads for x in (*lead.factors, lead.r.reshape(n_items, -1))),
        *common,
    ]
    changed = [*full, filtered, total]
    found = _lead(events.is_late, kind, filtered.dtype)(
        *given,
        *changed,
        shapes=[x.shape for x in changed],
        in_place={len(given) + k: k for k in range(len(changed))},
    )
    return found[:-2], found[-2], found[-1]


@functools.cache
def _lead(is_late: bool, common: tuple[bool, ...], dtype: Any) -> Operation:
    d, n_full = len(common), len(common) - sum(common)

    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        given = iter(arrays)
        first_row, events = next(given)[0].to(INDEX), WrittenEvents(is_late, given)
        faded, signals = next(given)[0], take(given, d + 1)
        leads = [(take(given, d), next(given)) for _ in range(n_full + 1)]
        common_vectors = take(given, d - n_full)
        take(given, n_full + 2)  # the traces so far are where the results are to be
        *full, filtered, totals = given
        led = [*full, filtered]
        n_steps, batch, n_rows = events.now.shape[0], events.now.shape[1], last - first
        begins, filled = code.scratch(np.int64, n_rows + 1), code.scratch(np.int64, n_rows)
        row_of, item_of, items_of = (code.scratch(np.int64, n_steps * n_rows) for _ in range(3))
        count = Counter(code)
        with code.loop(batch) as b:
            # The items, steps of this example, at which each of the neurons was 1.
            count.reset()
            with code.loop(n_rows + 1) as i:
                begins[i] = code.index(0)
            with code.loop(n_steps) as t:

                def note(i: Number) -> None:
                    k = count.next()
                    row_of[k], item_of[k] = i, t * batch + b
                    begins[i + 1] = begins[i + 1] + 1

                each_event(code, events.at(t, b).between(first, last), note)
            with code.loop(n_rows) as i:
                filled[i] = begins[i]
                begins[i + 1] = begins[i + 1] + begins[i]
            with code.loop(count.value) as k:
                i = row_of[k]
                items_of[filled[i]] = item_of[k]
                filled[i] = filled[i] + 1
            with code.loop(n_rows) as i:
                row = first_row + first + i
                of_common, of_full = iter(common_vectors), iter(full)
                old = [
                    next(of_common)[b, row] if is_common else next(of_full).part(b, row)
                    for is_common in common
                ]
                rows = [x.part(b, row) for x in led]
                total = totals.part(row)
                with code.loop(total.shape[0]) as j:
                    values = [x[j] if isinstance(x, Array) else x for x in old]
                    filtered_j = rows[-1][j]
                    sums = total[j]
                    for signal, x in zip(signals, [*values, filtered_j], strict=True):
                        sums = sums + signal[b, j] * x
                    total[j] = sums
                    new = []
                    for factors, _ in leads:
                        first_product, *products = (
                            factor[b, j] * x for factor, x in zip(factors, values, strict=True)
                        )
                        new.append(sum(products, first_product))
                    new[-1] = new[-1] + faded * filtered_j
                    for x, value in zip(rows, new, strict=True):
                        x[j] = value
                for (_, r), x in zip(leads, rows, strict=True):
                    add_rows(code, items_of, begins[i + 1], r, x, begins[i])

    of_leads = [*[(dtype, 2)] * d, (dtype, 2)] * (n_full + 1)
    changed = [*[(dtype, 3)] * (n_full + 1), (dtype, 2)]
    types = [
        STEP,
        *WrittenEvents.types(is_late),
        (dtype, 1),
        *[(dtype, 2)] * (d + 1),
        *of_leads,
        *[(dtype, 2)] * (d - n_full),
        *changed,
    ]
    return Operation("lead", types, changed, (1, 2), body, pieces=1)
