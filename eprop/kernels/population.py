"""Neurons of one kind, in a program that is being written."""

from collections.abc import Sequence
from typing import NamedTuple

from .equations import Equations, Needed
from .language import Array, Code, Number


class Population(NamedTuple):
    """One of the populations, in a program that is being written."""

    equations: Equations
    state: list[Array]
    """`[n]` of each leaf."""
    arrays: list[Array]
    tables: list[list[Array]]
    """Of `step`, `linearized` and `back`."""
    first: Number
    """Index of its first neuron."""
    first_current: Number

    @property
    def n(self) -> int:
        return self.equations.n

    def columns(self, j: Number) -> list[Number]:
        """Where the currents of neuron j are."""
        return [
            j.like(self.n * k) + j + self.first_current for k in range(self.equations.n_currents)
        ]

    def step(self, code: Code, current: Array, z_tm1: Number, j: Number) -> Number:
        """Writes the step of neuron j. Returns z_t."""
        tables = iter(self.tables[0])
        given = self._given(current, z_tm1, j)
        *after, z_t = self.equations.write_step(code, given, lambda _: next(tables)[j])
        self._set_state(after, j)
        return z_t

    def linearized(
        self, code: Code, current: Array, z_tm1: Number, kept: Sequence[Array], j: Number
    ) -> Needed:
        """Writes the step of neuron j, which keeps what its derivative needs."""
        tables = iter(self.tables[1])
        given = self._given(current, z_tm1, j)
        after, needed = self.equations.write_linearized(code, given, lambda _: next(tables)[j])
        for row, number in zip(kept, needed.kept, strict=True):
            row[j] = number
        self._set_state(after, j)
        return needed

    def back(
        self,
        code: Code,
        needed: Needed,
        kept: Sequence[Array],
        cotangents: Sequence[Number],
        j: Number,
    ) -> list[Number]:
        """Writes the same step back."""
        tables = iter(self.tables[2])
        read = [x[j] for x in (*self.arrays, *self.tables[1])]
        values = needed.again([row[j] for row in kept], read)
        return self.equations.write_back(code, values, cotangents, lambda _: next(tables)[j])

    def _given(self, current: Array, z_tm1: Number, j: Number) -> list[Number]:
        currents = [current[column] for column in self.columns(j)]
        return [*(x[j] for x in (*self.arrays, *self.state)), *currents, z_tm1]

    def _set_state(self, numbers: Sequence[Number], j: Number) -> None:
        for leaf, number in zip(self.state, numbers, strict=True):
            leaf[j] = number
