"""Evidence accumulation: count cues on the left and the right, remember, and answer when asked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from .pattern_generation import (
    check_count,
    check_example,
    check_rate,
    raster,
    spikes,
    whole_steps,
)

if TYPE_CHECKING:
    import matplotlib.figure


class Trials(NamedTuple):
    """A batch of trials. In `labels` and `cues`, 0 is left and 1 is right."""

    inputs: Bool[Array, "time batch n_in"]
    labels: Int[Array, " batch"]
    mask: Bool[Array, " time"]
    cues: Int[Array, "batch n_cues"]


@dataclass(frozen=True)
class EvidenceAccumulation:
    """A rodent sees cues left and right as it runs down a track, then turns to the side of more.

    Time runs so, in ms with the default values (a silence *precedes* each cue):

        0      50    150   200    300      950    1050               2100     2250
        |------|█████|-----|█████|-- ... --|█████|------ delay ------|▒ recall ▒|

    In each trial one side is favoured, either with probability 1/2. Each cue is on that side with
    probability `p_favoured`, independently. The label is the side of more cues, whichever was
    favoured, and only steps in the recall window count: `mask`.

    Inputs are four groups of `n_group` neurons: left cue, right cue, recall, noise. They are silent
    but for: the side of a cue during the cue and the recall group in the recall window, at
    `rate_hz`; the noise group throughout, at `noise_hz`. A step has a spike with probability
    rate · dt, within 0.1 %.

    The defaults are the reference's (`generate_click_task_data` in its `tools.py`, called by
    `tutorial_evidence_accumulation_with_alif.py`; its `p_group` of 0.3 is 1 - `p_favoured`, and its
    noise is a quarter of the cues' rate); figure 3 of Bellec et al. (2020).

    Attributes:
        n_cues: number of cues; odd, so that one side has more.
        cue_ms: length of a cue in ms.
        interval_ms: from the beginning of one cue to that of the next, in ms.
        delay_ms: from the end of the last cue to the recall window, in ms.
        recall_ms: length of the recall window, the end of the trial, in ms.
        n_group: number of neurons in each of the four input groups.
        rate_hz: firing rate of the cue and recall groups while active, in Hz.
        noise_hz: firing rate of the noise group, in Hz.
        p_favoured: probability that a cue is on the trial's favoured side.
        dt: time step in ms.
    """

    n_cues: int = 7
    cue_ms: float = 100.0
    interval_ms: float = 150.0
    delay_ms: float = 1050.0
    recall_ms: float = 150.0
    n_group: int = 10
    rate_hz: float = 40.0
    noise_hz: float = 10.0
    p_favoured: float = 0.7
    dt: float = 1.0

    def __post_init__(self):
        check_count("n_cues", self.n_cues)
        check_count("n_group", self.n_group)
        for name in ("cue_ms", "interval_ms", "delay_ms", "recall_ms"):
            steps = whole_steps(name, getattr(self, name), self.dt)
            if steps == 0 and name != "delay_ms":
                raise ValueError(f"{name}=0 leaves no step. Write {name}={self.dt:g} or more.")
        check_rate("rate_hz", self.rate_hz, self.dt)
        check_rate("noise_hz", self.noise_hz, self.dt)
        if self.n_cues % 2 == 0:
            raise ValueError(
                f"n_cues={self.n_cues} is even, and a tie has no label. "
                f"Write n_cues={self.n_cues - 1} or {self.n_cues + 1}."
            )
        if self.interval_ms < self.cue_ms:
            raise ValueError(
                f"interval_ms={self.interval_ms} is shorter than cue_ms={self.cue_ms}: cues would "
                f"overlap. Write interval_ms={self.cue_ms:g} or more."
            )
        if not 0 <= self.p_favoured <= 1:
            raise ValueError(
                f"p_favoured={self.p_favoured} is no probability. Write a number from 0 to 1."
            )

    @property
    def n_in(self) -> int:
        """Number of input neurons: four groups."""
        return 4 * self.n_group

    @property
    def n_out(self) -> int:
        """Number of classes: 0 is left, 1 is right."""
        return 2

    @property
    def n_steps(self) -> int:
        """Number of time steps of a trial."""
        return whole_steps("recall_window", self.recall_window[1], self.dt)

    @property
    def cue_windows(self) -> list[tuple[float, float]]:
        """Beginning and end of each cue, in ms from the start of the trial."""
        ends = [self.interval_ms * (k + 1) for k in range(self.n_cues)]
        return [(end - self.cue_ms, end) for end in ends]

    @property
    def recall_window(self) -> tuple[float, float]:
        """Beginning and end of the window that counts, in ms from the start of the trial."""
        start = self.interval_ms * self.n_cues + self.delay_ms
        return start, start + self.recall_ms

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Trials:
        """Draws trials; a pure function of the key.

        Args:
            key: a JAX random key.
            batch_size: number of trials.

        Returns:
            Trials: inputs, bool [time, batch, n_in]; labels, int [batch]; mask, bool [time], true
            in the recall window; cues, int [batch, n_cues], the side of each cue.
        """
        check_count("batch_size", batch_size)
        key_side, key_follows, key_cue, key_recall, key_noise = jax.random.split(key, 5)
        # In float32 whatever the default, so that float64 mode draws the same trials.
        p_side, p_follows = jnp.float32(0.5), jnp.float32(self.p_favoured)
        favoured = jax.random.bernoulli(key_side, p_side, (batch_size, 1))
        follows = jax.random.bernoulli(key_follows, p_follows, (batch_size, self.n_cues))
        cues = favoured == follows  # true is right

        n_steps, times_ms = self.n_steps, (self.cue_ms, self.interval_ms, self.recall_ms)
        n_cue, n_interval, n_recall = (round(time / self.dt) for time in times_ms)
        # Only what may be active is drawn, cues as [cue, step, batch, neuron]; the rest is padding.
        cue = spikes(key_cue, (self.n_cues, n_cue, batch_size, self.n_group), self.rate_hz, self.dt)
        right = cues.T[:, None, :, None]
        both = jnp.concatenate([cue & ~right, cue & right], axis=3)
        both = jnp.pad(both, ((0, 0), (n_interval - n_cue, 0), (0, 0), (0, 0)))
        both = both.reshape(self.n_cues * n_interval, batch_size, 2 * self.n_group)
        both = jnp.pad(both, ((0, n_steps - len(both)), (0, 0), (0, 0)))
        recall = spikes(key_recall, (n_recall, batch_size, self.n_group), self.rate_hz, self.dt)
        recall = jnp.pad(recall, ((n_steps - n_recall, 0), (0, 0), (0, 0)))
        noise = spikes(key_noise, (n_steps, batch_size, self.n_group), self.noise_hz, self.dt)

        return Trials(
            inputs=jnp.concatenate([both, recall, noise], axis=2),
            labels=(cues.sum(axis=1) > self.n_cues // 2).astype(jnp.int32),
            mask=jnp.arange(n_steps) >= n_steps - n_recall,
            cues=cues.astype(jnp.int32),
        )

    def plot(self, trials: Trials, example: int = 0) -> "matplotlib.figure.Figure":
        """Draws one trial: input spikes by group, cues shaded, and the evidence so far."""
        from matplotlib.figure import Figure

        check_example(example, trials.inputs.shape[1])
        inputs, cues = np.asarray(trials.inputs[:, example]), np.asarray(trials.cues[example])
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))

        names, colors = ("left", "right", "recall", "noise"), ("#0072b2", "#d55e00", "black", "0.5")
        bands = [1.25 * self.n_group * group for group in range(4)]  # a gap between groups
        for group, (band, color) in enumerate(zip(bands, colors, strict=True)):
            trains = inputs[:, group * self.n_group : (group + 1) * self.n_group]
            raster(top, trains, self.dt, band + 0.5, color)
        windows = [*self.cue_windows, self.recall_window]
        for group, window in zip([*cues.tolist(), 2], windows, strict=True):
            low, high = bands[group], bands[group] + self.n_group
            top.fill_between(window, low, high, color=colors[group], alpha=0.15, linewidth=0)
        top.set_yticks([band + self.n_group / 2 for band in bands], names)
        top.set(ylabel="input group", ylim=(bands[3] + 1.05 * self.n_group, -0.05 * self.n_group))
        label = names[int(trials.labels[example])]
        count = f"{np.sum(cues == 0)} left, {np.sum(cues == 1)} right"
        top.set_title(f"Evidence accumulation: {count}, so the answer is {label}", loc="left")

        changes = [0, *(start for start, _ in self.cue_windows), self.recall_window[1]]
        evidence = np.concatenate([[0], np.cumsum(2 * cues - 1)])
        bottom.stairs(evidence, changes, baseline=None, color="black")
        bottom.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        bottom.axvspan(*self.recall_window, color=colors[2], alpha=0.15, linewidth=0)
        bottom.set(ylabel="right - left\n(cues)", xlabel="time (ms)")
        most = self.n_cues
        bottom.set(ylim=(-most - 0.5, most + 0.5), yticks=(-most, 0, most), xlim=(0, changes[-1]))
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
        return figure
