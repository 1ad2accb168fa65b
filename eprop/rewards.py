"""Learning from rewards that come late: actor-critic e-prop, decision by decision.

    π = softmax of all readouts but the last, which is the value V
    δ_t = r_t + γ V_{t+1} - V_t                                known after the next decision
    L_j,t = Σ_k B_jk (π_k - 1[a_t = k]) - C_V B_jV             of the readouts at decision t
    dE/dW_ji = Σ_t δ_t F_t,                 F_t = γ F_{t-1} + L_j,t ē_ji,t

Source: Bellec et al. 2020, Methods, "reward-based e-prop". It is the gradient of
`losses.actor_critic`, found forward in time.

Of some decisions together, a window of K, most δ are known at its end. So those of its own steps
are an error of the readout as any other, (Σ_{t' >= t} γ^(t'-t) δ_t') L_t; the decisions before it
get their part by way of F; and F is led through the window as eligibility traces are.
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

from . import checks
from .credit import paid, with_credit
from .environments import AbstractEnvironment, Situation, Transition
from .evaluation import (
    Carry,
    Derivatives,
    NetworkGradients,
    advance,
    as_network,
    forward,
    init_carry,
    zero_gradients,
)
from .layer import trained_constants
from .loops import cond, scan
from .network import Network, by_layer
from .record import Block, block_steps
from .signals import CreditSignal
from .rules import EProp, apply_updates
from .running_rates import RatePenalty, RunningRates, follow, start_rates
from .sequences import Blocks, leaky_filter
from .trajectory import NetworkState


class Decided(NamedTuple):
    """Of decisions since the last update what `act` knows; with a leading axis of decisions."""

    blocks: tuple[Block, ...]
    """Of each layer, what the derivative needs of its run as it was: `[decision, block, ...]`."""
    penalties: Float[Array, "*decision steps batch n"] | None
    """The rate penalty's derivative with respect to each z_t."""
    outputs: Float[Array, "*decision batch n_out"]
    actions: Int[Array, "*decision batch"]


class Outcome(NamedTuple):
    """What `learn` knows of them, likewise."""

    rewards: Float[Array, "*decision batch"]
    terminated: Bool[Array, "*decision batch"]
    truncated: Bool[Array, "*decision batch"]
    counts: Bool[Array, "*decision batch"]
    final_values: Float[Array, "*decision batch"]
    """V of what came after, where an episode was truncated."""

    @property
    def at_rest_after(self) -> Bool[Array, "*decision batch"]:
        """Which examples begin anew after it."""
        return self.terminated | self.truncated | ~self.counts


class RewardState(NamedTuple):
    """All that a `RewardLearner` carries, one pytree: save it, and learning can go on from it."""

    network: Network
    rule: EProp
    neurons: NetworkState
    traces: Carry
    """Eligibility traces and F, as they were at the last update."""
    decided: Decided
    outcomes: Outcome
    n_recorded: Int[Array, ""]
    """Decisions since the last update whose rewards are known."""
    has_acted: Bool[Array, ""]
    """Whether there is one more, whose reward is not."""
    pending: Float[Array, " batch"]
    """r - V of the last decision before those, if its episode goes on."""
    is_pending: Bool[Array, " batch"]
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
        _, _, outputs, blocks, penalties = jax.eval_shape(
            functools.partial(_respond, self), network, neurons, rates, x
        )
        recorded = jax.tree.map(
            lambda x: jnp.zeros((n, *x.shape), x.dtype), (blocks, penalties, outputs)
        )
        blocks, penalties, outputs = recorded
        no = jnp.zeros((n, batch), bool)
        return RewardState(
            network=network,
            rule=self.rule,
            neurons=neurons,
            traces=with_credit(network, init_carry(network, batch)),
            decided=Decided(blocks, penalties, outputs, jnp.zeros((n, batch), jnp.int32)),
            outcomes=Outcome(zeros, no, no, no, zeros),
            n_recorded=jnp.zeros((), jnp.int32),
            has_acted=jnp.zeros((), bool),
            pending=zeros[0],
            is_pending=no[0],
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
        rewards = checks.real_array("rewards", rewards, self.network.dtype)
        if rewards.shape != (batch,):
            raise ValueError(
                f"rewards have shape {rewards.shape}, but one for each of {batch} examples is "
                f"needed: {(batch,)}"
            )
        rewards = jnp.where(counts, rewards, jnp.zeros_like(rewards))
        rewards = checks.finite("rewards", rewards)
        if after is not None:
            after = self._checked_x("after", after, state, batch)
        elif self.value_weight is not None:
            message = (
                "an episode is truncated, so what would have followed has a value: give "
                "after=x, what the network would have seen"
            )
            if _is_true((truncated & ~terminated & counts).any()):
                raise ValueError(message)
            rewards = eqx.error_if(rewards, (truncated & ~terminated & counts).any(), message)
        state_after, info = _learn(self, state, rewards, terminated, truncated, after, counts)
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
        return len(state.pending)

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


# Acting.


def _respond(
    learner: RewardLearner,
    network: Network,
    neurons: NetworkState,
    rates: RunningRates,
    x: Shaped[Array, "steps batch n_in"],
) -> tuple[NetworkState, RunningRates, Array, tuple[Block, ...], Array | None]:
    """The run until a decision, and what an update will need of it.

    In pieces that are each a block by itself, so that the blocks of all decisions have one length.
    """
    steps, batch = x.shape[:2]
    fitting = block_steps(network.layers, steps, batch)
    length = next(length for length in range(fitting, 0, -1) if steps % length == 0)

    def penalty(spikes: Array, before: RunningRates) -> tuple[Array, RunningRates]:
        followed, last = follow(before, spikes, dt=network.dt, tau=learner.tau_rate)
        weight = jnp.zeros((), network.dtype)
        if learner.rate_penalty is not None:
            weight = learner.rate_penalty.of(followed)
        return weight, last

    def piece(before: tuple[NetworkState, RunningRates], x: Array):
        neurons, rates = before
        neurons, trajectory, records = forward(network, neurons, x, None, n_steps=length)
        spikes = jnp.concatenate([layer.spikes for layer in trajectory.layers], axis=-1)
        d_spikes, rates = jax.grad(penalty, has_aux=True)(spikes, rates)
        kept = None if learner.rate_penalty is None else d_spikes
        blocks = tuple(jax.tree.map(lambda x: x[0], layer.whole) for layer in records)
        return (neurons, rates), (blocks, kept)

    pieces = x.reshape(-1, length, *x.shape[1:])
    (neurons, rates), (blocks, kept) = jax.lax.scan(piece, (neurons, rates), pieces)
    penalties = None if kept is None else kept.reshape(steps, *kept.shape[2:])
    return neurons, rates, neurons.outputs, blocks, penalties


@eqx.filter_jit
def _act(learner: RewardLearner, state: RewardState, x: Array) -> tuple[RewardState, Array]:
    neurons, rates, outputs, blocks, penalties = _respond(
        learner, state.network, state.neurons, state.rates, x
    )
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.n_decisions), 0)
    logits = outputs[:, : learner.n_actions]
    actions = jax.random.categorical(key, logits).astype(jnp.int32)
    now = Decided(blocks, penalties, outputs, actions)
    state = state._replace(
        neurons=neurons,
        rates=rates,
        decided=_written(state.decided, now, state.n_recorded),
        has_acted=jnp.ones((), bool),
    )
    return state, actions


def _written(kept: Any, now: Any, index: Int[Array, ""]) -> Any:
    """`kept` with what there is now of one decision."""
    return jax.tree.map(lambda into, x: into.at[index].set(x), kept, now)


# Learning.


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
            return _respond(learner, state.network, neurons, state.rates, after)[2][:, -1]

        is_cut = (truncated & ~terminated & counts).any()
        final_values = jax.lax.cond(is_cut, value, lambda _: final_values, state.neurons)
    now = Outcome(rewards, terminated, truncated, counts, final_values)
    outputs = state.decided.outputs[state.n_recorded]
    fresh = state.network.init(len(rewards))
    state = state._replace(
        neurons=_restarted(fresh, state.neurons, now.at_rest_after),
        outcomes=_written(state.outcomes, now, state.n_recorded),
        n_recorded=state.n_recorded + 1,
        has_acted=jnp.zeros((), bool),
        n_decisions=state.n_decisions + jnp.uint32(1),
    )
    is_due = state.n_recorded >= learner.update_every
    state = cond(is_due, functools.partial(_update, learner), lambda state: state, state)
    log_policy = jax.nn.log_softmax(outputs[:, : learner.n_actions])
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)
    return state, RewardInfo(outputs, entropy, state.rates.rates)


def _restarted(fresh: Any, old: Any, which: Bool[Array, " batch"]) -> Any:
    """With some examples as they are when fresh; all arrays have a leading axis of examples."""
    return jax.tree.map(
        lambda x, y: jnp.where(which.reshape(-1, *[1] * (y.ndim - 1)), x, y), fresh, old
    )


def _update(learner: RewardLearner, state: RewardState) -> RewardState:
    """The weights after the optimiser's update by the decisions since the last one."""
    traces, gradients, pending = _gradients(learner, state)
    part = learner._part(state.network)
    kept = jax.tree.map(lambda x: x is not None, part, is_leaf=lambda x: x is None)
    d_part: Any = eqx.filter(as_network(state.network, gradients), kept)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        updates, optimizer = learner.optimizer.update(d_part, state.optimizer, part)
        network, rule = apply_updates(state.network, updates, state.rule)
    goes_on = ~state.outcomes.at_rest_after[-1]
    if learner.value_weight is None:
        goes_on = jnp.zeros_like(goes_on)
    return state._replace(
        network=network,
        rule=rule,
        optimizer=optimizer,
        traces=traces,
        n_recorded=jnp.zeros_like(state.n_recorded),
        pending=jnp.where(goes_on, pending, jnp.zeros_like(pending)),
        is_pending=goes_on,
    )


def _gradients(
    learner: RewardLearner, state: RewardState
) -> tuple[Carry, NetworkGradients, Float[Array, " batch"]]:
    """Of the decisions since the last update: traces after them, gradient, and r - V of the last.

    δ of the last decision before them is known now; that of their own last is not, unless an
    episode ended with it.
    """
    network, gamma = state.network, learner.discount
    decided, outcomes = state.decided, state.outcomes
    n, batch = outcomes.rewards.shape
    ends = outcomes.at_rest_after
    per_delta, direct = _errors(learner, decided, outcomes.counts)

    if learner.value_weight is None:
        surprise, delta, overdue = outcomes.rewards, outcomes.rewards, jnp.zeros_like(state.pending)
    else:
        values = decided.outputs[:, :, -1]
        following = jnp.concatenate([values[1:], jnp.zeros_like(values[:1])])
        following = jnp.where(outcomes.truncated, outcomes.final_values, following)
        following = jnp.where(outcomes.terminated, jnp.zeros_like(following), following)
        surprise = outcomes.rewards - values
        delta = surprise + gamma * following
        delta = delta.at[-1].set(jnp.where(ends[-1], delta[-1], jnp.zeros_like(delta[-1])))
        overdue = state.pending + gamma * values[0]
        overdue = jnp.where(state.is_pending, overdue, jnp.zeros_like(overdue))
    delta = jnp.where(outcomes.counts, delta, jnp.zeros_like(delta))

    b = state.rule.feedback.matrix(network)

    def window(carry: Carry, now: Any) -> tuple[Carry, NetworkGradients]:
        """Some decisions, of which none but the last ends an episode."""
        decided, per_delta, direct, delta, overdue, ends = now
        gains = leaky_filter(delta, gamma, jnp.zeros_like(overdue), reverse=True)
        error = gains[..., None] * per_delta + direct
        left = jnp.asarray(gamma ** np.arange(len(delta))[::-1], network.dtype)
        credit = CreditSignal(
            _at_decisions(left[:, None, None] * per_delta, learner.steps), gamma ** len(delta)
        )
        spikes: list[Any] = [None] * len(network.layers)
        if decided.penalties is not None:
            penalties = decided.penalties.reshape(-1, *decided.penalties.shape[2:])
            penalties = jnp.moveaxis(penalties, -1, 0)
            spikes = [jnp.moveaxis(x, 0, -1) for x in by_layer(network, penalties)]
        derivatives = Derivatives(
            _at_decisions(error / batch, learner.steps), spikes, [None] * len(spikes), credit
        )
        records = tuple(
            Blocks(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), layer), None)
            for layer in decided.blocks
        )
        of_past = paid(network, carry, (overdue + gamma * gains[0]) / batch)
        carry, gradients = advance(network, b, records, derivatives, carry)
        fresh = with_credit(network, init_carry(network, batch))
        carry = _restarted(fresh, carry, ends[-1])
        return carry, jax.tree.map(jnp.add, gradients, of_past)

    overdue = jnp.zeros_like(delta).at[0].set(overdue)
    all_of_it = (decided, per_delta, direct, delta, overdue, ends)

    def at_once(carry: Carry) -> tuple[Carry, NetworkGradients]:
        return window(carry, (*all_of_it[:4], overdue[0], ends))

    def one_by_one(carry: Carry) -> tuple[Carry, NetworkGradients]:
        def of_decision(so_far, now):
            carry, total = so_far
            one = jax.tree.map(lambda x: x[None], now)
            carry, gradients = window(carry, (*one[:4], now[4], one[5]))
            return (carry, jax.tree.map(jnp.add, total, gradients)), None

        return jax.lax.scan(of_decision, (carry, zero_gradients(network)), all_of_it)[0]

    # Where an episode ends in between all go decision by decision: slower, and as exact.
    if n == 1:
        carry, gradients = at_once(state.traces)
    else:
        carry, gradients = jax.lax.cond(ends[:-1].any(), one_by_one, at_once, state.traces)
    return carry, gradients, surprise[-1]


def _errors(
    learner: RewardLearner, decided: Decided, counts: Bool[Array, "decision batch"]
) -> tuple[Float[Array, "decision batch n_out"], Float[Array, "decision batch n_out"]]:
    """Errors of the readouts: that which is multiplied by δ, and that which is not."""
    n_actions, dtype = learner.n_actions, decided.outputs.dtype
    log_policy = jax.nn.log_softmax(decided.outputs[..., :n_actions])
    policy = jnp.exp(log_policy)
    entropy = -jnp.sum(policy * log_policy, axis=-1, keepdims=True)
    per_delta = policy - jax.nn.one_hot(decided.actions, n_actions, dtype=dtype)
    direct = learner.entropy_weight * policy * (log_policy + entropy)  # of -c H
    if learner.value_weight is not None:
        of_value = jnp.full_like(entropy, learner.value_weight)
        per_delta = jnp.concatenate([per_delta, -of_value], axis=-1)
        direct = jnp.concatenate([direct, jnp.zeros_like(of_value)], axis=-1)
    weights = counts[..., None].astype(dtype)
    return weights * per_delta, weights * direct


def _at_decisions(
    errors: Float[Array, "decision batch n_out"], steps: int
) -> Float[Array, "time batch n_out"]:
    """Errors as they are in time: at the last step before each decision."""
    in_time = jnp.zeros((len(errors), steps, *errors.shape[1:]), errors.dtype)
    return in_time.at[:, -1].set(errors).reshape(-1, *errors.shape[1:])


# In environments written in JAX.


@eqx.filter_jit
def _rollout(
    learner: RewardLearner,
    state: RewardState,
    environment: AbstractEnvironment,
    situation: Situation,
    n_decisions: int,
) -> tuple[RewardState, Situation, Played]:
    batch = len(state.pending)

    def decision(both: tuple[RewardState, Situation], _: None):
        state, situation = both
        keys = jax.random.fold_in(jax.random.fold_in(state.key, state.n_decisions), 1)
        of_step, of_reset = jax.random.split(keys, (2, batch))
        state, actions = _act(learner, state, situation.x)
        found = jax.vmap(environment.step, out_axes=Transition(0, 1, 0, 0, 0))(
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
            _restarted(fresh, found.state, ended), jnp.where(ended[None, :, None], x, found.x)
        )
        played = Played(actions, rewards, found.terminated, found.truncated, info)
        return (state, situation), played

    (state, situation), played = scan(decision, (state, situation), jnp.arange(n_decisions))
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
