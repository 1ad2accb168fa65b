"""Eligibility vectors that are the same for all postsynaptic neurons: a vector does for a matrix.

A membrane potential with one α is the presynaptic activity filtered by α, whatever the neuron does.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .cells import AbstractCell, hidden_variables
from .sharding import known_numbers
from .structure import Field, describe_classes


class CommonVector(NamedTuple):
    """ε_t = Σ_l D_l ε^l_{t-1} + b pre_t, with D and b the same number for all neurons."""

    state: tuple[float, ...]
    """D_l of each hidden variable, 0 for those that are not common."""
    current: float
    """b."""


def common_traces(cell: AbstractCell) -> list[list[CommonVector | None]]:
    """For each current and each hidden variable the constants of its vector, if that is common.

    It is where D and b are constants, equal for all neurons, that lead from the current and from
    other such variables only. The cell's arrays count as unknown, whether they are traced or not.
    """
    leaves, structure = jax.tree.flatten(cell)
    known = tuple(jax.typeof(x) if isinstance(x, jax.Array | np.ndarray) else x for x in leaves)
    classes = tuple(describe_classes(cell))
    return _common_traces(structure, known, classes, jnp.result_type(float))


@functools.lru_cache(maxsize=256)
def _common_traces(
    structure: Any, known: tuple[Any, ...], classes: tuple[Field, ...], default: np.dtype
) -> list[list[CommonVector | None]]:
    """Of a cell's structure and what is `known` of its leaves, of an array its shape and dtype.

    `classes` are what their methods do, for that may change in a notebook. `default` is the dtype
    of a number that says nothing of it: with it, constants differ.
    """
    del classes
    with known_numbers():
        # What is constant does not depend on the arrays: with numbers in their place it is found
        # under `jit`, too, where an operation on a tracer makes a tracer of all that comes with it.
        cell = structure.unflatten(
            jnp.ones(x.shape, x.dtype) if isinstance(x, jax.core.ShapedArray) else x for x in known
        )
        state = cell.init(1)
        z = jnp.zeros_like(hidden_variables(state)[0])
        current = z if cell.n_currents == 1 else jnp.stack([z] * cell.n_currents)
        by_state, by_current = _constants(cell, state, current, z)
    of_currents = range(cell.n_currents)
    return [_common(by_state, [row[k] for row in by_current]) for k in of_currents]


def _common(
    by_state: list[list[np.ndarray | None]], by_current: list[np.ndarray | None]
) -> list[CommonVector | None]:
    common = [True] * len(by_state)

    def is_common(row, b):
        relevant = [x for x, known in zip(row, common, strict=True) if known]
        others = [x for x, known in zip(row, common, strict=True) if not known]
        equal = all(x is not None and (x == x.flat[0]).all() for x in [*relevant, b])
        return equal and all(x is not None and not x.any() for x in others)

    for _ in by_state:  # one variable found to differ makes those that it drives differ
        common = [is_common(row, b) for row, b in zip(by_state, by_current, strict=True)]
    return [
        CommonVector(
            tuple(float(x.flat[0]) if x is not None else 0.0 for x in row), float(b.flat[0])
        )
        if known and b is not None
        else None
        for row, b, known in zip(by_state, by_current, common, strict=True)
    ]


def _constants(cell: AbstractCell, *args: Any) -> Any:
    """The entries of the cell's `linear_step`, `None` for those that are no constants."""
    arrays, rest = eqx.partition(cell, eqx.is_array)

    def linear_step(arrays, *args):
        return eqx.combine(arrays, rest).linear_step(*args)

    jaxpr, shapes = jax.make_jaxpr(linear_step, return_shape=True)(arrays, *args)
    varying = {id(x) for x in jaxpr.jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(x) in varying for x in equation.invars):
            varying |= {id(x) for x in equation.outvars}
    values = jax.tree.leaves(linear_step(arrays, *args))
    leaves = [
        None if id(variable) in varying or isinstance(value, jax.core.Tracer) else np.asarray(value)
        for variable, value in zip(jaxpr.jaxpr.outvars, values, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


class CommonLead(NamedTuple):
    """How some steps take the common vectors ε over: power ε + Σ_t response_t pre_t."""

    power: Float[np.ndarray, "m m"]
    response: Float[np.ndarray, "time m"]


def lead_common(common: Sequence[CommonVector | None], n_steps: int) -> CommonLead:
    """Of the m hidden variables that are common: D^K, and D^(K-t) b of each of K steps."""
    which = [k for k, row in enumerate(common) if row is not None]
    rows = [row for row in common if row is not None]
    matrix = np.array([[row.state[k] for k in which] for row in rows]).reshape(len(rows), len(rows))
    b = np.array([row.current for row in rows])
    response, power = [], np.eye(len(rows))
    for _ in range(n_steps):  # from the last step back
        response.append(power @ b)
        power = power @ matrix
    return CommonLead(power, np.array(response[::-1]))


def step_common(
    common: CommonVector, vectors: list[Array], pre: Float[Array, "batch n_pre"]
) -> Float[Array, "batch n_pre"]:
    """The same for one step."""
    terms = [d * x for d, x in zip(common.state, vectors, strict=True) if d != 0]
    return functools.reduce(jnp.add, terms, common.current * pre)
