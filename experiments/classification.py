"""What the experiments that classify have in common: keys, accuracy, training, a baseline."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import eprop

from .runs import random_key

key_of = functools.partial(random_key, ("weights", "feedback", "patterns", "batches"))


def check_steps(config: Any, *names: str) -> None:
    """`ValueError` for a time of a configuration, in ms, that is not even one step of its `dt`."""
    for name in names:
        value = getattr(config, name)
        if not round(value / config.dt) >= 1:
            raise ValueError(
                f"{name} = {value:g} ms is no step of dt = {config.dt:g} ms: write at least "
                f"{config.dt:g}"
            )


def accuracy(scores: Float[Array, "batch n_out"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """The fraction of examples whose highest score is that of their class."""
    return jnp.mean(jnp.argmax(scores, axis=-1).astype(labels.dtype) == labels)


def train(
    network: eprop.Network,
    rule: eprop.AbstractRule,
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    batches: Callable[[int], Any],
    *,
    config: Any,
    folder: Path,
    trainable: Any = eqx.is_inexact_array,
    evaluate: Callable[[eprop.TrainState, int], dict[str, Any]] | None = None,
    progress: bool,
) -> tuple[eprop.TrainState, list[dict[str, Any]]]:
    """Train for `config.iterations`, from the folder's last checkpoint if there is one.

    Every `config.check_every` iterations there are a checkpoint and an evaluation.
    """
    return eprop.fit(
        eprop.training_step(loss, optimizer, has_aux=True, trainable=trainable),
        eprop.init_training(network, rule, optimizer, trainable),
        batches,
        iterations=config.iterations,
        evaluate=evaluate,
        evaluate_every=config.check_every,
        folder=folder,
        config=config,
        save_every=config.check_every,
        progress=progress,
    )


def linear_accuracy(
    learned: tuple[Float[Array, "n n_in"], Int[Array, " n"]],
    tested: tuple[Float[Array, "m n_in"], Int[Array, " m"]],
    *,
    n_classes: int,
    epochs: int = 20,
    batch_size: int = 250,
) -> float:
    """Of softmax regression by Adam, on the second set: a baseline, without a hidden layer."""
    examples, labels = learned
    batch_size = min(batch_size, len(labels))
    n_batches = len(labels) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, epochs * n_batches))

    def logits(parameters, examples):
        w, b = parameters
        return examples @ w + b[None]

    def loss(parameters, examples, labels):
        found = logits(parameters, examples)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    def update(carry, chosen):
        parameters, state = carry
        gradients = jax.grad(loss)(parameters, examples[chosen], labels[chosen])
        with jax.numpy_dtype_promotion("standard"):  # iterations are counted in integers
            updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state), None

    @jax.jit
    def epoch(carry, key):
        order = jax.random.permutation(key, len(labels))[: n_batches * batch_size]
        return jax.lax.scan(update, carry, order.reshape(n_batches, batch_size))[0]

    weights = jnp.zeros((examples.shape[1], n_classes), examples.dtype)
    parameters = (weights, weights[0])
    carry = (parameters, optimizer.init(parameters))
    for key in jax.random.split(jax.random.key(0), epochs):
        carry = epoch(carry, key)
    return float(accuracy(logits(carry[0], tested[0]), tested[1]))
