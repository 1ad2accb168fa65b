"""What readouts make of spikes, and the gradient of their weights.

For one or two readouts, to look for the spikes would take longer than to choose between a number
and zero for every neuron, many at a time. Arrays have the neurons last for that.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float

from .call import Operation
from .events import STEP, TOGETHER, Events, event_currents, event_product, step
from .language import INDEX, Array, Code, Number

FEW = 2
"""Up to so many readouts."""


def readout_drive(
    spikes: Bool[JaxArray, "time batch n"],
    w_out: Float[JaxArray, "n n_out"],
    start: Float[JaxArray, "time batch n_out"],
) -> Float[JaxArray, "time batch n_out"]:
    """`start` + spikes @ w_out."""
    if w_out.shape[1] > FEW:
        return event_currents(spikes, w_out, start)
    items = start.reshape(-1, start.shape[2])  # of all steps and examples
    (drive,) = _drive(w_out.dtype)(
        spikes.reshape(len(items), -1), w_out.T, items, shapes=[items.shape], in_place={-1: 0}
    )
    return drive.reshape(start.shape)


def readout_gradient(
    spikes: Bool[JaxArray, "time batch n"],
    error: Float[JaxArray, "some_time batch n_out"],
    first_step: int | JaxArray,
    total: Float[JaxArray, "n n_out"],
) -> Float[JaxArray, "n n_out"]:
    """`total` + Σ_t spikesᵀ_t error_t, over the batch, too. `error` begins at `first_step`."""
    if error.shape[2] > FEW:
        return event_product(Events(spikes), error, first_step, total)
    return _sum_of_steps(spikes, error, first_step, total.T[None])[0].T


def faded_spikes(
    fading: Float[JaxArray, " time"], spikes: Bool[JaxArray, "time batch n"]
) -> Float[JaxArray, "batch n"]:
    """Σ_t fading_t spikes_t."""
    n_steps, batch, n = spikes.shape
    by_time = jnp.broadcast_to(fading[:, None, None], (n_steps, batch, 1))
    return _sum_of_steps(spikes, by_time, 0, jnp.zeros((batch, 1, n), fading.dtype))[:, 0]


def _sum_of_steps(
    spikes: Bool[JaxArray, "time batch n"],
    factors: Float[JaxArray, "some_time batch m"],
    first_step: int | JaxArray,
    total: Float[JaxArray, "batch_or_1 m n"],
) -> Float[JaxArray, "batch_or_1 m n"]:
    """`total` + Σ_t factors_t spikes_t: of each example, or of all."""
    (sums,) = _sum(len(total) > 1, factors.dtype)(
        step(first_step), spikes, factors, total, shapes=[total.shape], in_place={-1: 0}
    )
    return sums


@functools.cache
def _drive(dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        spikes, rows, _, drives = arrays  # what is there so far is where the result is to be
        total = code.scratch(dtype, 1)
        with code.loop(last, first) as item, code.loop(rows.shape[0]) as k:
            now, row = spikes.part(item), rows.part(k)
            total[0] = drives[item, k].like(0)
            with code.loop(row.shape[0]) as j:
                total[0] = total[0].plus_in_any_order(now[j].choose(row[j], row[j].like(0)))
            drives[item, k] = drives[item, k] + total[0]

    return Operation("drive", [(bool, 2), (dtype, 2), (dtype, 2)], [(dtype, 2)], (0, 0), body)


@functools.cache
def _sum(by_example: bool, dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        first_step, spikes, factors, _, totals = arrays
        n_steps, batch, m = factors.shape
        first_step = first_step[0].to(INDEX)

        def add(total: Array, b: Number, k: Number, steps: list[Number]) -> None:
            """What some steps of an example make of it."""
            now = [(spikes.part(first_step + t, b), factors[t, b, k]) for t in steps]
            with code.loop(last, first) as j:
                x = total[j]
                for of_step, factor in now:
                    x = x + of_step[j].choose(factor, factor.like(0))
                total[j] = x

        n_whole = n_steps / TOGETHER
        with code.loop(batch) as b, code.loop(m) as k:
            total = totals.part(b if by_example else 0, k)
            with code.loop(n_whole) as group:
                add(total, b, k, [group * TOGETHER + i for i in range(TOGETHER)])
            with code.loop(n_steps, n_whole * TOGETHER) as t:
                add(total, b, k, [t])

    types = [STEP, (bool, 3), (dtype, 3), (dtype, 3)]
    return Operation("steps", types, [(dtype, 3)], (len(types) - 1, 2), body, pieces=1)
