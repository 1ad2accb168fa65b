"""A cell's equations, as jaxprs: its step, and the step's derivative in reverse."""

import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import llvmlite.ir as ir
import numpy as np
from jax.extend.core import ClosedJaxpr

from ..cells import AbstractCell
from .language import Code, Number
from .scalar import NotTranslatable, evaluate, type_of


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

        def back(arrays, leaves, currents, z_tm1, d_hidden, d_z):
            def run(arrays, variables, currents):
                given = list(leaves)
                for i, x in zip(hidden, variables, strict=True):
                    given[i] = x
                after, z = step(arrays, given, currents, z_tm1)
                return [after[i] for i in hidden], z

            _, pullback = jax.vjp(run, arrays, [leaves[i] for i in hidden], currents)
            return pullback((d_hidden, d_z))

        def of(shape, dtype=dtype):
            return jax.ShapeDtypeStruct(shape, dtype)

        z = of((1, self.n))
        leaves = [of((1, self.n), x) for x in self.leaves]
        currents = z if self.n_currents == 1 else of((self.n_currents, 1, self.n))
        given = [of((self.n,)) for _ in self.arrays], leaves, currents, z
        self.step = jax.make_jaxpr(step)(*given)
        """`(arrays, state, currents, z_tm1) -> state after the step, z_t`."""
        self.back = jax.make_jaxpr(back)(*given, [z for _ in hidden], z)
        """`(the same, dE/ds_t, dE/dz_t) -> dE/d(arrays), dE/ds_{t-1}, dE/d(currents)`."""
        self.step_tables = _tables(self.step, self.n)
        self.back_tables = _tables(self.back, self.n)


def _tables(closed: ClosedJaxpr, n: int) -> list[Any]:
    """The arrays `[n]` of constants that a jaxpr reads, in order: found by writing it once."""
    found: list[Any] = []
    code = Code(ir.Module(), "to_look_at", 0)

    def numbers() -> Iterator[Number]:
        for variable in closed.jaxpr.invars:
            for _ in range(math.prod(variable.aval.shape[:-1])):
                yield code.number(0, type_of(variable.aval.dtype))

    def table(row: Any) -> Number:
        found.append(row)
        return code.number(0, type_of(row.dtype))

    evaluate(code, closed, n, numbers(), table)
    return found
