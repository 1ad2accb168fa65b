"""What the states of all learners have in common: whose they are, and how they come to learn."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from . import checkpoints, checks, optimization
from .evaluation import NetworkGradients, as_network
from .network import Network
from .rules import EProp
from .running_rates import RatePenalty

State = TypeVar("State", bound=Any)
"""A named tuple with fields `network`, `rule` and `optimizer`."""


def kinds(network: Network, rule: EProp, optimizer: optax.OptState) -> Any:
    """The structure of what a learner's state holds, and shape and dtype of its leaves."""

    def dtype(x: Any) -> str:
        if not hasattr(x, "dtype"):
            return type(x).__name__
        return str(jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True))

    leaves, structure = jax.tree.flatten((network, rule.feedback, optimizer))
    return structure, tuple((np.shape(x), dtype(x)) for x in leaves)


def fitting(state: State, expected: Any, init: Callable[[], State]) -> State:
    """The state, if it is of `expected` kinds; a number in its optimiser's state as an array.

    Raises `ValueError` for another learner's, by the name of what differs from `init()`.
    """
    if kinds(state.network, state.rule, state.optimizer) == expected:
        return state
    start = init()
    optimizer = optimization.with_arrays(state.optimizer, start.optimizer)
    if kinds(state.network, state.rule, optimizer) == expected:
        return state._replace(optimizer=optimizer)
    theirs, mine = (
        {"network": x.network, "feedback": x.rule.feedback, "optimizer": of_optimizer}
        for x, of_optimizer in [(state, optimizer), (start, start.optimizer)]
    )
    found = checkpoints.differences(theirs, mine) or "the structure of its network"
    raise ValueError(
        f"the state is of another learner: {found}. Write learner.init(batch), or of a state "
        f"take what fits, learner.init(batch)._replace(network=state.network)"
    )


def updated(learner: Any, state: State, gradients: NetworkGradients, value: Array | None) -> State:
    """With network, rule and optimiser as they are after an update by the gradients."""
    trained = eqx.filter(state.network, learner.trainable)
    kept = jax.tree.map(lambda x: x is not None, trained, is_leaf=lambda x: x is None)
    network, rule, optimizer = optimization.update(
        learner.optimizer,
        state.network,
        state.rule,
        eqx.filter(as_network(state.network, gradients), kept),
        state.optimizer,
        trainable=learner.trainable,
        value=value,
    )
    return state._replace(network=network, rule=rule, optimizer=optimizer)


def restarted(fresh: Any, old: Any, which: Bool[Array, " batch"]) -> Any:
    """With some examples as they are when fresh; all arrays have a leading axis of examples."""
    return jax.tree.map(
        lambda x, y: jnp.where(which.reshape(-1, *[1] * (y.ndim - 1)), x, y), fresh, old
    )


def first_not_finite(tree: Any) -> tuple[str, Array] | None:
    """Name and value of the first leaf that is known, and NaN or infinite."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(x, jax.core.Tracer) and not np.isfinite(x).all():
            return jax.tree_util.keystr(path, simple=True, separator="."), x
    return None


def checked_penalty(penalty: RatePenalty | None) -> RatePenalty | None:
    """The penalty; `TypeError` or `ValueError` if it is none, or negative."""
    if penalty is not None:
        checks.instance("rate_penalty", penalty, RatePenalty, "RatePenalty(10.0, 1.0)")
        given = penalty._asdict().items()
        penalty = RatePenalty(*(checks.not_negative(f"rate_penalty.{x}", y) for x, y in given))
    return penalty
