"""What all runs need: a folder, random keys, a word to who interrupts them.

In the folder of a run are its configuration and results; `eprop.fit` keeps its own files there.

Every file is written whole or not at all, and a folder belongs to one configuration.
"""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tyro
from jaxtyping import Array

from eprop import files

Settings = TypeVar("Settings")


def configuration(
    presets: Mapping[str, Settings],
    args: Sequence[str] | None,
    *,
    experiment: str,
    description: str | None,
) -> Settings:
    """What the command line says: a preset by its name, or the first one, then what differs.

    `args` is the command line without the program's name; None for this process's own.
    """
    args = list(sys.argv[1:] if args is None else args)
    chosen = presets[args.pop(0) if args and args[0] in presets else next(iter(presets))]
    return tyro.cli(
        type(chosen),
        default=chosen,
        args=args,
        prog=f"python -m experiments.{experiment} [{'|'.join(presets)}]",
        description=description,
        config=(tyro.conf.AvoidSubcommands,),
    )


def check(settings: Mapping[str, Any]) -> None:
    """`ValueError` for what no setting can be: a number below 0, NaN, infinity, an empty list.

    A learning rate below 0 would train without a word, away from the loss's minimum.
    """
    for name, value in settings.items():
        if value == []:
            raise ValueError(f"{name} is empty: at least one is needed")
        for x in value if isinstance(value, list) else [value]:
            if isinstance(x, int | float) and not 0 <= x < math.inf:
                raise ValueError(f"{name} = {x} must be a finite number of at least 0")


class RunFolder:
    """`results/<experiment>/<run>/`."""

    def __init__(self, path: Path, config: Any, may_change: Sequence[str] = ()):
        """Create the folder, or take up the one of the same configuration.

        `may_change` names settings that a run may be gone on with in another way, such as how long;
        seeds may be others in any case. A folder that nothing else came into is free.

        `ValueError` for a setting that would train something else without a word (`check`).
        """
        self.path = path
        mine = files.as_json(config)
        check(mine)
        if (path / "config.json").exists() and len(list(path.iterdir())) > 1:
            theirs = json.loads((path / "config.json").read_text())
            taken = {name: mine[name] for name in (*may_change, "seeds") if name in mine}
            if changed := files.differences(theirs | taken, mine):
                named = "a name of its own with --run" if "run" in mine else "--results of its own"
                raise SystemExit(
                    f"{path} holds a run of another configuration ({changed}): "
                    f"give this one {named}, or remove that folder"
                )
        files.write_json(path / "config.json", mine)

    def write_json(self, name: str, value: Any) -> None:
        files.write_json(self.path / f"{name}.json", value)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        files.write_atomically(
            self.path / f"{name}.npz", lambda file: np.savez(file, allow_pickle=False, **arrays)
        )


def without_seeds(config: Any) -> Any:
    """What is the same for every seed, so that others may be added to those of a run."""
    return dataclasses.replace(config, seeds=())


def random_key(purposes: Sequence[str], seed: int, purpose: str) -> Array:
    """A random key of its own for each purpose; new purposes go to the end."""
    return jax.random.fold_in(jax.random.key(seed), purposes.index(purpose))


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Ends the program with what to do, where it is interrupted while something is trained."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(
            "Interrupted. The same command goes on from the last checkpoint."
        ) from None
