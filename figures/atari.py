"""The figure of Atari games: scores against frames.

python -m figures.atari                      # all finished runs
python -m figures.atari results/atari/*/     # these runs
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from figures import finished, plotting

WINDOW = 20
"""Games that a point of a curve is the mean of."""


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    runs = [
        (
            _read(folder, "config"),
            np.array(_read(folder, "episodes")).reshape(-1, 2),
            _read(folder, "summary")["scores_at_random"],
            look,
        )
        for folder, look in zip(folders, _looks(folders), strict=True)
    ]
    games = sorted({config["game"] for config, *_ in runs})
    with plotting.style():
        figure = Figure(figsize=(8, 2.8 * len(games)))
        panels = figure.subplots(len(games), 1, squeeze=False)[:, 0]
        for axes, game in zip(panels, games, strict=True):
            of_chance: list[float] = []
            for config, episodes, at_random, look in runs:
                if config["game"] == game:
                    millions, scores = 4e-6 * episodes[:, 0], episodes[:, 1]
                    axes.plot(millions, scores, ".", color=look["color"], markersize=2, alpha=0.3)
                    axes.plot(millions, _averaged(scores), **look)
                    of_chance += at_random
            at_random = {"color": "0.5", "linewidth": 0.8, "label": "actions at random"}
            axes.axhline(float(np.mean(of_chance)), linestyle=(0, (2, 2)), **at_random)
            axes.set(
                title=f"{game.replace('_', ' ').title()}: games, and means of {WINDOW}",
                xlabel="frames (millions)",
                ylabel="score",
            )
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=4)
        plotting.save(figure, path)
    return path


def _looks(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A line's keyword arguments for each run, named by its rule and seed.

    Runs of a game that are alike in these are named by their folders. The first of them keeps its
    rule's line, the others have lines that stand for no rule.
    """
    configs = [_read(folder, "config") for folder in folders]
    names = [(x["game"], f"{plotting.NAMES[x['learner']]}, seed {x['seed']}") for x in configs]
    looks = []
    for i, (folder, config) in enumerate(zip(folders, configs, strict=True)):
        before = names[:i].count(names[i])
        line = plotting.LINES[(before - 1) % len(plotting.LINES)]
        label = folder.name if names.count(names[i]) > 1 else names[i][1]
        looks.append((line if before else plotting.RULES[config["learner"]]) | {"label": label})
    return looks


def _read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def _averaged(scores: np.ndarray) -> np.ndarray:
    """The mean of the last `WINDOW` until each."""
    sums = np.cumsum(np.concatenate([[0.0], scores]))
    ends = np.arange(1, len(scores) + 1)
    begins = np.maximum(ends - WINDOW, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.atari", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
