"""Spikes with a pseudo-derivative: a step function forward, a smooth bump backward.

A surrogate acts on the potential's distance from threshold in units of the threshold,

    x = (v - v_th - β a) / v_th,        z = 1 if x > 0 else 0,        dz/dx := h(x),

so that the pseudo-derivative with respect to the membrane potential is ψ = h(x) / v_th.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import checks


class AbstractSurrogate(eqx.Module):
    """A spike function; a subclass says only what its pseudo-derivative is."""

    @abstractmethod
    def pseudo_derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """h(x), for x the distance from threshold in units of the threshold (dimensionless)."""

    def spike(
        self, x: Float[Array, "*shape"], silent: Bool[Array, "*shape"] | None = None
    ) -> Float[Array, "*shape"]:
        """1 where x > 0, else 0, in x's dtype; its derivative is `pseudo_derivative`.

        Where `silent` there is neither a spike nor a pseudo-derivative: a refractory neuron.
        """
        slope = self.pseudo_derivative(x)
        if silent is None:
            return _step_function(x, x > 0, slope)
        return _step_function(x, (x > 0) & ~silent, jnp.where(silent, jnp.zeros_like(x), slope))


@jax.custom_jvp
def _step_function(x: Array, above: Array, slope: Array) -> Array:
    """`above` as a number; with respect to x its derivative is said to be `slope`."""
    del slope
    return above.astype(x.dtype)


@_step_function.defjvp
def _step_function_jvp(primals, tangents):
    _, _, slope = primals
    return _step_function(*primals), slope * tangents[0]


def _gamma(value: Any) -> float:
    return checks.number("gamma", value, above=0)


def _width(value: Any) -> float:
    return checks.number("width", value, above=0)


class Triangular(AbstractSurrogate):
    """The paper's: h(x) = γ max(0, 1 - |x|). Height γ, zero beyond one threshold either side.

    **Arguments:** `gamma`: the height γ (dimensionless; the paper's dampening factor).
    Source: Bellec et al. 2020, Methods, "Pseudo-derivative".
    """

    gamma: float = eqx.field(static=True, default=0.3, converter=_gamma)

    def pseudo_derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.gamma * jnp.maximum(0, 1 - jnp.abs(x))


class Exponential(AbstractSurrogate):
    """h(x) = γ exp(-|x| / w). Height γ; falls to γ/e at a distance of w thresholds.

    **Arguments:** `gamma`: the height γ; `width`: w (both dimensionless).
    Source: Shrestha & Orchard, "SLAYER", NeurIPS 2018.
    """

    gamma: float = eqx.field(static=True, default=0.3, converter=_gamma)
    width: float = eqx.field(static=True, default=0.5, converter=_width)

    def pseudo_derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.gamma * jnp.exp(-jnp.abs(x) / self.width)


class FastSigmoid(AbstractSurrogate):
    """h(x) = γ / (1 + |x| / w)². Height γ; falls to γ/4 at a distance of w thresholds.

    **Arguments:** `gamma`: the height γ; `width`: w (both dimensionless).
    Source: Zenke & Ganguli, "SuperSpike", Neural Computation 2018.
    """

    gamma: float = eqx.field(static=True, default=0.3, converter=_gamma)
    width: float = eqx.field(static=True, default=0.5, converter=_width)

    def pseudo_derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.gamma / jnp.square(1 + jnp.abs(x) / self.width)


class Arctan(AbstractSurrogate):
    """h(x) = γ / (1 + (x / w)²). Height γ; falls to γ/2 at a distance of w thresholds.

    The derivative of γ w arctan(x / w). With γ = 1 and w = 2/π it is the arctan surrogate
    of slope parameter 2 of Fang et al., "Incorporating learnable membrane time constant",
    ICCV 2021.

    **Arguments:** `gamma`: the height γ; `width`: w (both dimensionless).
    """

    gamma: float = eqx.field(static=True, default=0.3, converter=_gamma)
    width: float = eqx.field(static=True, default=0.5, converter=_width)

    def pseudo_derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.gamma / (1 + jnp.square(x / self.width))
