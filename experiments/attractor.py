"""Lorenz's attractor as a series to be forecast, and how far ahead a forecast can be trusted.

    dx/dt = σ (y - x),    dy/dt = x (ρ - z) - y,    dz/dt = x y - β z

with σ = 10, ρ = 28 and β = 8/3, after E. N. Lorenz, *Deterministic nonperiodic flow*, Journal of
the Atmospheric Sciences 1963. Neighbouring trajectories part as exp(λ t), so time ahead is told
in Lyapunov times, 1/λ.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LYAPUNOV_EXPONENT = 0.906
"""λ, the largest; per unit of the system's time. J. C. Sprott, *Chaos and Time-Series Analysis*
(2003)."""
TRANSIENT = 50.0
"""Time that a trajectory is given to reach the attractor."""

Field = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def lorenz(u: Float[Array, "3"]) -> Float[Array, "3"]:
    """du/dt."""
    x, y, z = u
    return jnp.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])


def runge_kutta(field: Field, u: Float[Array, "..."], dt: float) -> Float[Array, "..."]:
    """u after a time `dt`, by the classical Runge-Kutta method of fourth order."""
    k1 = field(u)
    k2 = field(u + dt / 2 * k1)
    k3 = field(u + dt / 2 * k2)
    k4 = field(u + dt * k3)
    return u + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class Split(NamedTuple):
    """One trajectory, cut in time, each coordinate with mean 0 and variance 1 in the first part."""

    train: Float[np.ndarray, "time 3"]
    validation: Float[np.ndarray, "time 3"]
    test: Float[np.ndarray, "time 3"]

    @property
    def increment(self) -> float:
        """The root-mean-square difference of one sample and the next."""
        return float(np.sqrt(np.mean(np.square(np.diff(self.train, axis=0)))))


class Trials(NamedTuple):
    """Where forecasts begin: what is known, and what came of it."""

    past: Float[np.ndarray, "time starts 3"]
    future: Float[np.ndarray, "time starts 3"]


@dataclasses.dataclass(frozen=True)
class Attractor:
    """The series, and what is asked of it."""

    interval: float = 0.01
    """Time from one sample to the next, in units of the system's time."""
    substeps: int = 2
    """Runge-Kutta steps from one sample to the next."""
    n_train: int = 10000
    """Samples to learn from."""
    n_validation: int = 2000
    """Samples after these, to watch learning by."""
    n_test: int = 10000
    """Samples after these, to forecast."""
    warm_up: int = 100
    """Samples that are known before each forecast."""
    horizon: float = 10.0
    """Length of a forecast in Lyapunov times."""
    starts: int = 100
    """Forecasts, evenly spaced over the test samples."""
    threshold: float = 0.4
    """The error up to which a forecast is valid, in standard deviations of the series."""

    def __post_init__(self):
        if self.n_test <= self.warm_up + self.n_ahead:
            raise ValueError(
                f"n_test = {self.n_test} samples hold no forecast of {self.n_ahead} samples after "
                f"warm_up = {self.warm_up}: give more than {self.warm_up + self.n_ahead}"
            )

    @property
    def n_ahead(self) -> int:
        """Samples of a forecast."""
        return round(self.horizon / (LYAPUNOV_EXPONENT * self.interval))

    @property
    def times(self) -> Float[np.ndarray, " n_ahead"]:
        """Of the samples of a forecast, in Lyapunov times after the last one that is known."""
        return LYAPUNOV_EXPONENT * self.interval * np.arange(1, self.n_ahead + 1)

    def trajectory(self, seed: int) -> Split:
        """Begun at random, and on the attractor when the first sample is taken."""
        lengths = (self.n_train, self.n_validation, self.n_test)
        before = round(TRANSIENT / self.interval)
        with jax.enable_x64(True):  # what float32 rounds off would be seen after 16 Lyapunov times
            start = jnp.asarray(np.random.default_rng(seed).normal(size=3))
            series = np.asarray(self.integrate(start, before + sum(lengths)))[before:]
        train = series[: self.n_train]
        return Split(*np.split((series - train.mean(0)) / train.std(0), np.cumsum(lengths)[:-1]))

    def integrate(self, start: Float[Array, "3"], n_samples: int) -> Float[Array, "time 3"]:
        """Samples from the start on."""
        dt = self.interval / self.substeps

        def sample(u, _):
            after = jax.lax.fori_loop(0, self.substeps, lambda _, u: runge_kutta(lorenz, u, dt), u)
            return after, u

        return jax.lax.scan(sample, start, length=n_samples)[1]

    def trials(self, series: Float[np.ndarray, "time 3"]) -> Trials:
        """The forecasts to make, cut out of a series."""
        length = self.warm_up + self.n_ahead
        begins = np.linspace(0, len(series) - length, self.starts).astype(int)
        windows = np.stack([series[begin : begin + length] for begin in begins], axis=1)
        return Trials(windows[: self.warm_up], windows[self.warm_up :])

    def valid_times(self, errors: Float[np.ndarray, "n_ahead starts"]) -> np.ndarray:
        """When each forecast first errs by more than the threshold, in Lyapunov times.

        The horizon for a forecast that never does.
        """
        wrong = errors > self.threshold
        return np.where(wrong.any(0), self.times[wrong.argmax(0)], self.times[-1])


def errors_of(
    forecast: Float[np.ndarray, "n_ahead starts 3"], future: Float[np.ndarray, "n_ahead starts 3"]
) -> Float[np.ndarray, "n_ahead starts"]:
    """The normalised root-mean-square error over the three coordinates; infinite if not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.sqrt(np.mean(np.square(forecast - future), axis=-1))
    return np.where(np.isfinite(errors), errors, np.inf)
