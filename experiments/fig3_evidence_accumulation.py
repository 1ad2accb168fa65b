"""Evidence accumulation by every learning rule, over seeds (Bellec et al. 2020, Fig. 3).

E-prop with random, symmetric and adaptive feedback, and BPTT, train networks of LIF and adaptive
LIF neurons. As a control that must fail, random e-prop trains networks of LIF neurons only.

Each is a run of experiments.evidence_accumulation with its default preset, in a folder of its own.
What was finished before is not repeated, and what was interrupted goes on from its last checkpoint.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from figures.fig3_evidence_accumulation import NAMES, draw

from . import evidence_accumulation
from .runs import RunFolder, resumable

RULES: dict[str, dict[str, Any]] = {
    "random": {"feedback": "random"},
    "symmetric": {"feedback": "symmetric"},
    "adaptive": {"feedback": "adaptive"},
    "bptt": {"rule": "bptt"},
}
BOUND = 0.07
"""The test error that is to be confirmed; chance is 0.5."""

Summaries = dict[str, list[dict[str, Any]]]
"""Of each seed, by learner."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs to make."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the weights, the feedback and the trials: a run by each rule, and a control, for each."""
    control_iterations: int = 300
    """Updates in the control, which does not end by meeting the criterion."""
    results: Path = Path("results/evidence_accumulation")
    """Folder of the results."""


def runs_of(
    config: Config, training: evidence_accumulation.Config
) -> dict[str, list[evidence_accumulation.Config]]:
    """All runs by learner: `training` with another rule and seed, or without adaptive neurons."""
    control = {
        "n_lif": training.n_lif + training.n_alif,
        "n_alif": 0,
        "iterations": config.control_iterations,
        "run": "lif_only_seed{seed}",
    }
    return {
        learner: [
            dataclasses.replace(training, **changes, seed=seed, results=config.results)
            for seed in config.seeds
        ]
        for learner, changes in (RULES | {"lif_only": control}).items()
    }


def run(
    config: Config,
    training: evidence_accumulation.Config = evidence_accumulation.PRESETS["default"],
    progress: bool = True,
) -> Summaries:
    """Make the runs that are missing; returns the summaries of all."""
    return {
        learner: [summary_of(one, progress) for one in runs]
        for learner, runs in runs_of(config, training).items()
    }


def summary_of(config: evidence_accumulation.Config, progress: bool) -> dict[str, Any]:
    """Of a run that is made now, unless it was before."""
    path = RunFolder(config.folder, config).path / "summary.json"
    if path.exists():
        return json.loads(path.read_text())
    if progress:
        print(config.folder)
    return evidence_accumulation.run(config, progress)


def table(summaries: Summaries) -> str:
    """A line of Markdown for each learner."""
    lines = [
        f"| learning rule | iterations | test error: mean (range) | below {BOUND:.0%} |",
        "|---|---|---|---|",
    ]
    for learner, runs in summaries.items():
        iterations = ", ".join(str(run["iterations"]) for run in runs)
        errors = np.array([run["test_error"] for run in runs])
        lines.append(
            f"| {NAMES[learner]} | {iterations} "
            f"| {100 * errors.mean():.1f} % ({100 * errors.min():.1f}–{100 * errors.max():.1f} %) "
            f"| {np.sum(errors < BOUND)} of {len(runs)} |"
        )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config,
        args=args,
        prog="python -m experiments.fig3_evidence_accumulation",
        description=__doc__,
    )
    with resumable():
        summaries = run(config)
    folders = [
        one.folder
        for runs in runs_of(config, evidence_accumulation.PRESETS["default"]).values()
        for one in runs
    ]
    print(f"{table(summaries)}\nFigure: {draw(folders, config.results / 'fig3.png')}")


if __name__ == "__main__":
    main(sys.argv[1:])
