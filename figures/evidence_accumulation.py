"""The figure of an evidence-accumulation run: one trial after training, and the learning curve.

python -m figures.evidence_accumulation results/evidence_accumulation/random_seed0
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter

from eprop.files import read_rows
from figures import finished, plotting

# Colours that no learning rule has, dark and light in pairs.
LEFT, RIGHT, RECALL, NOISE = "#00614f", "#5fb894", "black", "0.55"
FAST, SLOW = "#56b4e9", "#aa3377"


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    config = json.loads((folder / "config.json").read_text())
    metrics = read_rows(folder / "metrics.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / "trial.npz") as arrays:
        trial = dict(arrays)
    with plotting.style():
        figure = Figure(figsize=(9, 11.5), layout="constrained")
        whole, below = figure.subfigures(2, 1, height_ratios=(5.2, 1.3), squeeze=False).flat
        draw_trial(whole, trial, config, "A trial after training")
        _learning_curve(below.subplots(), metrics, summary, config)
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def draw_trial(figure: SubFigure, trial: dict, config: dict, title: str) -> None:
    """All that is shown of one trial, in six panels that share their time axis."""
    panels = figure.subplots(6, 1, sharex=True, height_ratios=(1.3, 2.4, 1, 0.8, 1.0, 1.2))
    time = np.arange(len(trial["mask"])) * config["task"]["dt"]
    _inputs(panels[0], trial, config)
    sides, (left, right) = ("left", "right"), (np.sum(trial["cues"] == side) for side in (0, 1))
    panels[0].set_title(
        f"{title}, answered {'correctly' if trial['correct'] else 'wrongly'}: "
        f"{left} cues left, {right} right, so {sides[int(trial['label'])]}"
    )
    _spikes(panels[1], trial, config)
    _thresholds(panels[2], time, trial, config)
    _answer(panels[3], time, trial)
    _learning_signal(panels[4], trial, config)
    _traces(panels[5], time, trial, config)
    panels[5].set_xlabel("time (ms)")
    panels[0].set_xlim(0, time[-1])


def _inputs(axes: Axes, trial: dict, config: dict) -> None:
    size, names = config["task"]["n_group"], ("left", "right", "recall", "noise")
    for group, color in enumerate((LEFT, RIGHT, RECALL, NOISE)):
        first = group * size
        train = trial["inputs"][:, first : first + size]
        plotting.raster(axes, train, config["task"]["dt"], first=first + 1, color=color)
    axes.set_ylim(4 * size + 0.5, 0.5)
    axes.set_yticks([size * (group + 0.5) + 0.5 for group in range(4)], names)
    axes.set_ylabel("inputs")


def _spikes(axes: Axes, trial: dict, config: dict) -> None:
    n_lif, n_alif = config["n_lif"], config["n_alif"]
    for first, last, color in ((0, n_lif, "black"), (n_lif, n_lif + n_alif, SLOW)):
        if first == last:
            continue
        train = trial["spikes"][:, first:last]
        plotting.raster(axes, train, config["task"]["dt"], first=first + 1, color=color)
    axes.set_ylim(n_lif + n_alif + 0.5, 0.5)
    middles = [(n_lif / 2, f"{n_lif} LIF", n_lif), (n_lif + n_alif / 2, f"{n_alif} ALIF", n_alif)]
    axes.set_yticks([at for at, _, n in middles if n], [name for _, name, n in middles if n])
    axes.set_ylabel("neurons")


def _thresholds(axes: Axes, time: np.ndarray, trial: dict, config: dict) -> None:
    for threshold, neuron, dash in zip(
        trial["thresholds"].T, trial["neurons"], ("-", "--", ":"), strict=False
    ):
        axes.plot(time, threshold, dash, color=SLOW, label=f"neuron {neuron + 1}")
    axes.axhline(config["v_th"], color="0.6", linewidth=0.8)
    axes.set_ylabel("threshold\n$v_{th} + βa$")
    _legend(axes)


def _answer(axes: Axes, time: np.ndarray, trial: dict) -> None:
    for side, color, dash in ((0, LEFT, "-"), (1, RIGHT, "--")):
        axes.plot(time, trial["answer"][:, side], dash, color=color, label=("left", "right")[side])
    recall = time[trial["mask"]]
    axes.axvspan(recall[0], recall[-1], color="0.9", zorder=0)
    axes.set(ylim=(-0.05, 1.05), yticks=(0, 0.5, 1))
    axes.set_ylabel("answer\nsoftmax(y)")
    _legend(axes)


def _learning_signal(axes: Axes, trial: dict, config: dict) -> None:
    plotting.colour_map(
        axes, trial["learning_signal"], config["task"]["dt"], label="learning\nsignal $L_{t,j}$"
    )
    axes.set_ylabel("neurons")


def _traces(axes: Axes, time: np.ndarray, trial: dict, config: dict) -> None:
    """The synapses from the busiest left- and right-cue inputs to the first neuron shown."""
    size = config["task"]["n_group"]
    counts = trial["inputs"].sum(0)
    for group, dash, side in ((0, "-", "left"), (1, "--", "right")):
        pre = group * size + int(np.argmax(counts[group * size : (group + 1) * size]))
        for name, color, symbol in (("fast", FAST, "v"), ("slow", SLOW, "a")):
            trace = trial[f"{name}_trace"][:, pre, 0]
            scale = np.abs(trace).max() or 1.0
            axes.plot(
                time, trace / scale, dash, color=color, label=f"{name} $ε_{symbol}$, {side} cue"
            )
    axes.set(yticks=(0, 1))
    axes.set_ylabel(f"eligibility\nvectors of\nneuron {trial['neurons'][0] + 1}\n(of maximum)")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Right of the panel, in the margin that the learning signal's scale makes."""
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2)
    legend.set_in_layout(False)


def _learning_curve(axes: Axes, metrics: list[dict], summary: dict, config: dict) -> None:
    rule = plotting.RULES[summary["learner"]]
    iterations = [row["iteration"] for row in metrics]
    axes.plot(
        iterations, [row["train_error"] for row in metrics], color="0.75", label="training batches"
    )
    checked = [row for row in metrics if "validation_error" in row]
    axes.plot(
        [row["iteration"] for row in checked],
        [row["validation_error"] for row in checked],
        "o-",
        color=rule["color"],
        label=f"fresh trials, {rule['label']}",
    )
    axes.axhline(config["criterion"], color="black", linestyle=":", label="criterion to stop")
    axes.plot(
        iterations[-1], summary["test_error"], "*", color="black", markersize=11,
        label=f"test: {summary['test_error']:.1%} of {summary['test_trials']} trials",
    )  # fmt: skip
    axes.set(xlabel="iteration", ylabel="error", ylim=(0, 0.6), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="upper right", ncols=2)


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.evidence_accumulation"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
