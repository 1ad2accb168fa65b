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
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, UInt

from . import checks, learner_state, loops, optimization
from .compiled import are_compiled
from .evaluation import NetworkGradients, forward, zero_gradients
from .network import Network
from .pieces import NO_SUM_OVER_TIME, Progress, evaluate_piece, init_progress, is_sum_over_time
from .rules import EProp, Loss, call_loss
from .running_rates import RatePenalty, RunningRates, follow, rates_of_steps, start_rates
from .traces import trace_norms
from .trajectory import Trajectory
from .weights import random_key


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
"""Where a state comes from."""


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


class OnlineLearner(eqx.Module):
    """A network that learns by e-prop from a stream, and never looks back.

        >>> import eprop, jax, jax.numpy as jnp, optax
        >>> network = eprop.Network(eprop.LIF(9, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(0))
        >>> loss = lambda trajectory, y: jnp.sum((trajectory.outputs - y) ** 2)
        >>> sgd = optax.sgd(1e-3)
        >>> learner = eprop.OnlineLearner(network, loss, eprop.EProp(), sgd, update_every=10)
        >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (20, 1, 5))  # [time, batch, n_in]
        >>> targets = jnp.ones((20, 1, 1))
        >>> state = learner.init(batch=1)
        >>> state, info = learner.run(state, (inputs, targets))         # a chunk: much faster than
        >>> state, info = learner.step(state, inputs[0], targets[0])    # one step
        >>> int(state.n_steps), int(state.since_update)
        (21, 1)

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
    has_aux: bool = eqx.field(static=True)
    kinds: Any = eqx.field(static=True)
    """What a state of this learner is like: to find it anew at each step would take as long."""

    def __init__(
        self,
        network: Network,
        loss: Loss,
        rule: EProp,
        optimizer: optax.GradientTransformation | optax.MultiSteps,
        *,
        update_every: int = 1,
        rate_penalty: RatePenalty | None = None,
        tau_rate: float = 10_000.0,
        trainable: Any = eqx.is_inexact_array,
        has_aux: bool = False,
    ):
        """**Arguments:**

        - `network`: before learning.
        - `loss`: `loss(trajectory, targets) -> scalar`, a sum over time, called on one or more
          steps `[time, batch, ...]`. Steps without a target: hand a mask in with the targets and
          weight the loss with it, as the functions of `eprop.losses` do.
        - `rule`: `EProp(feedback, window)`. `run` evaluates so many steps at a time, all of an
          update's by default; the window must divide `update_every`.
        - `optimizer`: any of optax. One that goes by the loss's value, such as
          `optax.contrib.reduce_on_plateau`, sees the sum over the steps of each update.
        - `update_every`: steps from one weight update to the next.
        - `rate_penalty`: draws firing rates to a target.
        - `tau_rate`: time constant of the running average of firing rates in ms. It is the plain
          average of all steps until so much time has gone by.
        - `trainable`: the weights that change, as for `value_and_grad`.
        - `has_aux`: whether the loss returns `(scalar, aux)`. Every leaf of aux has a leading time
          axis, as the trajectory has, and comes back as `Info.aux`: `trajectory.layers` for spikes
          and states, a number for each step or each step and example, ...
        """
        self.network = checks.instance("network", network, Network, "Network(cell, ...)")
        checks.function("loss", loss, "loss(trajectory, targets)")
        self.loss, self.has_aux = loss, checks.switch("has_aux", has_aux)
        self.rule = checks.instance("rule", rule, EProp, "EProp(): BPTT can't learn online")
        self.optimizer = optimization.checked(optimizer)
        self.update_every = checks.positive_int("update_every", update_every)
        self.rate_penalty = learner_state.checked_penalty(rate_penalty)
        self.tau_rate = checks.duration("tau_rate", tau_rate)
        checks.trainable(trainable)
        self.trainable = trainable
        if rule.window is not None and update_every % min(rule.window, update_every):
            raise ValueError(
                f"update_every = {update_every} steps can't be cut into windows of {rule.window}: "
                f"give the rule a window that divides it, or none"
            )
        rule.feedback.matrix(network)  # its errors come now
        of_optimizer = jax.eval_shape(self.optimizer.init, self._part(network))
        self.kinds = learner_state.kinds(network, rule, of_optimizer)

    def init(self, batch: int = 1, key: PRNGKeyArray | None = None) -> LearnerState:
        """The state before the first step of `batch` streams side by side."""
        network, batch = self.network, checks.positive_int("batch", batch)
        return LearnerState(
            network=network,
            rule=self.rule,
            progress=init_progress(network, batch),
            gradients=zero_gradients(network),
            loss=jnp.zeros((), network.dtype),
            optimizer=self.optimizer.init(self._part(network)),
            rates=start_rates(network.n, network.dtype),
            since_update=jnp.zeros((), jnp.int32),
            n_steps=jnp.zeros((), jnp.uint32),
            key=jax.random.key(0) if key is None else random_key(key),
        )

    def step(
        self, state: LearnerState, x_t: ArrayLike, target_t: Any, done: ArrayLike | None = None
    ) -> tuple[LearnerState, Info]:
        """One step: `x_t` `[batch, n_in]`, each leaf of `target_t` `[batch, ...]`.

        `done` `[batch]`: where it holds this step is an example's last. Its neurons and traces
        then start again from rest, as if each example had run alone.

        Raises as `run` does.
        """
        checks.instance("state", state, LearnerState, STATE)
        leaves = jax.tree.leaves((state, x_t, target_t, done))
        is_plain = hasattr(x_t, "shape") and _are_plain(leaves)
        if not is_plain:
            x_t, done = checks.array("x_t", x_t), None if done is None else jnp.asarray(done)
            checks.no_lists("target_t", target_t)
            target_t = jax.tree.map(lambda x: jnp.asarray(checks.native(x)), target_t)
        shape = jnp.shape(x_t)
        if len(shape) != 2:
            hint = "; for a single example write x_t[None]" if len(shape) == 1 else ""
            raise ValueError(f"x_t has shape {shape}, but [batch, n_in] is needed{hint}")
        if done is not None and jnp.shape(done) != shape[:1]:
            raise ValueError(
                f"done has shape {jnp.shape(done)}, but must be a boolean for each example: "
                f"{shape[:1]}"
            )
        now = (x_t, target_t, done)
        if not is_plain:
            state, _ = self._checked(state, _with_time(now))
        after, info, is_finite = _program(self, _step, leaves)(state, now)
        if not isinstance(is_finite, jax.core.Tracer) and not is_finite:
            raise self._not_finite(state, _with_time(now), after, info)
        return after, info

    def run(self, state: LearnerState, chunk: tuple[Any, ...]) -> tuple[LearnerState, Info]:
        """A chunk of steps: as many `step`s, in a fraction of the time.

        `chunk` is `(inputs, targets)` or `(inputs, targets, done)`, of `step`'s shapes with a
        leading time axis of a multiple of `update_every`.

        Raises `ValueError` or `TypeError` for a state or chunk that don't fit, or with NaN in
        them, and `FloatingPointError` if a loss, gradient or weight comes out as NaN or infinite.
        The state given is as it was, whatever happens.
        """
        checks.instance("state", state, LearnerState, STATE)
        if not isinstance(chunk, tuple) or len(chunk) not in (2, 3):
            raise TypeError(
                f"a chunk is a {type(chunk).__name__}, but must be a tuple, (inputs, targets) or "
                f"(inputs, targets, done)"
            )
        inputs, targets, done = (*chunk, None)[:3]
        now = (inputs, targets, done)
        leaves = jax.tree.leaves((state, now))
        if not _are_plain(leaves):
            state, now = self._checked(state, now)
        after, info, fine = _program(self, _run, leaves)(state, now)
        if not isinstance(fine, jax.core.Tracer) and not np.all(fine):
            raise self._wrong(state, now, after, info, *np.asarray(fine))
        return after, info

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

    @functools.cached_property
    def _of_arrays(self) -> dict[Callable, Callable]:
        """`_step` and `_run` of this learner, compiled for states and data of arrays alone.

        A call takes half of the time that it takes by `equinox.filter_jit`.
        """
        return {x: jax.jit(functools.partial(x, self)) for x in _OF_ANY}

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
        state, now = self._fitting(state, now)
        network, _ = state.network.checked(now[0])
        return state._replace(network=network), now

    def _fitting(self, state: LearnerState, now: Any) -> tuple[LearnerState, Any]:
        """The same without a look at their numbers, so once for each compiled program will do."""
        checks.instance("state", state, LearnerState, STATE)
        state = learner_state.fitting(state, self.kinds, self.init)
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

    def _learned(self, state: LearnerState, info: Info) -> Learned:
        """What must be finite after a step or chunk.

        Non-finite weights stay non-finite, so it suffices to look at the end.
        """
        return Learned(info.loss, state.gradients, self._part(state.network))

    def _wrong(
        self,
        before: LearnerState,
        now: Any,
        state: LearnerState,
        info: Info,
        is_updated: bool,
        is_sum: bool,
        is_finite: bool,
    ) -> Exception:
        """An error that says what was wrong with a chunk; raised if it was there before."""
        if not is_updated:
            return ValueError(
                f"the state is {before.since_update} steps past its last update, of update_every = "
                f"{self.update_every}: use step until the next"
            )
        if not is_sum:
            self._checked(before, now)  # of NaN nothing is the sum
            return ValueError(NO_SUM_OVER_TIME.format(n=self._looked_at))
        assert not is_finite, "something was wrong"
        return self._not_finite(before, now, state, info)

    def _not_finite(
        self, before: LearnerState, now: Any, state: LearnerState, info: Info
    ) -> FloatingPointError:
        """An error that names what is not finite after some steps; raised if it was before."""
        self._checked(before, now)
        found = learner_state.first_not_finite(self._learned(state, info))
        assert found is not None, "what was not finite is"
        name, x = found
        n_steps = int(state.n_steps)
        if x is info.loss and x.ndim:
            bad = np.flatnonzero(~np.isfinite(x))[0]
            n_steps = int(before.n_steps) + (bad + 1) * self.update_every
        cause = ""
        if x is info.loss:
            cause = " (is a label outside of 0, ..., n_classes - 1, or a target NaN?)"
        return FloatingPointError(
            f"{name} is NaN or infinite after step {n_steps}{cause}; the state from before this "
            f"call is as it was"
        )


def _step(
    learner: OnlineLearner, before: LearnerState, now: Any
) -> tuple[LearnerState, Info, Array]:
    """One step, and whether all is finite that must be."""
    state, now = learner._fitting(before, _with_time(now))
    given = before.network.floats(now[0])
    state, seen = _observe(learner, state, now)
    is_due = state.since_update >= learner.update_every  # more, if it was another learner's
    state, _ = loops.cond(
        is_due, lambda x, _: (_update(learner, x), None), lambda x, _: (x, None), state, None
    )
    info = _info(state, _each_step(lambda x: x[0], seen))
    return state, info, checks.are_finite((given, learner._learned(state, info)))


def _run(
    learner: OnlineLearner, before: LearnerState, now: Any
) -> tuple[LearnerState, Info, Bool[Array, "3"]]:
    """The chunk; and whether it began after an update, whether the loss is a sum over time, as far
    as its first steps show, and whether all is finite that must be.
    """
    state, now = learner._fitting(before, now)
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
        state, seen = loops.scan(of_window, state, cut(now, learner._window))
        state = _update(learner, state)._replace(gradients=None)  # not to be carried
        return state, seen._replace(loss=seen.loss.sum())

    is_sum = jnp.ones((), bool)
    if learner._window > 1:
        inputs, targets, _ = jax.tree.map(lambda x: jnp.asarray(x)[: learner._looked_at], now)
        looked_at = len(inputs)
        run = forward(state.network, state.progress.network, inputs, None, n_steps=looked_at)
        is_sum = is_sum_over_time(learner.loss, run.trajectory, targets, learner.has_aux)
    start, gradients = state._replace(gradients=None), state.gradients
    state, seen = loops.scan(one_update, start, cut(now, learner.update_every))
    state = state._replace(gradients=jax.tree.map(jnp.zeros_like, gradients))
    # [update, window, step, ...] -> [time, ...]
    seen = _each_step(lambda x: x.reshape(-1, *x.shape[3:]), seen)
    info = _info(state, seen)
    is_finite = checks.are_finite((given, learner._learned(state, info)))
    return state, info, jnp.stack([before.since_update == 0, is_sum, is_finite])


_OF_ANY = {function: eqx.filter_jit(function) for function in (_step, _run)}
"""The same of any learner, for states that hold functions, too, as a cell may."""


def _program(learner: OnlineLearner, function: Callable, given: list[Any]) -> Callable:
    """`function` of a learner, compiled for arguments with these leaves."""
    if all(isinstance(x, jax.Array | np.ndarray) for x in given):
        return learner._of_arrays[function]
    return functools.partial(_OF_ANY[function], learner)


def _with_time(now: Any) -> Any:
    """One step as a sequence of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], now)


def _are_plain(leaves: list[Any]) -> bool:
    """Whether all are arrays whose numbers are known: the compiled program checks these.

    Or functions, which a cell may hold.
    """

    def is_plain(x: Any) -> bool:
        if isinstance(x, jax.Array):
            return not isinstance(x, jax.core.Tracer)
        if isinstance(x, np.ndarray):
            return x.dtype.isnative and x.dtype.kind in "biuf"
        return callable(x)

    return all(map(is_plain, leaves))


def _info(state: LearnerState, seen: Observed) -> Info:
    of_layers = zip(state.network.layers, state.progress.traces.layers, strict=True)
    norms = [norm for layer, traces in of_layers for norm in trace_norms(layer, traces)]
    return Info(**seen._asdict(), rates=state.rates.rates, trace_norms=norms)


def _each_step(change: Callable[[Array], Array], seen: Observed) -> Observed:
    """With all that is of each step, which the loss is not, changed."""
    return jax.tree.map(change, seen._replace(loss=None))._replace(loss=seen.loss)


@eqx.filter_jit
def _predict(network: Network, state: Any, inputs: ArrayLike) -> tuple[Any, Trajectory]:
    return network.run(state, inputs)


def _observe(
    learner: OnlineLearner, state: LearnerState, now: Any
) -> tuple[LearnerState, Observed]:
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


def _update(learner: OnlineLearner, state: LearnerState) -> LearnerState:
    """The weights after the optimiser's update by the gradients since the last one."""
    return learner_state.updated(learner, state, state.gradients, state.loss)._replace(
        gradients=jax.tree.map(jnp.zeros_like, state.gradients),
        loss=jnp.zeros_like(state.loss),
        since_update=jnp.zeros_like(state.since_update),
    )
