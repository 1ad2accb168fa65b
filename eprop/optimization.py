"""The optimiser's part: one update of a network's weights, by any optimiser of optax."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from . import checks
from .network import AbstractRule, Network
from .rules import apply_updates


def checked(optimizer: Any) -> optax.GradientTransformation:
    """The optimiser; `TypeError` unless it is one of optax. `optax.MultiSteps` is one too."""
    if isinstance(optimizer, optax.MultiSteps):
        steps: Any = optimizer
        return optax.GradientTransformationExtraArgs(steps.init, steps.update)
    return checks.instance("optimizer", optimizer, optax.GradientTransformation, "optax.adam(1e-3)")


def check_state(
    optimizer: optax.GradientTransformation | optax.MultiSteps, part: Any, state: optax.OptState
) -> None:
    """`ValueError` unless `state` is like one that the optimiser begins with, for these weights.

    Optax may take another's without a word.
    """
    begins_with = jax.eval_shape(checked(optimizer).init, part)
    if jax.tree.structure(state) != jax.tree.structure(begins_with):
        raise ValueError(
            "the state is of another optimiser, or of other weights that are trained: give "
            "init_training and training_step the same optimizer, and the same trainable"
        )


def update(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    network: Network,
    rule: AbstractRule,
    gradients: Any,
    state: optax.OptState,
    *,
    trainable: Any,
    value: Array | None,
) -> tuple[Network, AbstractRule, optax.OptState]:
    """`(network, rule, state)` after an update by `gradients`.

    `value` is the loss's, for an optimiser that goes by it, such as
    `optax.contrib.reduce_on_plateau`; `None` where there is none, and such a one raises.
    """
    part: Any = eqx.filter(network, trainable)
    by_value = optax.with_extra_args_support(checked(optimizer))
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        extra = {} if value is None else {"value": value}
        updates, state = by_value.update(gradients, state, part, **extra)
        network, rule = apply_updates(network, updates, rule)
    return network, rule, state


def with_arrays(state: optax.OptState, like: optax.OptState) -> optax.OptState:
    """The state, its single numbers as arrays of the dtype that they have in `like`.

    So `state.hyperparams["learning_rate"] = 1e-3` of `optax.inject_hyperparams` is understood.
    """
    if jax.tree.structure(state) != jax.tree.structure(like):
        return state

    def as_array(x: Any, like: Any) -> Any:
        is_number = eqx.is_array_like(x) and jnp.shape(x) == () == jnp.shape(like)
        return jnp.asarray(x, like.dtype) if is_number else x

    return jax.tree.map(as_array, state, like)
