"""The figure of the delayed network: what it learned, a point of each class, accuracy by epoch.

python -m figures.delayed_network results/delayed_network/default
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from figures import finished, plotting

RULE = "symmetric"
"""Whose network is shown."""


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / f"{RULE}.npz", allow_pickle=False) as file:
        learned = dict(file)
    with plotting.style():
        figure = Figure(figsize=(7.0, 2.5))
        plane, shown, curves = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.1))
        _plane(plane, learned)
        _spikes(shown, learned, config)
        _accuracy(curves, summary)
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def _plane(axes, learned):
    extent = (learned["axis"][0], learned["axis"][-1]) * 2
    axes.imshow(learned["share"], origin="lower", extent=extent, cmap="Greys", vmin=-0.3, vmax=1.4)
    for label, marker in enumerate("ov"):
        x, y = learned["position"][learned["label"] == label].T
        axes.plot(
            x, y, marker, markersize=3.5, markeredgewidth=0.5,
            color="black" if label else "white",
            markeredgecolor="black", label=f"class {label}",
        )  # fmt: skip
    axes.legend(loc="upper left", handletextpad=0, frameon=True, framealpha=0.9)
    axes.set(xlabel="first input", ylabel="second input")
    axes.set_title("neuron 1's share of spikes")


def _spikes(axes, learned, config):
    """Spikes as they are sent, and as they arrive."""
    delay = round(config["delay"])
    rows = [(label, neuron) for label in (0, 1) for neuron in (0, 1)]
    for row, (label, neuron) in enumerate(rows):
        times = 1 + np.flatnonzero(learned["spikes"][:, label, neuron])
        counted = times + delay <= config["n_steps"]
        axes.plot(times, np.full(len(times), row), "|", color="black", markersize=9)
        for chosen, face in ((counted, "black"), (~counted, "white")):
            axes.plot(
                times[chosen] + delay, np.full(chosen.sum(), row + 0.3), "o", color="black",
                markersize=3, markeredgewidth=0.6, markerfacecolor=face,
            )  # fmt: skip
    axes.axvline(config["n_steps"] + 0.5, color="0.6", linewidth=0.6)
    names = {0: "(-1, -1)", 1: "(1, 1)"}
    axes.set_yticks(range(4), [f"{names[label]}\nneuron {neuron}" for label, neuron in rows])
    axes.set_ylim(3.6, -0.5)
    axes.set_xlim(0, config["n_steps"] + delay + 1)
    axes.set_xlabel("time in ms")
    axes.set_title(f"| sent   ● counted {config['delay']:g} ms on   ○ too late")


def _accuracy(axes, summary):
    for name, result in summary["rules"].items():
        percent = 100 * np.array(result["accuracy"])
        epochs = np.arange(percent.shape[1])
        line = plotting.RULES[name]
        axes.plot(epochs, percent.mean(0), **line)
        axes.fill_between(
            epochs, percent.min(0), percent.max(0), color=line["color"], alpha=0.15, linewidth=0
        )
    best = 100 * summary["best_accuracy"]
    axes.axhline(
        best, color="0.5", linewidth=0.8, linestyle="dotted", label=f"best line, {best:.1f} %"
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="points told right in %", ylim=(0, 101))
    axes.legend(loc="lower right")
    axes.set_title(f"mean and range of {len(summary['seeds'])} seeds")


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.delayed_network"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
