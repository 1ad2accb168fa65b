"""Fig. 3 of Bellec et al. 2020: learning curves and test errors over seeds, and a trial.

python -m figures.fig3_evidence_accumulation             # of all finished runs of the experiment
python -m figures.fig3_evidence_accumulation FOLDER ...  # of these runs

The trial is of the first run, by random feedback if that is among them.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from eprop.files import differences, read_rows
from figures import finished, plotting
from figures.evidence_accumulation import draw_trial

CONTROL = "lif_only"
"""A learner beside the rules: one of them, but without adaptive neurons."""
NAMES = plotting.NAMES | {CONTROL: "LIF neurons only"}
VARIED = ("rule", "feedback", "stop_z_gradients", "seed", "results", "run")
"""Options in which runs may differ that are compared."""
OF_CONTROL = ("n_lif", "n_alif", "iterations")
"""Those in which the control may differ from the others, too."""
SMOOTHING = 20
"""Iterations that an error is the mean of."""
BOUND = 0.07
"""The test error that is to be confirmed."""


class Run(NamedTuple):
    """What is drawn of a run, and where its trial is."""

    learner: str
    errors: np.ndarray
    """Fraction of wrong answers, `[iteration]`."""
    summary: dict[str, Any]
    config: dict[str, Any]
    folder: Path


def read(folder: Path) -> Run:
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    errors = np.array([row["train_error"] for row in read_rows(folder / "metrics.jsonl")])
    learner = summary["learner"] if config["n_alif"] else CONTROL
    return Run(learner, smoothed(errors, SMOOTHING), summary, config, folder)


def smoothed(values: np.ndarray, length: int) -> np.ndarray:
    """The mean of each value and those before it, `length` in all or as many as there are."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - length, 0)
    return (total[end] - total[start]) / (end - start)


def held(runs: Sequence[np.ndarray]) -> np.ndarray:
    """As one array `[run, iteration]`: those that ended early keep their last value."""
    longest = max(map(len, runs))
    return np.array([np.pad(run, (0, longest - len(run)), mode="edge") for run in runs])


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs by several rules and draw them; returns the figure's path."""
    runs = [read(folder) for folder in folders]
    first = min(runs, key=lambda run: run.learner != "random")
    for run in runs:
        alike = next(r for r in runs if (r.learner == CONTROL) == (run.learner == CONTROL))
        _check(alike, run, VARIED)
        _check(first, run, VARIED + OF_CONTROL)
    groups = {name: [run for run in runs if run.learner == name] for name in NAMES}
    groups = {name: group for name, group in groups.items() if group}
    with np.load(first.folder / "trial.npz") as arrays:
        trial = dict(arrays)
    with plotting.style():
        figure = Figure(figsize=(9, 11.5))
        above, below = figure.subfigures(2, 1, height_ratios=(1, 3), squeeze=False).flat
        curves, tests = above.subplots(1, 2, width_ratios=(2, 1))
        _curves(curves, groups)
        _tests(tests, groups)
        name = f"{NAMES[first.learner]}, seed {first.config['seed']}"
        draw_trial(below, trial, first.config, f"c   A trial after training ({name})")
        plotting.save(figure, path)
    return path


def _check(first: Run, other: Run, may_differ: Sequence[str]) -> None:
    """`ValueError` if more differs than may differ."""
    configs = (first.config, other.config)
    settings = ({k: x for k, x in c.items() if k not in may_differ} for c in configs)
    if changed := differences(*settings):
        raise ValueError(
            f"{first.folder} and {other.folder} are of different settings ({changed}): "
            f"name the folders of runs that are to be compared"
        )


def _curves(axes: Axes, groups: dict[str, list[Run]]) -> None:
    for learner, runs in groups.items():
        errors = held([run.errors for run in runs])
        iterations = np.arange(1, errors.shape[1] + 1)
        look = {"label": NAMES[learner]}
        if learner == CONTROL:
            look |= {"linestyle": "solid", "linewidth": 0.7}
        plotting.learning_curve(axes, iterations, errors, _rule(runs), **look)
        met = [run.errors for run in runs if run.summary["reached_criterion"]]
        axes.plot(
            [len(errors) for errors in met], [errors[-1] for errors in met], "o",
            color=plotting.COLOURS[_rule(runs)], markersize=3,
        )  # fmt: skip
    axes.set(
        title=f"a   Learning: {_seeds(groups)} (dot: one met the criterion; its error is kept)",
        xlabel="iteration",
        ylabel=f"error on new trials (last {SMOOTHING} batches)",
        ylim=(0, 0.6),
        xscale="log",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    plotting.threshold(axes, BOUND, f"{BOUND:.0%}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.12), handlelength=4)


def _tests(axes: Axes, groups: dict[str, list[Run]]) -> None:
    for i, runs in enumerate(groups.values()):
        errors = [run.summary["test_error"] for run in runs]
        look = {"color": plotting.COLOURS[_rule(runs)]}
        axes.plot(errors, [i] * len(errors), "o", markersize=4, markerfacecolor="none", **look)
        axes.plot(np.mean(errors), i, "|", markersize=14, markeredgewidth=2, **look)
    axes.axvline(BOUND, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    trials = next(iter(groups.values()))[0].summary["test_trials"]
    axes.set(
        title="b   Test: each seed, and the mean (bar)",
        xlabel=f"error on {trials} trials never used before",
        xlim=(0, 0.7),
        ylim=(len(groups) - 0.5, -0.5),
    )
    axes.set_xscale("symlog", linthresh=0.01, linscale=0.3)  # logarithmic from 1 %, with a zero
    axes.xaxis.set_major_locator(FixedLocator([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks(range(len(groups)), [NAMES[name] for name in groups])
    axes.tick_params(axis="y", length=0)


def _seeds(groups: dict[str, list[Run]]) -> str:
    """What is shown of them, where not all runs may have been made yet."""
    numbers = [len(runs) for runs in groups.values()]
    few, many = min(numbers), max(numbers)
    return plotting.mean_of(many) if few == many else f"mean and range of {few} to {many} seeds"


def _rule(runs: Sequence[Run]) -> str:
    """That all of them learn by: the control's too has its colour."""
    return runs[0].summary["learner"]


def main(arguments: Sequence[str]) -> None:
    experiment = "experiments.fig3_evidence_accumulation"
    results = finished.RESULTS / "evidence_accumulation"
    folders = [Path(argument) for argument in arguments] or [
        path.parent for name in NAMES for path in sorted(results.glob(f"{name}_seed*/summary.json"))
    ]
    if not folders:
        raise SystemExit(f"no finished run in {results}: make them with python -m {experiment}")
    print(draw(folders, folders[0].parent / "fig3.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
