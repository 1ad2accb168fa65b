"""How networks learn phonemes: the network of a configuration, its rules, loss and updates."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import eprop
from eprop import losses

from ..learners import make_rule
from ..runs import random_key
from . import objectives
from .batches import Batch
from .corpus import Corpus
from .features import HOP
from .recogniser import Recogniser, Rules, make_recogniser
from .recordings import RATE
from .settings import Config

FRAME_S = HOP / RATE
"""From one frame to the next in s."""

key_of = functools.partial(random_key, ("weights", "feedback", "dropout"))


class State(NamedTuple):
    """All that changes during training."""

    recogniser: Recogniser
    rules: Rules
    optimizer: optax.OptState
    iteration: Array


def make_cell(config: Config) -> eprop.AbstractCell:
    """The neurons of a layer in one direction; LIF neurons first, as adaptive ones with β = 0."""
    if config.cell == "lstm":
        return eprop.LSTM(config.n_lstm)
    return eprop.ALIF(
        config.n_lif + config.n_alif,
        tau_v=config.tau_v,
        v_th=config.v_th,
        n_refractory=config.n_refractory,
        tau_a=config.tau_a,
        beta=np.repeat([0.0, config.beta], [config.n_lif, config.n_alif]),
        surrogate=eprop.Triangular(config.gamma),
    )


def make_network(config: Config, seed: int, n_features: int, n_phonemes: int) -> Recogniser:
    """With an output for each phoneme, and one for CTC's blank behind them."""
    cell = make_cell(config)
    of_layer: dict[str, Any] = {"delay_rec": np.arange(cell.n) % (config.delay_rec + 1)}
    if config.cell == "lstm":
        glorot, zeros = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.zeros
        of_layer |= {"w_in": glorot, "w_rec": glorot, "bias": zeros, "autapses": True}
    if config.dropout > 0:
        of_layer["dropout"] = eprop.Dropout(config.dropout)

    return make_recogniser(
        cell,
        n_features=n_features,
        n_out=n_phonemes + (config.task == "ctc"),
        n_layers=config.layers,
        bidirectional=config.bidirectional,
        repeats=config.repeats,
        tau_readout=config.tau_readout,
        passes_errors=config.through_layers or config.rule == "bptt",
        key=key_of(seed, "weights"),
        **of_layer,
    )


def make_rules(config: Config, seed: int, recogniser: Recogniser) -> Rules:
    """The same rule for all networks, each with rows of B of its own, of W_out's size at first."""
    learner = "bptt" if config.frozen else config.learner

    def rule(place: int, network: eprop.Network) -> eprop.AbstractRule:
        key = jax.random.fold_in(key_of(seed, "feedback"), place)
        b = jax.random.normal(key, network.w_out.shape) / np.sqrt(network.n_out)
        return make_rule(learner, b, config.feedback_decay)

    return tuple(
        tuple(rule(2 * i + j, network) for j, network in enumerate(layer))
        for i, layer in enumerate(recogniser.networks)
    )


def make_task_loss(config: Config) -> Callable[[Array, Batch], Array]:
    """Of the outputs `[frames, batch, n_out]`."""
    if config.task == "framewise":
        return lambda y, batch: objectives.framewise(y, batch.labels, batch.lengths)
    return lambda y, batch: objectives.ctc(y, batch.lengths, batch.phonemes, batch.n_phonemes)


def make_loss(config: Config):
    """The task's loss and the firing-rate penalty; and what is recorded beside them."""
    task_loss = make_task_loss(config)

    def loss(recogniser: Recogniser, rules: Rules, batch: Batch, key: Array | None):
        response = recogniser(batch.features, batch.lengths, rules, key=key)
        value = task_loss(recogniser.read(response.drive), batch)
        frames = batch.lengths.sum().astype(value.dtype)
        info = {"task_loss": value, "audio_seconds": FRAME_S * config.stack * frames}
        if config.cell == "lstm":
            return value, info
        n_steps, lengths = len(batch.labels) * config.repeats, batch.lengths * config.repeats
        heard = objectives.mask_of(lengths, n_steps).astype(value.dtype)  # [steps, batch]
        rates = []
        for run in itertools.chain(*response.activity):
            penalty = losses.firing_rate_penalty(run.spikes, config.rate_target_hz, heard, dt=1.0)
            value = value + config.rate_penalty * penalty
            rates.append(1000 * jnp.mean(heard[..., None] * run.spikes) / heard.mean())
        return value, {**info, "rate_hz": sum(rates) / len(rates)}

    return loss


def make_optimizer(config: Config, per_epoch: int) -> optax.GradientTransformation:
    n = config.epochs * per_epoch
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, n)
    elif config.step_every is None:
        rate = optax.constant_schedule(config.learning_rate)
    else:
        rate = optax.exponential_decay(
            config.learning_rate, config.step_every, decay_rate=0.3, staircase=True
        )
    if config.ramp:
        rising = optax.linear_schedule(0.0, config.learning_rate, config.ramp)
        rate = optax.join_schedules([rising, rate], [config.ramp])
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(
        clip, optax.add_decayed_weights(config.l2), optax.adam(rate, eps=config.adam_epsilon)
    )


def trainable(config: Config, recogniser: Recogniser) -> Any:
    """What learns, as booleans: all weights, or the readout's alone."""
    everything = jax.tree.map(eqx.is_inexact_array, recogniser)
    if not config.frozen:
        return everything
    nothing = jax.tree.map(lambda _: False, recogniser)

    def readout(r: Recogniser) -> list[Any]:
        return [r.bias, *(x.readout.weights for x in itertools.chain(*r.networks))]

    return eqx.tree_at(readout, nothing, [True] * len(readout(recogniser)))


def init(config: Config, seed: int, corpus: Corpus, per_epoch: int) -> State:
    n_features = corpus.train[0].features.shape[1]
    recogniser = make_network(config, seed, n_features, len(corpus.phonemes))
    part = eqx.filter(recogniser, trainable(config, recogniser))
    optimizer = make_optimizer(config, per_epoch).init(part)
    rules = make_rules(config, seed, recogniser)
    return State(recogniser, rules, optimizer, jnp.zeros((), jnp.int32))


def make_step(config: Config, seed: int, per_epoch: int):
    """The gradient of the loss by the state's rules, then the update."""
    loss, optimizer = make_loss(config), make_optimizer(config, per_epoch)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        part, fixed = eqx.partition(state.recogniser, trainable(config, state.recogniser))
        key = None
        if config.dropout > 0:
            key = jax.random.fold_in(key_of(seed, "dropout"), state.iteration)

        def of_part(part):
            return loss(eqx.combine(part, fixed), state.rules, batch, key)

        (value, info), gradients = jax.value_and_grad(of_part, has_aux=True)(part)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, part)
            recogniser, rules = state.recogniser.updated(updates, state.rules)
        after = State(recogniser, rules, optimizer_state, state.iteration + 1)
        return after, {"loss": value, **info}

    return step


@eqx.filter_jit
def respond(recogniser: Recogniser, batch: Batch) -> Float[Array, "frames batch n_out"]:
    return recogniser.read(recogniser(batch.features, batch.lengths).drive)
