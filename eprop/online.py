"""Learning while the data arrives: one step, or one chunk, at a time, for as long as it takes."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ArrayLike, PRNGKeyArray

from . import checks, learner_state, optimization, stepping
from .evaluation import zero_gradients
from .jitted import Jitted
from .network import Network
from .pieces import NO_SUM_OVER_TIME, init_progress
from .rules import EProp, Loss
from .running_rates import RatePenalty, start_rates
from .stepping import STATE, Info, LearnerState, with_time
from .trajectory import Trajectory
from .weights import random_key


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
        of_optimizer = jax.eval_shape(self.optimizer.init, checks.trained(network, self.trainable))
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
            optimizer=self.optimizer.init(checks.trained(network, self.trainable)),
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
            state, _ = self._checked(state, with_time(now))
        after, info, is_finite = _compiled(self, stepping.step, leaves)(state, now)
        if not isinstance(is_finite, jax.core.Tracer) and not is_finite:
            raise self._not_finite(state, with_time(now), after, info)
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
        after, info, fine = _compiled(self, stepping.run, leaves)(state, now)
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
        """For states and data of arrays alone, which takes a fifth less time for each call."""
        return {x: jax.jit(functools.partial(x, self)) for x in (stepping.step, stepping.run)}

    @functools.cached_property
    def _of_any(self) -> dict[Callable, Callable]:
        """For states that hold functions, too, as a cell may."""
        return {x: Jitted(functools.partial(x, self)) for x in (stepping.step, stepping.run)}

    def _checked(self, state: LearnerState, now: Any) -> tuple[LearnerState, Any]:
        """State and data, if they are this learner's; where traced, the state holds the error."""
        state, now = stepping.fitting(self, state, now)
        network, _ = state.network.checked(now[0])
        return state._replace(network=network), now

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
            return ValueError(NO_SUM_OVER_TIME.format(n=stepping.window_of(self)))
        assert not is_finite, "something was wrong"
        return self._not_finite(before, now, state, info)

    def _not_finite(
        self, before: LearnerState, now: Any, state: LearnerState, info: Info
    ) -> FloatingPointError:
        """An error that names what is not finite after some steps; raised if it was before."""
        self._checked(before, now)
        found = learner_state.first_not_finite(stepping.learned(self, state, info))
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


def _compiled(learner: OnlineLearner, function: Callable, given: list[Any]) -> Callable:
    """`function` of a learner, for arguments with these leaves."""
    are_arrays = all(isinstance(x, jax.Array | np.ndarray) for x in given)
    return (learner._of_arrays if are_arrays else learner._of_any)[function]


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


@eqx.filter_jit
def _predict(network: Network, state: Any, inputs: ArrayLike) -> tuple[Any, Trajectory]:
    return network.run(state, inputs)
