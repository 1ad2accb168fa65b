"""The figure of Fashion-MNIST by stacks of layers: error by rule and depth, and why.

python -m figures.fashion_mnist                                    # all finished runs
python -m figures.fashion_mnist results/fashion_mnist/current_*/   # these runs

A figure for each way to read an image. Firing rates and gradients by layer are those of the deepest
network of each kind: what it begins with, and what becomes of it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from eprop.files import differences
from figures import finished, plotting

PLAIN = {"label": "{}, plain start", "color": "#cc79a7", "linestyle": "solid", "marker": "x"}
ORDER = ("bptt", "symmetric", "adaptive", "random")
MAY_DIFFER = (
    *("rule", "feedback", "depth", "start", "readout", "rate_penalty"),
    *("data", "seeds", "results", "run"),
)
"""What sets runs apart that are drawn together."""


class Run(NamedTuple):
    """What a run left in its folder."""

    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def kind(self) -> tuple[str, str]:
        return self.summary["learner"], self.config["start"]

    @property
    def depth(self) -> int:
        return len(self.summary["layers"])

    def by_layer(self, name: str, when: int) -> np.ndarray:
        """The mean over seeds of something, before (0) or after training (1)."""
        return np.mean(self.summary[name], axis=0)[when]


def read(folder: Path) -> Run:
    config, summary = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary")
    )
    return Run(config, summary)


def kinds_of(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """By learner and start, each by depth; `ValueError` if more differs than may differ."""
    settings = [{k: x for k, x in run.config.items() if k not in MAY_DIFFER} for run in runs]
    for setting in settings[1:]:
        if changed := differences(settings[0], setting):
            raise ValueError(
                f"the runs are of different settings ({changed}): name the folders of runs that "
                f"are to be compared"
            )
    found: dict[tuple[str, str], list[Run]] = {}
    by_kind = sorted(runs, key=lambda run: (run.kind[1], ORDER.index(run.kind[0]), run.depth))
    for run in by_kind:
        found.setdefault(run.kind, []).append(run)
    return dict(reversed(found.items()))


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    kinds = kinds_of([read(folder) for folder in folders])
    with plotting.style():
        figure = Figure(figsize=(8, 6.2))
        (error, rates), (begun, trained) = figure.subplots(2, 2)
        _error(error, kinds)
        _by_layer(rates, kinds, "rates_hz", 0)
        rates.set_ylabel("firing rate (Hz)")
        _by_layer(begun, kinds, "gradient_norms", 0)
        _by_layer(trained, kinds, "gradient_norms", 1)
        deepest = max(run.depth for runs in kinds.values() for run in runs)
        layers = "one layer" if deepest == 1 else f"{deepest} layers"
        rates.set_title(f"b   Firing rates before training, {layers}")
        begun.set_title("c   Gradients before training")
        trained.set_title("d   Gradients after training")
        for axes in (begun, trained):
            axes.set_ylabel(r"$|\mathrm{d}E/\mathrm{d}W|\;|W|$")
        figure.legend(
            *error.get_legend_handles_labels(), loc="outside lower center", ncols=3,
            handlelength=3.5,
        )  # fmt: skip
        plotting.save(figure, path)
    return path


def _line(kind: tuple[str, str]) -> dict[str, Any]:
    learner, start = kind
    if start == "plain":
        return PLAIN | {"label": PLAIN["label"].format(plotting.NAMES[learner])}
    return plotting.RULES[learner] | {"marker": "o", "markersize": 4}


def _error(axes: Axes, kinds: dict[tuple[str, str], list[Run]]) -> None:
    """The mean of the seeds, and their range."""
    n_seeds = set()
    for offset, (kind, runs) in zip(_offsets(kinds), kinds.items(), strict=True):
        depths = np.array([run.depth for run in runs])
        values = [1 - np.array(run.summary["test_accuracy"]) for run in runs]
        n_seeds |= {len(x) for x in values}
        means = np.array([x.mean() for x in values])
        ranges = np.abs(np.array([[x.min(), x.max()] for x in values]).T - means)
        axes.errorbar(depths + offset, means, ranges, capsize=2, **_line(kind))
    every = [run for runs in kinds.values() for run in runs]
    linear = 1 - np.mean([run.summary["linear_accuracy"] for run in every])
    plotting.threshold(axes, float(linear), "a linear classifier")
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="layers", ylabel="error on the test images")
    axes.set(xticks=(1, 2, 3, 4), xlim=(0.7, 5.2))
    axes.set_title(f"a   After training: {plotting.mean_of(max(n_seeds))}")


def _by_layer(axes: Axes, kinds: dict[tuple[str, str], list[Run]], name: str, when: int) -> None:
    """Of the deepest network of each kind; zeros are at the bottom of a logarithmic axis."""
    least = {"rates_hz": 1e-2, "gradient_norms": 1e-4}[name]
    greatest = least
    for offset, (kind, runs) in zip(_offsets(kinds), kinds.items(), strict=True):
        values = max(runs, key=lambda run: run.depth).by_layer(name, when)
        greatest = max(greatest, values.max())
        axes.plot(np.arange(1, len(values) + 1) + offset, values, **_line(kind))
    axes.set_yscale("symlog", linthresh=least)
    axes.set_ylim(0, 2 * greatest)
    axes.set(xlabel="layer, from the image up", xticks=(1, 2, 3, 4), xlim=(0.7, 4.3))


def _offsets(kinds: dict[tuple[str, str], list[Run]]) -> np.ndarray:
    """Aside, so that none hides another."""
    return 0.05 * (np.arange(len(kinds)) - (len(kinds) - 1) / 2)


def main(arguments: Sequence[str]) -> None:
    by_encoding: dict[str, list[Path]] = {}
    for folder in finished.folders_of("experiments.fashion_mnist", arguments):
        by_encoding.setdefault(read(folder).config["encoding"], []).append(folder)
    for encoding, folders in by_encoding.items():
        print(draw(folders, folders[0].parent / f"{encoding}.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
