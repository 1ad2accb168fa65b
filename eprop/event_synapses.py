"""Synapses on compiled programs: what each kind makes of the events that it sees."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import equinox as eqx
from equinox import AbstractVar
from jaxtyping import Array, Float

from .kernels import (
    Events,
    Rows,
    Weights,
    Wiring,
    event_product,
    event_traces,
    wiring,
)
from .synapses import AbstractSynapses, Sparse


class AbstractEventSynapses(eqx.Module):
    """One kind of synapses of a layer. Their gradient is `ordered` while steps are added to it."""

    name: AbstractVar[str]
    """Under which their gradient is, among those of the layer's `synapses`."""

    @abstractmethod
    def weights(self, w: Array) -> Weights:
        """The weights `w`, as they act, as programs take them."""

    @abstractmethod
    def ordered(self, gradient: Array) -> Array:
        """A gradient as `add_product` takes it."""

    @abstractmethod
    def restored(self, gradient: Array) -> Array:
        """A gradient of the weights from one that is `ordered`."""

    @abstractmethod
    def add_product(
        self,
        events: Events,
        r: Float[Array, "time batch n_post"],
        first_step: Any,
        gradient: Array,
    ) -> Array:
        """The gradient + that of a block, which begins at `first_step`."""

    @abstractmethod
    def add_traces(
        self,
        events: Events,
        r: Float[Array, "time batch n_post"],
        total: Float[Array, "batch fan_in n"],
        columns: slice,
    ) -> Float[Array, "batch fan_in n"]:
        """`total` + Σ_t (what a synapse has seen) · r_t, of each example, in some `columns`."""


class EventDense(AbstractEventSynapses):
    """Some rows of the matrix of all dense synapses."""

    rows: slice = eqx.field(static=True)
    name: str = eqx.field(static=True, default="dense")

    def weights(self, w):
        return Rows(w)

    def ordered(self, gradient):
        return gradient

    def restored(self, gradient):
        return gradient

    def add_product(self, events, r, first_step, gradient):
        return event_product(events, r, first_step, gradient, self.rows.start)

    def add_traces(self, events, r, total, columns):
        return event_traces(events, r[..., columns], self.rows.start, total)


class EventSparse(AbstractEventSynapses):
    """Sparse synapses, sorted by the neuron that they come from."""

    wiring: Wiring
    name: str = eqx.field(static=True)

    def weights(self, w):
        return self.wiring.outgoing(w)

    def ordered(self, gradient):
        return self.wiring.sorted(gradient)

    def restored(self, gradient):
        return self.wiring.restored(gradient)

    def add_product(self, events, r, first_step, gradient):
        return self.wiring.product(events, r, first_step, gradient)

    def add_traces(self, events, r, total, columns):
        of_synapses = self.wiring.restored(self.wiring.traces(events, r))  # [batch, n_post, fan_in]
        return total + of_synapses[:, columns].swapaxes(1, 2)


def event_synapses(
    kinds: Mapping[str, AbstractSynapses], rows: Mapping[str, slice]
) -> dict[str, AbstractEventSynapses]:
    """Of those `kinds` of synapses that can do with events; `rows` are those of dense ones."""

    def found(kind: str, synapses: AbstractSynapses) -> AbstractEventSynapses | None:
        if isinstance(synapses, Sparse):
            return EventSparse(wiring=wiring(synapses.indices, synapses.n_pre), name=kind)
        return EventDense(rows=rows[kind]) if kind in rows else None

    each = {kind: found(kind, synapses) for kind, synapses in kinds.items()}
    return {kind: x for kind, x in each.items() if x is not None}
