"""What `fit` keeps in its folder: the last state, the best one, rows of metrics."""

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import checkpoints, files, processes, structure
from .checkpoints import CheckpointError
from .rows import Row, inexact_leaves, named_leaves
from .structure import Field

CHECKPOINT, BEST, METRICS = "checkpoint.eprop", "best.eprop", "metrics.jsonl"
"""The names of `fit`'s files in its folder."""
NEXT_BEST = "next-best.eprop"
"""That of the best state until there is a checkpoint that knows of it."""


class Best(NamedTuple):
    """A state, and the metric that it is best by."""

    iteration: int
    value: float
    state: Any


class Identity(NamedTuple):
    """What a run is of, as JSON has it."""

    config: Any
    step: list[Field]
    """Compared where there is no configuration."""
    settings: list[Field]
    """What may change, with a word."""

    @staticmethod
    def of(config: Any, step: Callable[..., Any], settings: dict[str, Any]) -> "Identity":
        """`settings` are numbers, text and functions."""
        of_step = structure.describe_function("step", step)
        of_settings = [
            field for item in settings.items() for field in structure.describe_function(*item)
        ]
        return Identity(files.as_json(config), of_step, of_settings)


class Keeper:
    """What `fit` keeps, in its folder if it has one.

    Of several processes all read and the first one writes.
    """

    def __init__(self, folder: Path | None, identity: Identity, keep_best: str | None):
        self.folder, self.identity, self.keep_best = folder, identity, keep_best
        self.writes = folder is not None and processes.is_first()
        self.saved = 0
        self.begun_with: dict[str, str] = {}
        """The hyperparameters in the state that the run was begun with."""
        self.start: list[str] = []
        """The numbers in that state."""
        self.best: Best | None = None
        self.best_is_saved = True
        self.batch_before: list[str] | None = None
        """What the last batch before the checkpoint was like, if that is to be compared."""
        self.numbers_before: list[str] | None = None
        """Its numbers, likewise."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The folder is this run's alone."""
        with contextlib.ExitStack() as held:
            with processes.in_all_or_none():
                if self.folder is not None and self.writes:
                    held.enter_context(files.in_use(self.folder))
            yield

    def resume(self, state: Any) -> tuple[Any, list[Row], str]:
        """The state and the rows of the checkpoint, and which of its settings are others now.

        Those of a beginning if there is none.
        """
        if self.folder is None:
            return state, [], ""
        self.begun_with = given = _hyperparameters(state)
        self.start = _digests(state)
        path, metrics = self.folder / CHECKPOINT, self.folder / METRICS
        if not path.exists():
            _check_rows(metrics, files.first_rows(metrics, 1), 0)
            return state, [], ""
        metadata = self._checked_metadata(path)
        loaded, _ = checkpoints.load(path, state)
        self.begun_with = metadata.get("begun_with", {})
        for name, there in _hyperparameters(loaded).items():
            begun_with = self.begun_with.get(name, given[name])
            if given[name] not in (begun_with, there):
                raise ValueError(
                    f"{path} is of a run that was begun with {name} = {begun_with}, not "
                    f"{given[name]}. It is part of the state, so {there} would be used now: give "
                    f"this run a folder of its own. To go on from that checkpoint with another "
                    f"value, begin there with what eprop.checkpoints.load gives, changed"
                )
        self._check_start(state, loaded, metadata.get("start", self.start))
        self.saved = metadata["iteration"]
        rows = files.first_rows(metrics, self.saved)
        _check_rows(metrics, rows, self.saved)
        theirs = [Field(*x) for x in metadata["settings"]]
        if self.keep_best is not None:
            self._resume_best(dict(theirs).get("keep_best"), metadata["best"], state)
        return loaded, rows, structure.first_difference(theirs, self.identity.settings)

    def _check_start(self, given: Any, loaded: Any, begun_with: list[str]) -> None:
        """A warning if the state given is neither the one that the run was begun with nor its last.

        Of an array that other processes have parts of nothing is known.
        """
        here, last, self.start = self.start, _digests(loaded), begun_with

        def is_other(*digests: str) -> bool:
            return digests[0] not in digests[1:] and "shared" not in digests

        leaves = zip(checkpoints.describe(given), here, begun_with, last, strict=True)
        changed = [leaf.path for leaf, *digests in leaves if is_other(*digests)]
        if changed:
            warnings.warn(
                f"{changed[0]} has other numbers in the state given than in the one that the run "
                f"in {self.folder} was begun with. It goes on from its checkpoint, as if these "
                f"had not been given: for another beginning give a folder of its own",
                stacklevel=4,
            )

    def _checked_metadata(self, path: Path) -> dict[str, Any]:
        metadata = checkpoints.read_header(path)["metadata"]
        needed = {"iteration", "best", "batch", *Identity._fields}
        if not isinstance(metadata, dict) or not needed <= set(metadata):
            raise CheckpointError(
                f"{path} is a checkpoint, but none of fit: give this run a folder of its own, or "
                f"load that file by eprop.checkpoints.load"
            )
        what, changed = "configuration", files.differences(metadata["config"], self.identity.config)
        if not changed and self.identity.config is None:
            what, theirs = "step", [Field(*x) for x in metadata["step"]]
            changed = structure.first_difference(theirs, self.identity.step)
            self.batch_before = metadata["batch"]
            self.numbers_before = metadata.get("numbers")
        if changed:
            raise ValueError(
                f"{path} is of a run with another {what} ({changed}): give this one a folder of "
                f"its own, or remove that one"
            )
        return metadata

    def _resume_best(self, kept: str | None, iteration: int | None, like: Any) -> None:
        assert self.folder is not None
        if kept != repr(self.keep_best):
            raise ValueError(
                f"the run in {self.folder} was begun with keep_best = {kept}, not "
                f"{self.keep_best!r}, so its best state is gone: give this run a folder of its own"
            )
        if iteration is None:
            return
        if _iteration_of(self.folder / NEXT_BEST) == iteration:
            os.replace(self.folder / NEXT_BEST, self.folder / BEST)
        if _iteration_of(self.folder / BEST) != iteration:
            raise CheckpointError(
                f"{self.folder / BEST} is not the state of iteration {iteration}, the best one of "
                f"this run: use a copy, or begin anew in another folder"
            )
        state, metadata = checkpoints.load(self.folder / BEST, like)
        self.best = Best(iteration, metadata["value"], state)

    def check_processes(self, **given: Any) -> None:
        """`ValueError`, in all of several processes, unless they are given the same."""
        if jax.process_count() == 1:
            return
        of_run = {
            "iteration": self.saved,
            "mesh": str(jax.sharding.get_abstract_mesh()),
            "config": self.identity.config,
            "step": dict(self.identity.step),
            "settings": dict(self.identity.settings),
            **{name: _with_digests(tree) for name, tree in given.items()},
        }
        first, *others = processes.told_by_all(of_run)
        for i, theirs in enumerate(others, start=1):
            if changed := files.differences(first, theirs):
                raise ValueError(
                    f"process {i} (here) is given something else than process 0 (there): "
                    f"{changed}. Start all alike, on a folder that all of them see; make a batch "
                    f"of shares by jax.make_array_from_process_local_data(sharding, share)"
                )

    def check_batch(self, batch: Any) -> None:
        """`ValueError` unless the last batch before the checkpoint, drawn again, is like it.

        A warning for other numbers: what is drawn at random may be meant so.
        """
        here = _described(batch)
        if self.batch_before not in (None, here):
            raise ValueError(
                f"the batch of iteration {self.saved} was {', '.join(self.batch_before or [])} in "
                f"the run in {self.folder}, but is {', '.join(here)} now: give this run a folder "
                f"of its own"
            )
        if self.numbers_before not in (None, _digests(batch)):
            warnings.warn(
                f"the batch of iteration {self.saved}, drawn again, has other numbers than in the "
                f"run in {self.folder}, which goes on with these. For other data give a folder of "
                f"its own; what is drawn at random is the same again by "
                f"np.random.default_rng(iteration)",
                stacklevel=3,
            )

    def begin(self) -> None:
        """Cuts off the rows of iterations that are repeated."""
        if self.folder is not None and self.writes:
            files.keep_rows(self.folder / METRICS, self.saved)

    def append(self, row: Row) -> None:
        """A further row of metrics."""
        if self.folder is not None and self.writes:
            files.append_row(self.folder / METRICS, row)

    def judge(self, row: Row, state: Any) -> None:
        """Keeps the state if it is the best so far."""
        if self.keep_best is None:
            return
        value = row.get(self.keep_best)
        if not isinstance(value, int | float):
            found = "an array" if self.keep_best in row else "not recorded"
            names = ", ".join(name for name, x in row.items() if not isinstance(x, list))
            raise ValueError(f"keep_best = {self.keep_best!r} is {found}: write one of {names}")
        if self.best is None or value < self.best.value:
            self.best, self.best_is_saved = Best(row["iteration"], value, state), False

    def save(self, state: Any, iteration: int, batch: Any) -> None:
        """The metrics and the best state first: a checkpoint is never without them."""
        if self.folder is None:
            return
        if self.writes:
            files.sync(self.folder / METRICS)
        is_new = self.best is not None and not self.best_is_saved
        if self.best is not None and is_new:
            metadata = {"iteration": self.best.iteration, "value": self.best.value}
            checkpoints.save(self.folder / NEXT_BEST, self.best.state, metadata)
        metadata = {
            "iteration": iteration,
            "best": None if self.best is None else self.best.iteration,
            "begun_with": self.begun_with,
            "start": self.start,
            "batch": _described(batch),
            "numbers": _digests(batch) if self.identity.config is None else None,
            **self.identity._asdict(),
        }
        checkpoints.save(self.folder / CHECKPOINT, state, metadata)
        if is_new and self.writes:
            os.replace(self.folder / NEXT_BEST, self.folder / BEST)
        self.saved, self.best_is_saved = iteration, True

    # What is said.

    @property
    def kept(self) -> str:
        """What an error in an iteration leaves."""
        if self.folder is None:
            return "nothing is kept, since fit was given no folder"
        if self.saved == 0:
            return f"there is no checkpoint in {self.folder} yet"
        return f"the checkpoint of iteration {self.saved} in {self.folder} is kept"

    @contextlib.contextmanager
    def noting(self, iteration: int) -> Iterator[None]:
        """Errors say when they happened, and what is kept."""
        try:
            yield
        except Exception as error:
            error.add_note(f"at iteration {iteration} of fit; {self.kept}")
            raise

    def not_finite(self, iteration: int, found: list[str], batch: Any) -> FloatingPointError:
        """The error for an iteration that gave NaN or infinity."""
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        leaves = inexact_leaves({"batch": batch})
        fed = [name for name, leaf in leaves if not jnp.all(jnp.isfinite(leaf))]
        cause = f"; it went in by {', '.join(fed)}" if fed else ""
        dtypes = [jnp.result_type(x) for x in jax.tree.leaves(batch) if hasattr(x, "dtype")]
        if not fed and any(jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes):
            cause = "; nothing of the batch is (is a label outside of 0, ..., n_classes - 1?)"
        return FloatingPointError(
            f"iteration {iteration} gave NaN or infinity: {', '.join(found[:5])}{more}{cause}. "
            f"It is not saved; {self.kept}"
        )

    def interrupted(self, state: Any, iteration: int, batch: Any) -> KeyboardInterrupt:
        """Saves the last whole iteration; the error that says so, where it is shown in one line."""
        text = f"Interrupted after {iteration} iterations: {self.kept}."
        if self.folder is not None and iteration > 0:
            if iteration > self.saved:
                self.save(state, iteration, batch)
            text = (
                f"Interrupted: iteration {iteration} is saved in {self.folder}, and the same call "
                f"goes on from there."
            )
        error: Any = KeyboardInterrupt(text)
        error._render_traceback_ = lambda: [text]  # what a notebook asks for
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = _show_interrupt_in_one_line
        return error


def _show_interrupt_in_one_line(kind: Any, error: BaseException, trace: Any) -> None:
    if kind is KeyboardInterrupt and error.args:
        print(error, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _iteration_of(path: Path) -> int | None:
    if not path.exists():
        return None
    return (checkpoints.read_header(path)["metadata"] or {}).get("iteration")


def _with_digests(tree: Any) -> dict[str, str]:
    """What a pytree is, by path; of arrays that a process has whole, part of their SHA-256 too."""
    found = dict(structure.describe(tree))
    leaves = [x for x in jax.tree.leaves(tree) if structure.is_saved(x)]
    for leaf, x, digest in zip(checkpoints.describe(tree), leaves, _digests(tree), strict=True):
        is_array = hasattr(x, "dtype")
        found[leaf.path] = f"{leaf.dtype}{list(leaf.shape)} {digest}" if is_array else repr(x)
    return found


def _digests(tree: Any) -> list[str]:
    """Part of the SHA-256 of each array; not of one that other processes have parts of."""

    def digest(x: Any) -> str:
        x = jax.random.key_data(x) if structure.is_key(x) else x
        is_whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return hashlib.sha256(np.asarray(x).tobytes()).hexdigest()[:8] if is_whole else "shared"

    return [digest(x) for x in jax.tree.leaves(tree) if structure.is_saved(x)]


def _hyperparameters(state: Any) -> dict[str, str]:
    """Those of `optax.inject_hyperparams`, by path: settings, though they are in the state."""
    leaves = [(name, x) for name, x in named_leaves(state) if ".hyperparams." in f".{name}"]
    return {name: str(processes.whole(x)) for name, x in leaves}


def _described(batch: Any) -> list[str]:
    return [str(leaf) for leaf in checkpoints.describe(batch)]


def _check_rows(path: Path, rows: list[Row], needed: int) -> None:
    """`ValueError` unless rows are those of iterations 1, 2, 3, ..."""
    if len(rows) < needed:
        raise ValueError(f"{path} has {len(rows)} whole rows, but {needed} are needed")
    for number, row in enumerate(rows, start=1):
        if row.get("iteration") != number or not isinstance(row.get("seconds"), int | float):
            raise ValueError(
                f"row {number} of {path} is not of iteration {number} of fit, but {row!r:.100}: "
                f"the file is of something else, of two runs, or damaged. Give this run a folder "
                f"of its own"
            )
