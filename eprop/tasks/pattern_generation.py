"""Pattern generation: frozen noise in, a sum of sines out. And how tasks draw and show spikes."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

if TYPE_CHECKING:  # matplotlib loads more slowly than jax, and only plots need it
    import matplotlib.axes
    import matplotlib.figure


def spikes(
    key: PRNGKeyArray, shape: tuple[int, ...], rate_hz: float, dt: float
) -> Bool[Array, "..."]:
    """Independent spikes at one rate: in each step of `dt` ms, with probability p = rate · dt.

    Random bits are what takes the time. So p is rounded to a multiple of 2^-16, and two draws made
    from each 32-bit word, if that is within 0.1 % of p (it is for 10, 40 and 50 Hz at 1 ms); if
    not, p is rounded to a multiple of 2^-32.

    Args:
        key: a JAX random key.
        shape: the shape of the result.
        rate_hz: firing rate in Hz, at most one spike per step.
        dt: time step in ms.
    """
    p, n_draws = rate_hz * dt / 1000, math.prod(shape)
    n_bits, dtype = 16, jnp.uint16
    if abs(round(p * 2**16) - p * 2**16) > 1e-3 * p * 2**16:
        n_bits, dtype = 32, jnp.uint32
    words = jax.random.bits(key, (math.ceil(n_draws * n_bits / 32),), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, dtype).reshape(-1)[:n_draws]
    threshold = min(round(p * 2**n_bits), 2**n_bits - 1)
    return (draws < dtype(threshold)).reshape(shape)


def whole_steps(name: str, time_ms: float, dt: float) -> int:
    """The number of steps of `dt` ms in `time_ms`; `ValueError` unless it is whole."""
    if not 0 < dt < math.inf:
        raise ValueError(f"dt={dt} is no time step. Write a positive number of ms, such as dt=1.0.")
    if not 0 <= time_ms < math.inf:
        raise ValueError(f"{name}={time_ms} is no duration. Write a number of ms, zero or more.")
    if abs(time_ms / dt - round(time_ms / dt)) > 1e-6:
        below = dt * (time_ms // dt)
        raise ValueError(
            f"{name}={time_ms} ms is no whole number of steps of dt={dt} ms. "
            f"Write {name}={below:g} or {below + dt:g}, or a dt that divides it."
        )
    return round(time_ms / dt)


def check_count(name: str, count: int) -> None:
    """`ValueError` unless `count` is a whole number of at least 1."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"{name}={count!r} counts nothing. Write an int of at least 1.")


def check_rate(name: str, rate_hz: float, dt: float) -> None:
    """`ValueError` unless at most one spike per step of `dt` ms can make `rate_hz`."""
    if not 0 <= rate_hz * dt <= 1000:
        raise ValueError(
            f"{name}={rate_hz} Hz cannot be drawn with one spike at most per step of dt={dt} ms. "
            f"Write a rate from 0 to {1000 / dt:g} Hz, or a smaller dt."
        )


def check_example(example: int, batch_size: int) -> None:
    """`IndexError` unless a batch of that size has the example."""
    if not 0 <= example < batch_size:
        raise IndexError(
            f"example={example} is not in a batch of {batch_size}. "
            f"Write a number from 0 to {batch_size - 1}."
        )


def raster(
    axes: "matplotlib.axes.Axes",
    trains: Bool[np.ndarray, "time n"],
    dt: float,
    first: float,
    color: str,
) -> None:
    """Draws a row of ticks per neuron against time in ms, neuron i at height `first` + i."""
    rows = [np.flatnonzero(train) * dt for train in trains.T]
    heights = [first + i for i in range(len(rows))]
    axes.eventplot(rows, lineoffsets=heights, linelengths=0.8, linewidths=0.8, colors=color)


class Patterns(NamedTuple):
    """Inputs and the curves to produce from them."""

    inputs: Bool[Array, "time batch n_in"]
    targets: Float[Array, "time batch n_out"]


@dataclass(frozen=True)
class PatternGeneration:
    """A network that hears the same noise in every trial learns to draw a curve with its readout.

    Inputs are spikes at `rate_hz`, drawn once per example: *frozen* noise, so train with one key.
    Each output's target is a sum of sines, one per period, with random amplitudes and phases,
    shifted to start at 0 and scaled so that its largest absolute value is 1. It is the same for all
    examples of a batch. A sine makes floor(duration / period) whole cycles from the first step to
    the last, so a target ends where it began.

    The defaults are the reference's (`tutorial_pattern_generation.py`, `sum_of_sines_target` in
    `models.py`); supplementary figure S7 of Bellec et al. (2020).

    Attributes:
        n_in: number of input neurons.
        n_out: number of outputs, each with a target of its own.
        duration_ms: length of the pattern in ms.
        rate_hz: firing rate of the inputs in Hz.
        periods_ms: periods of the sines in ms.
        amplitude_min: smallest amplitude of a sine before scaling.
        amplitude_max: largest; amplitudes are uniform between the two.
        dt: time step in ms.
    """

    n_in: int = 100
    n_out: int = 1
    duration_ms: float = 1000.0
    rate_hz: float = 50.0
    periods_ms: tuple[float, ...] = (1000.0, 500.0, 333.0, 200.0)
    amplitude_min: float = 0.5
    amplitude_max: float = 2.0
    dt: float = 1.0

    def __post_init__(self):
        check_count("n_in", self.n_in)
        check_count("n_out", self.n_out)
        whole_steps("duration_ms", self.duration_ms, self.dt)
        check_rate("rate_hz", self.rate_hz, self.dt)
        if not self.periods_ms:
            raise ValueError("periods_ms=() leaves no sine. Write at least one, as in (500.0,).")
        for period in self.periods_ms:
            if not 2 * self.dt < period <= self.duration_ms:
                raise ValueError(
                    f"periods_ms has {period} ms, of which {self.duration_ms} ms in steps of "
                    f"dt={self.dt} ms show no whole cycle. Write periods above {2 * self.dt:g} ms, "
                    f"up to duration_ms={self.duration_ms:g}."
                )
        if not 0 < self.amplitude_min <= self.amplitude_max < math.inf:
            raise ValueError(
                f"amplitude_min={self.amplitude_min} and amplitude_max={self.amplitude_max} are no "
                "range. Write 0 < amplitude_min <= amplitude_max."
            )

    @property
    def n_steps(self) -> int:
        """Number of time steps of a pattern."""
        return whole_steps("duration_ms", self.duration_ms, self.dt)

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Patterns:
        """Draws a pattern; a pure function of the key, and the same key draws the same pattern.

        Args:
            key: a JAX random key.
            batch_size: number of examples: one target, each example with noise of its own.

        Returns:
            Patterns: inputs, bool [time, batch, n_in]; targets, float [time, batch, n_out].
        """
        check_count("batch_size", batch_size)
        key_inputs, key_amplitudes, key_phases = jax.random.split(key, 3)
        inputs = spikes(key_inputs, (self.n_steps, batch_size, self.n_in), self.rate_hz, self.dt)

        shape = (1, len(self.periods_ms), self.n_out)  # [time, sine, n_out]
        low, high = self.amplitude_min, self.amplitude_max
        amplitudes = jax.random.uniform(key_amplitudes, shape, minval=low, maxval=high)
        phases = jax.random.uniform(key_phases, shape, maxval=2 * math.pi)
        n_cycles = jnp.array([self.duration_ms // period for period in self.periods_ms], float)
        progress = jnp.linspace(0, 2 * math.pi, self.n_steps)
        angles = progress[:, None, None] * n_cycles[None, :, None] + phases
        curves = (amplitudes * jnp.sin(angles)).sum(axis=1)
        curves = curves - curves[:1]
        curves = curves / jnp.abs(curves).max(axis=0, keepdims=True)
        targets = jnp.broadcast_to(curves[:, None, :], (self.n_steps, batch_size, self.n_out))
        return Patterns(inputs, targets)

    def plot(self, patterns: Patterns, example: int = 0) -> "matplotlib.figure.Figure":
        """Draws one example: the input raster, and each output's target below it."""
        return plot_patterns(
            patterns, example, f"Pattern generation: frozen noise at {self.rate_hz:g} Hz", self.dt
        )


def plot_patterns(
    patterns: Patterns, example: int, title: str, dt: float
) -> "matplotlib.figure.Figure":
    """Draws one example: the input raster, and each output's target below it, against ms."""
    from matplotlib.figure import Figure

    check_example(example, patterns.inputs.shape[1])
    inputs = np.asarray(patterns.inputs[:, example])
    targets = np.asarray(patterns.targets[:, example])
    (n_steps, n_in), n_out = inputs.shape, targets.shape[1]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    raster(top, inputs, dt, 1.0, "black")
    top.set(ylabel="input neuron", ylim=(0, n_in + 1), xlim=(0, n_steps * dt))
    top.set_title(title, loc="left")

    times = np.arange(n_steps) * dt
    for output, target in enumerate(targets.T):
        line = ("solid", "dashed", "dotted", "dashdot")[output % 4]
        bottom.plot(times, target, linestyle=line, label=f"output {output}")
    bottom.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    bottom.set(ylabel="target", xlabel="time (ms)", ylim=(-1.1, 1.1))
    if n_out > 1:
        above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
        bottom.legend(**above, frameon=False, ncols=min(n_out, 4))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
