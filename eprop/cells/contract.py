"""What every cell must keep to, found out when a layer is built and not by a wrong gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .. import checks
from .abstract import AbstractCell, hidden_variables

BATCH = 2
SHIFTS = (1.0, -1.0, 10.0, -10.0)


def check_cell(cell: AbstractCell) -> None:
    """Runs a step of the cell on random numbers.

    Raises `ValueError` for a cell whose own arrays hold NaN or infinity; whose state or output is
    of another shape than `[batch, n]`, or has no hidden variable; whose step changes shapes or
    dtypes; that mixes neurons or examples, for which e-prop's traces would be wrong; whose output
    lets no gradient back into the state; and for one that says `spiking = True` but sends something
    else than 0 and 1.
    """
    arrays, rest = eqx.partition(cell, eqx.is_array)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays)):
        return  # built within jit or vmap: nothing is known of its numbers
    name = type(cell).__name__
    for path, array in jax.tree_util.tree_leaves_with_path(arrays):
        if not np.all(np.isfinite(np.asarray(array, np.float64))):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} of shape {array.shape} holds NaN or infinity"
            )
    with jax.ensure_compile_time_eval():
        start = cell.init(BATCH)
        for leaf in jax.tree.leaves(start):
            if jnp.shape(leaf) != (BATCH, cell.n):
                raise ValueError(
                    f"{name}.init({BATCH}) has an array of shape {jnp.shape(leaf)}: every array of "
                    f"a state must be [batch, n] = {(BATCH, cell.n)}"
                )
        if not hidden_variables(start):
            raise ValueError(
                f"{name}.init({BATCH}) has no floating-point array: a neuron needs at least one "
                f"hidden variable, such as its membrane potential"
            )
        _check_shapes(cell, start)
        outputs, mixed = _probe(rest, arrays)
    if mixed:
        raise ValueError(
            f"{name} mixes neurons, or examples: changing some of them changes others, so e-prop "
            f"would be wrong. Let `step` and `output` work on each entry of [batch, n] by itself: "
            f"connect neurons by w_rec, and give an array that all neurons share a last axis other "
            f"than n = {cell.n}"
        )
    if cell.spiking and not np.all((outputs == 0) | (outputs == 1)):
        odd = outputs[(outputs != 0) & (outputs != 1)].flat[0]
        raise ValueError(
            f"{name} says spiking = True, but its output is {odd:g}: return 0 or 1, by a "
            f"surrogate's `spike`, or write spiking = False"
        )
    if not checks.carries_gradient(cell.output, start):
        raise ValueError(
            f"{name}.output lets no gradient back into the state, so nothing before a spike "
            f"would be learned: comparisons and rounding have none. Write "
            f"eprop.Triangular().spike((v - v_th) / v_th), or another surrogate's `spike`"
        )


def _check_shapes(cell: AbstractCell, start: Any) -> None:
    """`ValueError` unless a step keeps all shapes and dtypes, and the output has them too."""
    name, hidden = type(cell).__name__, hidden_variables(start)[0]
    currents = (BATCH, cell.n) if cell.n_currents == 1 else (cell.n_currents, BATCH, cell.n)
    current = jax.ShapeDtypeStruct(currents, hidden.dtype)
    z_tm1 = jax.ShapeDtypeStruct((BATCH, cell.n), hidden.dtype)
    after, output = jax.eval_shape(
        lambda *args: (cell.step(*args), cell.output(args[0])), start, current, z_tm1
    )
    if jax.tree.structure(after) != jax.tree.structure(start):
        raise ValueError(
            f"{name}.step returns {jax.tree.structure(after)}, but init {jax.tree.structure(start)}"
        )
    leaves = zip(jax.tree.leaves(after), jax.tree.leaves(start), strict=True)
    pairs = [("step", "init", *pair) for pair in leaves]
    for method, other, x, y in [*pairs, ("output", "init, for a hidden variable", output, hidden)]:
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError(
                f"{name}.{method} returns an array of shape {x.shape} and dtype {x.dtype}, but "
                f"{y.shape} and {y.dtype} are needed, as from {other}"
            )


def _probe(rest: Any, arrays: Any) -> tuple[np.ndarray, bool]:
    """Outputs `[run, batch, n]` of one step, and whether entries depend on one another.

    Each run differs from the first in what some entries start from and get, and in what the cell's
    arrays say of some neurons, about half of them. The other entries must come out the same.
    """
    cell = eqx.combine(arrays, rest)
    n, rng = cell.n, np.random.default_rng(0)
    start = cell.init(BATCH)
    dtype = hidden_variables(start)[0].dtype

    def random(shape):
        return np.asarray(rng.normal(size=shape) * 10 ** rng.uniform(-1, 1, size=shape), dtype)

    def some():
        """The neurons whose numbers in the cell's arrays change, and the entries that do."""
        neurons = rng.permutation(n) < n // 2
        entries = (rng.random((BATCH, n)) < 0.5) | neurons
        entries[:, np.flatnonzero(~neurons)[0]] = [False, True]  # one example of it, not the other
        return neurons, entries

    def changed(array, neurons):
        if not (eqx.is_inexact_array(array) and np.ndim(array) and np.shape(array)[-1] == n):
            return array
        factors = np.where(neurons, rng.uniform(0.8, 1.25, array.shape), 1.0)
        return np.asarray(array) * factors.astype(array.dtype)

    def shifted(x, where, shift):
        """`x` with random numbers added, all of the sign and about the size of `shift`."""
        x = np.asarray(x)
        return np.where(where, x + shift * np.abs(random(x.shape)), x) if x.dtype == dtype else x

    @jax.jit
    def run(arrays, state, current, z_tm1):
        cell = eqx.combine(arrays, rest)
        state = cell.step(state, current, z_tm1)
        return cell.output(state), state

    shape = (BATCH, n)
    # Not at rest, where much is multiplied by zero.
    state = jax.tree.map(lambda x: shifted(x, True, dtype.type(1)), start)
    current = random(shape if cell.n_currents == 1 else (cell.n_currents, *shape))
    z_tm1 = rng.integers(0, 2, shape).astype(dtype)
    first = run(arrays, state, current, z_tm1)
    runs, mixed = [first], False
    for shift in 2 * SHIFTS:
        neurons, entries = some()
        other = jax.tree.map(lambda x: changed(x, neurons), arrays)  # noqa: B023
        moved = jax.tree.map(lambda x: shifted(x, entries, dtype.type(shift)), (state, current))  # noqa: B023
        runs.append(run(other, *moved, np.where(entries, 1 - z_tm1, z_tm1)))
        mixed = mixed or any(
            not np.array_equal(np.asarray(x)[~entries], np.asarray(y)[~entries], equal_nan=True)
            for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(runs[-1]), strict=True)
        )
    return np.stack([np.asarray(outputs) for outputs, _ in runs]), mixed
