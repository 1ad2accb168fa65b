"""What the experiments that classify spike sequences have in common: rule, training, results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import eprop


def make_rule(learner: str, n: int, n_out: int, key: Array) -> eprop.AbstractRule:
    """The one thing that differs between trainings of one seed.

    `learner` is a name in `figures.plotting.RULES`; `n` neurons are led by `n_out` readouts.
    """
    b = jax.random.normal(key, (n, n_out))
    rules = {
        "bptt": eprop.BPTT(),
        "symmetric": eprop.EProp(),
        "random": eprop.EProp(eprop.RandomFeedback(b)),
    }
    return rules[learner]


def key_of(seed: int, purpose: str) -> Array:
    """A random key of its own for each purpose."""
    purposes = ("weights", "feedback", "patterns", "batches")
    return jax.random.fold_in(jax.random.key(seed), purposes.index(purpose))


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
