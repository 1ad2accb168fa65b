"""Steps of a stream, and learning from them: pure functions of an `OnlineLearner` and its state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from . import checks, learner_state, loops
from .compiled import are_compiled
from .evaluation import NetworkGradients, forward, zero_gradients
from .network import Network
from .pieces import Progress, evaluate_piece, init_progress, is_sum_over_time
from .rules import EProp, call_loss
from .running_rates import RunningRates, follow, rates_of_steps
from .traces import trace_norms
from .trajectory import Trajectory


class LearnerState(NamedTuple):
    """All that an `OnlineLearner` carries, one pytree: save it, and learning can go on from it."""

    network: Network
    rule: EProp
    progress: Progress
    """Neurons and eligibility traces."""
    gradients: NetworkGradients
    """Summed up since the last update."""
    loss: Float[Array, ""]
    """Likewise."""
    optimizer: optax.OptState
    rates: RunningRates
    since_update: Int[Array, ""]
    """Steps since the last update."""
    n_steps: UInt[Array, ""]
    """Steps seen; after 2³² it starts again from 0."""
    key: PRNGKeyArray
    """For what is drawn at random outside of the learner, which leaves it as it is: say
    `jax.random.fold_in(state.key, state.n_steps)` for the next step's or chunk's data."""


class Info(NamedTuple):
    """What one may want to look at. `run` has a leading time axis where it says so."""

    outputs: Float[Array, "*time batch n_out"]
    """y_t."""
    learning_signals: Float[Array, "*time batch n_rec"]
    """L_t = B ∂E/∂y_t."""
    loss: Float[Array, "*updates"]
    """Of the step, with the rate penalty; of `run`, the sum over the steps of each update."""
    rates: Float[Array, " n_rec"]
    """Running average of the firing rates in Hz, at the end."""
    trace_norms: list[Float[Array, ""]]
    """Root of the summed squares of the eligibility vectors of each hidden variable, at the end."""
    aux: Any
    """Of a loss with `has_aux=True` what it returned beside its value; in `run` with a leading time
    axis."""


STATE = "learner.init(batch), and from then on state, info = learner.run(state, chunk)"
"""Where a state of an `OnlineLearner` comes from."""


class Observed(NamedTuple):
    """What a window of steps was like, without an update: the summed loss, and all else of each
    step, with a leading time axis.
    """

    outputs: Float[Array, "*time batch n_out"]
    learning_signals: Float[Array, "*time batch n"]
    loss: Float[Array, ""]
    aux: Any


class Learned(NamedTuple):
    """What must be finite; causes before consequences."""

    loss: Array
    gradients: NetworkGradients
    network: Network


def step(learner: Any, before: LearnerState, now: Any) -> tuple[LearnerState, Info, Array]:
    """One step, and whether all is finite that must be."""
    state, now = fitting(learner, before, with_time(now))
    given = before.network.floats(now[0])
    state, seen = _observe(learner, state, now)
    is_due = state.since_update >= learner.update_every  # more, if it was another learner's
    state, _ = loops.cond(
        is_due, lambda x, _: (_update(learner, x), None), lambda x, _: (x, None), state, None
    )
    info = _info(state, _each_step(lambda x: x[0], seen))
    return state, info, checks.are_finite((given, learned(learner, state, info)))


def run(
    learner: Any, before: LearnerState, now: Any
) -> tuple[LearnerState, Info, Bool[Array, "3"]]:
    """The chunk; and whether it began after an update, whether the loss is a sum over time, as far
    as its first window shows, and whether all is finite that must be.
    """
    state, now = fitting(learner, before, now)
    given, n_steps = before.network.floats(now[0]), len(now[0])
    if n_steps % learner.update_every:
        raise ValueError(
            f"the chunk has {n_steps} steps, no multiple of update_every = "
            f"{learner.update_every}: give whole updates, or use step"
        )

    def cut(tree, length):
        return jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, length, *x.shape[1:]), tree)

    def one_update(state, now):
        state = state._replace(gradients=zero_gradients(state.network))
        of_window = functools.partial(_observe, learner)
        state, seen = loops.scan(of_window, state, cut(now, window_of(learner)))
        state = _update(learner, state)._replace(gradients=None)  # not to be carried
        return state, seen._replace(loss=seen.loss.sum())

    is_sum = jnp.ones((), bool)
    if window_of(learner) > 1:
        is_sum = _is_sum(learner, state, now)
    start, gradients = state._replace(gradients=None), state.gradients
    state, seen = loops.scan(one_update, start, cut(now, learner.update_every))
    state = state._replace(gradients=jax.tree.map(jnp.zeros_like, gradients))
    # [update, window, step, ...] -> [time, ...]
    seen = _each_step(lambda x: x.reshape(-1, *x.shape[3:]), seen)
    info = _info(state, seen)
    is_finite = checks.are_finite((given, learned(learner, state, info)))
    return state, info, jnp.stack([before.since_update == 0, is_sum, is_finite])


def window_of(learner: Any) -> int:
    """Steps that `run` evaluates at a time."""
    return min(learner.rule.window or learner.update_every, learner.update_every)


def _is_sum(learner: Any, state: LearnerState, now: Any) -> Bool[Array, ""]:
    """Whether the loss is a sum over time on the chunk's first window, its targets and masks.

    The network's first few steps, over and over, are as good as its run.
    """
    n, few = window_of(learner), min(window_of(learner), 16)
    inputs, targets, _ = jax.tree.map(lambda x: jnp.asarray(x)[:n], now)
    first = forward(state.network, state.progress.network, inputs[:few], None, n_steps=few)
    trajectory = jax.tree.map(lambda x: x[jnp.arange(n) % few], first.trajectory)
    return is_sum_over_time(learner.loss, trajectory, targets, learner.has_aux)


def fitting(learner: Any, state: LearnerState, now: Any) -> tuple[LearnerState, Any]:
    """State and data, if they are this learner's.

    Without a look at their numbers, so once for each compiled program will do.
    """
    checks.instance("state", state, LearnerState, STATE)
    state = learner_state.fitting(state, learner.kinds, learner.init)
    inputs, targets, done = now
    inputs = state.network.fitting(inputs)
    n_steps, batch = inputs.shape[:2]
    of_state = state.progress.network.outputs.shape[0]
    if batch != of_state:
        raise ValueError(
            f"inputs are of {batch} examples, but the state is of {of_state}: "
            f"write learner.init({batch})"
        )
    broadcast = f"broadcast a label with jnp.broadcast_to(label, ({n_steps}, *label.shape))"
    checks.each_step("targets", targets, n_steps, broadcast)
    if done is not None:
        done = jnp.asarray(done)
        if done.shape != (n_steps, batch) or done.dtype != bool:
            raise ValueError(
                f"done has shape {done.shape} and dtype {done.dtype}, but must be a boolean "
                f"for each example, and each step of a chunk: {(n_steps, batch)}"
            )
    return state, (inputs, jax.tree.map(checks.native, targets), done)


def learned(learner: Any, state: LearnerState, info: Info) -> Learned:
    """What must be finite after a step or chunk.

    Non-finite weights stay non-finite, so it suffices to look at the end.
    """
    return Learned(info.loss, state.gradients, eqx.filter(state.network, learner.trainable))


def with_time(now: Any) -> Any:
    """One step as a sequence of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], now)


def _info(state: LearnerState, seen: Observed) -> Info:
    of_layers = zip(state.network.layers, state.progress.traces.layers, strict=True)
    norms = [norm for layer, traces in of_layers for norm in trace_norms(layer, traces)]
    return Info(**seen._asdict(), rates=state.rates.rates, trace_norms=norms)


def _each_step(change: Callable[[Array], Array], seen: Observed) -> Observed:
    """With all that is of each step, which the loss is not, changed."""
    return jax.tree.map(change, seen._replace(loss=None))._replace(loss=seen.loss)


def _observe(learner: Any, state: LearnerState, now: Any) -> tuple[LearnerState, Observed]:
    """One window of steps, without an update."""

    def loss(
        before: RunningRates, trajectory: Trajectory, targets: Any
    ) -> tuple[Array, tuple[RunningRates, Any]]:
        """The learner's, with the rate penalty; the rates after the last step, and its aux."""
        value, aux = call_loss(learner.loss, trajectory, targets, learner.has_aux)
        remedy = "say how each step was, such as jnp.sum(error**2, axis=(1, 2))"
        checks.each_step("aux", aux, len(trajectory.outputs), remedy)
        spikes = jnp.concatenate([layer.spikes for layer in trajectory.layers], axis=-1)
        average = {"dt": learner.network.dt, "tau": learner.tau_rate}
        if learner.rate_penalty is not None:
            value = value + learner.rate_penalty.of(rates_of_steps(before, spikes, **average))
        spikes = jax.lax.stop_gradient(spikes)
        if are_compiled(state.network.layers, len(spikes)):
            spikes = spikes > 0
        return value, (follow(before, spikes, **average), aux)

    def stretch(state: LearnerState, now: Any) -> tuple[LearnerState, Observed]:
        inputs, targets, done = now
        of_piece = functools.partial(loss, state.rates)
        progress, piece = evaluate_piece(
            of_piece,
            state.rule,
            state.network,
            state.progress,
            inputs,
            targets,
            so_far=state.gradients,
            has_aux=True,
        )
        if done is not None:
            fresh = init_progress(state.network, len(done[-1]))
            progress = learner_state.restarted(fresh, progress, done[-1])
        rates, aux = piece.aux
        state = state._replace(
            progress=progress,
            gradients=piece.gradients,
            loss=state.loss + piece.value.astype(state.loss.dtype),
            rates=rates,
            since_update=state.since_update + len(inputs),
            n_steps=state.n_steps + jnp.uint32(len(inputs)),
        )
        signals = piece.derivatives.outputs @ state.rule.feedback.matrix(state.network).T
        return state, Observed(piece.trajectory.outputs, signals, piece.value, aux)

    def stepwise(state: LearnerState, now: Any) -> tuple[LearnerState, Observed]:
        state, seen = loops.scan(stretch, state, jax.tree.map(lambda x: x[:, None], now))
        return state, _each_step(lambda x: x[:, 0], seen)._replace(loss=seen.loss.sum())

    *_, done = now
    if done is None or len(done) == 1:
        return stretch(state, now)
    # Where an example ends within the window all go step by step: slower, and as exact.
    return loops.cond(done[:-1].any(), stepwise, stretch, state, now)


def _update(learner: Any, state: LearnerState) -> LearnerState:
    """The weights after the optimiser's update by the gradients since the last one."""
    return learner_state.updated(learner, state, state.gradients, state.loss)._replace(
        gradients=jax.tree.map(jnp.zeros_like, state.gradients),
        loss=jnp.zeros_like(state.loss),
        since_update=jnp.zeros_like(state.since_update),
    )
