"""The figure of a run of the benchmark: time and memory of a gradient against each size.

python -m figures.scaling results/scaling/n100_steps1000_batch16_seed0
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import finished, plotting

SIZES = {"n_steps": "time steps", "n": "neurons", "batch": "examples in the batch"}
VALUES = {"median_seconds": ("time in ms", 1e3), "memory_bytes": ("memory in MiB", 2**-20)}


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    metrics = json.loads((folder / "metrics.json").read_text())
    sizes = list(dict.fromkeys(point["size"] for point in metrics["points"]))
    with plotting.style():
        figure = Figure(figsize=(2.9 * len(sizes) + 0.6, 5))
        panels = figure.subplots(2, len(sizes), sharex="col", sharey="row", squeeze=False)
        for row, (key, (label, factor)) in zip(panels, VALUES.items(), strict=True):
            row[0].set_ylabel(label)
            for axes, size in zip(row, sizes, strict=True):
                points = [point for point in metrics["points"] if point["size"] == size]
                _lines(axes, points, key, factor)
        for axes, size in zip(panels[-1], sizes, strict=True):
            axes.set_xlabel(SIZES[size])
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=3)
        figure.text(
            0.995, 0.985, f"{metrics['processor']}, {metrics['cores_usable']} cores, "
            f"JAX {metrics['jax']}, {metrics['date'][:10]}",
            ha="right", va="center", fontsize=7, color="0.35",
        )  # fmt: skip
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def _lines(axes: Axes, points: list[dict[str, Any]], key: str, factor: float) -> None:
    labels = dict.fromkeys(label for point in points for label in point["programs"])
    for label in labels:
        if label == "forward, eprop":
            continue
        known = [point for point in points if label in point["programs"]]
        axes.plot(
            [point["value"] for point in known],
            [factor * point["programs"][label][key] for point in known],
            **_look(label),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [point["value"] for point in points]
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")


def _look(label: str) -> dict[str, Any]:
    if label.startswith("forward"):
        return {"label": "forward pass", "color": "0.6", "marker": ".", "linewidth": 0.8}
    if label.startswith("BPTT"):
        return plotting.RULES["bptt"] | {"marker": "D", "markersize": 4}
    if "autodiff" in label:
        return plotting.RULES["bptt_stop_z"] | {"marker": "s", "markersize": 3}
    look = {"marker": "o", "markersize": 4, "label": label}
    if label.endswith("None"):
        return plotting.RULES["symmetric"] | look | {"linestyle": "solid"}
    return plotting.RULES["symmetric"] | look | {"markerfacecolor": "white"}


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.benchmarks.scaling"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
