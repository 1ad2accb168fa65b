"""Acting, and learning from what it came to: pure functions of a `RewardLearner` and its state."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt

from . import learner_state, loops
from .decisions import Course, Decided, Outcome, Response, gradients_of, respond, written
from .environments import TRANSITION_AXES, AbstractEnvironment, Situation
from .learner_state import restarted
from .network import Network
from .rules import EProp
from .running_rates import RunningRates
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


def respond_to(
    learner: Any,
    network: Network,
    neurons: NetworkState,
    rates: RunningRates,
    x: Shaped[Array, "steps batch n_in"],
) -> Response:
    """The run until a decision."""
    return respond(network, neurons, rates, x, learner.rate_penalty, learner.tau_rate)


# Programs give back what changes, and no more: JAX would copy the rest, traces and all. A learner
# has those of its own.


def act(learner: Any, state: RewardState, x: Array) -> tuple[RewardState, Array]:
    """See `RewardLearner.act`, whose arguments have been checked; so it is of all here."""
    changed, actions = learner._jitted[decide](state, x)
    return state._replace(**changed), actions


def decide(learner: Any, state: RewardState, x: Array) -> tuple[dict[str, Any], Array]:
    """What changes of the state, and the actions."""
    run = respond_to(learner, state.network, state.neurons, state.rates, x)
    outputs = run.neurons.outputs
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.n_decisions), 0)
    actions = jax.random.categorical(key, outputs[:, : learner.n_actions]).astype(jnp.int32)
    now = Decided(run.blocks, run.penalties, outputs, actions)
    changed = {
        "neurons": run.neurons,
        "rates": run.rates,
        "decided": written(state.decided, now, state.n_recorded),
        "has_acted": jnp.ones((), bool),
    }
    return changed, actions


def learn(learner: Any, state: RewardState, *happened: Any) -> tuple[RewardState, RewardInfo]:
    """See `RewardLearner.learn`; what happened is what `record` takes."""
    changed, info = learner._jitted[record](state, *happened)
    state = state._replace(**changed)
    is_due = state.n_recorded >= learner.update_every
    if not isinstance(is_due, jax.core.Tracer):  # a branch in a program would copy all traces
        return state._replace(**learner._jitted[update](state)) if is_due else state, info

    def updated(state: RewardState, _: None) -> tuple[RewardState, None]:
        return state._replace(**update(learner, state)), None

    return loops.cond(is_due, updated, lambda state, _: (state, None), state, None)[0], info


def record(
    learner: Any,
    state: RewardState,
    rewards: Array,
    terminated: Array,
    truncated: Array,
    after: Array | None,
    counts: Array,
) -> tuple[dict[str, Any], RewardInfo]:
    """What changes of the state when it is written down what the last actions came to."""
    final_values = jnp.zeros_like(rewards)
    if after is not None and learner.value_weight is not None:

        def value(neurons: NetworkState) -> Array:
            run = respond_to(learner, state.network, neurons, state.rates, after)
            return run.neurons.outputs[:, -1]

        is_cut = (truncated & ~terminated & counts).any()
        final_values = jax.lax.cond(is_cut, value, lambda _: final_values, state.neurons)
    now = Outcome(rewards, terminated, truncated, counts, final_values)
    outputs = state.decided.outputs[state.n_recorded]
    fresh = state.network.init(len(rewards))
    changed = {
        "neurons": restarted(fresh, state.neurons, now.at_rest_after),
        "outcomes": written(state.outcomes, now, state.n_recorded),
        "n_recorded": state.n_recorded + 1,
        "has_acted": jnp.zeros((), bool),
        "n_decisions": state.n_decisions + jnp.uint32(1),
    }
    log_policy = jax.nn.log_softmax(outputs[:, : learner.n_actions])
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)
    return changed, RewardInfo(outputs, entropy, state.rates.rates)


def update(learner: Any, state: RewardState) -> dict[str, Any]:
    """What changes of the state in an update of the weights by the decisions since the last one."""
    b = state.rule.feedback.matrix(state.network)
    course, gradients = gradients_of(
        learner.goal, state.network, b, state.course, state.decided, state.outcomes, learner.steps
    )
    after = learner_state.updated(learner, state, gradients, value=None)
    changed = {name: getattr(after, name) for name in ("network", "rule", "optimizer")}
    return {**changed, "course": course, "n_recorded": jnp.zeros_like(state.n_recorded)}


def rollout(
    learner: Any,
    state: RewardState,
    environment: AbstractEnvironment,
    situation: Situation,
    n_decisions: int,
) -> tuple[RewardState, Situation, Played, Bool[Array, ""]]:
    """See `RewardLearner.rollout`; and whether all that was seen was finite."""
    batch = state.outcomes.rewards.shape[1]

    def decision(both: tuple[RewardState, Situation], _: Array):
        state, situation = both
        keys = jax.random.fold_in(jax.random.fold_in(state.key, state.n_decisions), 1)
        of_step, of_reset = jax.random.split(keys, (2, batch))
        state, actions = act(learner, state, situation.x)
        found = jax.vmap(environment.step, out_axes=TRANSITION_AXES)(
            situation.state, actions, of_step
        )
        rewards = found.reward.astype(learner.network.dtype)
        state, info = learn(
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
        is_finite = jnp.isfinite(found.x).all() & jnp.isfinite(situation.x).all()
        return (state, situation), (played, is_finite)

    (state, situation), (played, is_finite) = loops.scan(
        decision, (state, situation), jnp.arange(n_decisions)
    )
    return state, situation, played, is_finite.all()
