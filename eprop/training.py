"""Training: one pure step after another, with evaluations, checkpoints and metrics on disk."""

import contextlib
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray
from tqdm import tqdm

from . import checkpoints, checks, optimization, processes
from .jitted import Jitted
from .keeping import Identity, Keeper
from .network import AbstractRule, Network
from .rows import LARGEST, Row, broken_leaves, broken_numbers, merged, recorded
from .rules import NO_GRADIENT, Loss, call_loss, value_and_grad
from .trajectory import Trajectory
from .weights import random_key

Step = Callable[[Any, Any], tuple[Any, Any]]
"""`step(state, batch) -> (state, info)`, a pure function."""


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
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    trainable: Any = eqx.is_inexact_array,
) -> TrainState:
    """The state before the first `training_step`, which takes the same `trainable`."""
    checks.instance("network", network, Network, "Network(cell, ...)")
    checks.instance("rule", rule, AbstractRule, "EProp() or BPTT()")
    checks.trainable(trainable)
    opt_state = optimization.checked(optimizer).init(checks.trained(network, trainable))
    return TrainState(network, rule, opt_state, jnp.zeros((), jnp.int32))


def training_step(
    loss: Loss,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    has_aux: bool = False,
    trainable: Any = eqx.is_inexact_array,
    key: PRNGKeyArray | None = None,
) -> Step:
    """The usual step, for `fit`: gradient of the loss by the state's rule, then the update.

    **Arguments:**

    - `loss`, `has_aux`, `trainable`: as for `value_and_grad`; with `has_aux=True` the auxiliary
      output is a dictionary.
    - `optimizer`: any of optax; one that goes by the loss's value, such as
      `optax.contrib.reduce_on_plateau`, is given it.
    - `key`: random key for dropout, drawn anew at each iteration; needed if a layer has any.

    The step takes a `TrainState` and a batch `(inputs, targets)`, the inputs
    `[time, batch, n_in]`. Its info is the loss, and the auxiliary output beside it.

    It raises `TypeError` or `ValueError` for a batch that is something else, for a state of another
    optimiser or `trainable`, and for a loss that lets no gradient back into what the network did.
    """
    checks.function("loss", loss, "loss(trajectory, targets)")
    optimization.checked(optimizer)
    checks.switch("has_aux", has_aux)
    checks.trainable(trainable)
    key = None if key is None else random_key(key)

    def teaching(trajectory: Trajectory, targets: Any) -> Any:
        def value_of(seen):
            return call_loss(loss, seen, targets, has_aux)[0]

        if not checks.carries_gradient(value_of, trajectory):
            raise ValueError(NO_GRADIENT)
        return loss(trajectory, targets)

    def step(state: TrainState, batch: tuple[Any, Any]) -> tuple[TrainState, Row]:
        checks.instance("state", state, TrainState, "init_training(network, rule, optimizer)")
        inputs, targets = _inputs_and_targets(batch)
        if key is None and any(layer.dropout is not None for layer in state.network.layers):
            raise ValueError(
                "a layer has dropout, which needs a random key: "
                "write training_step(loss, optimizer, key=jax.random.key(0))"
            )
        optimization.check_state(optimizer, eqx.filter(state.network, trainable), state.optimizer)
        key_now = None if key is None else jax.random.fold_in(key, state.iteration)
        evaluate = value_and_grad(teaching, state.rule, has_aux, trainable)
        value, gradients = evaluate(state.network, inputs, targets, key_now)
        value, aux = value if has_aux else (value, {})
        if not isinstance(aux, dict):
            raise TypeError(f"aux is a {type(aux).__name__}, but must be a dictionary of numbers")
        network, rule, opt_state = optimization.update(
            optimizer,
            state.network,
            state.rule,
            gradients,
            state.optimizer,
            trainable=trainable,
            value=value,
        )
        state = TrainState(network, rule, opt_state, state.iteration + 1)
        return state, merged({"loss": value}, aux)

    return step


def _inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """Of a batch; `TypeError` for one that is something else."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        given = f"a {type(batch).__name__}"
        if isinstance(batch, tuple | list | dict):
            given += f" of {len(batch)}"
        elif hasattr(batch, "shape"):
            given = f"an array of shape {batch.shape}"
        raise TypeError(
            f"a batch is {given}, but training_step takes (inputs, targets), and fit many of "
            f"them: targets may be any pytree, such as a dictionary"
        )
    inputs, targets = batch
    checks.no_lists("targets", targets)  # whose numbers each program would have for its own
    if not hasattr(inputs, "shape"):
        raise TypeError(
            f"the inputs of a batch are a {type(inputs).__name__}: write np.asarray(inputs)"
        )
    return inputs, targets


def fit(
    step: Step,
    state: Any,
    batches: Iterable[Any] | Callable[[int], Any],
    *,
    iterations: int,
    evaluate: Callable[[Any, int], Row] | None = None,
    evaluate_every: int = 100,
    stop: Callable[[Row], bool] | None = None,
    keep_best: str | None = None,
    callbacks: Sequence[Callable[[int, Any, Row], Any]] = (),
    folder: Path | str | None = None,
    config: Any = None,
    save_every: int = 100,
    progress: bool = True,
) -> tuple[Any, list[Row]]:
    """Repeats `step`, and goes on from the last checkpoint if the folder has one.

        >>> import eprop, jax, jax.numpy as jnp, optax
        >>> network = eprop.Network(eprop.LIF(9, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(0))
        >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (20, 2, 5))
        >>> targets = jnp.ones((20, 2, 1))
        >>> loss = lambda trajectory, y: eprop.losses.mean_squared_error(trajectory.outputs, y)
        >>> state, rows = eprop.fit(
        ...     eprop.training_step(loss, optax.adam(1e-2)),
        ...     eprop.init_training(network, eprop.EProp(), optax.adam(1e-2)),
        ...     lambda iteration: (inputs, targets),
        ...     iterations=20,
        ...     folder="run",
        ...     progress=False,
        ... )
        >>> len(rows), rows[-1]["loss"] < rows[0]["loss"], list(rows[0])
        (20, True, ['iteration', 'loss', 'seconds'])

    A run that is interrupted at any moment and called again with the same arguments ends
    bit-identical to one that was not. The first iteration is number 1. After Ctrl-C the last whole
    iteration is saved, and `KeyboardInterrupt` goes on.

    **Arguments:**

    - `step`: `step(state, batch) -> (state, info)`, a pure function, such as a `training_step`;
      it is compiled. What changes in a state are arrays, which keep shape and dtype. The numbers
      in `info`, any pytree, are recorded, and arrays of up to 1000 of them.
    - `state`: what training begins with: any pytree, such as from `init_training`.
    - `batches`: a function `iteration -> batch`; or an iterable, begun anew at each call: of a run
      that goes on, the batches already used are drawn and dropped. So a run can't go on with an
      iterator that was drawn from before, such as a generator.
    - `iterations`: at most so many.
    - `evaluate`: `evaluate(state, iteration) -> numbers by name`, recorded too, and
      `evaluate_every` how many iterations.
    - `stop`: `stop(row) -> bool` ends training; asked after every `evaluate_every` iterations.
    - `keep_best`: the name of a metric, such as "validation_error": of the states after every
      `evaluate_every` iterations the one where it is lowest is returned in place of the last, and
      saved as `best.eprop`, to be read by `eprop.checkpoints.load`.
    - `callbacks`: functions of `(iteration, state, row)`, called after each iteration, and again
      for those after the checkpoint that an interrupted run goes on from.
    - `folder`: of the checkpoint and the metrics, `metrics.jsonl`; `None` keeps neither. It is for
      one run at a time.
    - `config`: what the run is of, stored in the checkpoint: a dataclass, or what JSON can hold.
      Without it `step` is compared, as far as can be told, with what it closes over (an optimiser
      and its numbers), and the shapes of the last batch, which is drawn again for that; if its
      numbers are others there is a warning.
    - `save_every`: iterations between checkpoints; there is one at the end too.
    - `progress`: whether to show a progress bar.

    Of several processes (`jax.distributed`) all call this, with the same arguments and a folder
    that all of them see; the first one writes.

    Returns the last state, and a row of metrics for each iteration: its number, `info`, what
    `evaluate` returned, and `seconds` of training so far.

    Raises `FloatingPointError` where a metric or the state is not finite (infinity may stay where
    it was), before anything of it is saved; `eprop.checkpoints.CheckpointError` for a checkpoint
    that is damaged or of another state; `ValueError` for one of another `config`, step or batch, or
    of other hyperparameters of `optax.inject_hyperparams`, which are in the state, for rows that
    are not its own, for processes that were given something else than the first, and for inputs and
    weights that hold NaN;
    `RuntimeError` for a folder that another run has in use, and where another process has failed.
    Warns of what is not recorded, and of a run that was begun with other settings or from a state
    of other numbers: weights, feedback, trained constants, all of which its checkpoint has.
    """
    _check_functions(step, evaluate, stop, callbacks)
    checks.switch("progress", progress)
    for name, value in {
        "iterations": iterations,
        "evaluate_every": evaluate_every,
        "save_every": save_every,
    }.items():
        checks.positive_int(name, value)
    if keep_best is not None:
        checks.instance("keep_best", keep_best, str, 'a name, such as "validation_error"')
        if iterations < evaluate_every:
            raise ValueError(
                f"keep_best = {keep_best!r} is looked at after every evaluate_every = "
                f"{evaluate_every} iterations, but there are only {iterations}"
            )
    settings = {
        "evaluate": evaluate,
        "evaluate_every": evaluate_every,
        "stop": stop,
        "keep_best": keep_best,
    }
    progress = progress and processes.is_first()
    place = None if folder is None else Path(folder)
    keeper = Keeper(place, Identity.of(config, step, settings), keep_best)

    def is_over() -> bool:
        if stop is None or not rows or len(rows) % evaluate_every != 0:
            return len(rows) >= iterations
        # Processes may differ in how long they took: the first one's answer is all of theirs.
        return len(rows) >= iterations or processes.told_by_all(bool(stop(rows[-1])))[0]

    with keeper.in_use():
        with processes.in_all_or_none():
            state, rows, changed = keeper.resume(_as_arrays(state))
        keeper.check_processes(
            state=state, arguments={"iterations": iterations, "save_every": save_every}
        )
        over = is_over()
        if rows:
            _say_where(keeper, len(rows), over, changed, iterations, progress)
        next_batch = _batches(batches, len(rows), iterations)
        if not over and keeper.batch_before is not None:
            keeper.check_batch(_native(next_batch(len(rows))))
        if not over:
            keeper.begin()
        compiled, unrecorded = _compiled(step), set[str]()

        def record(tree: Any) -> Row:
            row, left_out = recorded(tree)
            if new := [x for x in left_out if x not in unrecorded]:
                unrecorded.update(new)
                warnings.warn(
                    f"not recorded: {', '.join(new)}. A row has numbers, and arrays of up to "
                    f"{LARGEST} of them",
                    stacklevel=3,
                )
            return row

        first = len(rows) + 1

        def drawn(iteration: int) -> Any:
            if iteration != first:
                return _native(next_batch(iteration))
            with processes.in_all_or_none():
                batch = _native(next_batch(iteration))
            keeper.check_processes(batch=batch)
            return batch

        begun = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
        whole = (state, len(rows), None)
        bar = tqdm(total=iterations, initial=len(rows), disable=not progress, unit="it")
        try:
            while not over:
                iteration = len(rows) + 1
                is_judged = iteration % evaluate_every == 0
                with keeper.noting(iteration):
                    batch, before = drawn(iteration), state
                    state, info = compiled(before, batch)
                    row = merged({"iteration": iteration}, record(info))
                broken = broken_numbers(row) + broken_leaves(before, state)
                if broken:
                    raise keeper.not_finite(iteration, broken, batch)
                with keeper.noting(iteration):
                    if evaluate is not None and is_judged:
                        row = merged(row, record(evaluate(state, iteration)))
                    row = merged(row, {"seconds": time.perf_counter() - begun})
                if broken := broken_numbers(row):
                    raise keeper.not_finite(iteration, broken, batch)
                with keeper.noting(iteration):
                    rows.append(row)
                    keeper.append(row)
                    if is_judged:
                        keeper.judge(row, state)
                    for callback in callbacks:
                        callback(iteration, state, row)
                    over = is_over()
                    whole = (state, iteration, batch)
                    if over or iteration % save_every == 0:
                        keeper.save(*whole)
                counted = ("iteration", "seconds")  # which the bar counts itself
                shown = {k: x for k, x in row.items() if not (k in counted or isinstance(x, list))}
                bar.set_postfix(shown, refresh=False)
                bar.update()
        except KeyboardInterrupt:
            raise keeper.interrupted(*whole) from None
        finally:
            bar.close()
    return (state if keeper.best is None else keeper.best.state), rows


def _check_functions(step: Any, evaluate: Any, stop: Any, callbacks: Any) -> None:
    """`TypeError` for what is none."""
    checks.function("step", step, "training_step(loss, optimizer)")
    if evaluate is not None:
        checks.function("evaluate", evaluate, "a function of (state, iteration)")
    if stop is not None:
        checks.function("stop", stop, "a function of a row")
    checks.instance("callbacks", callbacks, Sequence, "callbacks=[function]")
    for callback in callbacks:
        checks.function("callback", callback, "a function of (iteration, state, row)")


def _say_where(
    keeper: Keeper, done: int, over: bool, changed: str, iterations: int, progress: bool
) -> None:
    """Where a run goes on, or that it doesn't, and what of its settings is not what it was."""
    if progress:
        text = "Finished before, at" if over else "Going on after"
        tqdm.write(f"{text} iteration {done} in {keeper.folder}")
    if done > iterations:
        changed = ", ".join(
            filter(None, [f"iterations = {done} there, {iterations} here", changed])
        )
    if over and changed:
        warnings.warn(
            f"the run in {keeper.folder} is finished, with other settings ({changed}): nothing is "
            f"trained or evaluated anew. For a run with these settings give a folder of its own",
            stacklevel=3,
        )


def _compiled(step: Step) -> Step:
    """The step, and what would make a resumed run differ from a whole one."""

    def checked(state: Any, batch: Any) -> tuple[Any, Any]:
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
                f"leaves must stay, with their shape and dtype (a number that changes is an array)"
            )
        return _strongly_typed(after), info

    return Jitted(checked)


def _strongly_typed(state: Any) -> Any:
    """Without JAX's weak types, such as that of jnp.asarray(1.0), which no file keeps."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, x.dtype) if getattr(x, "weak_type", False) else x, state
    )


def _as_arrays(state: Any) -> Any:
    """A state as a step returns it: without NumPy's arrays, whose dtype JAX may not have."""
    state = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x, _native(state)
    )
    return _strongly_typed(state)


def _native(tree: Any) -> Any:
    """With NumPy's arrays in this machine's order of bytes: a compiled step takes all for such."""
    return jax.tree.map(checks.native, tree)


_drawn: list[weakref.ref[Iterator[Any]]] = []
"""The iterators that there were batches of, as long as there are such."""


def _batches(
    batches: Iterable[Any] | Callable[[int], Any], done: int, iterations: int
) -> Callable[[int], Any]:
    """The batch of each iteration, to be asked for in their order, from `done` or the next on."""
    if callable(batches):
        return batches
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches = {batches!r} must be iterable, or a function of the iteration")
    is_used = done > 0 and any(batches is used() for used in _drawn)
    if isinstance(batches, Iterator):
        with contextlib.suppress(TypeError):  # not all can be remembered
            _drawn.append(weakref.ref(batches, _drawn.remove))
    remaining = enumerate(batches, start=1)

    def following(wanted: int) -> Any:
        if is_used:
            raise ValueError(
                f"batches is an iterator that fit has drawn from before, so iteration {done + 1} "
                f"would see a later batch than its own: begin it anew, or give a function of the "
                f"iteration"
            )
        for number, batch in remaining:
            if number == wanted:
                return batch
        raise ValueError(
            f"batches ended before iteration {wanted} of {iterations}: repeat them, with "
            f"itertools.cycle(batches), or ask for fewer iterations"
        )

    return following
