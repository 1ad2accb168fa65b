"""The figure of a run of the benchmark: time of a gradient against the activity.

python -m figures.activity results/activity/w1_w2_w3_seed0
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from figures import finished, plotting

TITLES = {
    "w1": "100 neurons, batch 64",
    "w2": "1000 neurons, batch 32",
    "w3": "100 neurons, batch 1",
}
LOOKS = {
    "gradient, XLA": {"color": "black", "marker": "D", "markerfacecolor": "white"},
    "gradient, compiled": {"color": plotting.COLOURS["symmetric"], "marker": "o"},
    "forward, XLA": {"color": "0.6", "marker": "D", "markerfacecolor": "white"},
    "forward, compiled": {"color": plotting.COLOURS["random"], "marker": "o"},
}
LABELS = {"XLA": "products of all neurons (XLA)", "compiled": "a row for each spike"}


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    metrics = json.loads((folder / "metrics.json").read_text())
    names = list(dict.fromkeys(point["workload"] for point in metrics["points"]))
    with plotting.style():
        figure = Figure(figsize=(2.7 * len(names) + 0.9, 3.0))
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            points = [point for point in metrics["points"] if point["workload"] == name]
            for label, look in LOOKS.items():
                what, way = label.split(", ")
                axes.plot(
                    [100 * point["spiking"] for point in points],
                    [1e3 * point["seconds"][label] for point in points],
                    label=f"{what}, {LABELS[way]}",
                    markersize=4,
                    **look,
                )
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.set_title(TITLES.get(name, name))
            axes.set_xlabel("neurons spiking in a step, %")
        panels[0].set_ylabel("time in ms")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, handlelength=2.5)
        figure.text(
            0.995, 0.965, f"{metrics['processor']}, {metrics['cores_usable']} cores, "
            f"JAX {metrics['jax']}, {metrics['date'][:10]}",
            ha="right", va="center", fontsize=7, color="0.35",
        )  # fmt: skip
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.benchmarks.activity"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
