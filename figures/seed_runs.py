"""Finished runs that trained several seeds each, as figures that compare rules read them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eprop.files import differences, read_rows

ORDER = ("frozen", "random", "symmetric", "bptt")
"""Of the rules, in legends and along axes."""
MAY_DIFFER = ("rule", "feedback", "frozen", "seeds", "results", "run")
"""What sets runs apart that are drawn together."""


class Run(NamedTuple):
    """What a run left in its folder."""

    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[list[dict[str, Any]]]
    """The metrics of each seed."""
    trial: dict[str, np.ndarray]

    @property
    def learner(self) -> str:
        return self.summary["learner"]

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The iterations at which there is such a number, and its values `[seed, iteration]`."""
        found = [[row for row in of_seed if name in row] for of_seed in self.rows]
        values = np.array([[row[name] for row in of_seed] for of_seed in found])
        return np.array([row["iteration"] for row in found[0]]), values


def read(folder: Path) -> Run:
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / "trial.npz") as arrays:
        trial = dict(arrays)
    rows = [read_rows(folder / f"seed{seed}" / "metrics.jsonl") for seed in summary["seeds"]]
    return Run(config, summary, rows, trial)


def comparable(
    runs: Sequence[Run],
    *,
    order: Sequence[str] = ORDER,
    may_differ: Sequence[str] = MAY_DIFFER,
    name: Callable[[Run], str] = lambda run: run.learner,
) -> list[Run]:
    """The runs in the `order` of their names; `ValueError` if more differs than may differ."""
    runs = sorted(runs, key=lambda run: order.index(name(run)))
    settings = [{k: x for k, x in run.config.items() if k not in may_differ} for run in runs]
    for run, setting in zip(runs[1:], settings[1:], strict=True):
        if changed := differences(settings[0], setting):
            raise ValueError(
                f"the runs by {name(runs[0])} and {name(run)} are of different settings "
                f"({changed}): name the folders of runs that are to be compared"
            )
    return runs
