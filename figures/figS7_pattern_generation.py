"""The figure of pattern generation: spikes, the curve before and after training, and the losses.

python -m figures.figS7_pattern_generation                        # all finished runs of the default
python -m figures.figS7_pattern_generation results/lemniscate/*/  # these runs

Spikes and curves are of the first seed, by random feedback if it is among the runs.
Losses are noisy: they are means over blocks of iterations.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from eprop.files import differences
from figures import finished, plotting
from figures.seed_runs import Run, read

ORDER = ("random", "symmetric", "adaptive", "bptt")


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs by one or more rules and draw them; returns the figure's path."""
    runs = sorted((read(folder) for folder in folders), key=lambda run: ORDER.index(run.learner))
    first = runs[0]
    for run in runs[1:]:
        if changed := differences(first.config["setting"], run.config["setting"]):
            raise ValueError(
                f"the runs by {first.learner} and {run.learner} are of different settings "
                f"({changed}): name the folders of runs that are to be compared"
            )
    with plotting.style():
        figure = Figure(figsize=(8, 8.2))
        above, middle, below = figure.subfigures(
            3, 1, squeeze=False, height_ratios=(3, 2.4, 2.4)
        ).flat
        _spikes(above, first)
        _curves(middle, first)
        _losses(below.subplots(), runs)
        plotting.save(figure, path)
    return path


def _spikes(figure: SubFigure, run: Run) -> None:
    dt = run.config["setting"]["task"]["dt"]
    inputs, neurons = figure.subplots(1, 2, sharex=True)
    plotting.raster(inputs, run.trial["inputs"], dt)
    inputs.set(title="a   Input spikes, the same at every iteration", ylabel="input")
    plotting.raster(neurons, run.trial["spikes_after"], dt)
    rate = 1000 * run.trial["spikes_after"].mean() / dt
    name = plotting.NAMES[run.learner]
    neurons.set(title=f"b   Spikes after training ({name}), {rate:.0f} Hz", ylabel="neuron")
    for axes in (inputs, neurons):
        axes.set_xlabel("time (ms)")


def _curves(figure: SubFigure, run: Run) -> None:
    """Target and output: against time, or in the plane if there are two."""
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    name = plotting.NAMES[run.learner]
    titles = {"before": "c   Before training", "after": f"d   After training ({name})"}
    in_plane = run.trial["targets"].shape[1] == 2
    for axes, (when, title) in zip(panels, titles.items(), strict=True):
        curves = {"target": run.trial["targets"], "output": run.trial[f"outputs_{when}"]}
        (_plane if in_plane else _in_time)(axes, curves, run)
        axes.set_title(title)
        axes.label_outer()
    panels[0].legend(loc="best", handlelength=1.5)


def _in_time(axes: Axes, curves: dict[str, np.ndarray], run: Run) -> None:
    dt = run.config["setting"]["task"]["dt"]
    for name, style in _styles(run).items():
        for k, line in enumerate(curves[name].T):
            label = name if k == 0 else None
            axes.plot(np.arange(len(line)) * dt, line, label=label, **style)
    plotting.time_axis(axes, len(curves["target"]), dt)
    axes.set(xlabel="time (ms)", ylabel="readout $y$")


def _plane(axes: Axes, curves: dict[str, np.ndarray], run: Run) -> None:
    for name, style in _styles(run).items():
        axes.plot(*curves[name].T, label=name, **style)
    axes.set(xlabel="readout $y_1$", ylabel="readout $y_2$", aspect="equal")


def _styles(run: Run) -> dict[str, dict[str, Any]]:
    """A broad grey target, and over it the output in the colour of its rule."""
    return {
        "target": {"color": "0.75", "linewidth": 3.5},
        "output": {"color": plotting.COLOURS[run.learner], "linewidth": 1.0},
    }


def _losses(axes: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        _, errors = run.curve("squared_error")
        before, errors = plotting.in_blocks(errors, 200)
        plotting.learning_curve(axes, 1 + before, errors, run.learner)
    axes.set(
        title=f"e   Learning: {plotting.mean_of(min(len(run.rows) for run in runs))}",
        xlabel="iteration",
        ylabel=r"$\frac{1}{2}\,\Sigma_{t,k}\,(y_{t,k} - y^*_{t,k})^2$",
        yscale="log",
        xlim=(0, max(len(run.rows[0]) for run in runs)),
    )
    axes.legend(loc="upper right", ncols=2, handlelength=3.5)


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.pattern_generation", arguments)
    print(draw(folders, folders[0].parent / "figS7.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
