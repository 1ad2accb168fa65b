"""The figure of a pole balanced by a spiking network: a second of it, learning, and the test.

python -m figures.cartpole                         # all finished runs
python -m figures.cartpole results/cartpole/*/     # these runs

The course is of the first seed, of the run that is named first in the legend.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter

from figures import finished, plotting
from figures.seed_runs import Run, comparable, read

MAY_DIFFER = ("feedback", "velocities", "iterations", "results", "run")
"""What sets runs apart that are drawn together."""
ORDER = ("random", "symmetric", "random, no velocities", "symmetric, no velocities")
REQUIRED = 0.95
"""Of the limit, what is asked for."""


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    runs = comparable(
        [read(folder) for folder in folders], order=ORDER, may_differ=MAY_DIFFER, name=_kind
    )
    with plotting.style():
        figure = Figure(figsize=(8, 7.5))
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.5, 3)).flat
        _course(above, runs[0])
        learning, test = below.subplots(1, 2, width_ratios=(2, 1))
        _learning(learning, runs)
        _test(test, runs)
        plotting.save(figure, path)
    return path


def _is_blind(run: Run) -> bool:
    return not run.config["velocities"]


def _kind(run: Run) -> str:
    return run.learner + (", no velocities" if _is_blind(run) else "")


def _name(run: Run) -> str:
    return plotting.NAMES[run.learner] + (", no velocities" if _is_blind(run) else "")


def _look(run: Run) -> dict[str, Any]:
    """Fainter where velocities are not seen."""
    return {"label": _name(run)} | ({"linewidth": 0.7, "alpha": 0.8} if _is_blind(run) else {})


def _course(figure: SubFigure, run: Run) -> None:
    """The first second of an episode in Gymnasium's environment."""
    trial = run.trial
    pole, inputs, spikes, outputs = figure.subplots(4, 1, height_ratios=(1.1, 2, 2, 1.3))
    steps, n_decisions = run.config["steps"], len(trial["observations"])
    time = np.arange(n_decisions) * steps
    angle = np.rad2deg(trial["observations"][:, 2])
    pole.step(time, angle, where="post", color="black", label="angle of the pole (°)")
    pushed = trial["actions"] == 1
    pole.step(
        time, np.where(pushed, 1, -1) * np.abs(angle).max(), where="post", color="#56a0d3",
        linewidth=0.7, label="push, right or left",
    )  # fmt: skip
    above = {"loc": "lower right", "bbox_to_anchor": (1, 0.95), "borderaxespad": 0.2}
    pole.legend(ncols=2, **above)
    pole.set_title(
        f"a   The first {n_decisions} decisions of an episode after learning "
        f"({_name(run)}, seed {run.summary['seeds'][0]})"
    )
    plotting.raster(inputs, _in_time(trial["inputs"]), 1.0)
    plotting.raster(spikes, _in_time(trial["spikes"]), 1.0)
    plotting.traces(outputs, _in_time(trial["outputs"]), 1.0, ("left", "right", "value"))
    outputs.legend(ncols=3, handlelength=2.5, **above)
    for axes in (pole, outputs):
        plotting.time_axis(axes, n_decisions * steps, 1.0)
    outputs.set_xlabel("time of the network (ms)")
    labels = ("pole", "input", "neuron", "readout $y$")
    for axes, label in zip((pole, inputs, spikes, outputs), labels, strict=True):
        axes.set_ylabel(label)


def _in_time(by_decision: np.ndarray) -> np.ndarray:
    """`[decision, step, n]` as `[time, n]`."""
    return by_decision.reshape(-1, by_decision.shape[-1])


def _learning(axes: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        iterations, decisions = run.curve("decisions")
        per_iteration = run.config["decisions"] * run.config["batch_size"]
        shown = np.minimum(decisions, run.summary["limit"])
        plotting.learning_curve(
            axes, iterations * per_iteration / 1000, shown, run.learner, **_look(run)
        )
    seeds = plotting.mean_of(min(len(run.rows) for run in runs))
    axes.set(
        title=f"b   Learning: {seeds}",
        xlabel="decisions, of all environments (thousands)",
        ylabel="decisions of an episode",
        ylim=(0, None),
    )
    axes.legend(loc="lower right", handlelength=4)


def _test(axes: Axes, runs: Sequence[Run]) -> None:
    limit = runs[0].summary["limit"]
    rows = {
        f"{_name(run)},\nactions {how}": (
            [x / limit for x in run.summary[f"{which}_decisions"]],
            plotting.COLOURS[run.learner],
        )
        for run in runs
        for how, which in {"drawn": "test", "greedy": "greedy"}.items()
    }
    plotting.seeds(axes, rows)
    axes.axvline(REQUIRED, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set(
        title="c   Test: seeds, and mean (bar)",
        xlabel=f"decisions of at most {limit}",
        xlim=(0, 1.05),
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.cartpole", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
