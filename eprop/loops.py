"""`jax.lax.scan` and `cond` of a state that may hold more than arrays (a cell's functions, say)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Bool


def scan(function: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`; what is no array in the state stays as it is."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def step(arrays, x):
        state, result = function(eqx.combine(arrays, rest), x)
        return eqx.filter(state, eqx.is_array), result

    arrays, results = jax.lax.scan(step, arrays, xs)
    return eqx.combine(arrays, rest), results


def cond(
    predicate: Bool[Array, ""],
    if_true: Callable[[Any], Any],
    if_false: Callable[[Any], Any],
    state: Any,
) -> Any:
    """`jax.lax.cond` of functions from a state to a state; what is no array stays as it is."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def of_arrays(function):
        return lambda arrays: eqx.filter(function(eqx.combine(arrays, rest)), eqx.is_array)

    arrays = jax.lax.cond(predicate, of_arrays(if_true), of_arrays(if_false), arrays)
    return eqx.combine(arrays, rest)
