"""What the experiments that classify spike sequences have in common: keys, accuracy, training."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import eprop

from .runs import random_key

key_of = functools.partial(random_key, ("weights", "feedback", "patterns", "batches"))


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
