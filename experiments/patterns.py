"""What pattern generation and the comparison of rules have in common: all but the rule.

A training is a pure function of a setting, a rule's name and a seed.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import eprop
from eprop import losses
from eprop.tasks import Lemniscate, PatternGeneration
from eprop.weights import fan_in_normal

from . import learners
from .runs import random_key

key_of = functools.partial(random_key, ("weights", "feedback", "pattern"))


@dataclasses.dataclass(frozen=True)
class Setting:
    """The pattern, the network that learns it, and how; the official code's by default."""

    task: PatternGeneration | Lemniscate = dataclasses.field(default_factory=PatternGeneration)
    """The frozen inputs and the curve."""

    n_lif: int = 100
    """Neurons without adaptation."""
    n_alif: int = 0
    """Neurons with an adaptive threshold."""
    tau_v: float = 30.0
    """Membrane time constant in ms."""
    tau_a: float = 2000.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 30.0
    """Time constant of the readout in ms."""
    v_th: float = 0.03
    """Threshold, in units of the membrane potential."""
    beta: float = 0.00087
    """By how much a spike raises an adaptive threshold, in units of the membrane potential: of
    v_th it is the fraction that evidence accumulation has."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """How weights follow the gradient."""
    learning_rate: float = 1e-4
    """The optimiser's, constant."""
    rate_target_hz: float = 10.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 300.0
    """Weight of the firing-rate penalty, of half the squared rates in (spikes/ms)²."""
    feedback_decay: float = 1e-4
    """Adaptive feedback: the fraction of B and of W_out lost at each iteration."""
    iterations: int = 2000
    """Updates, each after one presentation of the pattern."""
    save_every: int = 100
    """Iterations between checkpoints."""


LEARNERS = ("bptt", "bptt_stop_z", "symmetric", "random", "adaptive")
"""The rules' names, which are those of `figures.plotting.RULES`."""
MILESTONES = (1, 500, 2000)
"""The iterations whose squared error a summary has, beside the last."""


def make_data(setting: Setting, seed: int) -> tuple[Array, Array]:
    """Inputs and target, the same at every iteration."""
    inputs, targets = setting.task.sample(key_of(seed, "pattern"), 1)
    return inputs, targets


def make_network(setting: Setting, seed: int) -> eprop.Network:
    """LIF neurons first, then adaptive ones."""
    cell = eprop.ALIF(
        setting.n_lif + setting.n_alif,
        tau_v=setting.tau_v,
        v_th=setting.v_th,
        n_refractory=0,
        dt=setting.task.dt,
        scale_current=True,
        tau_a=setting.tau_a,
        beta=np.repeat([0.0, setting.beta], [setting.n_lif, setting.n_alif]),
        surrogate=eprop.Triangular(setting.gamma),
    )
    return eprop.Network(
        cell,
        n_in=setting.task.n_in,
        n_out=setting.task.n_out,
        tau_out=setting.tau_out,
        w_out=fan_in_normal,
        scale_readout=True,
        key=key_of(seed, "weights"),
    )


def make_rule(setting: Setting, learner: str, seed: int) -> eprop.AbstractRule:
    """With feedback of the seed."""
    shape = (setting.n_lif + setting.n_alif, setting.task.n_out)
    b = fan_in_normal(key_of(seed, "feedback"), shape, jnp.result_type(float))
    return learners.make_rule(learner, b, setting.feedback_decay)


def make_optimizer(setting: Setting) -> optax.GradientTransformation:
    return {"sgd": optax.sgd, "adam": optax.adam}[setting.optimizer](setting.learning_rate)


def make_loss(setting: Setting):
    """Half the squared error, summed over time and outputs, and the firing-rate penalty."""

    def loss(trajectory, targets):
        error = 0.5 * jnp.sum(jnp.square(trajectory.outputs - targets))
        penalty = losses.firing_rate_penalty(
            trajectory.spikes, setting.rate_target_hz, dt=setting.task.dt
        )
        info = {
            "squared_error": error,
            "rate_hz": 1000 * trajectory.spikes.mean() / setting.task.dt,
        }
        return error + 0.5 * setting.rate_penalty * penalty, info

    return loss


def init(setting: Setting, learner: str, seed: int) -> eprop.TrainState:
    network, rule = make_network(setting, seed), make_rule(setting, learner, seed)
    return eprop.init_training(network, rule, make_optimizer(setting))


def train(
    setting: Setting,
    learner: str,
    seed: int,
    folder: Path | None,
    config: Any,
    progress: bool,
    evaluate: Callable[[eprop.TrainState, int], dict[str, Any]] | None = None,
    evaluate_every: int = 1,
) -> tuple[eprop.TrainState, list[dict[str, Any]]]:
    """The state after training, and the metrics of each iteration, from before its update.

    `evaluate` is called with the state after every `evaluate_every` iterations.
    """
    data = make_data(setting, seed)
    return eprop.fit(
        eprop.training_step(make_loss(setting), make_optimizer(setting), has_aux=True),
        init(setting, learner, seed),
        lambda iteration: data,
        iterations=setting.iterations,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        folder=folder,
        config=config,
        save_every=setting.save_every,
        progress=progress,
    )


def errors_of(runs: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The squared error of each seed at the milestones and at the end, from their metrics."""
    last = len(runs[0])
    chosen = sorted({at for at in MILESTONES if at <= last} | {last})
    return {str(at): [rows[at - 1]["squared_error"] for rows in runs] for at in chosen}


def in_words(errors: dict[str, list[float]]) -> str:
    """As in `errors_of`, a line for each milestone."""
    return "\n".join(
        f"  iteration {at:>5}: mean {np.mean(values):7.2f}   "
        f"({', '.join(f'{value:.2f}' for value in values)})"
        for at, values in errors.items()
    )
