"""The neurons of a layer, step by step: forward under events, once more, and backward.

Each example of the batch goes through all steps by itself.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Bool

from ..cells import AbstractCell
from .arguments import (
    Cotangents,
    Drive,
    DriveKind,
    PulledBack,
    Weights,
    WrittenCotangents,
    WrittenDrive,
    take,
)
from .call import Operation
from .delays import DelayLine, UnderWay
from .equations import Equations, Needed, kept
from .events import STEP, EventList, Events, WrittenEvents, step
from .language import INDEX, TYPES, Array, Code, Number
from .population import Population


def neurons_of(cells: Sequence[AbstractCell], dtype: Any) -> "Neurons":
    """The programs of a layer's neurons, kept for next time.

    Raises `NotTranslatable` if there are none.
    """
    return kept(Neurons, cells, dtype)


class Neurons:
    """The programs of the neurons of a layer.

    All take the cells' trained arrays, as they are now.
    """

    def __repr__(self) -> str:
        return f"<compiled programs for {self.n} neurons>"

    def __init__(self, cells: Sequence[AbstractCell], dtype: Any):
        self.dtype = np.dtype(dtype)
        self.cells = [Equations(cell, self.dtype) for cell in cells]
        self.leaves = [dtype for cell in self.cells for dtype in cell.leaves]
        self.hidden = [x for x in self.leaves if np.issubdtype(x, np.inexact)]
        self.arrays = [x for cell in self.cells for x in cell.arrays]
        self.n = sum(cell.n for cell in self.cells)
        self.n_post = sum(cell.n * cell.n_currents for cell in self.cells)

    # Forward.

    def run(
        self,
        drive: Drive,
        recurrent: Weights | None,
        under_way: UnderWay | None,
        z_before: Bool[JaxArray, "batch n"],
        states: Any,
        arrays: list[JaxArray],
        n_steps: int,
        length: int,
    ) -> tuple[Bool[JaxArray, "time batch n"], Any, Any]:
        """z_t under `drive` and the currents of `recurrent` weights, which may have delays.

        Returns also the states after the last step, and those before each block of `length` steps.
        """
        leaves, structure = jax.tree.flatten(states)
        n_blocks = -(-n_steps // length)
        shapes = [
            (n_steps, *z_before.shape),
            *(x.shape for x in leaves),
            *((n_blocks, *x.shape) for x in leaves),
        ]
        of_weights = None if recurrent is None else type(recurrent)
        spikes, *found = self._run(drive.kind, of_weights, under_way is not None)(
            step(length),
            z_before,
            *drive.arrays,
            *(recurrent or ()),
            *(under_way or ()),
            *leaves,
            *self._constants(arrays),
            shapes=shapes,
        )
        after, starts = found[: len(leaves)], found[len(leaves) :]
        return spikes, structure.unflatten(after), structure.unflatten(starts)

    @functools.cache  # noqa: B019
    def _run(
        self, kind: DriveKind, recurrent: type[Weights] | None, with_delays: bool
    ) -> Operation:
        def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
            given = iter(arrays)
            lengths, z_before = take(given, 2)
            currents, weights, line = WrittenDrive(code, kind, given), None, None
            if recurrent is not None:
                weights = recurrent(*take(given, len(recurrent._fields)))
            if with_delays:
                line = DelayLine(code, UnderWay(*take(given, 2)))
            before, constants = self._given(given)
            (spikes,), after = take(given, 1), take(given, len(self.leaves))
            starts = list(given)
            length = lengths[0].to(INDEX)
            current, z = code.scratch(self.dtype, self.n_post), code.scratch(bool, self.n)
            state = [code.scratch(x.dtype, x.shape[1]) for x in before]
            populations = self._populations(code, state, constants)
            found = EventList(code, self.n)

            def step_of(t: Number, b: Number) -> None:
                currents.add(t, b, current)
                if weights is not None:
                    found.find(z if line is None else line.step(t, z))
                    weights.add(found, current)
                z_t = spikes.part(t, b)
                for cells in populations:
                    with code.loop(cells.n) as j:
                        i = cells.first + j
                        z[i] = cells.step(code, current, z[i].to(TYPES[self.dtype]), j) > 0
                        z_t[i] = z[i]

            with code.loop(last, first) as b:
                code.copy(z_before.part(b), z)
                if line is not None:
                    line.begin(b)
                for x, y in zip(before, state, strict=True):
                    code.copy(x.part(b), y)
                with code.loop(starts[0].shape[0]) as block:
                    for x, y in zip(state, starts, strict=True):
                        code.copy(x, y.part(block, b))
                    begin = block * length
                    with code.loop((begin + length).at_most(spikes.shape[0]), begin) as t:
                        step_of(t, b)
                for x, y in zip(state, after, strict=True):
                    code.copy(x, y.part(b))

        states = [(x, 2) for x in self.leaves]
        arguments = [
            STEP,
            (bool, 2),
            *WrittenDrive.types(kind, self.dtype),
            *([] if recurrent is None else recurrent.types(self.dtype)),
            *[(bool, 3), (np.int32, 1)] * with_delays,
            *states,
            *self._constant_types,
        ]
        results = [(bool, 3), *states, *[(x, 3) for x in self.leaves]]
        return Operation("run", arguments, results, (1, 0), body)

    # Once more, with the spikes known.

    def replay(
        self,
        drive: Drive,
        z_tm1: Events,
        states: Any,
        arrays: list[JaxArray],
    ) -> Any:
        """The states of all steps, from those before the first. All currents are in `drive`."""
        leaves, structure = jax.tree.flatten(states)
        shapes = [(len(z_tm1.now), *x.shape) for x in leaves]
        found = self._replay(drive.kind)(
            *z_tm1.arrays, *drive.arrays, *leaves, *self._constants(arrays), shapes=shapes
        )
        return structure.unflatten(found)

    @functools.cache  # noqa: B019
    def _replay(self, kind: DriveKind) -> Operation:
        def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
            given = iter(arrays)
            z_tm1, currents = WrittenEvents(True, given), WrittenDrive(code, kind, given)
            before, constants = self._given(given)
            states = list(given)
            current = code.scratch(self.dtype, self.n_post)
            state = [code.scratch(x.dtype, x.shape[1]) for x in before]
            populations = self._populations(code, state, constants)
            with code.loop(last, first) as b:
                for x, y in zip(before, state, strict=True):
                    code.copy(x.part(b), y)
                with code.loop(z_tm1.now.shape[0]) as t:
                    currents.add(t, b, current)
                    z = z_tm1.at(t, b)
                    for cells in populations:
                        with code.loop(cells.n) as j:
                            z_j = z[cells.first + j].to(TYPES[self.dtype])
                            cells.step(code, current, z_j, j)
                    for x, y in zip(state, states, strict=True):
                        code.copy(x, y.part(t, b))

        before = [(x, 2) for x in self.leaves]
        arguments = [
            *WrittenEvents.types(True),
            *WrittenDrive.types(kind, self.dtype),
            *before,
            *self._constant_types,
        ]
        return Operation("replay", arguments, [(x, 3) for x in self.leaves], (0, 1), body)

    # Backward.

    def back(
        self,
        drive: Drive,
        z_tm1: Events,
        first_step: int | JaxArray,
        n_steps: int,
        states: Any,
        arrays: list[JaxArray],
        functions: Sequence[Cotangents],
    ) -> list[PulledBack]:
        """Backpropagation through each neuron, not the network, of some functions of a run.

        **Arguments:** `drive`: of all currents; `first_step`: of the events, where all else
        begins, for `n_steps`; `states`: before it.
        """
        leaves = jax.tree.leaves(states)
        batch = z_tm1.now.shape[1]
        of_arrays = [(batch, cell.n) for cell in self.cells for _ in cell.arrays]
        d_before = [x.shape for x in functions[0].after]
        given = [
            step(first_step),
            step(n_steps),
            *z_tm1.arrays,
            *drive.arrays,
            *leaves,
            *self._constants(arrays),
        ]
        shapes, in_place = [], {}
        for x in functions:
            given += x.arrays
            if x.currents is not None:  # the last of them
                in_place[len(given) - 1] = len(shapes)
            r = (n_steps, batch, self.n_post) if x.currents is None else x.currents.shape
            shapes += [r, *d_before, *of_arrays]
        program = self._back(drive.kind, tuple(x.kind for x in functions))
        found = program(*given, shapes=shapes, in_place=in_place)

        def pulled_back(r: JaxArray, *found: JaxArray) -> PulledBack:
            before, sums = found[: len(d_before)], found[len(d_before) :]
            pairs = zip(self.arrays, sums, strict=True)
            d_arrays = [x.sum(0) if array.ndim else x.sum() for array, x in pairs]
            return PulledBack(d_arrays, list(before), r)

        n = len(shapes) // len(functions)
        return [pulled_back(*found[n * k : n * (k + 1)]) for k in range(len(functions))]

    @functools.cache  # noqa: B019
    def _back(
        self,
        kind: DriveKind,
        functions: tuple[tuple[int, bool, bool, bool], ...],
    ) -> Operation:
        def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
            given = iter(arrays)
            first_step, n_steps = (next(given)[0].to(INDEX) for _ in range(2))
            z_tm1 = WrittenEvents(True, given)
            currents = WrittenDrive(code, kind, given)
            before, constants = self._given(given)
            cotangents = [WrittenCotangents(x, len(self.hidden), given) for x in functions]
            found = [take(given, 1 + len(self.hidden) + len(self.arrays)) for _ in functions]
            d_spikes = code.scratch(self.dtype, self.n)
            current = code.scratch(self.dtype, self.n_post)
            state = [code.scratch(x.dtype, x.shape[1]) for x in before]
            costate = [code.scratch(x.dtype, x.shape[1]) for x in cotangents[0].after]
            populations = self._populations(code, state, constants)
            kept = [
                [code.scratch(x, n_steps, _whole_lines(cells.n, x)) for x in cells.equations.kept]
                for cells in populations
            ]
            needed: list[Needed] = []
            with code.loop(last, first) as b:
                for x, y in zip(before, state, strict=True):
                    code.copy(x.part(b), y)
                with code.loop(n_steps) as t:
                    currents.add(t, b, current, first_step)
                    z = z_tm1.at(first_step + t, b)
                    for cells, keep in zip(populations, kept, strict=True):
                        with code.loop(cells.n) as j:
                            z_j = z[cells.first + j].to(TYPES[self.dtype])
                            rows = [x.part(t) for x in keep]
                            needed.append(cells.linearized(code, current, z_j, rows, j))
                for of_function, results in zip(cotangents, found, strict=True):
                    r, d_before, sums = _parted(results, len(self.hidden))
                    for x, y in zip(of_function.after, costate, strict=True):
                        code.copy(x.part(b), y)
                    for x in sums:
                        with code.loop(x.shape[1]) as j:
                            x[b, j] = code.number(0, TYPES[self.dtype])
                    with code.loop(n_steps) as later:
                        t = n_steps - 1 - later
                        r_t = r.part(first_step + t if of_function.of_all_steps else t, b)
                        of_function.write_spikes(code, t, b, d_spikes)
                        self._step_back(
                            code,
                            populations,
                            needed,
                            [[x.part(t) for x in keep] for keep in kept],
                            d_spikes,
                            [x.part(t, b) for x in of_function.states],
                            costate,
                            [x.part(b) for x in sums],
                            r_t,
                        )
                    for x, y in zip(costate, d_before, strict=True):
                        code.copy(x, y.part(b))

        hidden, of_arrays = [(x, 2) for x in self.hidden], [(self.dtype, 2)] * len(self.arrays)
        of_functions = [WrittenCotangents.types(x, self.dtype, self.hidden) for x in functions]
        arguments = [
            STEP,
            STEP,
            *WrittenEvents.types(True),
            *WrittenDrive.types(kind, self.dtype),
            *[(x, 2) for x in self.leaves],
            *self._constant_types,
            *itertools.chain(*of_functions),
        ]
        results = [(self.dtype, 3), *hidden, *of_arrays] * len(functions)
        return Operation("back", arguments, results, (2, 1), body)

    def _step_back(
        self,
        code: Code,
        populations: list[Population],
        needed: list[Needed],
        kept: list[list[Array]],
        d_spikes: Array,
        direct: list[Array],
        costates: list[Array],
        sums: list[Array],
        r: Array,
    ) -> None:
        """Writes one step back: the costates before it, and r of it."""
        variables, totals, straight = iter(costates), iter(sums), iter(direct)
        for cells, of_step, rows in zip(populations, needed, kept, strict=True):
            equations = cells.equations
            of_costates = take(variables, equations.n_hidden)
            of_direct = take(straight, equations.n_hidden)
            of_sums = take(totals, len(equations.arrays))
            with code.loop(cells.n) as j:
                d_hidden = [x[j] for x in of_costates]
                if of_direct:
                    d_hidden = [x + y[j] for x, y in zip(d_hidden, of_direct, strict=True)]
                cotangents = [*d_hidden, d_spikes[cells.first + j]]
                found = iter(cells.back(code, of_step, rows, cotangents, j))
                for x in of_sums:
                    x[j] = x[j] + next(found)
                for x in of_costates:
                    x[j] = next(found)
                for column in cells.columns(j):
                    r[column] = next(found)

    # What does not change.

    def _given(self, arrays: Iterator[Array]) -> tuple[list[Array], list[Array]]:
        """The states before the first step, and the cells' constants."""
        return take(arrays, len(self.leaves)), take(arrays, len(self._constant_types))

    def _constants(self, arrays: list[JaxArray]) -> list[JaxArray]:
        """Of each cell its trained arrays, and the tables of its equations, `[n]` each."""
        trained = iter(arrays)
        return [
            jnp.broadcast_to(jnp.asarray(x), (cell.n,))
            for cell in self.cells
            for x in (*take(trained, len(cell.arrays)), *itertools.chain(*cell.tables))
        ]

    @property
    def _constant_types(self) -> list[tuple[Any, int]]:
        return [
            (x.dtype, 1) for cell in self.cells for x in itertools.chain(cell.arrays, *cell.tables)
        ]

    def _populations(
        self, code: Code, state: list[Array], constants: list[Array]
    ) -> list[Population]:
        leaves, rows = iter(state), iter(constants)
        first = first_current = code.index(0)
        populations = []
        for cell in self.cells:
            own, arrays = take(leaves, len(cell.leaves)), take(rows, len(cell.arrays))
            tables = [take(rows, len(x)) for x in cell.tables]
            cells = Population(cell, own, arrays, tables, first, first_current)
            populations.append(cells)
            first = first + cells.n
            first_current = first_current + cells.n * cell.n_currents
        return populations


def _whole_lines(n: int, dtype: Any) -> int:
    """So many numbers, and more up to the end of a cache line: where the next row begins."""
    per_line = 64 // np.dtype(dtype).itemsize
    return -(-n // per_line) * per_line


def _parted(results: list[Array], n_hidden: int) -> tuple[Array, list[Array], list[Array]]:
    r, *others = results
    return r, others[:n_hidden], others[n_hidden:]
