"""JAX's loops and branches for a state that may hold more than arrays (a cell's functions, say)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

Advance = Callable[[Any, Any], tuple[Any, Any]]
"""`advance(state, x) -> (state, result)`."""


def scan(advance: Advance, state: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, but one iteration without a loop, which would copy what it is given."""
    if len(jax.tree.leaves(xs)[0]) == 1:
        state, result = advance(state, jax.tree.map(lambda x: x[0], xs))
        return state, jax.tree.map(lambda x: x[None], result)
    arrays, rest = eqx.partition(state, eqx.is_array)

    def step(arrays, x):
        state, result = advance(eqx.combine(arrays, rest), x)
        return eqx.filter(state, eqx.is_array), result

    arrays, results = jax.lax.scan(step, arrays, xs)
    return eqx.combine(arrays, rest), results


def cond(
    predicate: Array, if_true: Advance, if_false: Advance, state: Any, x: Any
) -> tuple[Any, Any]:
    """`jax.lax.cond`."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def of_arrays(advance):
        def call(arrays, x):
            state, result = advance(eqx.combine(arrays, rest), x)
            return eqx.filter(state, eqx.is_array), result

        return call

    arrays, result = jax.lax.cond(predicate, of_arrays(if_true), of_arrays(if_false), arrays, x)
    return eqx.combine(arrays, rest), result
