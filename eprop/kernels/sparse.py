"""Sparse synapses by the neuron that they come from: what an event is added to.

They are kept by the neuron that they lead to. Once a call they are sorted by the other one, in a
pass over all of them; their order among those of one neuron stays. So sums have a defined order.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Float, Int

from .call import Operation
from .events import STEP, EventList, Events, WrittenEvents, each_event, step
from .language import INDEX, Array, Code, Number


class Outgoing(NamedTuple):
    """The synapses of each presynaptic neuron: those of an event are added to the currents.

    These are the arrays of a call, or the same in a program that is being written.
    """

    begins: Any
    """`[n_pre + 1]`: the first of each neuron, and how many there are."""
    post: Any
    """`[n_synapses]`: the current that each leads to."""
    weights: Any
    """`[n_synapses]`"""

    @staticmethod
    def types(dtype: Any) -> list[tuple[Any, int]]:
        return [(np.int32, 1), (np.int32, 1), (dtype, 1)]

    @property
    def n_pre(self) -> Any:
        return self.begins.shape[0] - 1

    def add(self, found: EventList, current: Array) -> None:
        """Writes: to the currents of a step its events are added."""
        with found.code.loop(found.count.value) as event:
            i = found.indices[event]
            with found.code.loop(*_of_neuron(self.begins, i)) as k:
                j = self.post[k].to(INDEX)
                current[j] = current[j] + self.weights[k]


class Wiring(NamedTuple):
    """Where sparse synapses are when they are sorted by presynaptic neuron."""

    begins: Int[JaxArray, " n_pre+1"]
    post: Int[JaxArray, " n_synapses"]
    place: Int[JaxArray, " n_synapses"]
    """Where each is among the weights."""
    rank: Int[JaxArray, "n_post fan_in"]
    """Of each weight its number in this order."""

    def sorted(self, of_weights: JaxArray) -> Float[JaxArray, " n_synapses"]:
        """From numbers of the weights `[n_post, fan_in]`."""
        return of_weights.reshape(-1).at[self.place].get(mode="promise_in_bounds")

    def restored(self, of_synapses: JaxArray) -> Float[JaxArray, "*batch n_post fan_in"]:
        """To numbers of the weights, from those in this order `[*batch, n_synapses]`."""
        return of_synapses.at[..., self.rank].get(mode="promise_in_bounds")

    def outgoing(self, w: Float[JaxArray, "n_post fan_in"]) -> Outgoing:
        return Outgoing(self.begins, self.post, self.sorted(w))

    def product(
        self,
        events: Events,
        post: Float[JaxArray, "time batch n_post"],
        first_step: int | JaxArray,
        total: Float[JaxArray, " n_synapses"],
    ) -> Float[JaxArray, " n_synapses"]:
        """`total` + Σ_t (what each synapse has seen) · post_t, over the batch, too.

        `post` begins at `first_step`.
        """
        return self._sums(events, post, first_step, total)

    def traces(
        self, events: Events, post: Float[JaxArray, "time batch n_post"]
    ) -> Float[JaxArray, "batch n_synapses"]:
        """The same from the first step on, of each example."""
        nothing = jnp.zeros((post.shape[1], *self.place.shape), post.dtype)
        return self._sums(events, post, 0, nothing)

    def _sums(
        self, events: Events, post: JaxArray, first_step: int | JaxArray, total: JaxArray
    ) -> JaxArray:
        (totals,) = _sums(events.is_late, total.ndim, post.dtype)(
            step(first_step),
            *events.arrays,
            self.begins,
            self.post,
            post,
            total,
            shapes=[total.shape],
            in_place={-1: 0},
        )
        return totals


def wiring(indices: Int[JaxArray, "n_post fan_in"], n_pre: int) -> Wiring:
    """Of synapses from the neurons of `indices`."""
    n_synapses = indices.size
    within = jnp.clip(indices.astype(jnp.int32), 0, n_pre - 1)  # a program must not look elsewhere
    begins, place, rank = _sort()(
        within.reshape(1, n_synapses), shapes=[(n_pre + 1,), (n_synapses,), (n_synapses,)]
    )
    return Wiring(begins, place // indices.shape[1], place, rank.reshape(indices.shape))


@functools.cache
def _sort() -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        indices, begins, place, rank = arrays
        n_pre = begins.shape[0] - 1
        filled = code.scratch(np.int32, n_pre)
        with code.loop(last, first) as item:  # there is one: all synapses
            of = indices.part(item)
            with code.loop(n_pre + 1) as i:
                begins[i] = code.index(0)
            with code.loop(of.shape[0]) as k:
                i = of[k].to(INDEX)
                begins[i + 1] = begins[i + 1] + 1
            with code.loop(n_pre) as i:
                filled[i] = begins[i]
                begins[i + 1] = begins[i + 1] + begins[i]
            with code.loop(of.shape[0]) as k:
                i = of[k].to(INDEX)
                at = filled[i]
                place[at.to(INDEX)], rank[k], filled[i] = k, at, at + 1

    number = np.int32
    return Operation("sort", [(number, 2)], [(number, 1)] * 3, (0, 0), body)


@functools.cache
def _sums(is_late: bool, ndim: int, dtype: Any) -> Operation:
    def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
        given = iter(arrays)
        first_step, events = next(given)[0].to(INDEX), WrittenEvents(is_late, given)
        begins, places, post, _, totals = given  # the total is where the result is to be
        n_steps, batch, _ = post.shape
        with code.loop(n_steps) as t, code.loop(batch) as b:
            post_t, total = post.part(t, b), totals if ndim == 1 else totals.part(b)

            def add(i: Number) -> None:
                with code.loop(*_of_neuron(begins, first + i)) as k:
                    total[k] = total[k] + post_t[places[k].to(INDEX)]

            each_event(code, events.at(first_step + t, b).between(first, last), add)

    types = [STEP, *WrittenEvents.types(is_late), (np.int32, 1), (np.int32, 1), (dtype, 3)]
    of_total = (dtype, ndim)
    return Operation("synapses", [*types, of_total], [of_total], (1, 2), body, pieces=1)


def _of_neuron(begins: Array, i: Number) -> tuple[Number, Number]:
    """The end and the beginning of a presynaptic neuron's synapses."""
    return begins[i + 1].to(INDEX), begins[i].to(INDEX)
