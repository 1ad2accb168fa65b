"""The neurons of a layer on a GPU: time inside the program, a tile of neurons side by side.

Forward, one program for each example goes through all steps with all of its neurons; for each spike
it adds a row of the recurrent weights, in the order of the neurons. So no product is rounded to
fewer bits, and the same sum is the same number wherever it is formed. In reverse, neurons are
separate: a program for each stretch of them and each example. Both are Pallas's, for Triton.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from ..cells import AbstractCell
from .equations import Equations, kept
from .lanes import Lanes, LanesCode
from .scalar import NotTranslatable

PER_THREAD = 4
"""Neurons of a thread, forward."""
STRETCH = 32
"""Neurons of a program in reverse: one of each thread of a warp."""
AHEAD = 4
"""Steps whose numbers are on their way from memory together."""
LARGEST = 4096
"""Neurons of an example that one program can hold, forward."""


def tiles_of(cell: AbstractCell, dtype: Any, *, interpret: bool) -> "Tiles":
    """The programs of a cell's neurons, kept for next time.

    Raises `NotTranslatable` if there are none. `interpret`: whether XLA is to do what they say.
    """
    return kept(Tiles, [cell], dtype, interpret=interpret)


class Tiles:
    """The programs of the neurons of a cell.

    All take the cell's trained arrays, as they are now.
    """

    def __repr__(self) -> str:
        return f"<programs for a GPU, for {self.n} neurons>"

    def __init__(self, cells: Sequence[AbstractCell], dtype: Any, *, interpret: bool):
        (cell,) = cells
        self.dtype, self.interpret = np.dtype(dtype), interpret
        if self.dtype != np.float32 and not interpret:
            raise NotTranslatable(f"numbers of dtype {self.dtype}")
        self.equations = equations = Equations(cell, self.dtype)
        self.n, self.n_currents = equations.n, equations.n_currents
        if self.n > LARGEST:
            raise NotTranslatable(f"more than {LARGEST} neurons")
        jax.eval_shape(self._try)  # an operation that there is not is found here

    def _try(self) -> Any:
        constants = [jnp.zeros(1, x.dtype) for x in self._constant_shapes()]
        state = [jnp.zeros(1, x) for x in self.equations.leaves]
        currents = [jnp.zeros(1, self.dtype)] * self.n_currents
        hidden = [jnp.zeros(1, self.dtype)] * self.equations.n_hidden
        step = self._step(constants, state, currents, currents[0])
        return step, self._back(constants, state, currents, currents[0], hidden, currents[0])

    # Forward.

    def run(
        self,
        drive: Float[Array, "time batch n_post"],
        w_rec: Float[Array, "n n_post"] | None,
        z_before: Float[Array, "batch n"],
        state: Any,
        arrays: Sequence[Array],
    ) -> tuple[Int[Array, "time batch n"], Float[Array, "time batch n_post"], Any]:
        """z_t as bytes, I_t, and the state after the last step."""
        leaves, structure = jax.tree.flatten(state)
        constants = self._constants(arrays)
        rows = [] if w_rec is None else [w_rec]
        n_steps, batch, _ = drive.shape
        width = _power_of_two(self.n)

        def program(*refs: Any) -> None:
            given, results = refs[: -2 - len(leaves)], refs[-2 - len(leaves) :]
            all_drive, z_0, *others = given
            matrix = others.pop(0) if rows else None
            spikes, currents, *ends = results
            b, lane = pl.program_id(0), jnp.arange(width, dtype=jnp.int32)
            j = jnp.minimum(lane, self.n - 1)  # those beyond do what the last one does
            is_one = lane < self.n
            columns = [j + k * self.n for k in range(self.n_currents)]
            state = [_load(x, dtype, b, j) for x, dtype in self._with_types(others)]
            fixed = [_load(x, x.dtype, j) for x in others[len(leaves) :]]

            def drive_of(t: Any) -> list[Array]:
                return [_load(all_drive, self.dtype, t, b, x) for x in columns]

            def next_spike(z: Array, after: Any) -> Any:
                has = (z > 0) & is_one & (lane > after)
                return jnp.min(jnp.where(has, lane, width))

            def add_row(z: Array) -> Callable:
                def add(now: tuple[Any, list[Array]]) -> tuple[Any, list[Array]]:
                    i, current = now
                    row = [_load(matrix, self.dtype, i, x) for x in columns]
                    return next_spike(z, i), [x + y for x, y in zip(current, row, strict=True)]

                return add

            def step(t: Any, carry: Any) -> Any:
                state, z, current = carry
                following = drive_of(jnp.minimum(t + 1, n_steps - 1))
                if matrix is not None:
                    first = next_spike(z, jnp.int32(-1))
                    _, current = jax.lax.while_loop(
                        lambda now: now[0] < width, add_row(z), (first, current)
                    )
                state, z = self._step(fixed, state, current, z)
                _store(spikes, (z > 0).astype(jnp.int8), is_one, t, b, j)
                for x, column in zip(current, columns, strict=True):
                    _store(currents, x, is_one, t, b, column)
                return state, z, following

            start = state, _load(z_0, self.dtype, b, j), drive_of(0)
            state, _, _ = jax.lax.fori_loop(0, n_steps, step, start)
            for x, end in zip(state, ends, strict=True):
                _store(end, x, is_one, b, j)

        shape = n_steps, batch, self.n
        spikes, currents, *ends = self._call(
            "eprop_gpu_run",
            program,
            (batch,),
            [drive, z_before, *rows, *map(_in_memory, leaves), *constants],
            [(shape, jnp.int8), (drive.shape, self.dtype)]
            + [((batch, self.n), _type_in_memory(x.dtype)) for x in leaves],
            warps=max(1, width // (32 * PER_THREAD)),
        )
        return spikes, currents, structure.unflatten(_restored(ends, leaves))

    # Reverse.

    def back(
        self,
        currents: Float[Array, "time batch n_post"],
        z_tm1: Int[Array, "time batch n"],
        state: Any,
        arrays: Sequence[Array],
        d_spikes: Float[Array, "time batch n"],
        d_states: Sequence[Float[Array, "time batch n"]] | None,
        d_after: Sequence[Float[Array, "batch n"]],
    ) -> tuple[list[Array], list[Array], Float[Array, "time batch n_post"]]:
        """From the derivatives by what the neurons did to those by their arrays, state and I_t.

        The neurons run once more, by the same equations as forward, then backwards.
        """
        leaves = jax.tree.leaves(state)
        constants = self._constants(arrays)
        n_steps, batch, _ = currents.shape
        n_hidden, n_arrays = len(d_after), len(arrays)
        direct = list(d_states or ())

        def program(*refs: Any) -> None:
            current_of, z_of, d_spikes_of, *others = refs
            others = iter(others)
            direct_of, after, starts = (_take(others, x) for x in (len(direct), n_hidden, leaves))
            of_constants = _take(others, constants)
            r, *results = others
            sums = results[n_hidden : n_hidden + n_arrays]
            before, states = results[:n_hidden], results[n_hidden + n_arrays :]
            b, first = pl.program_id(0), pl.program_id(1) * STRETCH
            lane = first + jnp.arange(STRETCH, dtype=jnp.int32)
            j, is_one = jnp.minimum(lane, self.n - 1), lane < self.n
            columns = [j + k * self.n for k in range(self.n_currents)]
            fixed = [_load(x, x.dtype, j) for x in of_constants]
            state = [_load(x, dtype, b, j) for x, dtype in self._with_types(starts)]

            def of_step(t: Any) -> tuple[list[Array], Array]:
                current = [_load(current_of, self.dtype, t, b, x) for x in columns]
                return current, _load(z_of, self.dtype, t, b, j)

            def forward(steps: list[Any], state: list[Array]) -> list[Array]:
                for t, given in [(t, of_step(t)) for t in steps]:
                    for x, where in zip(state, states, strict=True):
                        _store(where, x, is_one, t, b, j)
                    state, _ = self._step(fixed, state, *given)
                return state

            def backward(steps: list[Any], carry: Any) -> Any:
                def given(t: Any) -> Any:
                    state = [_load(x, dtype, t, b, j) for x, dtype in self._with_types(states)]
                    signals = [_load(x, self.dtype, t, b, j) for x in (d_spikes_of, *direct_of)]
                    return state, *of_step(t), *signals

                costates, totals = carry
                for t, (state, current, z, d_z, *d_direct) in [(t, given(t)) for t in steps]:
                    if d_direct:
                        costates = [x + y for x, y in zip(costates, d_direct, strict=True)]
                    d_arrays, costates, d_currents = self._back(
                        fixed, state, current, z, costates, d_z
                    )
                    totals = [x + y for x, y in zip(totals, d_arrays, strict=True)]
                    for x, column in zip(d_currents, columns, strict=True):
                        _store(r, x, is_one, t, b, column)
                return costates, totals

            _in_groups(n_steps, lambda steps, x: forward(steps, x), state)
            if not self.interpret:
                _triton().debug_barrier()  # what has been kept is read again
            nothing = [jnp.zeros(STRETCH, self.dtype)] * n_arrays
            at_end = [_load(x, self.dtype, b, j) for x in after], nothing
            costates, totals = _in_groups(
                n_steps, lambda steps, x: backward([n_steps - 1 - t for t in steps], x), at_end
            )
            for x, where in zip([*costates, *totals], [*before, *sums], strict=True):
                _store(where, x, is_one, b, j)

        of_neurons, of_steps = (batch, self.n), (n_steps, batch, self.n)
        r, *found = self._call(
            "eprop_gpu_back",
            program,
            (batch, pl.cdiv(self.n, STRETCH)),
            [currents, z_tm1, d_spikes, *direct, *d_after, *map(_in_memory, leaves), *constants],
            [(currents.shape, self.dtype)]
            + [(of_neurons, self.dtype)] * (n_hidden + n_arrays)
            + [(of_steps, _type_in_memory(x.dtype)) for x in leaves],
            warps=1,
        )
        sums = found[n_hidden : n_hidden + n_arrays]
        pairs = zip(arrays, sums, strict=True)
        d_arrays = [x.sum(0) if array.ndim else x.sum() for array, x in pairs]
        return d_arrays, found[:n_hidden], r

    # A step of some neurons, and the same back.

    def _step(
        self, constants: Sequence[Array], state: list[Array], current: list[Array], z_tm1: Array
    ) -> tuple[list[Array], Array]:
        arrays, (tables, _, _) = self._parted(constants)
        code = LanesCode()
        given = [Lanes(x) for x in (*arrays, *state, *current, z_tm1)]
        *after, z = self.equations.write_step(code, given, _reader(tables))
        shape = z_tm1.shape
        leaves = zip(after, self.equations.leaves, strict=True)
        return [x.filled(shape, dtype) for x, dtype in leaves], z.filled(shape, self.dtype)

    def _back(
        self,
        constants: Sequence[Array],
        state: list[Array],
        current: list[Array],
        z_tm1: Array,
        costates: list[Array],
        d_z: Array,
    ) -> tuple[list[Array], list[Array], list[Array]]:
        """dE/d(arrays), dE/ds_{t-1} and dE/dI_t."""
        arrays, (_, tables, tables_back) = self._parted(constants)
        code = LanesCode()
        given = [Lanes(x) for x in (*arrays, *state, *current, z_tm1)]
        _, needed = self.equations.write_linearized(code, given, _reader(tables))
        cotangents = [Lanes(x) for x in (*costates, d_z)]
        found = self.equations.write_back(code, needed.values, cotangents, _reader(tables_back))
        filled = iter([x.filled(z_tm1.shape, self.dtype) for x in found])
        return _take(filled, arrays), _take(filled, costates), list(filled)

    def _parted(self, constants: Sequence[Array]) -> tuple[list[Array], list[list[Array]]]:
        """The trained arrays, and the tables of `step`, `linearized` and `back`."""
        left = iter(constants)
        arrays = _take(left, self.equations.arrays)
        return arrays, [_take(left, x) for x in self.equations.tables]

    def _constants(self, arrays: Sequence[Array]) -> list[Array]:
        tables = [x for table in self.equations.tables for x in table]
        return [_in_memory(jnp.broadcast_to(jnp.asarray(x), (self.n,))) for x in (*arrays, *tables)]

    def _constant_shapes(self) -> list[Any]:
        return jax.eval_shape(
            lambda: self._constants([jnp.zeros(x.shape, x.dtype) for x in self.equations.arrays])
        )

    def _with_types(self, refs: Sequence[Any]) -> list[tuple[Any, Any]]:
        return list(zip(refs, self.equations.leaves, strict=False))

    def _call(
        self,
        name: str,
        program: Callable[..., None],
        grid: tuple[int, ...],
        arguments: Sequence[Array],
        results: Sequence[tuple[tuple[int, ...], Any]],
        warps: int,
    ) -> list[Array]:
        call = pl.pallas_call(
            program,
            [jax.ShapeDtypeStruct(*x) for x in results],
            grid=grid,
            name=name,
            interpret=self.interpret,
            compiler_params=_triton().CompilerParams(num_warps=warps, num_stages=1),
        )
        return list(call(*arguments))


def _triton() -> Any:
    """Not on every platform can this be imported."""
    from jax.experimental.pallas import triton

    return triton


def _take(items: Any, like: Any) -> list[Any]:
    """As many of the next items as there are of others, or so many."""
    count = like if isinstance(like, int) else len(like)
    return [next(items) for _ in range(count)]


def _reader(tables: Sequence[Array]) -> Callable[[Any], Lanes]:
    left = iter(tables)
    return lambda _: Lanes(next(left))


def _load(ref: Any, dtype: Any, *index: Any) -> Array:
    return _triton().load(ref.at[index]).astype(dtype)


def _store(ref: Any, x: Array, mask: Array, *index: Any) -> None:
    *rows, column = index
    # Interpreted, what is masked writes what was there: where nothing else is written.
    column = jnp.where(mask, column, ref.shape[-1])
    _triton().store(ref.at[*rows, column], x.astype(ref.dtype), mask=mask)


def _in_groups(n_steps: int, advance: Callable[[list[Any], Any], Any], carry: Any) -> Any:
    """`advance(steps, carry)` of all steps in their order, `AHEAD` of them at a time."""
    n_groups = n_steps // AHEAD

    def group(i: Any, carry: Any) -> Any:
        return advance([i * AHEAD + k for k in range(AHEAD)], carry)

    carry = jax.lax.fori_loop(0, n_groups, group, carry)
    left = list(range(n_groups * AHEAD, n_steps))
    return advance(left, carry) if left else carry


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _type_in_memory(dtype: Any) -> Any:
    return jnp.int8 if dtype == np.bool_ else dtype


def _in_memory(x: Array) -> Array:
    """A boolean is a byte there."""
    return x.astype(_type_in_memory(x.dtype))


def _restored(found: Sequence[Array], like: Sequence[Array]) -> list[Array]:
    return [x.astype(y.dtype) for x, y in zip(found, like, strict=True)]
