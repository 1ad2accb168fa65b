"""A cell's equations, as jaxprs: its step, and the step's derivative in reverse."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import llvmlite.ir as ir
import numpy as np

from ..cells import AbstractCell
from ..structure import describe_classes
from .language import TYPES, Code, Number
from .scalar import (
    NotTranslatable,
    Scalar,
    Value,
    Writer,
    evaluate,
    numbers_of,
    type_of,
    values_of,
)

Programs = TypeVar("Programs")
_kept: dict[Any, Any] = {}


def kept(
    make: Callable[..., Programs], cells: Sequence[AbstractCell], dtype: Any, **options: Any
) -> Programs:
    """`make(cells, dtype, **options)`, kept for next time: arrays that are trained may differ.

    What a user's own cell does may change in a notebook: then it is made anew.
    """
    arrays, rest = eqx.partition(tuple(cells), eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(rest)
    of_arrays = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(arrays))
    of_numbers = np.dtype(dtype), jax.config.read("jax_enable_x64")
    classes = tuple(field for cell in cells for field in describe_classes(cell))
    key = (make, tuple(options.items()), structure, *of_numbers, of_arrays, classes, *leaves)
    try:
        hash(key)
    except TypeError:  # of arrays that are not trained
        return make(cells, dtype, **options)
    if key not in _kept:
        _kept[key] = make(cells, dtype, **options)
    return _kept[key]


class Equations:
    """What the programs need of a cell.

    Raises `NotTranslatable` for a cell that they can't run.
    """

    def __init__(self, cell: AbstractCell, dtype: Any):
        arrays, rest = eqx.partition(cell, eqx.is_inexact_array)
        leaves, of_arrays = jax.tree.flatten(arrays)
        self.arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
        """Shape and dtype of the trained arrays, each `[n]` or a number."""
        for x in self.arrays:
            if x.shape not in ((), (cell.n,)):
                raise NotTranslatable(f"a trained constant of shape {x.shape}")
        template, of_state = jax.tree.flatten(jax.eval_shape(lambda: cell.init(1)))
        is_float = [jnp.issubdtype(x.dtype, jnp.inexact) for x in template]
        self.n, self.n_currents = cell.n, cell.n_currents
        self.leaves = [
            np.dtype(dtype if of_float else x.dtype)
            for x, of_float in zip(template, is_float, strict=True)
        ]
        """The dtype of each leaf of a state."""
        for leaf in (dtype, *self.leaves):
            type_of(leaf)
        hidden = [i for i, of_float in enumerate(is_float) if of_float]
        self.n_hidden = len(hidden)

        def step(arrays, leaves, currents, z_tm1):
            cell = eqx.combine(of_arrays.unflatten(arrays), rest)
            state = cell.step(of_state.unflatten(leaves), currents, z_tm1)
            return jax.tree.leaves(state), cell.output(state)

        def linearized(arrays, leaves, currents, z_tm1):
            def run(arrays, variables, currents):
                given = list(leaves)
                for i, x in zip(hidden, variables, strict=True):
                    given[i] = x
                after, z = step(arrays, given, currents, z_tm1)
                return ([after[i] for i in hidden], z), after

            variables = [leaves[i] for i in hidden]
            _, pullback, after = jax.vjp(run, arrays, variables, currents, has_aux=True)
            return after, pullback

        def of(shape, dtype=dtype):
            return jax.ShapeDtypeStruct(shape, dtype)

        z = of((1, self.n))
        leaves = [of((1, self.n), x) for x in self.leaves]
        currents = z if self.n_currents == 1 else of((self.n_currents, 1, self.n))
        given = [of((self.n,)) for _ in self.arrays], leaves, currents, z
        self.step = _traced(step, *given)[0]
        """`(arrays, state, currents, z_tm1) -> state after the step, z_t`."""
        self.linearized, (_, pullback) = _traced(linearized, *given)
        """`(the same) -> state after the step, what its derivative needs of it`."""
        needed, of_pullback = jax.tree.flatten(pullback)

        def back(needed, d_hidden, d_z):
            return of_pullback.unflatten(needed)((d_hidden, d_z))

        self.back, _ = _traced(back, needed, [z for _ in hidden], z)
        """`(what it needs, dE/ds_t, dE/dz_t) -> dE/d(arrays), dE/ds_{t-1}, dE/d(currents)`."""
        self._find_tables()

    def _find_tables(self) -> None:
        """The arrays `[n]` of constants that `step`, `linearized` and `back` read, in order.

        They are found, like the numbers that are to be kept, by writing these once.
        """
        code = Code(ir.Module(), "to_look_at", 0)
        tables: list[list[Any]] = [[], [], []]

        def number(dtype: Any) -> Number:
            return Number(code, code.builder.load(code.builder.alloca(type_of(dtype))))

        def given() -> Iterator[Number]:
            for array in self.step.in_avals:
                for _ in range(math.prod(array.shape[:-1])):
                    yield number(array.dtype)

        def finder(found: list[Any]) -> Any:
            def table(row: Any) -> Number:
                found.append(row)
                return number(row.dtype)

            return table

        self.write_step(code, list(given()), finder(tables[0]))
        _, needed = self.write_linearized(code, list(given()), finder(tables[1]))
        dtypes = {of_type: dtype for dtype, of_type in TYPES.items()}
        self.kept = [dtypes[x.type] for x in needed.kept]
        """The dtype of each number that is to be kept of a step for its derivative."""
        z = self.step.in_avals[-1]
        cotangents = [number(z.dtype) for _ in range(self.n_hidden + 1)]
        self.write_back(code, needed.values, cotangents, finder(tables[2]))
        self.tables = tables

    def write_step(self, code: Writer, given: Sequence[Scalar], table: Any) -> list[Scalar]:
        """From the numbers of a neuron: arrays, state, currents, z_{t-1}. Returns s_t and z_t."""
        values = values_of(self.step.in_avals, iter(given))
        results = evaluate(code, self.step, self.n, values, table)
        return numbers_of(results, self.step.out_avals)

    def write_linearized(
        self, code: Writer, given: Sequence[Scalar], table: Any
    ) -> tuple[list[Scalar], "Needed"]:
        """The same with what `write_back` needs in place of z_t."""
        values = values_of(self.linearized.in_avals, iter(given))
        read: list[Scalar] = list(given[: len(self.arrays)])

        def noted(row: Any) -> Scalar:
            read.append(table(row))
            return read[-1]

        results = evaluate(code, self.linearized, self.n, values, noted)
        n_leaves = len(self.leaves)
        after = numbers_of(results[:n_leaves], self.linearized.out_avals[:n_leaves])
        return after, Needed(results[n_leaves:], read)

    def write_back(
        self, code: Writer, needed: Sequence[Value], cotangents: Sequence[Scalar], table: Any
    ) -> list[Scalar]:
        """From dE/ds_t and dE/dz_t to dE/d(arrays), dE/ds_{t-1} and dE/d(currents)."""
        of_cotangents = values_of(self.back.in_avals[len(needed) :], iter(cotangents))
        results = evaluate(code, self.back, self.n, [*needed, *of_cotangents], table)
        return numbers_of(results, self.back.out_avals)


def _traced(function: Callable[..., Any], *given: Any) -> tuple[Any, Any]:
    """Its jaxpr, and the shapes that it returns.

    A cell may do with a number what can't be done with one for each neuron, which is how a trained
    number is given here.
    """
    try:
        return jax.make_jaxpr(function, return_shape=True)(*given)
    except (TypeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise NotTranslatable(f"equations that are not those of each neuron ({first})") from None


class Needed:
    """What a step's derivative needs of it.

    Constants of the program are at hand anyway, and what has been `read` of arrays that don't
    change with time can be read again. All else is to be kept.
    """

    def __init__(self, values: Sequence[Value], read: Sequence[Scalar]):
        self.values = list(values)
        self._read = {id(number.value): k for k, number in enumerate(read)}
        kept: dict[int, Scalar] = {}
        for value in values:
            for number in value.numbers.flat:
                is_constant = isinstance(number.value, ir.Constant)
                if not is_constant and id(number.value) not in self._read:
                    kept.setdefault(id(number.value), number)
        self.kept = list(kept.values())
        """Numbers of a neuron, one each."""
        self._kept = {key: k for k, key in enumerate(kept)}

    def again(self, kept: Sequence[Scalar], read: Sequence[Scalar]) -> list[Value]:
        """The same at another time."""

        def replaced(number: Scalar) -> Scalar:
            key = id(number.value)
            if key in self._kept:
                return kept[self._kept[key]]
            return read[self._read[key]] if key in self._read else number

        def of_value(value: Value) -> Value:
            numbers = np.empty(value.numbers.shape, object)
            for index in np.ndindex(numbers.shape):
                numbers[index] = replaced(cast(Scalar, value.numbers[index]))
            return Value(numbers, value.of_neurons)

        return [of_value(value) for value in self.values]
