"""Learning from rewards that come late: actor-critic e-prop, decision by decision.

    π = softmax of all readouts but the last, which is the value V
    δ_t = r_t + γ V_{t+1} - V_t                                known after the next decision
    L_j,t = Σ_k B_jk (π_k - 1[a_t = k]) - C_V B_jV             of the readouts at decision t
    dE/dW_ji = Σ_t δ_t F_t,                 F_t = γ F_{t-1} + L_j,t ē_ji,t

Source: Bellec et al. 2020, Methods, "reward-based e-prop". It is the gradient of
`losses.actor_critic`, found forward in time.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PRNGKeyArray

from . import acting, checks, learner_state, optimization
from .acting import Played, RewardInfo, RewardState
from .decisions import ActorCritic, Decided, Outcome, init_course
from .environments import AbstractEnvironment, Situation, check_rollout
from .jitted import Jitted
from .layer import trained_constants
from .network import Network
from .rules import EProp
from .running_rates import RatePenalty, start_rates
from .weights import random_key


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
    kinds: Any = eqx.field(static=True)
    """What a state of this learner is like."""

    def __init__(
        self,
        network: Network,
        rule: EProp,
        optimizer: optax.GradientTransformation | optax.MultiSteps,
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
        self.optimizer = optimization.checked(optimizer)
        self.discount = checks.between("discount", discount, 0, 1)
        self.steps = checks.positive_int("steps", steps)
        self.update_every = checks.positive_int("update_every", update_every)
        self.value_weight = (
            None if value_weight is None else checks.not_negative("value_weight", value_weight)
        )
        self.entropy_weight = checks.not_negative("entropy_weight", entropy_weight)
        self.rate_penalty = learner_state.checked_penalty(rate_penalty)
        self.tau_rate = checks.duration("tau_rate", tau_rate)
        checks.trainable(trainable)
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
        of_optimizer = jax.eval_shape(self.optimizer.init, self._part(network))
        self.kinds = learner_state.kinds(network, rule, of_optimizer)
        of_layers = map(trained_constants, self._part(network).layers)
        if jax.tree.leaves(list(of_layers)):
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
        run = jax.eval_shape(functools.partial(acting.respond_to, self), network, neurons, rates, x)
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
            key=jax.random.key(0) if key is None else random_key(key),
        )

    def act(self, state: RewardState, x: ArrayLike) -> tuple[RewardState, Int[Array, " batch"]]:
        """The actions that the network decides for after it has seen x, `[steps, batch, n_in]`.

        Raises `ValueError` or `TypeError` for a state or x that don't fit, or with NaN in it.
        """
        state, batch = self._fitting(state)
        x = _error_if(
            self._checked_x("x", x, state, batch),
            state.has_acted,
            "act was called twice: call learn with what the actions came to",
        )
        return acting.act(self, state, x)

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
        state, batch = self._fitting(state)
        counts = jnp.ones(batch, bool) if counts is None else counts
        given = {"terminated": terminated, "truncated": truncated, "counts": counts}
        terminated, truncated, counts = (
            checks.booleans(name, x, (batch,), "[batch]") for name, x in given.items()
        )
        heard = checks.real_array("rewards", rewards, self.network.dtype)
        if heard.shape != (batch,):
            raise ValueError(
                f"rewards have shape {heard.shape}, but one for each of {batch} examples is "
                f"needed: {(batch,)}"
            )
        heard = checks.finite("rewards", jnp.where(counts, heard, jnp.zeros_like(heard)))
        heard = _error_if(
            heard,
            ~state.has_acted,
            "learn comes after act: there is no action whose reward this could be",
        )
        if after is not None:
            after = self._checked_x("after", after, state, batch)
        elif self.value_weight is not None:
            heard = _error_if(
                heard,
                (truncated & ~terminated & counts).any(),
                "an episode is truncated, so what would have followed has a value: give "
                "after=x, what the network would have seen",
            )
        state_after, info = acting.learn(self, state, heard, terminated, truncated, after, counts)
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
        state, batch = self._fitting(state)
        if _is_true(state.has_acted):
            raise ValueError("act was called: call learn with what the actions came to, first")
        self._checked_x("situation.x", situation.x, state, batch)
        check_rollout(environment, situation, self.n_actions)
        state, situation, played, is_finite = self._jitted[acting.rollout](
            state, environment, situation, n_decisions
        )
        if not isinstance(played.rewards, jax.core.Tracer):
            checks.finite("the environment's rewards", played.rewards)
            if not is_finite:
                raise ValueError("x of the environment's reset or step holds NaN or infinity")
        return self._settled(state), situation, played

    @functools.cached_property
    def _jitted(self) -> dict[Callable, Jitted]:
        """What this learner does, compiled."""
        of = (acting.decide, acting.record, acting.update, acting.rollout)
        return {x: Jitted(functools.partial(x, self)) for x in of}

    def _part(self, network: Network) -> Any:
        return checks.trained(network, self.trainable)

    def _fitting(self, state: RewardState) -> tuple[RewardState, int]:
        """The state, if it is this learner's, and the number of its examples."""
        checks.instance("state", state, RewardState, "learner.init(batch)")
        state = learner_state.fitting(state, self.kinds, self.init)
        batch = len(state.course.surprise)
        if len(state.outcomes.rewards) != self.update_every:
            raise ValueError(
                f"the state is of a learner with update_every = {len(state.outcomes.rewards)}, "
                f"this one's is {self.update_every}"
            )
        steps, of_penalty = state.decided.blocks[0].below.shape[2], state.decided.penalties
        if steps != self.steps or (of_penalty is None) != (self.rate_penalty is None):
            a, b = ("no" if x is None else "a" for x in (of_penalty, self.rate_penalty))
            raise ValueError(
                f"the state is of a learner with steps = {steps} and {a} rate penalty, this one "
                f"has steps = {self.steps} and {b} rate penalty: write learner.init({batch})"
            )
        return state, batch

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
        found = learner_state.first_not_finite({"network": self._part(state.network)})
        if found is not None:
            raise FloatingPointError(
                f"{found[0]} is NaN or infinite after decision {int(state.n_decisions)}; the state "
                f"from before this call is as it was"
            )
        return state


def _is_true(value: Array) -> bool:
    """Whether it is known, and true."""
    return not isinstance(value, jax.core.Tracer) and bool(value)


def _error_if(array: Array, wrong: Array, message: str) -> Array:
    """`array`; `ValueError` if something is wrong. Where that is traced, the error comes when the
    array is used.
    """
    if _is_true(wrong):
        raise ValueError(message)
    return eqx.error_if(array, wrong, message) if isinstance(wrong, jax.core.Tracer) else array
