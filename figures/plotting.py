"""How the experiments' figures look: one style, and the few kinds of panel they are made of.

Panels are drawn onto given axes from NumPy arrays of one example, time first. Step t is at the time
t · dt in ms in all of them, so panels that share their time axis line up. A colour comes with a
line style, or with a lightness that rises with the value: figures can be read in greyscale.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from eprop.files import write_atomically

RULES: dict[str, dict[str, Any]] = {
    "bptt": {"label": "BPTT", "color": "black", "linestyle": "solid"},
    "bptt_stop_z": {"label": "e-prop, by autodiff", "color": "#9a9a9a", "linestyle": (0, (7, 2))},
    "symmetric": {"label": "e-prop, symmetric", "color": "#1f4e9c", "linestyle": (0, (4, 1.5))},
    "random": {"label": "e-prop, random", "color": "#d55e00", "linestyle": (0, (4, 1, 1, 1))},
    "adaptive": {"label": "e-prop, adaptive", "color": "#dba400", "linestyle": (0, (1, 1))},
    "frozen": {"label": "only readouts", "color": "#009e73", "linestyle": (0, (6, 1, 1, 1, 1, 1))},
}
"""A line's keyword arguments for each learning rule."""
COLOURS = {rule: line["color"] for rule, line in RULES.items()}
NAMES = {rule: line["label"] for rule, line in RULES.items()}

LINES: list[dict[str, Any]] = [
    {"color": "black", "linestyle": "solid"},
    {"color": "#009e73", "linestyle": (0, (4, 1.5))},
    {"color": "#56a0d3", "linestyle": "solid", "linewidth": 1.8},
    {"color": "#cc79a7", "linestyle": (0, (1, 1)), "linewidth": 1.8},
]
"""The same for lines that stand for anything else."""

SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#07184f", "#3a73bd", "#bbbec2", "#ffd06e", "#fffce6"]
)
"""From negative (dark blue) through zero (grey) to positive (light yellow)."""


def style() -> AbstractContextManager[None]:
    """The style of all figures, in a `with` statement around drawing and `save`."""
    return matplotlib.rc_context(
        {
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.2,
            "legend.frameon": False,
            "legend.fontsize": 7,
            "figure.constrained_layout.use": True,
            "savefig.dpi": 200,
        }
    )


def raster(
    axes: Axes, spikes: np.ndarray, dt: float, *, first: int = 1, color: str = "black"
) -> None:
    """Spikes `[time, n]` as ticks in rows from the top, neuron i in row `first` + i.

    For groups in colours of their own call it once for each, from top to bottom.
    """
    n_steps, n = spikes.shape
    rows = [np.flatnonzero(train) * dt for train in spikes.T]
    heights = np.arange(first, first + n)
    axes.eventplot(rows, lineoffsets=heights, linelengths=0.8, linewidths=1, colors=color)
    axes.set_ylim(first + n - 0.5, 0.5)
    _whole_numbers(axes.yaxis, 4)
    time_axis(axes, n_steps, dt)


def traces(
    axes: Axes,
    values: np.ndarray,
    dt: float,
    labels: Sequence[str] = (),
    styles: Sequence[dict[str, Any]] = LINES,
) -> None:
    """Lines `[time, n]` against time, with a legend if they have labels."""
    times = np.arange(len(values)) * dt
    names = labels or [None] * values.shape[1]
    for line, label, arguments in zip(values.T, names, cycle(styles), strict=False):
        axes.plot(times, line, label=label, **arguments)
    if labels:
        axes.legend(loc="upper left", handlelength=2.5)
    time_axis(axes, len(values), dt)


def threshold(axes: Axes, level: float, text: str = "") -> None:
    """A level to compare lines with, named at its right end."""
    axes.axhline(level, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.annotate(
        text,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        color="0.35",
    )


def seeds(axes: Axes, rows: Mapping[str, tuple[Sequence[float], str]]) -> None:
    """By name a row of what came of each seed, a dot each and a bar at their mean, in a colour."""
    for place, (values, color) in enumerate(rows.values()):
        spread = place + np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [place]
        axes.plot(values, spread, "o", markersize=4, markerfacecolor="none", color=color)
        axes.plot(np.mean(values), place, "|", markersize=14, markeredgewidth=2, color=color)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(axis="y", length=0)


def learning_curve(
    axes: Axes, iterations: np.ndarray, values: np.ndarray, rule: str, **changes: Any
) -> None:
    """A quantity over iterations in the colour of its rule, a name in `RULES`.

    Several seeds `[seed, iteration]` are drawn as their mean and their range.
    """
    arguments = RULES[rule] | changes
    if values.ndim == 2:
        low, high = values.min(0), values.max(0)
        axes.fill_between(iterations, low, high, color=arguments["color"], alpha=0.15, linewidth=0)
        values = values.mean(0)
    axes.plot(iterations, values, **arguments)


def in_blocks(values: np.ndarray, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """What is noisy, `[seed, index]`, as means of so many blocks, and the middles of these."""
    n = values.shape[1]
    blocks = np.array_split(np.arange(n), min(n, at_most))
    means = np.stack([values[:, block].mean(axis=1) for block in blocks], axis=1)
    return np.array([block.mean() for block in blocks]), means


def mean_of(n_seeds: int) -> str:
    """What `learning_curve` shows, in words."""
    return "one seed" if n_seeds == 1 else f"mean and range of {n_seeds} seeds"


def colour_map(
    axes: Axes, values: np.ndarray, dt: float, label: str, limit: float | None = None
) -> Colorbar:
    """Signed values `[time, n]` as an image against time, neuron 1 at the top, with its scale."""
    n_steps, n = values.shape
    image = _image(axes, values.T, limit, (-dt / 2, (n_steps - 0.5) * dt, n + 0.5, 0.5))
    _whole_numbers(axes.yaxis, 4)
    time_axis(axes, n_steps, dt)
    return colour_bar(image, axes, label)


def weight_image(
    axes: Axes, weights: np.ndarray, limit: float | None = None, *, autapses: bool = True
) -> AxesImage:
    """A number for each synapse `[n_pre, n_post]`; without `autapses` the diagonal is hatched."""
    if not autapses:
        weights = np.where(np.eye(len(weights), dtype=bool), np.nan, weights)
        axes.patch.set(facecolor="white", hatch="////////", edgecolor="0.6", linewidth=0)
    n_pre, n_post = weights.shape
    image = _image(axes, weights, limit, (0.5, n_post + 0.5, n_pre + 0.5, 0.5))
    for axis in (axes.xaxis, axes.yaxis):
        _whole_numbers(axis, 8)
        axis.set_tick_params(length=0)
    return image


def colour_bar(
    image: AxesImage, axes: Axes | Sequence[Axes], label: str, **changes: Any
) -> Colorbar:
    """The scale of a signed image beside its axes, marked at its ends and zero."""
    figure = axes.figure if isinstance(axes, Axes) else axes[0].figure
    arguments: dict[str, Any] = {"aspect": 15, "label": label} | changes
    bar = figure.colorbar(image, ax=axes, **arguments)
    low, high = image.get_clim()
    assert low is not None and high is not None
    ticks = [low, 0.0, high]
    bar.set_ticks(ticks, labels=[f"{x:.2g}".replace("-", "−") for x in ticks])
    bar.outline.set_linewidth(0.4)
    return bar


def time_axis(axes: Axes, n_steps: int, dt: float) -> None:
    """From the first step to the last."""
    axes.set_xlim(-dt / 2, (n_steps - 0.5) * dt)


def save(figure: Figure, path: Path) -> None:
    """Writes the whole figure or nothing; the format is that of the path's ending."""
    kind = path.suffix.lstrip(".")
    write_atomically(path, lambda file: figure.savefig(file, format=kind))


def _whole_numbers(axis: Axis, at_most: int) -> None:
    axis.set_major_locator(MaxNLocator(at_most, integer=True, min_n_ticks=1))


def _image(
    axes: Axes, values: np.ndarray, limit: float | None, extent: tuple[float, float, float, float]
) -> AxesImage:
    limit = float(np.nanmax(np.abs(values))) if limit is None else limit
    limit = limit or 1.0  # all zero
    axes.spines[:].set_visible(True)
    return axes.imshow(
        values, cmap=SIGNED, vmin=-limit, vmax=limit, extent=extent, aspect="auto", rasterized=True
    )
