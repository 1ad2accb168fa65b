"""The figure of a benchmark's run: time per program, and memory where it was measured.

python -m figures.costs results/neuron_step/steps64_n128_seed0
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from figures import finished, plotting

OURS: dict[str, Any] = {"color": plotting.COLOURS["symmetric"], "marker": "o"}
OTHERS: dict[str, Any] = {"color": "black", "marker": "D", "markerfacecolor": "white"}
UNITS = {"median_seconds": ("ms", 1e3), "memory_bytes": ("MiB", 2**-20)}
NAMES = {"median_seconds": "time (median)", "memory_bytes": "memory of the compiled program"}


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    metrics = json.loads((folder / "metrics.json").read_text())
    workloads = metrics["workloads"]
    n_rows = [len(found["programs"]) for found in workloads.values()]
    programs = [row for found in workloads.values() for row in found["programs"].values()]
    keys = [key for key in NAMES if any(key in row for row in programs)]
    with plotting.style():
        figure = Figure(
            figsize=(5 + 3.5 * (len(keys) - 1), 0.9 + sum(0.2 * n + 0.5 for n in n_rows))
        )
        rows = figure.subplots(
            len(workloads), len(keys), sharey="row", squeeze=False, height_ratios=n_rows
        )
        for axes, (name, found) in zip(rows, workloads.items(), strict=True):
            for key, panel in zip(keys, axes, strict=True):
                _points(panel, found["programs"], key)
            passed = "" if found["check"]["passed"] else "   CHECK FAILED"
            axes[0].set_title(f"{name}   {found['title']}{passed}")
        for key, panel in zip(keys, rows[-1], strict=True):
            panel.set_xlabel(f"{NAMES[key]} in {UNITS[key][0]}")
        figure.suptitle(
            f"{metrics['processor']}, {metrics['cores_usable']} cores, JAX {metrics['jax']}, "
            f"{metrics['date'][:10]}", x=0.99, ha="right", fontsize=7, color="0.35",
        )  # fmt: skip
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def _points(axes: Axes, programs: dict[str, Any], key: str) -> None:
    """A point for each program, with its number, on a logarithmic axis; our own are filled."""
    _, factor = UNITS[key]
    values = {label: factor * row[key] for label, row in programs.items() if key in row}
    for i, label in enumerate(programs):
        if label in values:
            ours = label.startswith(("eprop", "e-prop"))
            axes.axhline(i, color="0.9", linewidth=0.8, zorder=0)
            axes.plot(values[label], i, markersize=5, **(OURS if ours else OTHERS))
            value = values[label]
            axes.annotate(
                f"{value:,.0f}" if value >= 100 else f"{value:.3g}", (value, i), xytext=(6, 0),
                textcoords="offset points", va="center", fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(values.values()) / 2, 4 * max(values.values()))
    axes.set_yticks(range(len(programs)), list(programs))
    axes.set_ylim(len(programs) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def main(arguments: Sequence[str]) -> None:
    experiments = [
        "experiments.benchmarks.neuron_step",
        "experiments.benchmarks.peers",
        "experiments.benchmarks.spike_storage",
    ]
    finished.draw_runs(draw, experiments, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
