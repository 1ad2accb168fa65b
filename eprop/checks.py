"""Early, clear errors: what was wrong, its value and shape, and what to write instead."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool

Parameter = float | tuple[float, ...]
"""A constant of a cell: one number, or one per neuron."""


def parameter(
    name: str,
    value: ArrayLike | Sequence[float],
    n: int,
    *,
    above: float | None = None,
    of: str = "neurons",
) -> Parameter:
    """A constant as a float (one for all) or a tuple of `n` floats (one for each `of` them).

    Raises `ValueError` for another shape, a value that is not finite, or one out of range.
    """
    array = _real(name, value, f"a real number, or one for each of the {n} {of}")
    if array.shape not in ((), (n,)):
        raise ValueError(
            f"{name} has shape {array.shape}: give one number, or one for each of the {n} {of}"
        )
    _in_range(name, value, array, above)
    return float(array) if array.ndim == 0 else tuple(array.tolist())


def _real(name: str, value: Any, needed: str) -> np.ndarray:
    """`value` in float64; `TypeError` unless it is of real numbers, which are known."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced, but the parameters of a cell, and delays, are constants of the "
            f"compiled program: build cell and network outside of jax.jit, jax.vmap and jax.grad, "
            f"or give NumPy arrays"
        )
    try:
        given = np.asarray(value)
    except ValueError:  # ragged
        given = np.asarray(None)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name} = {value!r} must be {needed}")
    return given.astype(np.float64)


def _in_range(name: str, value: Any, array: np.ndarray, above: float | None) -> None:
    """`ValueError` unless all is finite, and greater than `above`, in the dtype of programs too."""
    dtype = jnp.result_type(float)
    with np.errstate(over="ignore", under="ignore"):
        there = array.astype(dtype)
    if not np.all(np.isfinite(there)):
        by_dtype = f" in {dtype}" if np.all(np.isfinite(array)) else ""
        raise ValueError(f"{name} = {value} must be finite{by_dtype}")
    if above is not None and not np.all(there > above):
        by_dtype = f" in {dtype}" if np.all(array > above) else ""
        raise ValueError(f"{name} = {value} must be greater than {above:g}{by_dtype}")


def steps(name: str, value: ArrayLike | Sequence[int], n: int) -> int | tuple[int, ...]:
    """A cell's number of steps as an int, or a tuple of `n` ints; `ValueError` for others."""
    checked = np.asarray(parameter(name, value, n))
    if not np.all((checked == np.floor(checked)) & (checked >= 0) & (checked < 2**31)):
        raise ValueError(
            f"{name} = {value} must be a whole number of steps, at least 0 and less than 2**31: "
            f"divide ms by dt"
        )
    whole = checked.astype(int)
    return int(whole) if whole.ndim == 0 else tuple(whole.tolist())


def delay(name: str, value: ArrayLike | Sequence[float], n: int, dt: float, of: str) -> Parameter:
    """Delays in ms, as `parameter`; `ValueError` unless they are whole steps of at least 0.

    Tolerates float32 rounding; and no more steps than an int32 can count.
    """
    checked = parameter(name, value, n, of=of)
    in_steps = np.asarray(checked) / dt
    rounding = 1e-6 * np.maximum(1, in_steps)
    whole = np.abs(in_steps - np.round(in_steps)) < rounding
    if not np.all((in_steps >= 0) & (in_steps < 2**31) & whole):
        raise ValueError(
            f"{name} = {value} ms must be a multiple of the step dt = {dt:g} ms, at least 0"
        )
    return checked


def number(name: str, value: Any, *, above: float | None = None, unit: str = "") -> float:
    """`value` as a float; `TypeError` or `ValueError` unless it is one finite, real number."""
    if isinstance(value, bool):
        raise TypeError(f"{name} = {value} must be one real number{unit}")
    array = _real(name, value, f"one real number{unit}")
    if array.ndim != 0:
        raise ValueError(f"{name} = {value} must be one number{unit}")
    _in_range(name, value, array, above)
    return float(array)


def duration(name: str, value: Any) -> float:
    """A time in ms as a float; `ValueError` unless it is one positive, finite number."""
    return number(name, value, above=0, unit=", in ms")


def remembers(name: str, tau: Any, dt: float) -> None:
    """Warns of a time constant of which a step leaves nothing, unless it is traced."""
    if not isinstance(tau, jax.core.Tracer) and np.any(np.asarray(tau) < dt / 20):
        warnings.warn(
            f"{name} = {tau} is so much less than the step dt = {dt:g} that nothing is left after "
            f"one: times are in ms, so write 20 for 20 ms",
            stacklevel=2,
        )


def not_negative(name: str, value: Any) -> float:
    """`value` as a float; `ValueError` unless it is one finite number of at least 0."""
    checked = number(name, value)
    if checked < 0:
        raise ValueError(f"{name} = {value} must be one number of at least 0")
    return checked


def positive(name: str, value: Any) -> Any:
    """`value`; `ValueError` unless it is one positive, finite number. Not checked if traced."""
    return value if isinstance(value, jax.core.Tracer) else number(name, value, above=0)


def fraction(name: str, value: Any) -> float:
    """`value` as a float; `ValueError` unless it is one number of at least 0, and less than 1."""
    checked = number(name, value)
    if not 0 <= checked < 1:
        raise ValueError(f"{name} = {value} must be at least 0 and less than 1")
    return checked


def between(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float; `ValueError` unless it is one number from `low` to `high`."""
    checked = number(name, value)
    if not low <= checked <= high:
        raise ValueError(f"{name} = {value} must be one number from {low:g} to {high:g}")
    return checked


def switch(name: str, value: Any) -> bool:
    """`value` as a bool; `TypeError` for anything that only counts as true or false."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} = {value!r} must be True or False")
    return bool(value)


def positive_int(name: str, value: Any) -> int:
    """`value` as a Python int; `ValueError` unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} = {value!r} must be a whole number of at least 1")
    return int(value)


def array(name: str, value: Any) -> Array:
    """`value` as an array of JAX; an error that says what it is if it is no array of numbers."""
    try:
        return jnp.asarray(native(value))
    except (TypeError, ValueError) as error:
        if isinstance(value, jax.Array | np.ndarray) and native(value).dtype.kind in "biufc":
            raise
        raise TypeError(
            f"{name} = {_shown(value)} is no array of numbers: give an array, or nested lists of "
            f"one length"
        ) from error


def known(value: Any) -> np.ndarray | None:
    """The numbers of `value`, unless they are traced: under `jax.jit` an array of them would be."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value)):
        return None
    return np.asarray(native(value))


def real_array(name: str, value: Any, dtype: Any) -> Array:
    """`value`, real numbers, as an array of a floating-point dtype."""
    given = array(name, value)
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise TypeError(f"{name} have dtype {given.dtype}, but real numbers are needed")
    return given.astype(dtype)


def booleans(name: str, value: Any, shape: tuple[int, ...], axes: str) -> Array:
    """`value` as an array of booleans of exactly `shape`, whose `axes` are named."""
    given = array(name, value)
    if given.shape != shape or given.dtype != bool:
        raise ValueError(
            f"{name} has shape {given.shape} and dtype {given.dtype}, but booleans {axes} = "
            f"{shape} are needed"
        )
    return given


def float_array(name: str, value: Any, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """`value` as a floating-point array of exactly `shape` (and `dtype`, if it matters)."""
    given = array(name, value)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {given.dtype}, which can't be trained: "
            f"write {name}.astype(jnp.float32)"
        )
    if given.shape != shape:
        raise ValueError(f"{name} has shape {given.shape}, but {shape} is needed here")
    if dtype is not None and given.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {given.dtype}, but network.w_in has {dtype}: give all weights one"
        )
    return given


def sequence(name: str, value: Any, n_features: int, dtype: Any) -> Array:
    """`value` as an array `[time, batch, n_features]`: bool, integer, or of the weights' dtype."""
    given = array(name, value)
    if given.ndim != 3:
        hint = (
            f"; for a single example write {name}[:, None], for a single step {name}[None]"
            if given.ndim == 2
            else ""
        )
        raise ValueError(
            f"{name} has shape {given.shape}, but [time, batch, feature] is needed{hint}"
        )
    if given.shape[0] == 0 or given.shape[1] == 0:
        raise ValueError(f"{name} has shape {given.shape}: an empty time or batch axis")
    if given.shape[2] != n_features:
        raise ValueError(
            f"{name} has shape {given.shape}, so {given.shape[2]} features, "
            f"but the network takes {n_features}"
        )
    if jnp.issubdtype(given.dtype, jnp.inexact) and given.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {given.dtype}, but the weights have {dtype}: "
            f"write {name}.astype(jnp.{dtype})"
        )
    return given


def finite(name: str, array: Array) -> Array:
    """`array` itself; `ValueError` if it holds NaN or infinity."""
    return all_finite({name: array}, array)


def all_finite(arrays: dict[str, Any], guarded: Array) -> Array:
    """`guarded`; an error that names the first of `arrays` that holds NaN or infinity.

    Where they are traced (by `jit`) the error comes when `guarded` is used.
    """
    traced = []
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            continue
        message = f"{name} of shape {array.shape} holds NaN or infinity"
        if isinstance(array, jax.core.Tracer):
            traced.append((~jnp.all(jnp.isfinite(array)), message))
        elif not _is_finite(array):
            raise ValueError(message)
    if not traced:
        return guarded
    bad, messages = zip(*traced, strict=True)
    bad = jnp.stack(bad)
    return eqx.branched_error_if(guarded, bad.any(), jnp.argmax(bad), messages)


def _is_finite(array: Any) -> bool:
    """Whether there is neither NaN nor infinity in an array whose numbers are known."""
    is_here = getattr(array, "is_fully_addressable", True)  # else parts are with other processes
    return bool((np if is_here else jnp).isfinite(array).all())


def are_finite(tree: Any) -> Bool[Array, ""]:
    """Whether there is neither NaN nor infinity in the leaves, as an array."""
    inexact = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.stack([jnp.ones((), bool), *(jnp.isfinite(x).all() for x in inexact)]).all()


def indices(name: str, value: ArrayLike | Sequence[int], n: int) -> Array:
    """`value` as a vector of indices from 0 to n - 1; where it is traced, that is not checked."""
    traced = isinstance(value, jax.core.Tracer)
    array = value if traced else native(np.asarray(value))
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{name} has shape {array.shape} and dtype {array.dtype}, but must be a vector of "
            f"integers: write np.flatnonzero(mask) for a mask, [neuron] for one neuron"
        )
    if not traced and array.size and not (array.min() >= 0 and array.max() < n):
        raise ValueError(f"{name} = {array} must be from 0 to {n - 1}")
    return jnp.asarray(array)


def instance(name: str, value: Any, kind: type, examples: str) -> Any:
    """`value` itself; `TypeError` unless it is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} = {_shown(value)} is no {kind.__name__}: write {examples}")
    return value


def path(name: str, value: Any, examples: str) -> Path:
    """`value` as a path; `TypeError` unless it is one."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} = {_shown(value)} is no path: write {examples}")
    return Path(value)


def trainable(value: Any) -> None:
    """`TypeError` unless `value` says of leaves whether they are trained."""
    if not isinstance(value, bool) and not callable(value):
        raise TypeError(
            f"trainable = {_shown(value)} must be a function of a leaf, such as "
            f"eqx.is_inexact_array, or a network of booleans"
        )


def trained(network: Any, trainable: Any) -> Any:
    """What is trained of a network, `None` in place of the rest; `TypeError` for what can't be."""
    part = eqx.filter(network, trainable)
    for path, x in jax.tree_util.tree_leaves_with_path(part):
        if not eqx.is_inexact_array(x):
            what = f"of dtype {x.dtype}" if eqx.is_array(x) else f"a {type(x).__name__}"
            raise TypeError(
                f"trainable picks network{jax.tree_util.keystr(path)}, {what}, which has no "
                f"gradient: write eqx.is_inexact_array"
            )
    return part


def function(name: str, value: Any, examples: str) -> None:
    """`TypeError` unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} = {_shown(value)} is no function: write {examples}")


def _shown(value: Any) -> str:
    """The beginning of what a value looks like, on one line, and an array's shape."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= 80 else f"{text[:77]}..."
    is_array = isinstance(value, jax.Array | np.ndarray)
    return f"{text} of shape {value.shape}" if is_array else text


def native(x: Any) -> Any:
    """`x`, if it is an array of NumPy in this machine's order of bytes."""
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        return x.astype(x.dtype.newbyteorder("="))
    return x


def no_lists(name: str, tree: Any) -> None:
    """`TypeError` for lists of numbers: to JAX each of these is a leaf by itself."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, list))
    for path, x in found:
        if isinstance(x, list) and not all(hasattr(y, "shape") for y in jax.tree.leaves(x)):
            of = f"{name}{jax.tree_util.keystr(path)}"
            raise TypeError(f"{of} is a list of numbers: write np.asarray(...) of it")


def each_step(name: str, tree: Any, n_steps: int, remedy: str) -> None:
    """`ValueError` unless every leaf of `tree` has a leading time axis of `n_steps`."""
    no_lists(name, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = np.shape(leaf)
        if not shape or shape[0] != n_steps:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {shape}, but needs a leading time "
                f"axis of {n_steps}, as the inputs have: {remedy}"
            )


def carries_gradient(function: Callable[[Any], Array], at: Any) -> bool:
    """Whether a gradient comes back through `function`: by its structure, whatever the numbers."""
    floats, rest = eqx.partition(at, eqx.is_inexact_array)

    def back(floats: Any) -> Any:
        value, pullback = jax.vjp(lambda x: function(eqx.combine(x, rest)), floats)
        traced = jax.make_jaxpr(pullback)(value).jaxpr
        of_value = traced.invars[0]
        used = [x for equation in traced.eqns for x in equation.invars] + traced.outvars
        found.append(any(x is of_value for x in used))
        return value

    found: list[bool] = []
    jax.eval_shape(back, floats)
    return found[-1]


def scalar_loss(value: Any) -> None:
    """`TypeError` unless `value` is a floating-point scalar."""
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != ():
        raise TypeError(
            f"the loss must be a scalar, but it has shape {shape}: sum or average over its axes"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"the loss must be a floating-point scalar, but it has dtype {dtype}")
