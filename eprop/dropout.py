"""Dropout of what a layer receives."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from . import checks


class Dropout(eqx.Module):
    """Sets a fraction of presynaptic activity to zero, and scales up the rest.

    It acts where the call of the network is given a random key, as for training.

    **Arguments:** `rate`: the fraction that is lost; `per_step`: whether what is lost is drawn
    anew at each step, or once for a whole sequence.
    """

    rate: float = eqx.field(static=True)
    per_step: bool = eqx.field(static=True)

    def __init__(self, rate: float, per_step: bool = True):
        self.rate = checks.fraction("rate", rate)
        self.per_step = checks.switch("per_step", per_step)

    def draw(self, key: PRNGKeyArray, shape: tuple[int, int, int]) -> Bool[Array, "time batch n"]:
        """What of a sequence of `shape` is kept."""
        kept = jax.random.bernoulli(key, 1 - self.rate, shape if self.per_step else (1, *shape[1:]))
        return jnp.broadcast_to(kept, shape)

    def apply(
        self, activity: Shaped[Array, "time batch n"], kept: Bool[Array, "time batch n"], dtype
    ) -> Float[Array, "time batch n"]:
        """The activity after dropout."""
        scaled = activity.astype(dtype) / (1 - self.rate)
        return jnp.where(kept, scaled, jnp.zeros((), dtype))
