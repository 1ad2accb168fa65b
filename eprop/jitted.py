"""Compiled functions, whose programs go when they go."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
import numpy as np


class Static(eqx.Module):
    """What a program gives back that is no array: beside the arrays, as JAX gives these alone."""

    structure: Any = eqx.field(static=True)
    others: Any = eqx.field(static=True)


class Jitted:
    """A pure `function`, compiled: as by `equinox.filter_jit`, but its programs go with it.

    `filter_jit` has one memory for all: a function made anew by each call would stay in it, with
    its programs and all that it holds, as long as the process. It is right for those of a module.

    The last `given_away` arguments are written over. An `error_if` inside raises `ValueError`, as
    it does where nothing is compiled.
    """

    def __init__(self, function: Callable[..., Any], given_away: int = 0):
        def on_arrays(kept: list[Any], given: list[Any], static: Any) -> tuple[list[Any], Static]:
            structure, others = static
            args = jax.tree.unflatten(structure, _together([*kept, *given], others))
            leaves, structure = jax.tree.flatten(function(*args))
            arrays, others = _apart(leaves)
            return arrays, Static(structure, others)

        self.given_away = given_away
        self.compiled = jax.jit(on_arrays, donate_argnums=1, static_argnums=2)

    def __call__(self, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        arrays, others = _apart(leaves)
        n_given = len(jax.tree.leaves(args[len(args) - self.given_away :]))
        n_kept = len(leaves) - n_given
        with _plainly():
            arrays, static = self.compiled(arrays[:n_kept], arrays[n_kept:], (structure, others))
            if not any(isinstance(x, jax.core.Tracer) for x in arrays[:1]):
                jax.block_until_ready(arrays[:1])  # an error comes with any of them
        return jax.tree.unflatten(static.structure, _together(arrays, static.others))


def _apart(leaves: list[Any]) -> tuple[list[Any], tuple[Any, ...] | None]:
    """The arrays, and what is none; each list with None in place of the other's."""
    if all(isinstance(x, jax.Array | np.ndarray) for x in leaves):  # as is usual, and faster
        return leaves, None
    are_arrays = [eqx.is_array(x) for x in leaves]
    arrays = [x if is_array else None for x, is_array in zip(leaves, are_arrays, strict=True)]
    others = [None if is_array else x for x, is_array in zip(leaves, are_arrays, strict=True)]
    return arrays, tuple(others)


def _together(arrays: list[Any], others: tuple[Any, ...] | None) -> list[Any]:
    if others is None:
        return arrays
    return [x if x is not None else y for x, y in zip(arrays, others, strict=True)]


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """An error of a compiled program is the `ValueError` that it would be outside of one."""
    log = logging.getLogger("jax._src.callback")  # where JAX would print it, too

    def is_news(record: logging.LogRecord) -> bool:
        return record.getMessage() != "jax.pure_callback failed"

    log.addFilter(is_news)
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        _, found, message = str(error).rpartition("_EquinoxRuntimeError: ")  # behind the stack
        if not found:
            raise
        raise ValueError(message.partition("\n\n\n---")[0]) from None  # before advice
    finally:
        log.removeFilter(is_news)
