"""A pattern in the plane: frozen noise in, a lemniscate out."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .pattern_generation import (
    Patterns,
    check_count,
    check_rate,
    plot_patterns,
    spikes,
    whole_steps,
)

if TYPE_CHECKING:
    import matplotlib.figure


@dataclass(frozen=True)
class Lemniscate:
    """A network that hears the same noise in every trial draws a figure of eight with two outputs.

    Bernoulli's lemniscate, gone through once from the first step to the last, with φ from 0 to 2π:

        y_1 = sin φ / (1 + cos² φ),        y_2 = sin φ cos φ / (1 + cos² φ)

    It starts and ends at its crossing point 0, and reaches -1 and 1 in y_1. Inputs are spikes at
    `rate_hz`, drawn once per example: *frozen* noise, so train with one key.

    After NEST's tutorial `eprop_supervised_regression_lemniscate`, whose curve is another figure
    of eight, (sin φ, sin 2φ).

    Attributes:
        n_in: number of input neurons.
        duration_ms: length of the pattern in ms.
        rate_hz: firing rate of the inputs in Hz.
        dt: time step in ms.
    """

    n_in: int = 100
    duration_ms: float = 1258.0
    rate_hz: float = 50.0
    dt: float = 1.0

    def __post_init__(self):
        check_count("n_in", self.n_in)
        check_rate("rate_hz", self.rate_hz, self.dt)
        if self.n_steps < 8:
            raise ValueError(
                f"duration_ms={self.duration_ms} leaves {self.n_steps} steps of dt={self.dt} ms "
                f"to draw a curve in. Write {8 * self.dt:g} or more."
            )

    @property
    def n_out(self) -> int:
        """Number of outputs: the two coordinates."""
        return 2

    @property
    def n_steps(self) -> int:
        """Number of time steps of a pattern."""
        return whole_steps("duration_ms", self.duration_ms, self.dt)

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Patterns:
        """Draws the inputs; a pure function of the key. The curve is always the same.

        Args:
            key: a JAX random key.
            batch_size: number of examples, each with noise of its own.

        Returns:
            Patterns: inputs, bool [time, batch, n_in]; targets, float [time, batch, 2].
        """
        check_count("batch_size", batch_size)
        inputs = spikes(key, (self.n_steps, batch_size, self.n_in), self.rate_hz, self.dt)
        angle = jnp.linspace(0, 2 * math.pi, self.n_steps)
        first = jnp.sin(angle) / (1 + jnp.cos(angle) ** 2)
        curve = jnp.stack([first, first * jnp.cos(angle)], axis=1)
        targets = jnp.broadcast_to(curve[:, None, :], (self.n_steps, batch_size, 2))
        return Patterns(inputs, targets)

    def plot(self, patterns: Patterns, example: int = 0) -> "matplotlib.figure.Figure":
        """Draws one example: the input raster, and the targets of both outputs below it."""
        return plot_patterns(
            patterns, example, f"Lemniscate: frozen noise at {self.rate_hz:g} Hz", self.dt
        )
