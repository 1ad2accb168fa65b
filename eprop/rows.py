"""Rows of metrics: what of an iteration is recorded, by name."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .processes import whole
from .structure import is_key

Row = dict[str, Any]
"""The metrics of one iteration by their name: numbers, and arrays as lists of them."""

LARGEST = 1000
"""Entries of an array that is recorded."""


def recorded(tree: Any) -> tuple[Row, list[str]]:
    """All real numbers and arrays of up to `LARGEST` of them by their path; and what is none."""
    row, left_out = {}, []
    for name, leaf in named_leaves(tree):
        if not name:
            raise TypeError(f"{leaf!r:.80} has no name to be recorded by: return a dictionary")
        if eqx.is_array(leaf) and not is_key(leaf):
            is_real = any(jnp.issubdtype(leaf.dtype, x) for x in (jnp.floating, jnp.integer, bool))
            if is_real and leaf.size <= LARGEST:
                leaf = whole(leaf).tolist()
        if isinstance(leaf, bool | int | float | list):
            row[name] = leaf
        else:
            shape = f" of shape {leaf.shape}" if eqx.is_array(leaf) else ""
            left_out.append(f"{name}{shape}")
    return row, left_out


def merged(row: Row, more: Row) -> Row:
    """Both; `ValueError` for a name that is in both."""
    twice = sorted(row.keys() & more.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} would be recorded twice: give one another name")
    return row | more


def broken_numbers(row: Row) -> list[str]:
    """The metrics that are NaN or infinite."""
    found = []
    for name, x in row.items():
        if not isinstance(x, list):
            found += [] if math.isfinite(x) else [f"{name} = {x}"]
        elif count := np.sum(~np.isfinite(x)):
            found.append(f"{name} ({count} of {np.size(x)} entries)")
    return found


def broken_leaves(before: Any, after: Any) -> list[str]:
    """The leaves of a state that hold NaN, or infinity where there was none before."""
    counts = whole(_count_broken(before, after)).tolist()
    return [
        f"{name} ({count} of {leaf.size} entries)"
        for (name, leaf), count in zip(inexact_leaves(after), counts, strict=True)
        if count
    ]


@eqx.filter_jit
def _count_broken(before: Any, after: Any) -> Array:
    """Entries of each leaf that are NaN, or infinity where there was none before."""
    counts = [
        jnp.sum(jnp.isnan(new) | (jnp.isinf(new) & ~jnp.isinf(old)))
        for (_, old), (_, new) in zip(inexact_leaves(before), inexact_leaves(after), strict=True)
    ]
    return jnp.asarray(counts, jnp.result_type(int))


def inexact_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The arrays that can hold NaN, by their path."""
    return [(name, leaf) for name, leaf in named_leaves(tree) if eqx.is_inexact_array(leaf)]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """All leaves, by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in leaves]
