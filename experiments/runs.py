"""The folder of one run: its configuration and results; `eprop.fit` keeps its own files there.

Every file is written whole or not at all, and a folder belongs to one configuration.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eprop import files


class RunFolder:
    """`results/<experiment>/<run>/`."""

    def __init__(self, path: Path, config: Any):
        """Create the folder, or take up the one of the same configuration."""
        self.path = path
        mine = files.as_json(config)
        if (path / "config.json").exists():
            theirs = json.loads((path / "config.json").read_text())
            changed = files.differences(theirs, mine)
            if changed:
                raise SystemExit(
                    f"{path} holds a run of another configuration ({changed}): "
                    f"give this one a name of its own with --run, or remove that folder"
                )
        else:
            files.write_json(path / "config.json", mine)

    def write_json(self, name: str, value: Any) -> None:
        files.write_json(self.path / f"{name}.json", value)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        files.write_atomically(
            self.path / f"{name}.npz", lambda file: np.savez(file, allow_pickle=False, **arrays)
        )
