"""The figure of a run of the benchmark: peak memory of the process against the stream's length.

python -m figures.stream_memory results/stream_memory/window256_seed0
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from figures import finished, plotting


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    metrics = json.loads((folder / "metrics.json").read_text())
    windows = dict.fromkeys(row["window"] for row in metrics["rows"])
    with plotting.style():
        figure = Figure(figsize=(4.5, 2.8))
        axes = figure.subplots()
        for window, marker in zip(windows, ("o", "D"), strict=False):
            rows = [row for row in metrics["rows"] if row["window"] == window]
            line = plotting.RULES["bptt" if window is None else "symmetric"]
            axes.plot(
                [row["n_steps"] for row in rows],
                [row["peak_bytes"] / 2**20 for row in rows],
                color=line["color"],
                linestyle=line["linestyle"],
                marker=marker,
                markersize=4,
                markerfacecolor="white" if window is None else line["color"],
                label="the whole sequence" if window is None else f"windows of {window} steps",
            )
        axes.set_xscale("log")
        axes.set_ylim(0, 1.1 * max(row["peak_bytes"] for row in metrics["rows"]) / 2**20)
        axes.set_xlabel("length of the sequence in steps")
        axes.set_ylabel("peak memory of the process in MiB")
        axes.legend(loc="upper left")
        axes.set_title(
            f"{metrics['processor']}, JAX {metrics['jax']}, {metrics['date'][:10]}",
            loc="right", fontsize=7, color="0.35",
        )  # fmt: skip
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.benchmarks.stream_memory"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
