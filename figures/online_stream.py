"""The figure of an online-learning run: the curve around a switch, and the error over time.

python -m figures.online_stream results/online_stream/random_seed0
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

TARGET: dict[str, Any] = {"color": "0.75", "linewidth": 3.0, "label": "target"}
LEARNING: dict[str, Any] = {"color": "#1f4e9c", "label": "learning"}
FROZEN: dict[str, Any] = {
    "color": "#d55e00",
    "linestyle": (0, (4, 1.5)),
    "label": "frozen at the first switch",
}


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    config = json.loads((folder / "config.json").read_text())
    metrics = read_rows(folder / "metrics.jsonl")
    with np.load(folder / "shown.npz") as arrays:
        shown = dict(arrays)
    with plotting.style():
        figure = Figure(figsize=(7.2, 4.6))
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.35), squeeze=False).flat
        _curves(above.subplots(1, 3, sharey=True), shown, config)
        _errors(below.subplots(), metrics, config)
    path = folder / "figure.png"
    plotting.save(figure, path)
    return path


def _curves(panels: np.ndarray, shown: dict[str, np.ndarray], config: dict) -> None:
    """The first output before the first switch, just after it, and at the end of the phase."""
    pattern, repetitions = config["task"]["pattern"], config["task"]["repetitions"]
    seconds = pattern["duration_ms"] / 1000
    titles = (
        f"the last {seconds:g} s before a switch",
        f"the first {seconds:g} s after it",
        f"{repetitions * seconds:g} s after it",
    )
    time = np.arange(shown["targets"].shape[1]) * pattern["dt"]
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        learning, frozen = shown["outputs"][i, :, :, 0]
        axes.plot(time, shown["targets"][i, :, 0], **TARGET)
        axes.plot(time, learning, **LEARNING)
        if i > 0:  # before, they are one
            axes.plot(time, frozen, **FROZEN)
        axes.set_title(f"{'abc'[i]}  {title}")
        axes.set_xlabel("time within the pattern (ms)")
        axes.set_xlim(0, pattern["duration_ms"])
    panels[0].set_ylabel("output")


def _errors(axes: Axes, metrics: list[dict], config: dict) -> None:
    """Both errors over time, with the switches."""
    duration_s = config["task"]["pattern"]["duration_ms"] / 1000
    repetitions = config["task"]["repetitions"]
    time = np.array([row["iteration"] for row in metrics]) * duration_s
    learning, frozen = (
        np.array([row[name] for row in metrics]) for name in ("error", "frozen_error")
    )
    after = slice(repetitions, None)
    axes.axhline(1.0, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    for i in range(1, config["phases"]):
        label = "switch" if i == 1 else None
        axes.axvline(
            i * repetitions * duration_s, color="0.5", linestyle=":", zorder=0, label=label
        )
    axes.plot([], [], **TARGET)  # for the legend, which is of all panels
    axes.plot(time, learning, **LEARNING)
    axes.plot(time[after], frozen[after], **FROZEN)
    axes.annotate(
        "a constant", (time[-1], 1.0), xytext=(0, -2), textcoords="offset points",
        ha="right", va="top", color="0.35", fontsize=7,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set(xlim=(0, time[-1]), xlabel="time (s)")
    axes.set_ylabel("mean squared error\n/ variance of the target")
    axes.set_title(f"d  error of each pattern of {duration_s:g} s")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0)


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.online_stream"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
