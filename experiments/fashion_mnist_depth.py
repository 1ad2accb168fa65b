"""Fashion-MNIST by every learning rule and stacks of 1 to 4 layers, over seeds; and its figure.

E-prop with random, symmetric and adaptive feedback and BPTT, each as experiments.fashion_mnist has
it by default; BPTT with its preset "plain", where deep stacks begin silent; and the deepest of
these with one thing changed at a time: what cures it.
What was finished before is not repeated, and what was interrupted goes on from its last checkpoint.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from figures.fashion_mnist import draw

from . import fashion_mnist
from .images import FASHION_MNIST
from .runs import RunFolder, resumable

RULES: dict[str, dict[str, Any]] = {
    "bptt": {"rule": "bptt"},
    "symmetric": {"feedback": "symmetric"},
    "adaptive": {"feedback": "adaptive"},
    "random": {"feedback": "random"},
}
CURES: dict[str, dict[str, Any]] = {
    "scaled": {"start": "scaled"},
    "penalty": {"rate_penalty": 0.1},
    "readout": {"readout": "all"},
    "symmetric": {"rule": "eprop", "feedback": "symmetric", "readout": "all"},
    "adaptive": {"rule": "eprop", "feedback": "adaptive", "readout": "all"},
}
"""What is changed of the preset "plain"."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs to make."""

    data: Path = FASHION_MNIST
    """Folder of the four IDX files."""
    depths: tuple[int, ...] = (3, 4, 2, 1)
    """Numbers of layers, in the order in which they are trained."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of each run."""
    results: Path = Path("results/fashion_mnist")
    """Folder of the results."""


def runs_of(config: Config) -> list[fashion_mnist.Config]:
    """All that are drawn: by depth, the rules and the plain start."""
    scaled, plain = (fashion_mnist.PRESETS[name] for name in ("default", "plain"))
    of_depth = [dataclasses.replace(scaled, **changes) for changes in RULES.values()] + [plain]
    return [
        dataclasses.replace(run, depth=depth, **_same(config, config.results))
        for depth in config.depths
        for run in of_depth
    ]


def cures_of(config: Config) -> list[fashion_mnist.Config]:
    """The deepest plain stack with one thing changed."""
    plain = dataclasses.replace(fashion_mnist.PRESETS["plain"], depth=max(config.depths))
    same = _same(config, config.results / "cures")
    return [
        dataclasses.replace(plain, **changes, **same, run=name + "_depth{depth}")
        for name, changes in CURES.items()
    ]


def _same(config: Config, results: Path) -> dict[str, Any]:
    return {"data": config.data, "seeds": config.seeds, "results": results}


def summary_of(config: fashion_mnist.Config, progress: bool) -> dict[str, Any]:
    """Of a run that is made now, unless it was before."""
    path = RunFolder(config.folder, config).path / "summary.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found["seeds"] == list(config.seeds):
            return found
    if progress:
        print(config.folder)
    return fashion_mnist.run(config, progress)


def table(runs: Sequence[fashion_mnist.Config], summaries: Sequence[dict[str, Any]]) -> str:
    """A line of Markdown for each run."""
    lines = [
        "| layers | learning by | start | readout | penalty | test accuracy | mean | images/s |",
        "|" + "---|" * 8,
    ]
    for config, summary in zip(runs, summaries, strict=True):
        found = 100 * np.array(summary["test_accuracy"])
        lines.append(
            f"| {config.depth} | {config.learner} | {config.start} | {config.readout} "
            f"| {config.rate_penalty:g} | {', '.join(f'{x:.1f}' for x in found)} % "
            f"| {found.mean():.1f} % | {summary['images_per_second']:.0f} |"
        )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.fashion_mnist_depth", description=__doc__
    )
    drawn, cures = runs_of(config), cures_of(config)
    try:
        with resumable():
            summaries = [summary_of(run, progress=True) for run in drawn + cures]
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from None
    figure = draw([run.folder for run in drawn], config.results / "current.png")
    print(f"{table(drawn + cures, summaries)}\nFigure: {figure}")


if __name__ == "__main__":
    main()
