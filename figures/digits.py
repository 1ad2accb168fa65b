"""The figure of handwritten digits: one as spikes, what the network makes of it, and learning.

python -m figures.digits                               # all finished runs
python -m figures.digits results/digits/rows_random/   # these runs

A column for each encoding. The digit and its spikes are of the first seed, by random feedback if
it is among the runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures import finished, plotting
from figures.seed_runs import Run, comparable, read

TITLES = {"rows": "Row by row", "latency": "By latency: the brighter, the earlier"}


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    found = [read(folder) for folder in folders]
    by_encoding = {
        encoding: comparable([run for run in found if run.config["encoding"] == encoding])
        for encoding in TITLES
    }
    columns = {encoding: runs for encoding, runs in by_encoding.items() if runs}
    with plotting.style():
        figure = Figure(figsize=(4.2 * len(columns), 9.5))
        panels = figure.subplots(
            5, len(columns), squeeze=False, height_ratios=(2.2, 2.2, 1.6, 1.8, 1.6)
        )
        for letter, axes, (encoding, runs) in zip("ab", panels.T, columns.items(), strict=False):
            axes[0].set_title(f"{letter}   {TITLES[encoding]}")
            _trial(axes[:3], runs[0])
            learning(axes[3], runs)
            tested(axes[4], runs)
        for axes in panels[3:]:
            _same_scale(axes)
        plotting.save(figure, path)
    return path


def _trial(panels: Sequence[Axes], run: Run) -> None:
    """The image, small, and below each other its spikes, the neurons' and the readouts."""
    dt, trial = run.config["dt"], run.trial
    inputs, spikes, outputs = panels
    plotting.raster(inputs, trial["inputs"], dt)
    inputs.set_ylabel("column" if run.config["encoding"] == "rows" else "pixel")
    picture = inputs.inset_axes((0.82, 0.6, 0.17, 0.38))
    picture.imshow(trial["image"], cmap="gray", vmin=0, vmax=1)
    picture.set(xticks=(), yticks=())
    plotting.raster(spikes, trial["spikes"], dt)
    rate = 1000 * trial["spikes"].mean() / dt
    spikes.set_ylabel(f"neuron\n({plotting.NAMES[run.learner]}, {rate:.0f} Hz)")
    readouts(outputs, run)


def readouts(axes: Axes, run: Run) -> None:
    """Of all classes, that of the right one in black, and when they are asked."""
    dt, trial, label = run.config["dt"], run.trial, int(run.trial["label"])
    time = np.arange(len(trial["outputs"])) * dt
    for digit, line in enumerate(trial["outputs"].T):
        shown = {"color": "black", "zorder": 3, "linewidth": 1.6} if digit == label else {}
        axes.plot(time, line, **({"color": "0.65", "linewidth": 0.8} | shown))
        axes.annotate(
            str(digit), (time[-1], line[-1]), (3, -2), textcoords="offset points",
            color=shown.get("color", "0.45"), fontsize=6,
        )  # fmt: skip
    axes.axvspan(time[-1] - run.config["answer_ms"] + dt, time[-1], color="0.92", zorder=0)
    plotting.time_axis(axes, len(time), dt)
    axes.set(xlabel="time (ms)", ylabel=f"readout $y$\n(black: {label}, as shown)")


def learning(axes: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        plotting.learning_curve(axes, *run.curve("validation_accuracy"), run.learner)
    seeds = plotting.mean_of(min(len(run.rows) for run in runs))
    axes.set(xlabel="iteration", xlim=(0, runs[0].config["iterations"]))
    axes.set_title(f"Learning: {seeds}", fontsize=7)
    axes.set_ylabel("validation\naccuracy")
    axes.legend(loc="lower right", handlelength=3.5)


def tested(axes: Axes, runs: Sequence[Run]) -> None:
    """A dot for each seed, and a line at their mean."""
    for place, run in enumerate(runs):
        values = np.array(run.summary["test_accuracy"])
        color = plotting.COLOURS[run.learner]
        axes.plot([place - 0.25, place + 0.25], [values.mean()] * 2, color=color, linewidth=2)
        spread = place + np.linspace(-0.15, 0.15, len(values) + 2)[1:-1]
        axes.plot(spread, values, "o", color=color, markersize=4, markerfacecolor="white")
        axes.annotate(
            f"{values.mean():.1%}", (place + 0.28, values.mean()), va="center", fontsize=7
        )
    names = [plotting.NAMES[run.learner].replace(", ", ",\n") for run in runs]
    axes.set_xticks(range(len(runs)), names)
    axes.set_xlim(-0.5, len(runs) - 0.3)
    what = "recordings" if "test_recordings" in runs[0].summary else "images"
    axes.set_ylabel(f"accuracy on\n{runs[0].summary[f'test_{what}']} test {what}")


def _same_scale(panels: Sequence[Axes]) -> None:
    """Accuracies beside each other are compared."""
    low = min(axes.get_ylim()[0] for axes in panels) - 0.02
    for axes in panels:
        axes.set_ylim(low, 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.digits", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
