"""The folder of one run: its configuration, metrics, checkpoint and results.

Every file is written whole or not at all, and a folder belongs to one configuration.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from eprop.files import write_atomically, write_json


class RunFolder:
    """`results/<experiment>/<run>/`."""

    def __init__(self, path: Path, config: Any):
        """Create the folder, or take up the one of the same configuration."""
        self.path = path
        mine = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        if (path / "config.json").exists():
            theirs = json.loads((path / "config.json").read_text())
            changed = sorted(k for k in mine | theirs if mine.get(k) != theirs.get(k))
            if changed:
                differences = ", ".join(
                    f"{name} = {theirs.get(name)} there, {mine.get(name)} here" for name in changed
                )
                raise SystemExit(
                    f"{path} holds a run of another configuration ({differences}): "
                    f"give this one a name of its own with --run, or remove that folder"
                )
        else:
            write_json(path / "config.json", mine)

    def save(self, state: Any, metrics: list[dict[str, Any]]) -> None:
        """A checkpoint to `load`: the metrics first, since those beyond it are dropped."""
        self.write_json("metrics", metrics)
        write_atomically(
            self.path / "checkpoint.eqx",
            lambda file: eqx.tree_serialise_leaves(file, (state, np.asarray(len(metrics)))),
        )

    def load(self, state: Any, metrics: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
        """State and metrics of the last checkpoint; those given if there is none."""
        checkpoint = self.path / "checkpoint.eqx"
        if not checkpoint.exists():
            return state, metrics
        like = (state, np.asarray(len(metrics)))
        state, length = eqx.tree_deserialise_leaves(checkpoint, like)
        return state, json.loads((self.path / "metrics.json").read_text())[: int(length)]

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path / f"{name}.json", value)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        write_atomically(
            self.path / f"{name}.npz", lambda file: np.savez(file, allow_pickle=False, **arrays)
        )
