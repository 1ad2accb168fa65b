"""The figure of a comparison of rules: losses, and angles between each rule's gradient and BPTT's.

Losses are means over blocks of iterations, and angles of comparisons: both are noisy.

python -m figures.rule_comparison results/rule_comparison/default
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eprop.files import read_rows
from figures import finished, plotting

SYMBOLS = {"w_in": r"$W^\mathrm{in}$", "w_rec": r"$W^\mathrm{rec}$"}
BROAD = {"bptt_stop_z": {"linewidth": 3.0, "linestyle": (0, (2, 0.7))}}
"""Under the line of symmetric e-prop, which is the same until rounding has grown."""
Rows = list[list[dict[str, Any]]]
"""The metrics of each seed."""


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    summary = json.loads((folder / "summary.json").read_text())
    learners, seeds = summary["learners"], summary["seeds"]
    metrics = {
        learner: [read_rows(folder / learner / f"seed{seed}" / "metrics.jsonl") for seed in seeds]
        for learner in learners
    }
    with plotting.style():
        figure = Figure(figsize=(8, 6))
        above, below = figure.subfigures(2, 1, squeeze=False).flat
        losses = above.subplots()
        _losses(losses, metrics)
        losses.set_title(f"a   Learning: {plotting.mean_of(len(seeds))}")
        panels = below.subplots(1, 2, sharey=True)
        for axes, letter, (weights, symbol) in zip(panels, "bc", SYMBOLS.items(), strict=True):
            _angles(axes, weights, metrics, learners)
            axes.set_title(f"{letter}   {symbol}: each rule's gradient and BPTT's at its weights")
        panels[0].set_ylabel("angle (degrees)")
        panels[0].set_ylim(0, None)
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def _losses(axes: Axes, metrics: dict[str, Rows]) -> None:
    for learner, runs in metrics.items():
        errors = np.array([[row["squared_error"] for row in rows] for rows in runs])
        before, errors = plotting.in_blocks(errors, 200)
        plotting.learning_curve(axes, 1 + before, errors, learner, **BROAD.get(learner, {}))
    axes.set(
        xlabel="iteration",
        ylabel=r"$\frac{1}{2}\,\Sigma_{t,k}\,(y_{t,k} - y^*_{t,k})^2$",
        yscale="log",
        xlim=(0, len(metrics["bptt"][0])),
    )
    axes.legend(loc="upper right", ncols=2, handlelength=4)


def _angles(
    axes: Axes, weights: str, metrics: dict[str, Rows], learners: dict[str, dict[str, Any]]
) -> None:
    """Those of BPTT itself are zero and left out."""
    name = f"angle.{weights}"
    for learner, runs in metrics.items():
        if learner == "bptt":
            continue
        compared = [[row for row in rows if name in row] for rows in runs]
        iterations = np.array([[row["iteration"] for row in compared[0]]])
        before = np.array(learners[learner]["angle_before"][weights])
        during = np.array([[row[name] for row in rows] for rows in compared])
        middles, means = (plotting.in_blocks(x, 20)[1] for x in (iterations, during))
        plotting.learning_curve(
            axes,
            np.append(0.0, middles),
            np.concatenate([before[:, None], means], axis=1),
            learner,
            **BROAD.get(learner, {}),
        )
    plotting.threshold(axes, 90)
    axes.set(yticks=(0, 30, 60, 90), xlabel="iteration", xlim=(0, len(metrics["bptt"][0])))


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.rule_comparison"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
