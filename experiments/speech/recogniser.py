"""Networks of networks that say a phoneme at each frame: deep, and in both directions of time.

Each layer is a network for each direction. That which runs backwards hears every utterance
reversed within its own length. Both are heard by the layer above, and every network has a readout
of its own, which are added up: one readout W of all neurons, with a row of the feedback B for
each. So each network is told of the error by its own rule, and what is around it, the reversals
and the mean and the filter behind the readouts, is plain JAX.
"""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

import eprop
from eprop import checks
from eprop.sequences import leaky_filter

Rules = tuple[tuple[eprop.AbstractRule, ...], ...]
"""One for each network of a `Recogniser`, in its order."""


class Response(NamedTuple):
    """What a recogniser makes of a batch of utterances."""

    drive: Float[Array, "frames batch n_out"]
    """What all neurons send to the readouts, the mean over each frame's steps."""
    activity: tuple[tuple[eprop.Trajectory, ...], ...]
    """Of each network, in its own direction of time."""


class Recogniser(eqx.Module):
    r"""Layers of neurons under a readout at each frame.

        x̄_f = mean over the steps t of frame f of Σ_networks z_t W_out
        y_f = κ y_{f-1} + x̄_f,        outputs_f = y_f + bias

    always forward in time, also for what runs backwards. κ = 0 is a readout without leak.
    """

    networks: tuple[tuple[eprop.Network, ...], ...]
    """Of each layer that which runs forward in time, and that which runs backward if there is one.
    Their readouts have no leak and no bias."""
    bias: Float[Array, " n_out"]
    repeats: int = eqx.field(static=True)
    """Time steps that each frame is shown for."""
    kappa: float = eqx.field(static=True)
    """κ, the fraction of the readout that is left after a frame."""
    passes_errors: bool = eqx.field(static=True)
    """Whether errors pass from layer to layer, too."""

    def __call__(
        self,
        features: Float[Array, "frames batch n_features"],
        lengths: Int[Array, " batch"],
        rules: Rules | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Response:
        """The response to utterances of `lengths` frames, followed by anything.

        `rules` say how it is differentiated, `eprop.BPTT()` by default; `key` is for dropout.
        """
        below, steps = jnp.repeat(features, self.repeats, axis=0), lengths * self.repeats
        below, drives, activity = below.astype(self.bias.dtype), [], []
        for i, layer in enumerate(self.networks):
            runs, heard = [], []
            for j, network in enumerate(layer):
                turned = reverse if j == 1 else lambda x, _: x
                rule = eprop.BPTT() if rules is None else rules[i][j]
                own_key = None if key is None else jax.random.fold_in(key, 2 * i + j)
                run = network(turned(below, steps), rule, key=own_key)
                drives.append(self._of_frames(turned(run.outputs, steps)))
                heard.append(turned(run.spikes, steps))
                runs.append(run)
            below = jnp.concatenate(heard, axis=-1)
            below = below if self.passes_errors else jax.lax.stop_gradient(below)
            activity.append(tuple(runs))
        return Response(functools.reduce(jnp.add, drives), tuple(activity))

    def _of_frames(self, x: Float[Array, "steps batch n"]) -> Float[Array, "frames batch n"]:
        return x.reshape(-1, self.repeats, *x.shape[1:]).mean(1)

    def read(self, drive: Float[Array, "frames batch n_out"]) -> Float[Array, "frames batch n_out"]:
        """The outputs of all frames: logarithms of the classes' odds, but for a constant."""
        return leaky_filter(drive, self.kappa, jnp.zeros_like(drive[0])) + self.bias[None, None]

    def updated(self, updates: Any, rules: Rules) -> tuple["Recogniser", Rules]:
        """After an optimiser's updates, from which `eprop.AdaptiveFeedback` learns as well."""
        networks, new_rules = [], []
        for layer, of_layer, rules_of_layer in zip(
            self.networks, updates.networks, rules, strict=True
        ):
            pairs = [
                eprop.apply_updates(*x) for x in zip(layer, of_layer, rules_of_layer, strict=True)
            ]
            networks.append(tuple(network for network, _ in pairs))
            new_rules.append(tuple(rule for _, rule in pairs))
        bias = eqx.apply_updates(self.bias, updates.bias)
        after = eqx.tree_at(lambda r: (r.networks, r.bias), self, (tuple(networks), bias))
        return after, tuple(new_rules)


def reverse(
    sequence: Float[Array, "time batch n"], lengths: Int[Array, " batch"]
) -> Float[Array, "time batch n"]:
    """Each example reversed within its own length; what is behind that stays where it is.

    It undoes itself.
    """
    time = jnp.arange(len(sequence), dtype=lengths.dtype)[:, None]
    source = jnp.where(time < lengths[None], lengths[None] - 1 - time, time)  # [time, batch]
    return jnp.take_along_axis(sequence, source[..., None], axis=0)


def make_recogniser(
    cells: Any,
    *,
    n_features: int,
    n_out: int,
    n_layers: int,
    bidirectional: bool,
    repeats: int,
    tau_readout: float | None,
    passes_errors: bool,
    key: PRNGKeyArray,
    **of_layer: Any,
) -> Recogniser:
    """**Arguments:**

    - `cells`: the neurons of a layer in one direction, a cell or several.
    - `n_features`, `n_out`: numbers of inputs and of classes.
    - `repeats`: time steps that each frame is shown for.
    - `tau_readout`: time constant of the readout in frames, `None` for no leak: κ = e^(-1/τ).
    - `of_layer`: what `eprop.Layer` takes beside.

    Readout weights are drawn from N(0, 1) / √n_out.
    """
    n_directions, networks, n_in = 1 + bidirectional, [], n_features
    repeats = checks.positive_int("repeats", repeats)
    for i in range(checks.positive_int("n_layers", n_layers)):
        layer = tuple(
            eprop.Network(
                cells,
                n_in=n_in,
                n_out=n_out,
                tau_out=None,
                w_out=jax.nn.initializers.normal(1 / math.sqrt(n_out)),
                key=jax.random.fold_in(key, 2 * i + j),
                **of_layer,
            )
            for j in range(n_directions)
        )
        networks.append(layer)
        n_in = sum(network.n for network in layer)
    return Recogniser(
        networks=tuple(networks),
        bias=jnp.zeros(n_out),
        repeats=repeats,
        kappa=0.0 if tau_readout is None else math.exp(-1 / tau_readout),
        passes_errors=passes_errors,
    )
