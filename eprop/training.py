"""Training: one pure step after another, with evaluations, checkpoints and metrics on disk."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray
from tqdm import tqdm

from . import checkpoints, checks, files
from .network import Network
from .rules import AbstractRule, Loss, apply_updates, value_and_grad

Step = Callable[[Any, Any], tuple[Any, Any]]
"""`step(state, batch) -> (state, info)`, a pure function."""
Row = dict[str, Any]
"""The metrics of one iteration: numbers by their name."""

CHECKPOINT, METRICS = "checkpoint.eprop", "metrics.jsonl"
"""The names of `fit`'s files in its folder."""


class TrainState(NamedTuple):
    """All that changes when a network learns."""

    network: Network
    rule: AbstractRule
    optimizer: optax.OptState
    iteration: Array
    """Number of updates done."""


def init_training(
    network: Network,
    rule: AbstractRule,
    optimizer: optax.GradientTransformation,
    trainable: Any = eqx.is_inexact_array,
) -> TrainState:
    """The state before the first `training_step`, which takes the same `trainable`."""
    opt_state = optimizer.init(eqx.filter(network, trainable))
    return TrainState(network, rule, opt_state, jnp.zeros((), jnp.int32))


def training_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    has_aux: bool = False,
    trainable: Any = eqx.is_inexact_array,
    key: PRNGKeyArray | None = None,
) -> Step:
    """The usual step, for `fit`: gradient of the loss by the state's rule, then the update.

    **Arguments:**

    - `loss`, `has_aux`, `trainable`: as for `value_and_grad`; with `has_aux=True` the auxiliary
      output is a dictionary.
    - `optimizer`: any of optax.
    - `key`: random key for dropout, drawn anew at each iteration; needed if a layer has any.

    The step takes a `TrainState` and a batch `(inputs, targets)`, the inputs
    `[time, batch, n_in]`. Its info is the loss, and the auxiliary output beside it.
    """

    def step(state: TrainState, batch: tuple[Any, Any]) -> tuple[TrainState, Row]:
        inputs, targets = batch
        if key is None and any(layer.dropout is not None for layer in state.network.layers):
            raise ValueError(
                "a layer has dropout, which needs a random key: "
                "write training_step(loss, optimizer, key=jax.random.key(0))"
            )
        key_now = None if key is None else jax.random.fold_in(key, state.iteration)
        evaluate = value_and_grad(loss, state.rule, has_aux, trainable)
        value, gradients = evaluate(state.network, inputs, targets, key_now)
        value, aux = value if has_aux else (value, {})
        if not isinstance(aux, dict):
            raise TypeError(f"aux is a {type(aux).__name__}, but must be a dictionary of numbers")
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, opt_state = optimizer.update(
                gradients,  # pyright: ignore[reportArgumentType]
                state.optimizer,
                eqx.filter(state.network, trainable),  # pyright: ignore[reportArgumentType]
            )
            network, rule = apply_updates(state.network, updates, state.rule)
        state = TrainState(network, rule, opt_state, state.iteration + 1)
        return state, _merged({"loss": value}, aux)

    return step


def fit(
    step: Step,
    state: Any,
    batches: Iterable[Any] | Callable[[int], Any],
    *,
    iterations: int,
    evaluate: Callable[[Any, int], Row] | None = None,
    evaluate_every: int = 100,
    stop: Callable[[Row], bool] | None = None,
    callbacks: Sequence[Callable[[int, Any, Row], Any]] = (),
    folder: Path | str | None = None,
    config: Any = None,
    save_every: int = 100,
    progress: bool = True,
) -> tuple[Any, list[Row]]:
    """Repeats `step`, and goes on from the last checkpoint if the folder has one.

    A run that is interrupted at any moment and called again with the same arguments ends
    bit-identical to one that was not. The first iteration is number 1.

    **Arguments:**

    - `step`: `step(state, batch) -> (state, info)`, a pure function, such as a `training_step`;
      it is compiled. What changes in a state are arrays, which keep shape and dtype. The scalars
      in `info`, any pytree, are recorded.
    - `state`: what training begins with: any pytree, such as from `init_training`.
    - `batches`: a function `iteration -> batch`; or an iterable, begun anew at each call: of a run
      that goes on, the batches already used are drawn and dropped.
    - `iterations`: at most so many.
    - `evaluate`: `evaluate(state, iteration) -> numbers by name`, recorded too, and
      `evaluate_every` how many iterations.
    - `stop`: `stop(row) -> bool` ends training; asked after every `evaluate_every` iterations.
    - `callbacks`: functions of `(iteration, state, row)`, called after each iteration, and again
      for those after the checkpoint that an interrupted run goes on from.
    - `folder`: of the checkpoint and the metrics, `metrics.jsonl`; `None` keeps neither.
    - `config`: what the run is of, stored in the checkpoint: a dataclass, or what JSON can hold.
    - `save_every`: iterations between checkpoints; there is one at the end too.
    - `progress`: whether to show a progress bar.

    Returns the last state, and a row of metrics for each iteration: its number, `info`, what
    `evaluate` returned, and `seconds` of training so far.

    Raises `FloatingPointError` where a metric or the state is not finite (infinity may stay where
    it was), before anything of it is saved; `eprop.checkpoints.CheckpointError` for a checkpoint
    that is damaged or of another state; `ValueError` for one of another `config`.
    """
    for name, value in {
        "iterations": iterations,
        "evaluate_every": evaluate_every,
        "save_every": save_every,
    }.items():
        checks.positive_int(name, value)
    run = _Run(None if folder is None else Path(folder), files.as_json(config))
    state, rows = run.resume(_strongly_typed(state))

    def is_over() -> bool:
        if stop is None or not rows or len(rows) % evaluate_every != 0:
            return len(rows) >= iterations
        return len(rows) >= iterations or bool(stop(rows[-1]))

    over = is_over()
    if rows and progress:
        text = "Finished before, at" if over else "Going on after"
        tqdm.write(f"{text} iteration {len(rows)} in {folder}")
    next_batch = _batches(batches, len(rows), iterations)
    compiled = _compiled(step)
    begun = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    with tqdm(total=iterations, initial=len(rows), disable=not progress, unit="it") as bar:
        while not over:
            iteration = len(rows) + 1
            with run.noting(iteration):
                batch = next_batch(iteration)
                before = state
                state, info = compiled(before, batch)
                row = _merged({"iteration": iteration}, _scalars(info))
            broken = _broken_numbers(row) + _broken_leaves(before, state)
            if broken:
                raise run.not_finite(iteration, broken, batch)
            with run.noting(iteration):
                if evaluate is not None and iteration % evaluate_every == 0:
                    row = _merged(row, _scalars(evaluate(state, iteration)))
                row = _merged(row, {"seconds": time.perf_counter() - begun})
            if broken := _broken_numbers(row):
                raise run.not_finite(iteration, broken, batch)
            with run.noting(iteration):
                rows.append(row)
                run.append(row)
                for callback in callbacks:
                    callback(iteration, state, row)
                over = is_over()
                if over or iteration % save_every == 0:
                    run.save(state, iteration)
            counted = ("iteration", "seconds")  # which the bar counts itself
            bar.set_postfix({k: x for k, x in row.items() if k not in counted}, refresh=False)
            bar.update()
    return state, rows


class _Run:
    """What `fit` keeps in its folder."""

    def __init__(self, folder: Path | None, config: Any):
        self.folder, self.config = folder, config
        self.saved = 0

    def resume(self, state: Any) -> tuple[Any, list[Row]]:
        """The state and the rows of the checkpoint; those of a beginning if there is none."""
        if self.folder is None:
            return state, []
        path = self.folder / CHECKPOINT
        if path.exists():
            metadata = checkpoints.read_header(path)["metadata"]
            changed = files.differences(metadata["config"], self.config)
            if changed:
                raise ValueError(
                    f"{path} is of a run with another configuration ({changed}): give this one "
                    f"a folder of its own, or remove that one"
                )
            state, _ = checkpoints.load(path, state)
            self.saved = metadata["iteration"]
        return state, files.keep_rows(self.folder / METRICS, self.saved)

    def append(self, row: Row) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.append_row(self.folder / METRICS, row)

    def save(self, state: Any, iteration: int) -> None:
        """The metrics first: a checkpoint is never without its rows."""
        if self.folder is not None:
            files.sync(self.folder / METRICS)
            metadata = {"iteration": iteration, "config": self.config}
            checkpoints.save(self.folder / CHECKPOINT, state, metadata)
            self.saved = iteration

    @property
    def kept(self) -> str:
        """What an error in an iteration leaves."""
        if self.folder is None:
            return "nothing is kept, since fit was given no folder"
        if self.saved == 0:
            return f"there is no checkpoint in {self.folder} yet"
        return f"the checkpoint of iteration {self.saved} in {self.folder} is kept"

    @contextmanager
    def noting(self, iteration: int) -> Iterator[None]:
        """Errors say when they happened, and what is kept."""
        try:
            yield
        except Exception as error:
            error.add_note(f"at iteration {iteration} of fit; {self.kept}")
            raise

    def not_finite(self, iteration: int, found: list[str], batch: Any) -> FloatingPointError:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        leaves = _inexact_leaves({"batch": batch})
        fed = [name for name, leaf in leaves if not jnp.all(jnp.isfinite(leaf))]
        cause = f"; it went in by {', '.join(fed)}" if fed else ""
        return FloatingPointError(
            f"iteration {iteration} gave NaN or infinity: {', '.join(found[:5])}{more}{cause}. "
            f"It is not saved; {self.kept}"
        )


def _compiled(step: Step) -> Step:
    """The step, and what would make a resumed run differ from a whole one."""

    @eqx.filter_jit
    def compiled(state: Any, batch: Any) -> tuple[Any, Any]:
        result = step(state, batch)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"step must return (state, info), not a {type(result).__name__}")
        after, info = result
        found = checkpoints.first_difference(
            checkpoints.describe(state), checkpoints.describe(after)
        )
        if found is not None:
            raise TypeError(
                f"step turns {found[0] or 'no leaf'} of the state into {found[1] or 'no leaf'}: "
                f"leaves must stay, with their shape and dtype"
            )
        return _strongly_typed(after), info

    return compiled


def _strongly_typed(state: Any) -> Any:
    """Without JAX's weak types, such as that of jnp.asarray(1.0), which no file keeps."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, x.dtype) if getattr(x, "weak_type", False) else x, state
    )


def _batches(
    batches: Iterable[Any] | Callable[[int], Any], done: int, iterations: int
) -> Callable[[int], Any]:
    """The batch of each iteration, to be asked for in their order from `done` + 1 on."""
    if callable(batches):
        return batches
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches = {batches!r} must be iterable, or a function of the iteration")
    remaining = itertools.islice(batches, done, None)

    def following(iteration: int) -> Any:
        for batch in remaining:
            return batch
        raise ValueError(
            f"batches ended before iteration {iteration} of {iterations}: repeat them, with "
            f"itertools.cycle(batches), or ask for fewer iterations"
        )

    return following


def _scalars(tree: Any) -> Row:
    """All real numbers and scalar arrays by their path."""
    row = {}
    for name, leaf in _named_leaves(tree):
        if eqx.is_array(leaf) and leaf.ndim == 0 and not checkpoints.is_key(leaf):
            leaf = leaf.item()
        if isinstance(leaf, bool | int | float):
            row[name] = leaf
    return row


def _merged(row: Row, more: Row) -> Row:
    twice = sorted(row.keys() & more.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} would be recorded twice: give one another name")
    return row | more


def _broken_numbers(row: Row) -> list[str]:
    return [f"{name} = {x}" for name, x in row.items() if not math.isfinite(x)]


def _broken_leaves(before: Any, after: Any) -> list[str]:
    """The leaves of a state that hold NaN, or infinity where there was none before."""
    counts = np.asarray(_count_broken(before, after)).tolist()
    return [
        f"{name} ({count} of {leaf.size} entries)"
        for (name, leaf), count in zip(_inexact_leaves(after), counts, strict=True)
        if count
    ]


@eqx.filter_jit
def _count_broken(before: Any, after: Any) -> Array:
    """Entries of each leaf that are NaN, or infinity where there was none before."""
    counts = [
        jnp.sum(jnp.isnan(new) | (jnp.isinf(new) & ~jnp.isinf(old)))
        for (_, old), (_, new) in zip(_inexact_leaves(before), _inexact_leaves(after), strict=True)
    ]
    return jnp.asarray(counts, jnp.result_type(int))


def _inexact_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(name, leaf) for name, leaf in _named_leaves(tree) if eqx.is_inexact_array(leaf)]


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in leaves]
