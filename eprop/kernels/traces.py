"""Eligibility traces led through a window of steps at once, and what has arrived in it.

Rows of traces are those of presynaptic neurons. A window reads and writes each of them once.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Float

from .arguments import take
from .call import Operation
from .events import STEP, Events, SortedEvents, WrittenEvents, add_rows, each_event, step
from .language import INDEX, Array, Code, Number


class Traces(NamedTuple):
    """Of some presynaptic neurons, with a row for each."""

    common: list[Float[JaxArray, "batch rows"]]
    """ε of the hidden variables whose vectors are the same for all neurons."""
    full: list[Float[JaxArray, "batch rows n"]]
    """ε of the others."""
    filtered: Float[JaxArray, "batch rows n"]
    """ē."""


class Leads(NamedTuple):
    """What a window makes of traces: of the gradient, and of the traces themselves."""

    signals: list[Float[JaxArray, "batch n"]]
    """What the loss makes of ε of each hidden variable, and of ē, from before ..."""
    currents: Float[JaxArray, "time batch n"] | None
    """... and, unless that is in the gradient already, of each event in it: r_t = dE/dI_t."""
    factors: list[list[Float[JaxArray, "batch n"]]]
    """Of each full ε after the window, and of ē, what each ε before it counts ..."""
    r: list[Float[JaxArray, "time batch n"]]
    """... and what each event."""
    faded: float
    """What is left of ē."""
    power: Float[np.ndarray, "m m"]
    """Of each common ε after the window what those before it count ..."""
    response: Float[np.ndarray, "time m"]
    """... and each event."""
    is_common: tuple[bool, ...]
    """Of each hidden variable."""


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
    events: Sequence[Events],
    traces: Traces,
    leads: Leads,
    total: Float[JaxArray, "rows n"],
) -> tuple[Traces, Float[JaxArray, "rows n"]]:
    """The traces after a window. `events`, kind after kind, are of the neurons of all rows.

    To `total` the gradient is added: Σ_b (signals · (ε, ē) + Σ_t events_t · r_t).
    """
    dtype = total.dtype
    currents = [] if leads.currents is None else [leads.currents]
    of_leads = zip(leads.factors, leads.r, strict=True)
    given = [
        *itertools.chain.from_iterable(kind.arrays for kind in events),
        jnp.full(1, leads.faded, dtype),
        jnp.asarray(leads.power, dtype),
        jnp.asarray(leads.response, dtype),
        *leads.signals,
        *currents,
        *(x for factors, r in of_leads for x in (*factors, r)),
    ]
    changed = [*traces.common, *traces.full, traces.filtered, total]
    is_late = tuple(kind.is_late for kind in events)
    found = _lead(is_late, leads.is_common, len(currents), dtype)(
        *given,
        *changed,
        shapes=[x.shape for x in changed],
        in_place={len(given) + k: k for k in range(len(changed))},
    )
    n_common = len(traces.common)
    return Traces(found[:n_common], found[n_common:-2], found[-2]), found[-1]


@functools.cache
def _lead(
    is_late: tuple[bool, ...], is_common: tuple[bool, ...], n_currents: int, dtype: Any
) -> Operation:
    d, n_common = len(is_common), sum(is_common)
    n_led = d - n_common + 1

    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        given = iter(arrays)
        kinds = [WrittenEvents(late, given) for late in is_late]
        faded, (power, response) = next(given)[0], take(given, 2)
        signals, currents = take(given, d + 1), take(given, n_currents)
        leads = [(take(given, d), next(given)) for _ in range(n_led)]
        take(given, n_common + n_led + 1)  # what was before is where the results are to be
        common, led, (totals,) = take(given, n_common), take(given, n_led), given

        def lead(events: WrittenEvents, found: SortedEvents, begin: Number, own: Number) -> None:
            """Those of a kind's neurons from index `own` on, whose rows are from `begin` on."""
            n_steps, batch, _ = events.now.shape
            with code.loop(batch) as b:
                with found.begun() as note, code.loop(n_steps) as t:
                    some = events.at(t, b).between(own, own + found.n_pre)
                    each_event(code, some, lambda i: note(i, t))
                with code.loop(found.n_pre) as i:
                    lead_row(b, begin + i, found.of(i))

        def lead_row(b: Number, row: Number, steps: Array) -> None:
            """The row of a neuron that had events in these steps."""
            before = [x[b, row] for x in common]
            for k, x in enumerate(common):
                products = [power[k, m] * y for m, y in enumerate(before)]
                x[b, row] = sum(products[1:], products[0])
                with code.loop(steps.shape[0]) as event:
                    x[b, row] = x[b, row] + response[steps[event], k]
            rows = [x.part(b, row) for x in led]
            total = totals.part(row)
            with code.loop(total.shape[0]) as j:
                of_common, now = iter(before), [x[j] for x in rows]
                of_full = iter(now)
                old = [next(of_common) if same else next(of_full) for same in is_common]
                filtered = now[-1]
                x = total[j]
                for signal, y in zip(signals, [*old, filtered], strict=True):
                    x = x + signal[b, j] * y
                total[j] = x
                for (factors, _), of_row in zip(leads, rows, strict=True):
                    products = [x[b, j] * y for x, y in zip(factors, old, strict=True)]
                    if of_row is rows[-1]:
                        products.append(faded * filtered)
                    of_row[j] = sum(products[1:], products[0])
            of_events = [(r, total) for r in currents]
            of_events += [(r, x) for (_, r), x in zip(leads, rows, strict=True)]
            for r, of_row in of_events:
                add_rows(code, steps, steps.shape[0], r.of_example(b), of_row)

        shares, start = [], code.index(0)
        for events in kinds:
            n_steps, _, n_pre = events.now.shape
            begin, end = first.at_least(start), last.at_most(start + n_pre)
            n_rows = (end - begin).at_least(0)
            shares.append((SortedEvents(code, n_rows, n_steps * n_rows), begin, begin - start))
            start = start + n_pre
        for events, share in zip(kinds, shares, strict=True):
            lead(events, *share)

    changed = [*[(dtype, 2)] * n_common, *[(dtype, 3)] * n_led, (dtype, 2)]
    types = [
        *itertools.chain.from_iterable(map(WrittenEvents.types, is_late)),
        (dtype, 1),
        *[(dtype, 2)] * (2 + d + 1),
        *[(dtype, 3)] * n_currents,
        *[*[(dtype, 2)] * d, (dtype, 3)] * n_led,
        *changed,
    ]
    return Operation("lead", types, changed, (len(types) - 1, 0), body, pieces=1)
