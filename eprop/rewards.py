"""Learning from rewards that come late: actor-critic e-prop, decision by decision.

    π = softmax of all readouts but the last, which is the value V
    δ_t = r_t + γ V_{t+1} - V_t                                known after the next decision
    L_j,t = Σ_k B_jk (π_k - 1[a_t = k]) - C_V B_jV             of the readouts at decision t
    dE/dW_ji = Σ_t δ_t F_t,                 F_t = γ F_{t-1} + L_j,t ē_ji,t

Source: Bellec et al. 2020, Methods, "reward-based e-prop". It is the gradient of
`losses.actor_critic`, found forward in time.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Shaped, UInt

from . import checks, loops, optimization
from .decisions import (
    ActorCritic,
    Course,
    Decided,
    Outcome,
    Response,
    gradients_of,
    init_course,
    respond,
    restarted,
    written,
)
from .environments import TRANSITION_AXES, AbstractEnvironment, Situation
from .evaluation import as_network
from .layer import trained_constants
from .network import Network
from .rules import EProp
from .running_rates import RatePenalty, RunningRates, start_rates
from .trajectory import NetworkState


class RewardState(NamedTuple):
    """All that a `RewardLearner` carries, one pytree: save it, and learning can go on from it."""

    network: Network
    rule: EProp
    neurons: NetworkState
    course: Course
    """Eligibility traces and F, as they were at the last update."""
    decided: Decided
    outcomes: Outcome
    n_recorded: Int[Array, ""]
    """Decisions since the last update whose rewards are known."""
    has_acted: Bool[Array, ""]
    """Whether there is one more, whose reward is not."""
    optimizer: optax.OptState
    rates: RunningRates
    n_decisions: UInt[Array, ""]
    """Decisions made, of each example; after 2³² it starts again from 0."""
    key: PRNGKeyArray
    """What is drawn for decision t comes from `jax.random.fold_in(key, t)`."""


class RewardInfo(NamedTuple):
    """What one may want to look at, of a decision."""

    outputs: Float[Array, "batch n_out"]
    """Those it was made by; the last one is its value, if there is a critic."""
    entropy: Float[Array, " batch"]
    """Of its policy, in nats."""
    rates: Float[Array, " n"]
    """Running average of the firing rates in Hz."""


class Played(NamedTuple):
    """What happened in a rollout, by decision."""

    actions: Int[Array, "decision batch"]
    rewards: Float[Array, "decision batch"]
    terminated: Bool[Array, "decision batch"]
    truncated: Bool[Array, "decision batch"]
    info: RewardInfo


class Learned(NamedTuple):
    """What must be finite."""

    network: Network


class RewardLearner(eqx.Module):
    """A network that acts, and learns by e-prop from the rewards that it gets.

        learner = RewardLearner(network, EProp(), optax.adam(1e-3), discount=0.99, steps=5)
        state = learner.init(batch=16)
        state, actions = learner.act(state, x)                     # x of 5 steps, [5, 16, n_in]
        state, info = learner.learn(state, rewards, terminated, truncated, after=next_x)

    The network sees x for some steps, then decides by its readouts: an action drawn from softmax of
    all but the last, which is the value. All is pure and compiled. The weights change every
    `update_every` decisions, by the run as it was when it decided; neurons, traces and F go on. An
    episode's end sets its example to rest, as if each episode had been alone.

    **Without a critic** (`value_weight=None`) all readouts are actions, and δ_t is what `learn` is
    given as rewards: a modulator of your own, such as the reward less a baseline.
    """

    network: Network
    rule: EProp
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    discount: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    update_every: int = eqx.field(static=True)
    value_weight: float | None = eqx.field(static=True)
    entropy_weight: float = eqx.field(static=True)
    rate_penalty: RatePenalty | None = eqx.field(static=True)
    tau_rate: float = eqx.field(static=True)
    trainable: Any = eqx.field(static=True)

    def __init__(
        self,
        network: Network,
        rule: EProp,
        optimizer: optax.GradientTransformation,
        *,
        discount: float,
        steps: int = 1,
        update_every: int = 1,
        value_weight: float | None = 1.0,
        entropy_weight: float = 0.0,
        rate_penalty: RatePenalty | None = None,
        tau_rate: float = 10_000.0,
        trainable: Any = eqx.is_inexact_array,
    ):
        """**Arguments:**

        - `network`: before learning, with a readout for each action and, behind them, the value.
        - `rule`: `EProp(feedback)`.
        - `optimizer`: of optax, for the gradient summed over the decisions of an update and
          averaged over the batch.
        - `discount`: γ, 0 to 1, from one decision to the next.
        - `steps`: of the network, from one decision to the next.
        - `update_every`: decisions from one weight update to the next.
        - `value_weight`: C_V, of the value's error; `None` for no critic.
        - `entropy_weight`: c, by which the policy's entropy is rewarded.
        - `rate_penalty`, `tau_rate`: as for `OnlineLearner`, added up over the network's steps.
        - `trainable`: the weights that change, as for `value_and_grad`; of the cells' constants
          there is none.
        """
        self.network = checks.instance("network", network, Network, "Network(cell, ...)")
        self.rule = checks.instance("rule", rule, EProp, "EProp(): BPTT can't learn online")
        self.optimizer = checks.instance(
            "optimizer", optimizer, optax.GradientTransformation, "optax.adam(1e-3)"
        )
        self.discount = checks.between("discount", discount, 0, 1)
        self.steps = checks.positive_int("steps", steps)
        self.update_every = checks.positive_int("update_every", update_every)
        if value_weight is not None:
            value_weight = checks.not_negative("value_weight", value_weight)
        self.value_weight = value_weight
        self.entropy_weight = checks.not_negative("entropy_weight", entropy_weight)
        if rate_penalty is not None:
            checks.instance("rate_penalty", rate_penalty, RatePenalty, "RatePenalty(10.0, 1.0)")
            for name, value in rate_penalty._asdict().items():
                checks.not_negative(f"rate_penalty.{name}", value)
        self.rate_penalty = rate_penalty
        self.tau_rate = checks.duration("tau_rate", tau_rate)
        self.trainable = trainable
        if self.n_actions < 1:
            raise ValueError(
                f"the network has n_out = {network.n_out} readout: give one for each action, and "
                f"one for the value"
            )
        if rule.window is not None:
            raise ValueError(
                f"window = {rule.window}: all decisions of an update are one window, so write "
                f"EProp(feedback), and update_every for how many"
            )
        rule.feedback.matrix(network)  # its errors come now
        layers = self._part(network).layers
        if any(jax.tree.leaves(trained_constants(layer)) for layer in layers):
            raise ValueError(
                "the constants of the network's cells would be trained, which rewards can't do "
                "online: give numbers in place of arrays, or leave them out of `trainable`, or "
                "differentiate losses.actor_critic of whole rollouts"
            )

    @property
    def n_actions(self) -> int:
        """Number of actions."""
        return self.network.n_out - (self.value_weight is not None)

    @property
    def goal(self) -> ActorCritic:
        """What the decisions are for."""
        return ActorCritic(self.discount, self.value_weight, self.entropy_weight)

    def init(
        self, batch: int = 1, key: PRNGKeyArray | None = None, *, dtype: Any = bool
    ) -> RewardState:
        """The state before the first decision.

        **Arguments:** `batch`: environments side by side; `key`: for the actions, and the
        environments of `rollout`; `dtype`: of what the network sees: spikes, or the weights' dtype.
        """
        network, batch = self.network, checks.positive_int("batch", batch)
        n = self.update_every
        neurons, zeros = network.init(batch), jnp.zeros((n, batch), network.dtype)
        rates = start_rates(network.n, network.dtype)
        x = jnp.zeros((self.steps, batch, network.n_in), dtype)
        run = jax.eval_shape(functools.partial(_run, self), network, neurons, rates, x)
        blocks, penalties, outputs = jax.tree.map(
            lambda x: jnp.zeros((n, *x.shape), x.dtype),
            (run.blocks, run.penalties, run.neurons.outputs),
        )
        no = jnp.zeros((n, batch), bool)
        return RewardState(
            network=network,
            rule=self.rule,
            neurons=neurons,
            course=init_course(network, batch),
            decided=Decided(blocks, penalties, outputs, jnp.zeros((n, batch), jnp.int32)),
            outcomes=Outcome(zeros, no, no, no, zeros),
            n_recorded=jnp.zeros((), jnp.int32),
            has_acted=jnp.zeros((), bool),
            optimizer=self.optimizer.init(self._part(network)),
            rates=rates,
            n_decisions=jnp.zeros((), jnp.uint32),
            key=jax.random.key(0) if key is None else key,
        )

    def act(self, state: RewardState, x: ArrayLike) -> tuple[RewardState, Int[Array, " batch"]]:
        """The actions that the network decides for after it has seen x, `[steps, batch, n_in]`.

        Raises `ValueError` or `TypeError` for a state or x that don't fit, or with NaN in it.
        """
        batch = self._batch_of(state)
        if _is_true(state.has_acted):
            raise ValueError("act was called twice: call learn with what the actions came to")
        x = self._checked_x("x", x, state, batch)
        return _act(self, state, x)

    def learn(
        self,
        state: RewardState,
        rewards: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        *,
        after: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> tuple[RewardState, RewardInfo]:
        """What the last actions came to, and if it is due an update of the weights.

        **Arguments:** all `[batch]`, but for `after`:

        - `rewards`: r_t, or without a critic δ_t.
        - `terminated`, `truncated`: booleans, where an episode has ended with this decision: over,
          or broken off.
        - `after`: what the network would have seen next, `[steps, batch, n_in]`; needed where an
          episode was truncated and there is a critic, for the value of what would have followed.
        - `counts`: where it is false there was no decision: environments that spend a step on
          beginning anew take no notice of an action. The example is at rest afterwards.

        Raises `ValueError` or `TypeError` for what doesn't fit, or with NaN in it, and
        `FloatingPointError` if a weight comes out as NaN or infinite. The state given is as it was,
        whatever happens.
        """
        batch = self._batch_of(state)
        if not isinstance(state.has_acted, jax.core.Tracer) and not state.has_acted:
            raise ValueError("learn comes after act: there is no action whose reward this could be")
        counts = jnp.ones(batch, bool) if counts is None else counts
        given = {"terminated": terminated, "truncated": truncated, "counts": counts}
        terminated, truncated, counts = (_booleans(*item, batch) for item in given.items())
        heard = checks.real_array("rewards", rewards, self.network.dtype)
        if heard.shape != (batch,):
            raise ValueError(
                f"rewards have shape {heard.shape}, but one for each of {batch} examples is "
                f"needed: {(batch,)}"
            )
        heard = checks.finite("rewards", jnp.where(counts, heard, jnp.zeros_like(heard)))
        if after is not None:
            after = self._checked_x("after", after, state, batch)
        elif self.value_weight is not None:
            message = (
                "an episode is truncated, so what would have followed has a value: give "
                "after=x, what the network would have seen"
            )
            if _is_true((truncated & ~terminated & counts).any()):
                raise ValueError(message)
            heard = eqx.error_if(heard, (truncated & ~terminated & counts).any(), message)
        state_after, info = _learn(self, state, heard, terminated, truncated, after, counts)
        return self._settled(state_after), info

    def rollout(
        self,
        state: RewardState,
        environment: AbstractEnvironment,
        situation: Situation,
        n_decisions: int,
    ) -> tuple[RewardState, Situation, Played]:
        """`n_decisions` of acting and learning in environments written in JAX, as one program.

            situation = environments.reset(environment, batch=16, key=jax.random.key(0))
            state = learner.init(batch=16)
            state, situation, played = learner.rollout(state, environment, situation, 1000)

        Raises as `act` and `learn` do.
        """
        checks.positive_int("n_decisions", n_decisions)
        checks.instance(
            "environment", environment, AbstractEnvironment, "a subclass of AbstractEnvironment"
        )
        checks.instance("situation", situation, Situation, "environments.reset(environment, batch)")
        batch = self._batch_of(state)
        if _is_true(state.has_acted):
            raise ValueError("act was called: call learn with what the actions came to, first")
        self._checked_x("situation.x", situation.x, state, batch)
        state, situation, played = _rollout(self, state, environment, situation, n_decisions)
        if not isinstance(played.rewards, jax.core.Tracer):
            checks.finite("the environment's rewards", played.rewards)
        return self._settled(state), situation, played

    def _part(self, network: Network) -> Any:
        return eqx.filter(network, self.trainable)

    def _batch_of(self, state: RewardState) -> int:
        """The number of examples, of a state of this learner."""
        checks.instance("state", state, RewardState, "learner.init(batch)")
        for name, mine, given in [
            ("network", self.network, state.network),
            ("feedback", self.rule.feedback, state.rule.feedback),
        ]:
            shapes = [
                (jax.tree.structure(x), [jnp.shape(leaf) for leaf in jax.tree.leaves(x)])
                for x in (mine, given)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the state is of another learner: its {name} has other arrays or constants, "
                    f"of shapes {shapes[1][1]}, this learner's {shapes[0][1]}"
                )
        if len(state.outcomes.rewards) != self.update_every:
            raise ValueError(
                f"the state is of a learner with update_every = {len(state.outcomes.rewards)}, "
                f"this one's is {self.update_every}"
            )
        return len(state.course.surprise)

    def _checked_x(self, name: str, x: ArrayLike, state: RewardState, batch: int) -> Array:
        array = checks.sequence(name, x, self.network.n_in, self.network.dtype)
        if array.shape[:2] != (self.steps, batch):
            raise ValueError(
                f"{name} has shape {array.shape}, but [steps, batch, n_in] = "
                f"{(self.steps, batch, self.network.n_in)} is needed"
            )
        dtype = state.decided.blocks[0].below.dtype
        if array.dtype != dtype:
            raise TypeError(
                f"{name} has dtype {array.dtype}, but the state is for {dtype}: write "
                f"learner.init({batch}, dtype=jnp.{array.dtype})"
            )
        return checks.finite(name, array)

    def _settled(self, state: RewardState) -> RewardState:
        """The new state; `FloatingPointError` if its weights are not finite."""
        learned = Learned(self._part(state.network))
        for path, x in jax.tree_util.tree_leaves_with_path(learned):
            if not isinstance(x, jax.core.Tracer) and not np.isfinite(x).all():
                raise FloatingPointError(
                    f"{jax.tree_util.keystr(path, simple=True, separator='.')} is NaN or infinite "
                    f"after decision {int(state.n_decisions)}; the state from before this call is "
                    f"as it was"
                )
        return state


def _run(
    learner: RewardLearner,
    network: Network,
    neurons: NetworkState,
    rates: RunningRates,
    x: Shaped[Array, "steps batch n_in"],
) -> Response:
    return respond(network, neurons, rates, x, learner.rate_penalty, learner.tau_rate)


@eqx.filter_jit
def _act(learner: RewardLearner, state: RewardState, x: Array) -> tuple[RewardState, Array]:
    run = _run(learner, state.network, state.neurons, state.rates, x)
    outputs = run.neurons.outputs
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.n_decisions), 0)
    actions = jax.random.categorical(key, outputs[:, : learner.n_actions]).astype(jnp.int32)
    now = Decided(run.blocks, run.penalties, outputs, actions)
    state = state._replace(
        neurons=run.neurons,
        rates=run.rates,
        decided=written(state.decided, now, state.n_recorded),
        has_acted=jnp.ones((), bool),
    )
    return state, actions


@eqx.filter_jit
def _learn(
    learner: RewardLearner,
    state: RewardState,
    rewards: Array,
    terminated: Array,
    truncated: Array,
    after: Array | None,
    counts: Array,
) -> tuple[RewardState, RewardInfo]:
    final_values = jnp.zeros_like(rewards)
    if after is not None and learner.value_weight is not None:

        def value(neurons: NetworkState) -> Array:
            run = _run(learner, state.network, neurons, state.rates, after)
            return run.neurons.outputs[:, -1]

        is_cut = (truncated & ~terminated & counts).any()
        final_values = jax.lax.cond(is_cut, value, lambda _: final_values, state.neurons)
    now = Outcome(rewards, terminated, truncated, counts, final_values)
    outputs = state.decided.outputs[state.n_recorded]
    fresh = state.network.init(len(rewards))
    state = state._replace(
        neurons=restarted(fresh, state.neurons, now.at_rest_after),
        outcomes=written(state.outcomes, now, state.n_recorded),
        n_recorded=state.n_recorded + 1,
        has_acted=jnp.zeros((), bool),
        n_decisions=state.n_decisions + jnp.uint32(1),
    )
    is_due = state.n_recorded >= learner.update_every
    state, _ = loops.cond(
        is_due, lambda x, _: (_update(learner, x), None), lambda x, _: (x, None), state, None
    )
    log_policy = jax.nn.log_softmax(outputs[:, : learner.n_actions])
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)
    return state, RewardInfo(outputs, entropy, state.rates.rates)


def _update(learner: RewardLearner, state: RewardState) -> RewardState:
    """The weights after the optimiser's update by the decisions since the last one."""
    b = state.rule.feedback.matrix(state.network)
    course, gradients = gradients_of(
        learner.goal, state.network, b, state.course, state.decided, state.outcomes, learner.steps
    )
    part = learner._part(state.network)
    kept = jax.tree.map(lambda x: x is not None, part, is_leaf=lambda x: x is None)
    network, rule, optimizer = optimization.update(
        learner.optimizer,
        state.network,
        state.rule,
        eqx.filter(as_network(state.network, gradients), kept),
        state.optimizer,
        trainable=learner.trainable,
        value=jnp.zeros((), state.network.dtype),
    )
    return state._replace(
        network=network,
        rule=rule,
        optimizer=optimizer,
        course=course,
        n_recorded=jnp.zeros_like(state.n_recorded),
    )


@eqx.filter_jit
def _rollout(
    learner: RewardLearner,
    state: RewardState,
    environment: AbstractEnvironment,
    situation: Situation,
    n_decisions: int,
) -> tuple[RewardState, Situation, Played]:
    batch = state.outcomes.rewards.shape[1]

    def decision(both: tuple[RewardState, Situation], _: Array):
        state, situation = both
        keys = jax.random.fold_in(jax.random.fold_in(state.key, state.n_decisions), 1)
        of_step, of_reset = jax.random.split(keys, (2, batch))
        state, actions = _act(learner, state, situation.x)
        found = jax.vmap(environment.step, out_axes=TRANSITION_AXES)(
            situation.state, actions, of_step
        )
        rewards = found.reward.astype(learner.network.dtype)
        state, info = _learn(
            learner,
            state,
            rewards,
            found.terminated,
            found.truncated,
            found.x,
            jnp.ones(batch, bool),
        )
        fresh, x = jax.vmap(environment.reset, out_axes=(0, 1))(of_reset)
        ended = found.terminated | found.truncated
        situation = Situation(
            restarted(fresh, found.state, ended), jnp.where(ended[None, :, None], x, found.x)
        )
        played = Played(actions, rewards, found.terminated, found.truncated, info)
        return (state, situation), played

    (state, situation), played = loops.scan(decision, (state, situation), jnp.arange(n_decisions))
    return state, situation, played


def _booleans(name: str, value: ArrayLike, batch: int) -> Array:
    array = checks.array(name, value)
    if array.shape != (batch,) or array.dtype != bool:
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}, but a boolean for each of "
            f"{batch} examples is needed: {(batch,)}"
        )
    return array


def _is_true(value: Array) -> bool:
    """Whether it is known, and true."""
    return not isinstance(value, jax.core.Tracer) and bool(value)
