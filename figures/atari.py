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
        )
        for folder in folders
    ]
    games = sorted({config["game"] for config, *_ in runs})
    with plotting.style():
        figure = Figure(figsize=(8, 2.8 * len(games)))
        panels = figure.subplots(len(games), 1, squeeze=False)[:, 0]
        for axes, game in zip(panels, games, strict=True):
            of_chance: list[float] = []
            for config, episodes, at_random in runs:
                if config["game"] == game:
                    millions, scores = 4e-6 * episodes[:, 0], episodes[:, 1]
                    look = plotting.RULES[config["learner"]]
                    label = f"{look['label']}, seed {config['seed']}"
                    axes.plot(millions, scores, ".", color=look["color"], markersize=2, alpha=0.3)
                    axes.plot(millions, _averaged(scores), **look | {"label": label})
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
