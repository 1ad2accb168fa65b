"""Learning while the data arrives: one step, or one chunk, at a time, for as long as it takes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, UInt

from . import checks
from .cells import Port
from .evaluation import NetworkGradients, as_network, zero_gradients
from .network import Network
from .pieces import NO_SUM_OVER_TIME, Progress, evaluate_piece, init_progress, is_sum_over_time
from .rules import EProp, Loss, apply_updates
from .running_rates import RatePenalty, RunningRates, follow, start_rates
from .synapses import AbstractSynapses
from .traces import by_synapse
from .trajectory import Trajectory


class LearnerState(NamedTuple):
    """All that an `OnlineLearner` carries, one pytree: save it, and learning can go on from it."""

    network: Network
    rule: EProp
    progress: Progress
    """Neurons and eligibility traces."""
    gradients: NetworkGradients
    """Summed up since the last update."""
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


class Observed(NamedTuple):
    """What a window of steps was like, without an update; each with a leading time axis, or sum."""

    outputs: Float[Array, "*time batch n_out"]
    learning_signals: Float[Array, "*time batch n"]
    loss: Float[Array, ""]


class Learned(NamedTuple):
    """What must be finite; causes before consequences."""

    loss: Array
    gradients: NetworkGradients
    network: Network


class OnlineLearner(eqx.Module):
    """A network that learns by e-prop from a stream, and never looks back.

        learner = OnlineLearner(network, loss, EProp(), optax.adam(1e-3), update_every=10)
        state = learner.init(batch=1)
        state, info = learner.step(state, x_t, target_t)            # one step
        state, info = learner.run(state, (inputs, targets))         # a chunk: much faster

    Both are pure and compiled. The weights change every `update_every` steps by the gradient of
    the steps since the last change; neurons and eligibility traces go on as they are.
    """

    network: Network
    loss: Loss = eqx.field(static=True)
    rule: EProp
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    update_every: int = eqx.field(static=True)
    rate_penalty: RatePenalty | None = eqx.field(static=True)
    tau_rate: float = eqx.field(static=True)
    trainable: Any = eqx.field(static=True)
    optimizer_structure: Any = eqx.field(static=True)
    """Of the optimiser's state: to find it anew at each step would take as long as the step."""

    def __init__(
        self,
        network: Network,
        loss: Loss,
        rule: EProp,
        optimizer: optax.GradientTransformation,
        *,
        update_every: int = 1,
        rate_penalty: RatePenalty | None = None,
        tau_rate: float = 10_000.0,
        trainable: Any = eqx.is_inexact_array,
    ):
        """**Arguments:**

        - `network`: before learning.
        - `loss`: `loss(trajectory, targets) -> scalar`, a sum over time, called on one or more
          steps `[time, batch, ...]`. Steps without a target: hand a mask in with the targets and
          weight the loss with it, as the functions of `eprop.losses` do.
        - `rule`: `EProp(feedback, window)`. `run` evaluates so many steps at a time, all of an
          update's by default; the window must divide `update_every`.
        - `optimizer`: of optax.
        - `update_every`: steps from one weight update to the next.
        - `rate_penalty`: draws firing rates to a target.
        - `tau_rate`: time constant of the running average of firing rates in ms. It is the plain
          average of all steps until so much time has gone by.
        - `trainable`: the weights that change, as for `value_and_grad`.
        """
        self.network = checks.instance("network", network, Network, "Network(cell, ...)")
        if not callable(loss):
            raise TypeError(f"loss = {loss!r} is no function: write loss(trajectory, targets)")
        self.loss = loss
        self.rule = checks.instance("rule", rule, EProp, "EProp(): BPTT can't learn online")
        self.optimizer = checks.instance(
            "optimizer", optimizer, optax.GradientTransformation, "optax.adam(1e-3)"
        )
        self.update_every = checks.positive_int("update_every", update_every)
        if rate_penalty is not None:
            checks.instance("rate_penalty", rate_penalty, RatePenalty, "RatePenalty(10.0, 1.0)")
            for name, value in rate_penalty._asdict().items():
                checks.not_negative(f"rate_penalty.{name}", value)
        self.rate_penalty = rate_penalty
        self.tau_rate = checks.duration("tau_rate", tau_rate)
        self.trainable = trainable
        if rule.window is not None and update_every % min(rule.window, update_every):
            raise ValueError(
                f"update_every = {update_every} steps can't be cut into windows of {rule.window}: "
                f"give the rule a window that divides it, or none"
            )
        rule.feedback.matrix(network)  # its errors come now
        part = self._part(network)
        self.optimizer_structure = jax.tree.structure(jax.eval_shape(optimizer.init, part))

    def init(self, batch: int = 1, key: PRNGKeyArray | None = None) -> LearnerState:
        """The state before the first step of `batch` streams side by side."""
        network, batch = self.network, checks.positive_int("batch", batch)
        return LearnerState(
            network=network,
            rule=self.rule,
            progress=init_progress(network, batch),
            gradients=zero_gradients(network),
            optimizer=self.optimizer.init(self._part(network)),
            rates=start_rates(network.n, network.dtype),
            since_update=jnp.zeros((), jnp.int32),
            n_steps=jnp.zeros((), jnp.uint32),
            key=jax.random.key(0) if key is None else key,
        )

    def step(
        self, state: LearnerState, x_t: ArrayLike, target_t: Any, done: ArrayLike | None = None
    ) -> tuple[LearnerState, Info]:
        """One step: `x_t` `[batch, n_in]`, each leaf of `target_t` `[batch, ...]`.

        `done` `[batch]`: where it holds this step is an example's last. Its neurons and traces
        then start again from rest, as if each example had run alone.

        Raises as `run` does.
        """
        done = None if done is None else jnp.asarray(done)
        with_time = jax.tree.map(lambda x: jnp.asarray(x)[None], (x_t, target_t, done))
        state, now = self._checked(state, with_time)
        return self._settled(state, _step(self, state, now))

    def run(self, state: LearnerState, chunk: tuple[Any, ...]) -> tuple[LearnerState, Info]:
        """A chunk of steps: as many `step`s, in a fraction of the time.

        `chunk` is `(inputs, targets)` or `(inputs, targets, done)`, of `step`'s shapes with a
        leading time axis of a multiple of `update_every`.

        Raises `ValueError` or `TypeError` for a state or chunk that don't fit, or with NaN in
        them, and `FloatingPointError` if a loss, gradient or weight comes out as NaN or infinite.
        The state given is as it was, whatever happens.
        """
        if not isinstance(chunk, tuple) or len(chunk) not in (2, 3):
            raise TypeError("a chunk must be (inputs, targets) or (inputs, targets, done)")
        inputs, targets, done = (*chunk, None)[:3]
        state, now = self._checked(state, (inputs, targets, done))
        n_steps = len(now[0])
        if n_steps % self.update_every:
            raise ValueError(
                f"the chunk has {n_steps} steps, no multiple of update_every = "
                f"{self.update_every}: give whole updates, or use step"
            )
        if not isinstance(state.since_update, jax.core.Tracer) and state.since_update:
            raise ValueError(
                f"the state is {state.since_update} steps past its last update, of update_every = "
                f"{self.update_every}: use step until the next"
            )
        state_after, info, is_sum = _run(self, state, now)
        if not isinstance(is_sum, jax.core.Tracer) and not is_sum:
            raise ValueError(NO_SUM_OVER_TIME.format(n=self._looked_at))
        return self._settled(state, (state_after, info))

    def predict(self, state: LearnerState, inputs: ArrayLike) -> tuple[LearnerState, Trajectory]:
        """The network's response to further steps `[time, batch, n_in]`, without learning.

        Neurons go on, so that the stream can be followed; weights, traces and all else stay as
        they are. To look ahead only, drop the state that is returned.

        Raises `ValueError` or `TypeError` for a state or inputs that don't fit.
        """
        checked, (inputs, _, _) = self._checked(state, (inputs, None, None))
        network_state, trajectory = _predict(checked.network, state.progress.network, inputs)
        progress = state.progress._replace(network=network_state)
        return state._replace(progress=progress), trajectory

    @property
    def _looked_at(self) -> int:
        """Steps of each chunk on which to see whether the loss is a sum over time."""
        return min(self._window, 16)

    @property
    def _window(self) -> int:
        """Steps that `run` evaluates at a time."""
        return min(self.rule.window or self.update_every, self.update_every)

    def _part(self, network: Network) -> Any:
        return eqx.filter(network, self.trainable)

    def _checked(self, state: LearnerState, now: Any) -> tuple[LearnerState, Any]:
        """State and data, if they are this learner's; where traced, the state holds the error."""
        checks.instance("state", state, LearnerState, "learner.init(batch)")
        inputs, targets, done = now
        mine, given = self.network, state.network
        if jax.tree.structure(given) != jax.tree.structure(mine):
            raise ValueError("the state is of another network: its structure is not the learner's")
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(mine), strict=True
        ):
            if jnp.shape(x) != jnp.shape(y):
                name = jax.tree_util.keystr(path)
                raise ValueError(
                    f"the state is of another network: its network{name} has shape "
                    f"{jnp.shape(x)}, the learner's {jnp.shape(y)}"
                )
        of_learner = (jax.tree.structure(self.rule.feedback), self.optimizer_structure)
        of_state = (jax.tree.structure(state.rule.feedback), jax.tree.structure(state.optimizer))
        for name, x, y in zip(("feedback", "optimizer"), of_state, of_learner, strict=True):
            if x != y:
                raise ValueError(
                    f"the state is of another learner: its {name} has the structure {x}, the "
                    f"learner's {y}"
                )
        network, inputs = given.checked(inputs)
        n_steps, batch = inputs.shape[:2]
        of_state = state.progress.network.outputs.shape[0]
        if batch != of_state:
            raise ValueError(
                f"inputs are of {batch} examples, but the state is of {of_state}: "
                f"write learner.init({batch})"
            )
        checks.same_length(targets, n_steps, n_steps)
        if done is not None:
            done = jnp.asarray(done)
            if done.shape != (n_steps, batch) or done.dtype != bool:
                raise ValueError(
                    f"done has shape {done.shape} and dtype {done.dtype}, but must be a boolean "
                    f"for each example, and each step of a chunk: {(n_steps, batch)}"
                )
        return state._replace(network=network), (inputs, targets, done)

    def _settled(
        self, before: LearnerState, result: tuple[LearnerState, Info]
    ) -> tuple[LearnerState, Info]:
        """The new state and info; `FloatingPointError` if what was learned is not finite.

        Non-finite weights stay non-finite, so one check at the end suffices.
        """
        state, info = result
        learned = Learned(info.loss, state.gradients, self._part(state.network))
        for path, x in jax.tree_util.tree_leaves_with_path(learned):
            if isinstance(x, jax.core.Tracer) or np.isfinite(x).all():
                continue
            n_steps = int(state.n_steps)
            if x is info.loss and x.ndim:
                bad = np.flatnonzero(~np.isfinite(x))[0]
                n_steps = int(before.n_steps) + (bad + 1) * self.update_every
            raise FloatingPointError(
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} is NaN or infinite "
                f"after step {n_steps}; the state from before this call is as it was"
            )
        return state, info


@eqx.filter_jit
def _step(learner: OnlineLearner, state: LearnerState, now: Any) -> tuple[LearnerState, Info]:
    state, seen = _observe(learner, state, now)
    is_due = state.since_update >= learner.update_every  # more, if it was another learner's
    state, _ = _cond(is_due, lambda x: (_update(learner, x), None), lambda x: (x, None), state)
    return state, _info(state, seen.outputs[0], seen.learning_signals[0], seen.loss)


@eqx.filter_jit
def _run(learner: OnlineLearner, state: LearnerState, now: Any) -> tuple[LearnerState, Info, Array]:
    """The chunk, and whether the loss is a sum over time, as far as its first steps show."""

    def cut(tree, length):
        return jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, length, *x.shape[1:]), tree)

    def one_update(state, now):
        in_windows = cut(now, learner._window)
        state, seen = _scan(functools.partial(_observe, learner), state, in_windows)
        return _update(learner, state), seen._replace(loss=seen.loss.sum())

    is_sum = jnp.ones((), bool)
    if learner._window > 1:
        inputs, targets, _ = jax.tree.map(lambda x: jnp.asarray(x)[: learner._looked_at], now)
        _, trajectory = state.network.run(state.progress.network, inputs)
        is_sum = is_sum_over_time(learner.loss, trajectory, targets)
    state, seen = _scan(one_update, state, cut(now, learner.update_every))
    # [update, window, step, batch, n] -> [time, batch, n]
    outputs, signals = (x.reshape(-1, *x.shape[3:]) for x in (seen.outputs, seen.learning_signals))
    return state, _info(state, outputs, signals, seen.loss), is_sum


def _info(state: LearnerState, outputs: Array, learning_signals: Array, loss: Array) -> Info:
    return Info(outputs, learning_signals, loss, state.rates.rates, _norms(state))


@eqx.filter_jit
def _predict(network: Network, state: Any, inputs: ArrayLike) -> tuple[Any, Trajectory]:
    return network.run(state, inputs)


def _observe(
    learner: OnlineLearner, state: LearnerState, now: Any
) -> tuple[LearnerState, Observed]:
    """One window of steps, without an update."""

    def loss(
        before: RunningRates, trajectory: Trajectory, targets: Any
    ) -> tuple[Array, RunningRates]:
        """The learner's, with the rate penalty; and the rates after the last step."""
        value = learner.loss(trajectory, targets)
        spikes = jnp.concatenate([layer.spikes for layer in trajectory.layers], axis=-1)
        rates, last = follow(before, spikes, dt=learner.network.dt, tau=learner.tau_rate)
        if learner.rate_penalty is not None:
            value = value + learner.rate_penalty.of(rates)
        return value, last

    def stretch(state: LearnerState, now: Any) -> tuple[LearnerState, Observed]:
        inputs, targets, done = now
        of_piece = functools.partial(loss, state.rates)
        progress, piece = evaluate_piece(
            of_piece, state.rule, state.network, state.progress, inputs, targets, has_aux=True
        )
        if done is not None:
            progress = _from_rest(state.network, progress, done[-1])
        state = state._replace(
            progress=progress,
            gradients=jax.tree.map(jnp.add, state.gradients, piece.gradients),
            rates=piece.aux,
            since_update=state.since_update + len(inputs),
            n_steps=state.n_steps + jnp.uint32(len(inputs)),
        )
        signals = piece.derivatives.outputs @ state.rule.feedback.matrix(state.network).T
        return state, Observed(piece.trajectory.outputs, signals, piece.value)

    def stepwise(state: LearnerState, now: Any) -> tuple[LearnerState, Observed]:
        state, seen = _scan(stretch, state, jax.tree.map(lambda x: x[:, None], now))
        return state, Observed(seen.outputs[:, 0], seen.learning_signals[:, 0], seen.loss.sum())

    *_, done = now
    if done is None or len(done) == 1:
        return stretch(state, now)
    # Where an example ends within the window all go step by step: slower, and as exact.
    ends = done[:-1].any()
    return _cond(ends, lambda x: stepwise(x, now), lambda x: stretch(x, now), state)


def _from_rest(network: Network, progress: Progress, ended: Array) -> Progress:
    """The progress, with the examples that ended at rest."""

    def choose(fresh, old):
        return jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), fresh, old)

    return jax.tree.map(choose, init_progress(network, len(ended)), progress)


def _update(learner: OnlineLearner, state: LearnerState) -> LearnerState:
    """The weights after the optimiser's update by the gradients since the last one."""
    part = learner._part(state.network)
    gradients: Any = _like(as_network(state.network, state.gradients), part)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        updates, optimizer = learner.optimizer.update(gradients, state.optimizer, part)
        network, rule = apply_updates(state.network, updates, state.rule)
    return state._replace(
        network=network,
        rule=rule,
        optimizer=optimizer,
        gradients=jax.tree.map(jnp.zeros_like, state.gradients),
        since_update=jnp.zeros_like(state.since_update),
    )


def _like(tree: Any, part: Any) -> Any:
    """The leaves that `part` has, `None` for the others."""
    kept = jax.tree.map(lambda x: x is not None, part, is_leaf=lambda x: x is None)
    return eqx.filter(tree, kept)


def _norms(state: LearnerState) -> list[Array]:
    """For each layer, population and hidden variable."""
    norms = []
    for layer, traces in zip(state.network.layers, state.progress.traces.layers, strict=True):
        for population in range(len(layer.neurons.cells)):
            squares = [
                [_square(synapses, x, port) for x in of_port.vectors]
                for kind, synapses in layer.synapses.items()
                for port, of_port in zip(layer.neurons.ports, traces.synapses[kind], strict=True)
                if port.population == population
            ]
            norms += [jnp.sqrt(sum(of_variable)) for of_variable in zip(*squares, strict=True)]
    return norms


def _square(synapses: AbstractSynapses, vector: Array, port: Port) -> Array:
    """Summed squares of the vectors of all synapses that lead to a port."""
    vectors = by_synapse(synapses, vector, port)
    n = port.columns.stop - port.columns.start
    return jnp.sum(vectors**2) * (n // vectors.shape[-1])


def _scan(
    function: Callable[[LearnerState, Any], tuple[LearnerState, Any]], state: LearnerState, xs: Any
) -> tuple[LearnerState, Any]:
    """`jax.lax.scan` of a state that may hold more than arrays (a cell's functions, say)."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def step(arrays, x):
        state, result = function(eqx.combine(arrays, rest), x)
        return eqx.filter(state, eqx.is_array), result

    arrays, results = jax.lax.scan(step, arrays, xs)
    return eqx.combine(arrays, rest), results


def _cond(
    predicate: Array,
    if_true: Callable[[LearnerState], tuple[LearnerState, Any]],
    if_false: Callable[[LearnerState], tuple[LearnerState, Any]],
    state: LearnerState,
) -> tuple[LearnerState, Any]:
    """`jax.lax.cond` of functions of such a state."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def of_arrays(function):
        def call(arrays):
            state, result = function(eqx.combine(arrays, rest))
            return eqx.filter(state, eqx.is_array), result

        return call

    arrays, result = jax.lax.cond(predicate, of_arrays(if_true), of_arrays(if_false), arrays)
    return eqx.combine(arrays, rest), result
