"""Decisions: what a network's run needs to be kept for until their rewards are known, and the rule.

    δ_t = r_t + γ V_{t+1} - V_t                                known after the next decision
    dE/dW_ji = Σ_t δ_t F_t,                 F_t = γ F_{t-1} + L_j,t ē_ji,t

Of some decisions together, a window of K, most δ are known at its end. So those of its own steps
are an error of the readout as any other, (Σ_{t' >= t} γ^(t'-t) δ_t') L_t; the decisions before it
get their part by way of F; and F is led through the window as eligibility traces are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from .credit import paid, with_credit
from .evaluation import (
    Carry,
    Derivatives,
    NetworkGradients,
    advance,
    forward,
    init_carry,
    zero_gradients,
)
from .learner_state import restarted
from .network import Network, by_layer
from .record import Block, block_steps
from .running_rates import RatePenalty, RunningRates, follow, rates_of_steps
from .sequences import Blocks, leaky_filter
from .signals import CreditSignal
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


class Course(NamedTuple):
    """What one update hands to the next, with a leading axis of examples."""

    traces: Carry
    """Eligibility traces and F."""
    surprise: Float[Array, " batch"]
    """r - V of the last decision: δ but for what follows it, γ V."""
    goes_on: Bool[Array, " batch"]
    """Whether anything follows it: if not, its δ has been used."""


class ActorCritic(NamedTuple):
    """What decisions are for."""

    discount: float
    """γ."""
    value_weight: float | None
    """C_V; `None` for no critic: all readouts are actions, and rewards are δ."""
    entropy_weight: float
    """c."""


def written(kept: Any, now: Any, index: Int[Array, ""]) -> Any:
    """`kept` with what there is now of one decision."""
    return jax.tree.map(lambda into, x: into.at[index].set(x), kept, now)


def init_course(network: Network, batch: int) -> Course:
    """Before the first decision."""
    traces = with_credit(network, init_carry(network, batch))
    return Course(traces, jnp.zeros(batch, network.dtype), jnp.zeros(batch, bool))


# Acting.


class Response(NamedTuple):
    """A network's run until a decision."""

    neurons: NetworkState
    rates: RunningRates
    blocks: tuple[Block, ...]
    penalties: Float[Array, "steps batch n"] | None


def respond(
    network: Network,
    neurons: NetworkState,
    rates: RunningRates,
    x: Shaped[Array, "steps batch n_in"],
    penalty: RatePenalty | None,
    tau_rate: float,
) -> Response:
    """The run until a decision, and what an update will need of it.

    In pieces that are each a block by itself, so that the blocks of all decisions have one length.
    """
    steps, batch = x.shape[:2]
    fitting = block_steps(network.layers, steps, batch)
    length = next(length for length in range(fitting, 0, -1) if steps % length == 0)

    average = {"dt": network.dt, "tau": tau_rate}

    def penalty_of(spikes: Array, before: RunningRates) -> Array:
        assert penalty is not None
        return penalty.of(rates_of_steps(before, spikes, **average))

    def piece(before: tuple[NetworkState, RunningRates], x: Array):
        neurons, rates = before
        neurons, trajectory, records = forward(network, neurons, x, None, n_steps=length)
        spikes = jnp.concatenate([layer.spikes for layer in trajectory.layers], axis=-1)
        d_spikes = None if penalty is None else jax.grad(penalty_of)(spikes, rates)
        rates = follow(rates, spikes, **average)
        blocks = tuple(jax.tree.map(lambda x: x[0], layer.whole) for layer in records)
        return (neurons, rates), (blocks, d_spikes)

    pieces = x.reshape(-1, length, *x.shape[1:])
    (neurons, rates), (blocks, d_spikes) = jax.lax.scan(piece, (neurons, rates), pieces)
    penalties = None if d_spikes is None else d_spikes.reshape(steps, *d_spikes.shape[2:])
    return Response(neurons, rates, blocks, penalties)


# Learning.


def gradients_of(
    goal: ActorCritic,
    network: Network,
    b: Float[Array, "n n_out"],
    course: Course,
    decided: Decided,
    outcomes: Outcome,
    steps: int,
) -> tuple[Course, NetworkGradients]:
    """Of some decisions, each after so many `steps`. `b` is the feedback matrix of all layers."""
    batch = outcomes.rewards.shape[1]
    ends = outcomes.at_rest_after
    per_delta, direct = errors(goal, decided, outcomes.counts)
    delta, overdue, after = _deltas(goal, course, decided, outcomes)

    def window(before: tuple[Carry, NetworkGradients], now: Any):
        """Some decisions, of which none but the last ends an episode."""
        (carry, so_far), (decided, per_delta, direct, delta, overdue, ends) = before, now
        # G_t = δ_t + γ G_{t+1}, [decision, batch]
        gains = leaky_filter(delta, goal.discount, jnp.zeros_like(delta[0]), reverse=True)
        error = gains[..., None] * per_delta + direct
        left = jnp.asarray(goal.discount ** np.arange(len(delta))[::-1], network.dtype)
        credit = CreditSignal(
            _at_decisions(left[:, None, None] * per_delta, steps), goal.discount ** len(delta)
        )
        derivatives = Derivatives(
            _at_decisions(error / batch, steps),
            _of_spikes(network, decided.penalties),
            [None] * len(network.layers),
            credit,
        )
        records = tuple(  # [decision, block, ...] -> [block, ...]
            Blocks(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), layer), None)
            for layer in decided.blocks
        )
        of_past = paid(network, carry, (overdue.sum(0) + goal.discount * gains[0]) / batch)
        so_far = jax.tree.map(jnp.add, so_far, of_past)
        carry, gradients = advance(network, b, records, derivatives, carry, so_far)
        return restarted(init_course(network, batch).traces, carry, ends[-1]), gradients

    # δ that was overdue is to be multiplied by F as it was before the first of them.
    overdue = jnp.zeros_like(delta).at[0].set(overdue)
    decisions = (decided, per_delta, direct, delta, overdue, ends)

    def one_by_one(before: tuple[Carry, NetworkGradients], decisions: Any):
        def of_decision(before, now):
            return window(before, jax.tree.map(lambda x: x[None], now)), None

        return jax.lax.scan(of_decision, before, decisions)[0]

    # Where an episode ends in between all go decision by decision: slower, and as exact.
    before = (course.traces, zero_gradients(network))
    if len(delta) == 1:
        traces, gradients = window(before, decisions)
    else:
        ends_within = ends[:-1].any()
        traces, gradients = jax.lax.cond(ends_within, one_by_one, window, before, decisions)
    return after._replace(traces=traces), gradients


def _deltas(
    goal: ActorCritic, course: Course, decided: Decided, outcomes: Outcome
) -> tuple[Float[Array, "decision batch"], Float[Array, " batch"], Course]:
    """δ of each decision as far as it is known, that of the last one before them, and the course.

    δ of the last is known if an episode ended with it; if not, it is 0, and left to the course.
    """
    heard, ends = outcomes.rewards, outcomes.at_rest_after
    nothing = jnp.zeros_like(heard[0])
    if goal.value_weight is None:
        delta = jnp.where(outcomes.counts, heard, jnp.zeros_like(heard))
        return delta, nothing, course._replace(goes_on=jnp.zeros_like(ends[-1]))
    values = decided.outputs[:, :, -1]
    following = jnp.concatenate([values[1:], nothing[None]])
    following = jnp.where(outcomes.truncated, outcomes.final_values, following)
    following = jnp.where(outcomes.terminated, jnp.zeros_like(following), following)
    surprise = heard - values
    delta = jnp.where(outcomes.counts, surprise + goal.discount * following, jnp.zeros_like(heard))
    delta = delta.at[-1].set(jnp.where(ends[-1], delta[-1], nothing))
    overdue = jnp.where(course.goes_on, course.surprise + goal.discount * values[0], nothing)
    return delta, overdue, Course(course.traces, surprise[-1], ~ends[-1])


def errors(
    goal: ActorCritic, decided: Decided, counts: Bool[Array, "decision batch"]
) -> tuple[Float[Array, "decision batch n_out"], Float[Array, "decision batch n_out"]]:
    """Errors of the readouts: that which is multiplied by δ, and that which is not."""
    outputs = decided.outputs
    n_actions = outputs.shape[-1] - (goal.value_weight is not None)
    log_policy = jax.nn.log_softmax(outputs[..., :n_actions])
    policy = jnp.exp(log_policy)
    entropy = -jnp.sum(policy * log_policy, axis=-1, keepdims=True)
    per_delta = policy - jax.nn.one_hot(decided.actions, n_actions, dtype=outputs.dtype)
    direct = goal.entropy_weight * policy * (log_policy + entropy)  # of -c H
    if goal.value_weight is not None:
        of_value = jnp.full_like(entropy, goal.value_weight)
        per_delta = jnp.concatenate([per_delta, -of_value], axis=-1)
        direct = jnp.concatenate([direct, jnp.zeros_like(of_value)], axis=-1)
    weights = counts[..., None].astype(outputs.dtype)
    return weights * per_delta, weights * direct


def _at_decisions(
    errors: Float[Array, "decision batch n_out"], steps: int
) -> Float[Array, "time batch n_out"]:
    """Errors as they are in time: at the last step before each decision."""
    in_time = jnp.zeros((len(errors), steps, *errors.shape[1:]), errors.dtype)
    return in_time.at[:, -1].set(errors).reshape(-1, *errors.shape[1:])


def _of_spikes(
    network: Network, penalties: Float[Array, "decision steps batch n"] | None
) -> list[Array | None]:
    """The penalties' derivatives in time, of each layer."""
    if penalties is None:
        return [None] * len(network.layers)
    last_first = jnp.moveaxis(penalties.reshape(-1, *penalties.shape[2:]), -1, 0)
    return [jnp.moveaxis(x, 0, -1) for x in by_layer(network, last_first)]
