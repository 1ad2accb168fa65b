"""Learning in environments written in JAX, an iteration of many decisions at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

import eprop
from eprop.acting import Played
from eprop.environments import AbstractEnvironment, Situation

State = tuple[eprop.RewardState, Situation]


def train(
    learner: eprop.RewardLearner,
    environment: AbstractEnvironment,
    start: State,
    *,
    decisions: int,
    iterations: int,
    of_episodes: Callable[[Played], dict[str, Array]],
    folder: Path,
    config: Any,
    progress: bool,
) -> tuple[State, list[dict[str, Any]]]:
    """Train one seed, from its last checkpoint if there is one; there is one every five iterations.

    Returns the last state, and of each iteration `of_episodes`, how many episodes ended, and means
    over its decisions.
    """

    def step(state: State, _: None) -> tuple[State, dict[str, Array]]:
        learning, situation, played = learner.rollout(state[0], environment, state[1], decisions)
        return (learning, situation), {
            **of_episodes(played),
            "episodes": jnp.sum(played.terminated | played.truncated),
            "entropy": played.info.entropy.mean(),
            "value": played.info.outputs[..., -1].mean(),
            "rate_hz": played.info.rates[-1].mean(),
        }

    return eprop.fit(
        step,
        start,
        lambda iteration: None,
        iterations=iterations,
        folder=folder,
        config=config,
        save_every=5,
        progress=progress,
    )


def per_episode(quantity: Array, played: Played) -> Array:
    """A sum over decisions, of an episode; those that go on count as part of the last."""
    ended = jnp.sum(played.terminated | played.truncated)
    return quantity / jnp.maximum(ended, 1).astype(quantity.dtype)
