"""The neurons of a layer, step by step: forward under events, once more, and backward.

Each example of the batch goes through all steps by itself.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float

from ..cells import AbstractCell
from .call import Operation
from .equations import Equations, Needed
from .events import STEP, EventList, Events, WrittenEvents, step
from .language import INDEX, TYPES, Array, Code, Number


class _Cells(NamedTuple):
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


class Drive(NamedTuple):
    """Input currents: `start`, and a row of a matrix for each event."""

    start: Float[JaxArray, "time batch n_post"] | Float[JaxArray, " n_post"]
    """Of each step, or the same for all."""
    sources: Sequence[tuple[Events, Float[JaxArray, "n_pre n_post"]]] = ()

    @property
    def kind(self) -> tuple[int, tuple[bool, ...]]:
        """What a program must know of it."""
        return self.start.ndim, tuple(events.is_late for events, _ in self.sources)

    @property
    def arrays(self) -> list[JaxArray]:
        return [self.start, *(x for events, rows in self.sources for x in (*events.arrays, rows))]


class _Currents:
    """A `Drive`, in a program that is being written."""

    def __init__(self, code: Code, kind: tuple[int, tuple[bool, ...]], arrays: Iterator[Array]):
        self.code, self.start, self.of_each_step = code, next(arrays), kind[0] > 1
        self.sources = []
        for is_late in kind[1]:
            events, rows = WrittenEvents(is_late, arrays), next(arrays)
            self.sources.append((events, rows, EventList(code, rows.shape[0])))

    @staticmethod
    def types(kind: tuple[int, tuple[bool, ...]], dtype: Any) -> list[tuple[Any, int]]:
        of_sources = [[*WrittenEvents.types(is_late), (dtype, 2)] for is_late in kind[1]]
        return [(dtype, kind[0]), *itertools.chain(*of_sources)]

    def add(self, t: Number, b: Number, current: Array, first_step: Number | int = 0) -> None:
        """Writes: `current` is that of a step of an example, counted from `first_step` on."""
        code = self.code
        _copy(code, self.start.part(t, b) if self.of_each_step else self.start, current)
        for events, rows, found in self.sources:
            found.find(events.at(t + first_step, b))
            found.add_rows(rows, current)


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

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What a program must know of it."""
        ndim = 0 if self.spikes is None else self.spikes.ndim
        return ndim, self.states is not None, self.error is not None

    @property
    def arrays(self) -> list[JaxArray]:
        spikes = [] if self.spikes is None else [self.spikes]
        return [*self.after, *spikes, *(self.states or []), *(self.error or [])]


class PulledBack(NamedTuple):
    """The same with respect to what the neurons' run came from."""

    arrays: list[JaxArray]
    """dE/d(trained arrays)."""
    before: list[Float[JaxArray, "batch _"]]
    """dE/ds before the first step."""
    currents: Float[JaxArray, "time batch n_post"]
    """r_t = dE/dI_t."""


class _Cotangents:
    """`Cotangents`, in a program that is being written."""

    def __init__(self, kind: tuple[int, bool, bool], n_hidden: int, arrays: Iterator[Array]):
        self.ndim, with_states, with_error = kind
        self.after = _take(arrays, n_hidden)
        self.spikes = _take(arrays, int(self.ndim > 0))
        self.states = _take(arrays, n_hidden * with_states)
        self.error = _take(arrays, 2 * with_error)

    @staticmethod
    def types(
        kind: tuple[int, bool, bool], dtype: Any, hidden: Sequence[Any]
    ) -> list[tuple[Any, int]]:
        ndim, with_states, with_error = kind
        return [
            *((x, 2) for x in hidden),
            *[(dtype, ndim)] * (ndim > 0),
            *((x, 3) for x in hidden if with_states),
            *[(dtype, 3), (dtype, 2)] * with_error,
        ]

    def write_spikes(self, code: Code, t: Number, b: Number, d_spikes: Array) -> None:
        """Writes dE/dz_t of an example, `[n]`."""
        if self.ndim == 3:
            _copy(code, self.spikes[0].part(t, b), d_spikes)
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


def neurons_of(cells: Sequence[AbstractCell], dtype: Any) -> "Neurons":
    """The programs of a layer's neurons, kept for next time.

    Raises `NotTranslatable` if there are none.
    """
    arrays, rest = eqx.partition(tuple(cells), eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(rest)
    of_arrays = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(arrays))
    key = (structure, np.dtype(dtype), jax.config.read("jax_enable_x64"), of_arrays, *leaves)
    try:
        hash(key)
    except TypeError:  # of arrays that are not trained
        return Neurons(cells, dtype)
    if key not in _known:
        _known[key] = Neurons(cells, dtype)
    return _known[key]


_known: dict[Any, "Neurons"] = {}


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
        w_rec: Float[JaxArray, "n n_post"] | None,
        z_before: Bool[JaxArray, "batch n"],
        states: Any,
        arrays: list[JaxArray],
        n_steps: int,
        length: int,
    ) -> tuple[Bool[JaxArray, "time batch n"], Any, Any]:
        """z_t under `drive` and the recurrent currents.

        Returns also the states after the last step, and those before each block of `length` steps.
        """
        leaves, structure = jax.tree.flatten(states)
        rows = [] if w_rec is None else [w_rec]
        n_blocks = -(-n_steps // length)
        shapes = [
            (n_steps, *z_before.shape),
            *(x.shape for x in leaves),
            *((n_blocks, *x.shape) for x in leaves),
        ]
        spikes, *found = self._run(drive.kind, len(rows))(
            step(length),
            z_before,
            *drive.arrays,
            *rows,
            *leaves,
            *self._constants(arrays),
            shapes=shapes,
        )
        after, starts = found[: len(leaves)], found[len(leaves) :]
        return spikes, structure.unflatten(after), structure.unflatten(starts)

    @functools.cache  # noqa: B019
    def _run(self, kind: tuple[int, tuple[bool, ...]], n_matrices: int) -> Operation:
        def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
            given = iter(arrays)
            lengths, z_before = _take(given, 2)
            currents, rows = _Currents(code, kind, given), _take(given, n_matrices)
            before, constants = self._given(given)
            (spikes,), after = _take(given, 1), _take(given, len(self.leaves))
            starts = list(given)
            length = lengths[0].to(INDEX)
            current, z = code.scratch(self.dtype, self.n_post), code.scratch(bool, self.n)
            state = [code.scratch(x.dtype, x.shape[1]) for x in before]
            populations = self._populations(code, state, constants)
            found = EventList(code, self.n)

            def step_of(t: Number, b: Number) -> None:
                currents.add(t, b, current)
                for matrix in rows:
                    found.find(z)
                    found.add_rows(matrix, current)
                z_t = spikes.part(t, b)
                for cells in populations:
                    with code.loop(cells.n) as j:
                        i = cells.first + j
                        z[i] = cells.step(code, current, z[i].to(TYPES[self.dtype]), j) > 0
                        z_t[i] = z[i]

            with code.loop(last, first) as b:
                _copy(code, z_before.part(b), z)
                for x, y in zip(before, state, strict=True):
                    _copy(code, x.part(b), y)
                with code.loop(starts[0].shape[0]) as block:
                    for x, y in zip(state, starts, strict=True):
                        _copy(code, x, y.part(block, b))
                    begin = block * length
                    with code.loop((begin + length).at_most(spikes.shape[0]), begin) as t:
                        step_of(t, b)
                for x, y in zip(state, after, strict=True):
                    _copy(code, x, y.part(b))

        states = [(x, 2) for x in self.leaves]
        arguments = [
            STEP,
            (bool, 2),
            *_Currents.types(kind, self.dtype),
            *[(self.dtype, 2)] * n_matrices,
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
    def _replay(self, kind: tuple[int, tuple[bool, ...]]) -> Operation:
        def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
            given = iter(arrays)
            z_tm1, currents = WrittenEvents(True, given), _Currents(code, kind, given)
            before, constants = self._given(given)
            states = list(given)
            current = code.scratch(self.dtype, self.n_post)
            state = [code.scratch(x.dtype, x.shape[1]) for x in before]
            populations = self._populations(code, state, constants)
            with code.loop(last, first) as b:
                for x, y in zip(before, state, strict=True):
                    _copy(code, x.part(b), y)
                with code.loop(z_tm1.now.shape[0]) as t:
                    currents.add(t, b, current)
                    self._step(code, populations, current, z_tm1.at(t, b))
                    for x, y in zip(state, states, strict=True):
                        _copy(code, x, y.part(t, b))

        before = [(x, 2) for x in self.leaves]
        arguments = [
            *WrittenEvents.types(True),
            *_Currents.types(kind, self.dtype),
            *before,
            *self._constant_types,
        ]
        return Operation("replay", arguments, [(x, 3) for x in self.leaves], (0, 1), body)

    def _step(self, code: Code, populations: list[_Cells], current: Array, z_tm1: Array) -> None:
        for cells in populations:
            with code.loop(cells.n) as j:
                cells.step(code, current, z_tm1[cells.first + j].to(TYPES[self.dtype]), j)

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
        of_function = [(n_steps, batch, self.n_post), *d_before, *of_arrays]
        found = self._back(drive.kind, tuple(x.kind for x in functions))(
            step(first_step),
            *z_tm1.arrays,
            *drive.arrays,
            *leaves,
            *self._constants(arrays),
            *itertools.chain(*(x.arrays for x in functions)),
            shapes=of_function * len(functions),
        )

        def pulled_back(r: JaxArray, *found: JaxArray) -> PulledBack:
            before, sums = found[: len(d_before)], found[len(d_before) :]
            pairs = zip(self.arrays, sums, strict=True)
            d_arrays = [x.sum(0) if array.ndim else x.sum() for array, x in pairs]
            return PulledBack(d_arrays, list(before), r)

        n = len(of_function)
        return [pulled_back(*found[n * k : n * (k + 1)]) for k in range(len(functions))]

    @functools.cache  # noqa: B019
    def _back(
        self, kind: tuple[int, tuple[bool, ...]], functions: tuple[tuple[int, bool, bool], ...]
    ) -> Operation:
        def body(code: Code, arrays: list[Array], first: Number, last: Number) -> None:
            given = iter(arrays)
            first_step, z_tm1 = next(given)[0].to(INDEX), WrittenEvents(True, given)
            currents = _Currents(code, kind, given)
            before, constants = self._given(given)
            cotangents = [_Cotangents(x, len(self.hidden), given) for x in functions]
            found = [_take(given, 1 + len(self.hidden) + len(self.arrays)) for _ in functions]
            n_steps = found[0][0].shape[0]
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
                    _copy(code, x.part(b), y)
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
                        _copy(code, x.part(b), y)
                    for x in sums:
                        with code.loop(x.shape[1]) as j:
                            x[b, j] = code.number(0, TYPES[self.dtype])
                    with code.loop(n_steps) as later:
                        t = n_steps - 1 - later
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
                            r.part(t, b),
                        )
                    for x, y in zip(costate, d_before, strict=True):
                        _copy(code, x, y.part(b))

        hidden, of_arrays = [(x, 2) for x in self.hidden], [(self.dtype, 2)] * len(self.arrays)
        of_functions = [_Cotangents.types(x, self.dtype, self.hidden) for x in functions]
        arguments = [
            STEP,
            *WrittenEvents.types(True),
            *_Currents.types(kind, self.dtype),
            *[(x, 2) for x in self.leaves],
            *self._constant_types,
            *itertools.chain(*of_functions),
        ]
        results = [(self.dtype, 3), *hidden, *of_arrays] * len(functions)
        return Operation("back", arguments, results, (1, 1), body)

    def _step_back(
        self,
        code: Code,
        populations: list[_Cells],
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
            of_costates = _take(variables, equations.n_hidden)
            of_direct = _take(straight, equations.n_hidden)
            of_sums = _take(totals, len(equations.arrays))
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
        return _take(arrays, len(self.leaves)), _take(arrays, len(self._constant_types))

    def _constants(self, arrays: list[JaxArray]) -> list[JaxArray]:
        """Of each cell its trained arrays, and the tables of its equations, `[n]` each."""
        trained = iter(arrays)
        return [
            jnp.broadcast_to(jnp.asarray(x), (cell.n,))
            for cell in self.cells
            for x in (*_take(trained, len(cell.arrays)), *itertools.chain(*cell.tables))
        ]

    @property
    def _constant_types(self) -> list[tuple[Any, int]]:
        return [
            (x.dtype, 1) for cell in self.cells for x in itertools.chain(cell.arrays, *cell.tables)
        ]

    def _populations(self, code: Code, state: list[Array], constants: list[Array]) -> list[_Cells]:
        leaves, rows = iter(state), iter(constants)
        first = first_current = code.index(0)
        populations = []
        for cell in self.cells:
            own, arrays = _take(leaves, len(cell.leaves)), _take(rows, len(cell.arrays))
            tables = [_take(rows, len(x)) for x in cell.tables]
            cells = _Cells(cell, own, arrays, tables, first, first_current)
            populations.append(cells)
            first = first + cells.n
            first_current = first_current + cells.n * cell.n_currents
        return populations


def _take(arrays: Iterator[Any], count: int) -> list[Any]:
    return list(itertools.islice(arrays, count))


def _whole_lines(n: int, dtype: Any) -> int:
    """So many numbers, and more up to the end of a cache line: where the next row begins."""
    per_line = 64 // np.dtype(dtype).itemsize
    return -(-n // per_line) * per_line


def _parted(results: list[Array], n_hidden: int) -> tuple[Array, list[Array], list[Array]]:
    r, *others = results
    return r, others[:n_hidden], others[n_hidden:]


def _copy(code: Code, x: Array, y: Array) -> None:
    with code.loop(x.shape[0]) as j:
        y[j] = x[j]
