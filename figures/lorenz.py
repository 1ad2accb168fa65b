"""The figure of Lorenz's attractor: a forecast, the error against time ahead, and valid times.

python -m figures.lorenz                                # all finished runs
python -m figures.lorenz results/lorenz/spiking_*/      # these runs

A column for each kind of network. The forecast is the first one of the first seed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import finished, plotting
from figures.seed_runs import Run, comparable, read

TITLES = {"spiking": "Spiking neurons", "lstm": "A stack of LSTM layers"}
OTHERS: dict[str, dict[str, Any]] = {
    "persistence": plotting.LINES[3] | {"label": "persistence"},
    "linear": plotting.LINES[2] | {"label": "linear"},
    "nvar": plotting.LINES[1] | {"label": "NVAR"},
}
"""What forecasts beside the networks."""
MAY_DIFFER = (
    *("network", "rule", "feedback", "results", "run"),
    *("length", "settle", "batch_size", "learning_rate", "iterations", "check_every"),
)
"""What sets runs apart that are drawn together: the network, and how it was trained."""


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    runs = comparable([read(folder) for folder in folders], may_differ=MAY_DIFFER)
    by_network = {
        network: [run for run in runs if run.summary["network"] == network] for network in TITLES
    }
    columns = {network: found for network, found in by_network.items() if found}
    with plotting.style():
        figure = Figure(figsize=(4.2 * len(columns), 8.0))
        panels = figure.subplots(4, len(columns), squeeze=False, height_ratios=(1, 1, 2.6, 1.6))
        for letter, axes, (network, found) in zip("ab", panels.T, columns.items(), strict=False):
            axes[0].set_title(f"{letter}   {TITLES[network]}")
            _forecast(axes[0], found[0], "nvar", OTHERS["nvar"])
            _forecast(axes[1], found[0], network, plotting.RULES[found[0].learner])
            _error(axes[2], found)
            _valid_times(axes[3], found)
        panels[2, 0].set_ylabel("error (standard deviations),\nmedian of forecasts")
        plotting.save(figure, path)
    return path


def _forecast(axes: Axes, run: Run, name: str, line: dict[str, Any]) -> None:
    """A coordinate as it was, and as it was forecast."""
    times = run.trial["times"]
    axes.plot(times, run.trial["future"][:, 0], color="0.7", linewidth=2.5)
    axes.plot(times, run.trial[f"forecast_{name}"][:, 0], color=line["color"])
    axes.set(xlim=(0, times[-1]), ylim=(-3, 3), ylabel=f"$x$, {line['label']}")
    axes.tick_params(labelbottom=False)


def _error(axes: Axes, runs: Sequence[Run]) -> None:
    """Against time ahead: straight where it grows as neighbouring trajectories part."""
    first, times = runs[0], runs[0].trial["times"]
    for name, line in OTHERS.items():
        plotting.learning_curve(axes, times, first.trial[f"error_{name}"], "bptt", **line)
    for run in runs:
        values = run.trial[f"error_{run.summary['network']}"]
        plotting.learning_curve(axes, times, values, run.learner)
    growth = {"color": "0.6", "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}
    axes.plot(times, 1e-6 * np.exp(times), label=r"as $e^{\lambda t}$", **growth)
    threshold = first.config["series"]["threshold"]
    plotting.threshold(axes, threshold)
    axes.set(yscale="log", xlim=(0, times[-1]), ylim=(1e-6, 5))
    seeds = plotting.mean_of(len(first.summary["seeds"]))
    axes.set_title(f"Error: {seeds}; valid up to {threshold:g}")
    axes.set_xlabel("time ahead (Lyapunov times)")
    axes.legend(loc="lower right", handlelength=3.5, labelspacing=0.2)


def _valid_times(axes: Axes, runs: Sequence[Run]) -> None:
    """Of the regressions and of a network by each rule, a dot for each seed."""
    rows = {
        line["label"]: (runs[0].summary["valid_time"][name], line["color"])
        for name, line in OTHERS.items()
    }
    for run in runs:
        times = run.summary["valid_time"][run.summary["network"]]
        rows[plotting.NAMES[run.learner]] = (times, plotting.COLOURS[run.learner])
    plotting.seeds(axes, rows)
    axes.set(xlim=(0, runs[0].trial["times"][-1]))
    axes.set_xlabel("valid time (Lyapunov times), median of forecasts")


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.lorenz", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
