"""Weights as they are given: arrays, or initializers that draw them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from . import checks

Initializer = Callable[[PRNGKeyArray, tuple[int, ...], Any], Array]
"""The signature of `jax.nn.initializers`: `(key, shape, dtype) -> array`."""

fan_in_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
"""The paper's synaptic weights: N(0, 1) / sqrt(number of presynaptic neurons)."""


class KeyOf(NamedTuple):
    """Random keys for the initializers of one module, told apart by a number."""

    key: Any

    def __call__(self, index: int) -> Callable[[str], PRNGKeyArray]:
        """The key as a function of the weight's name, which an error is to say."""

        def key(name: str) -> PRNGKeyArray:
            if self.key is None:
                raise ValueError(
                    f"{name} is drawn by an initializer, which needs a random key: "
                    f"write key=jax.random.key(0)"
                )
            return jax.random.fold_in(random_key(self.key), index)

        return key


def random_key(key: Any) -> PRNGKeyArray:
    """`key` itself; `TypeError` unless it is a random key, new or old."""
    if isinstance(key, jax.Array):
        legacy = key.dtype == jnp.uint32 and key.shape == (2,)
        if legacy or jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
    raise TypeError(f"key = {key!r} must be a random key: write jax.random.key(0)")


def added(weights: Any, updates: Any) -> Any:
    """Weights after an optimiser's updates, `None` for those that stay; in the weights' dtypes."""

    def after(update: Any, weight: Any) -> Any:
        if update is None:
            return weight
        update = jnp.asarray(update)
        if update.shape != weight.shape:
            raise ValueError(
                f"the optimiser's update of weights of shape {weight.shape} has shape "
                f"{update.shape}: a learning rate is one number, or of these weights' shape"
            )
        with jax.numpy_dtype_promotion("standard"):
            return (weight + update).astype(weight.dtype)

    return jax.tree.map(after, updates, weights, is_leaf=lambda x: x is None)


def weight(
    name: str,
    given: ArrayLike | Initializer,
    shape: tuple[int, ...],
    key: Callable[[str], PRNGKeyArray],
) -> Array:
    """A weight of `shape`: an array, or drawn by an initializer."""
    if callable(given):
        given = given(key(name), shape, jnp.result_type(float))
    elif isinstance(given, str | bool | int | float):
        none = "; for no recurrent synapses w_rec=None" if name == "w_rec" else ""
        raise TypeError(
            f"{name} = {given!r} must be an array or an initializer: write "
            f"jax.nn.initializers.zeros, or another of jax.nn.initializers{none}"
        )
    return checks.finite(name, checks.float_array(name, given, shape))
