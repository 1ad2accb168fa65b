"""The figure of random spike patterns: two of them, what the network makes of them, and learning.

python -m figures.spike_patterns                      # all finished runs of the default
python -m figures.spike_patterns results/tutorial/*/  # these runs

Patterns and spikes are of the first seed, by random feedback if it is among the runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter

from figures import finished, plotting
from figures.seed_runs import Run, comparable, read


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs by one or more rules and draw them; returns the figure's path."""
    runs = comparable([read(folder) for folder in folders])
    with plotting.style():
        figure = Figure(figsize=(8, 8.5))
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(5.5, 2.5)).flat
        _trials(above, runs[0])
        _learning(below, runs)
        plotting.save(figure, path)
    return path


def _trials(figure: SubFigure, run: Run) -> None:
    """The first pattern of each of two classes, in a column each."""
    panels = figure.subplots(3, 2, sharex=True, sharey="row", height_ratios=(2.2, 1.8, 1.2))
    dt, trial = run.config["dt"], run.trial
    for k, (inputs, spikes, outputs) in enumerate(panels.T):
        label = int(trial["labels"][k])
        plotting.raster(inputs, trial["inputs"][:, k], dt)
        inputs.set_title(f"{'ab'[k]}   A pattern of class {label + 1}")
        plotting.raster(spikes, trial["spikes"][:, k], dt)
        names = [f"class {c + 1}" for c in range(trial["outputs"].shape[-1])]
        plotting.traces(outputs, trial["outputs"][:, k], dt, names if k == 0 else ())
        for c, line in enumerate(trial["outputs"][:, k].T):
            highest = int(np.argmax(line))
            style = plotting.LINES[c % len(plotting.LINES)]
            outputs.plot(
                highest * dt, line[highest], "o", color=style["color"], markersize=4, clip_on=False
            )
        outputs.set_xlabel("time (ms)")
    rate = 1000 * trial["spikes"].mean() / dt
    panels[0, 0].set_ylabel("input")
    panels[1, 0].set_ylabel(f"neuron\n({plotting.NAMES[run.learner]}, {rate:.0f} Hz)")
    panels[2, 0].set_ylabel("readout $y$\n(dots: highest)")


def _learning(figure: SubFigure, runs: Sequence[Run]) -> None:
    cross_entropy, accuracy = figure.subplots(1, 2)
    for run in runs:
        plotting.learning_curve(cross_entropy, *run.curve("cross_entropy"), run.learner)
        plotting.learning_curve(accuracy, *run.curve("accuracy"), run.learner)
    seeds = plotting.mean_of(min(len(run.rows) for run in runs))
    cross_entropy.set(title=f"c   Learning: {seeds}", ylabel="cross-entropy", ylim=(0, None))
    accuracy.set(title="d   Patterns in their class", ylabel="accuracy", ylim=(None, 1.01))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _end(cross_entropy, runs)
    _end(accuracy, runs)
    accuracy.legend(loc="lower right", handlelength=3.5)


def _end(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set(xlabel="iteration", xlim=(0, runs[0].config["iterations"]))


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.spike_patterns", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
