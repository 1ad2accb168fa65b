"""The figure of Breakout in miniature: a game, learning, and the test.

python -m figures.breakout                         # all finished runs
python -m figures.breakout results/breakout/*/     # these runs

The game is of the first seed, of the run that is named first in the legend.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure

from figures import finished, plotting
from figures.seed_runs import Run, comparable, read

MAY_DIFFER = ("learner", "results", "run")
"""What sets runs apart that are drawn together."""
ORDER = ("random", "symmetric", "frozen")
SHOWN = range(0, 40, 5)
"""Decisions whose screens are shown, of a game that is as long."""
SCREEN = ListedColormap(["#f2f2f2", "black", "#d55e00", "#ffd06e", "#3a73bd"])
"""Nothing, paddle, ball, trail, bricks."""


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    runs = comparable([read(folder) for folder in folders], order=ORDER, may_differ=MAY_DIFFER)
    with plotting.style():
        figure = Figure(figsize=(8, 6.5))
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.5, 3)).flat
        _game(above, runs[0])
        learning, test = below.subplots(1, 2, width_ratios=(2, 1))
        _learning(learning, runs)
        _test(test, runs)
        plotting.save(figure, path)
    return path


def _look(run: Run) -> dict[str, Any]:
    return plotting.RULES[run.learner]


def _game(figure: SubFigure, run: Run) -> None:
    """Screens of a game, and the network's spikes and readouts meanwhile."""
    screens, spikes, outputs = figure.subfigures(
        3, 1, squeeze=False, height_ratios=(1.2, 2, 1.9)
    ).flat
    shown = [t for t in SHOWN if t < len(run.trial["screens"])]
    panels = screens.subplots(1, len(shown), squeeze=False)[0]
    for axes, t in zip(panels, shown, strict=True):
        _screen(axes, run.trial["screens"][t])
        axes.set_title(f"{t * run.config['steps']} ms", loc="center")
    screens.suptitle(
        f"a   A game after learning ({_look(run)['label']}, seed {run.summary['seeds'][0]})",
        x=0.01, ha="left", fontsize=8,
    )  # fmt: skip
    of_spikes, of_outputs = spikes.subplots(), outputs.subplots()
    in_time = run.trial["spikes"].reshape(-1, run.trial["spikes"].shape[-1])
    plotting.raster(of_spikes, in_time, 1.0)
    of_spikes.set_ylabel("neuron")
    in_time = run.trial["outputs"].reshape(-1, run.trial["outputs"].shape[-1])
    plotting.traces(of_outputs, in_time, 1.0, ("stay", "left", "right", "value"))
    of_outputs.legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=4, handlelength=2.5)
    of_outputs.set(ylabel="readout $y$", xlabel="time of the network (ms)")


def _screen(axes: Axes, screen: np.ndarray) -> None:
    colours = np.zeros(screen.shape[:2], int)
    for channel in (3, 2, 0, 1):  # bricks, trail, paddle, ball
        colours[screen[..., channel]] = {0: 1, 1: 2, 2: 3, 3: 4}[channel]
    axes.imshow(colours, cmap=SCREEN, vmin=0, vmax=4)
    axes.set(xticks=[], yticks=[])


def _learning(axes: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        iterations, scores = run.curve("score")
        middles, scores = plotting.in_blocks(scores, 50)
        per_iteration = run.config["decisions"] * run.config["batch_size"]
        look = _look(run)
        low, high = scores.min(0), scores.max(0)
        decisions = (iterations[0] + middles) * per_iteration / 1e6
        axes.fill_between(decisions, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.plot(decisions, scores.mean(0), **look)
    plotting.threshold(axes, float(np.mean(runs[0].summary["random_policy"])), "random policy")
    axes.set(
        title=f"b   Learning: {plotting.mean_of(min(len(run.rows) for run in runs))}",
        xlabel="decisions, of all games (millions)",
        ylabel="score of a game",
        ylim=(0, None),
    )
    axes.legend(loc="upper left", handlelength=4)


def _test(axes: Axes, runs: Sequence[Run]) -> None:
    rows = {_look(run)["label"]: (run.summary["test_score"], _look(run)["color"]) for run in runs}
    plotting.seeds(axes, rows | {"random policy": (runs[0].summary["random_policy"], "0.5")})
    axes.set(
        title="c   Test: seeds, and mean (bar)",
        xlabel="score of a fresh game",
        xlim=(0, None),
    )


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.breakout", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
