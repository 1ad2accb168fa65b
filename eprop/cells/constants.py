"""The constants of a cell, such as its time constants: fixed numbers, or arrays that are trained.

What is given as a number, a list or a NumPy array is a constant of the compiled program. What is
given as a JAX array is a leaf of the network, which gets a gradient as the weights do.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import checks


class AbstractConstant(eqx.Module):
    """One number for all neurons of a cell, or one for each."""

    @property
    @abstractmethod
    def value(self) -> Any:
        """The number, `[]` or `[n]`: a NumPy array if it is fixed, a JAX array if trained."""


class Fixed(AbstractConstant):
    """A constant of the compiled program."""

    number: checks.Parameter = eqx.field(static=True)

    @property
    def value(self) -> np.ndarray:
        return np.asarray(self.number)


class Trained(AbstractConstant):
    """A leaf of any sign."""

    array: Float[Array, "..."]

    @property
    def value(self) -> Array:
        return self.array


class TrainedPositive(AbstractConstant):
    """A positive constant, trained through its logarithm: no update makes it zero or negative.

    Nor infinite: beyond e^±40 it stays what it is there, and has no gradient.
    """

    log: Float[Array, "..."]

    @property
    def value(self) -> Array:
        return jnp.exp(jnp.clip(self.log, -40, 40))


def constant(name: str, value: Any, n: int, *, positive: bool = False) -> AbstractConstant:
    """The constant of a cell of `n` neurons: one number, or one per neuron.

    Raises `ValueError` or `TypeError` for another shape or dtype, or a number out of range.
    """
    if isinstance(value, AbstractConstant):
        return value
    if not isinstance(value, jax.Array):
        return Fixed(checks.parameter(name, value, n, above=0 if positive else None))
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} is a JAX array of dtype {value.dtype}, which can't be trained: write "
            f"{name}.astype(jnp.float32), or give a number for a constant"
        )
    if isinstance(value, jax.core.Tracer):
        if value.shape not in ((), (n,)):
            raise ValueError(f"{name} has shape {value.shape}: give () or ({n},), one per neuron")
    else:
        checks.parameter(name, np.asarray(value), n, above=0 if positive else None)
    return TrainedPositive(jnp.log(value)) if positive else Trained(value)


def time_constant(name: str, value: Any, n: int, dt: float) -> AbstractConstant:
    """A positive `constant` in ms, with a warning if a step of `dt` ms leaves nothing."""
    found = constant(name, value, n, positive=True)
    if found is not value:
        checks.remembers(name, value, dt)
    return found


def beside(number: Any, x: Array) -> Array:
    """A number `[]`, or one per neuron `[n]`, to be combined with x `[batch, n]` of its dtype."""
    array = jnp.asarray(number, x.dtype)
    return array if array.ndim == 0 else array[None]


def at_start(number: AbstractConstant, batch: int, n: int) -> Array:
    """The number as the first value of a hidden variable `[batch, n]`."""
    value = number.value
    dtype = value.dtype if isinstance(value, jax.Array) else jnp.result_type(float)
    return jnp.broadcast_to(jnp.asarray(value, dtype), (batch, n))


def decay(tau: AbstractConstant, dt: float, x: Array) -> Array:
    """exp(-dt/τ), to be multiplied with x `[batch, n]`."""
    exponent = -dt / tau.value
    return beside(np.exp(exponent) if isinstance(tau, Fixed) else jnp.exp(exponent), x)


def complement(tau: AbstractConstant, dt: float, x: Array) -> Array:
    """1 - exp(-dt/τ), to be multiplied with x `[batch, n]`."""
    exponent = -dt / tau.value
    return beside(-np.expm1(exponent) if isinstance(tau, Fixed) else -jnp.expm1(exponent), x)
