"""A loss on pieces of a sequence, one after another: what streams and online learning are made of.

The loss is called on each piece and the values are added up, so it must be a sum over time.
"""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .adjoint import derivatives_of
from .evaluation import Carry, Derivatives, NetworkGradients, advance, forward, init_carry
from .network import Network
from .rules import NO_GRADIENT, EProp, Loss, call_loss
from .synapses import Dense
from .trajectory import NetworkState, Trajectory


class Progress(NamedTuple):
    """What one piece hands to the next. Every array has a leading axis of examples."""

    network: NetworkState
    traces: Carry


class Evaluated(NamedTuple):
    """What came of a piece."""

    value: Array
    aux: Any
    derivatives: Derivatives
    gradients: NetworkGradients
    """Those so far, and the piece's share added."""
    trajectory: Trajectory


def init_progress(network: Network, batch: int) -> Progress:
    """The network at rest, before the first step."""
    return Progress(network.init(batch), init_carry(network, batch))


def evaluate_piece(
    loss: Loss,
    rule: EProp,
    network: Network,
    before: Progress,
    inputs: Array,
    targets: Any,
    so_far: NetworkGradients,
    has_aux: bool,
) -> tuple[Progress, Evaluated]:
    """Goes on from `before` under `inputs` `[time, batch, n_in]`, as one window.

    `so_far`: the sum of the gradients before.
    """
    acting = _acting(network)
    end, trajectory, records = forward(acting, before.network, inputs, None, n_steps=len(inputs))
    value, aux, derivatives = _differentiate(loss, network, trajectory, targets, has_aux)
    b = rule.feedback.matrix(network)
    traces, gradients = advance(acting, b, records, derivatives, before.traces, so_far)
    evaluated = Evaluated(value, aux, derivatives, gradients, trajectory)
    return Progress(end, traces), evaluated


def _acting(network: Network) -> Network:
    """With the weights of dense synapses as they act: found once for all that is done with them."""
    return jax.tree.map(
        lambda x: x.acting() if isinstance(x, Dense) else x,
        network,
        is_leaf=lambda x: isinstance(x, Dense),
    )


def _differentiate(
    loss: Loss, network: Network, trajectory: Trajectory, targets: Any, has_aux: bool
) -> tuple[Array, Any, Derivatives]:
    """`(value, aux, derivatives)` of a loss, with `None` for what it doesn't look at.

    That is known where its cotangents are still symbolic: in a derivative of our own.
    """
    seen = []

    @eqx.filter_custom_vjp
    def look(trajectory):
        return trajectory

    @look.def_fwd
    def _look_forward(perturbed, trajectory):
        return trajectory, None

    @look.def_bwd
    def _look_backward(residuals, cotangents, perturbed, trajectory):
        seen.append(jax.tree.map(lambda x: x is None, cotangents, is_leaf=lambda x: x is None))
        return cotangents

    def of_trajectory(trajectory):
        return call_loss(loss, look(trajectory), targets, has_aux)

    (value, aux), d = eqx.filter_value_and_grad(of_trajectory, has_aux=True)(trajectory)
    if not seen:
        raise ValueError(NO_GRADIENT)
    d = jax.tree.map(
        lambda x, unseen: None if unseen else x, d, seen[-1], is_leaf=lambda x: x is None
    )
    return value, aux, derivatives_of(network, d, trajectory.outputs.shape[:2])


def is_sum_over_time(
    loss: Loss, trajectory: Trajectory, targets: Any, has_aux: bool = False
) -> Bool[Array, ""]:
    """Whether a loss on some steps, two at least, is what it is on parts of them together.

    The parts are the first half, the last step, and what is between, for a mask may leave only a
    few steps, at the end as a rule: within one part a mean of these is a sum.
    """
    n_steps = len(trajectory.outputs)

    def on(begin: int, end: int) -> Array:
        seen, known = jax.tree.map(lambda x: x[begin:end], (trajectory, targets))
        return call_loss(loss, seen, known, has_aux)[0]

    whole, ends = on(0, n_steps), sorted({0, n_steps // 2, n_steps - 1, n_steps})
    parts = jnp.stack([on(*part) for part in itertools.pairwise(ends)])
    scale = jnp.abs(whole) + jnp.abs(parts).sum()
    return ~(jnp.abs(whole - parts.sum()) > 1e-4 * scale)  # far above float32 rounding


NO_SUM_OVER_TIME = (
    "the loss is no sum over time: on {n} steps it is not what it is on parts of them, added up. "
    "It is called on one piece after another, so a mean over the steps at hand would weigh each by "
    "its length, and a penalty on firing rates look at each by itself. "
    "Add up over time, jnp.sum(...); of the functions of eprop.losses say n_steps; for rates use "
    "RatePenalty. Or find the gradient of the whole sequence at once, value_and_grad(loss, EProp())"
)
