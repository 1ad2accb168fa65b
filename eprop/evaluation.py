"""E-prop of a whole network, layer by layer: in reverse, or forward in time.

Each layer makes its gradient by itself, of the readout's error as the feedback sends it, and of
what the loss says of its own spikes and states. Nothing passes from layer to layer.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import reverse, signals
from .layer import trained_constants
from .network import Network, by_layer
from .precision import exact_products
from .record import Block
from .recursion import step_gradients
from .response import Kept, respond
from .reverse import keeps_currents
from .sequences import Blocks
from .sharding import BLOCKS, EVERYWHERE, EXAMPLES, STEPS, SUMMED, by_shares, n_shares
from .signals import CreditSignal, LayerGradients, Signals
from .traces import LayerTraces, init_traces
from .trajectory import NetworkState, Response
from .windowed import window_gradients


class NetworkGradients(NamedTuple):
    """dE/dw of a network, of the `effective` weights; see `as_network`."""

    layers: tuple[LayerGradients, ...]
    readout_bias: Float[Array, " n_out"]
    """Also where the network has none."""


class Carry(NamedTuple):
    """All that e-prop takes from one window of steps to the next, but for the network's state.

    Every array has a leading axis of examples.
    """

    layers: tuple[LayerTraces, ...]
    bias: Float[Array, " batch"]
    """κ-filtered 1: the trace of the readout's bias."""
    credit: Float[Array, "batch n_out"] | None = None
    """F of the readout's bias, where one learns from rewards."""


class Derivatives(NamedTuple):
    """Partial derivatives of the loss with respect to what a network did; `None` for zero."""

    outputs: Float[Array, "time batch n_out"]
    spikes: list[Float[Array, "time batch n"] | None]
    """Of each layer."""
    states: list[list[Float[Array, "time batch _"]] | None]
    """Of each hidden variable of each layer."""
    credit: CreditSignal | None = None
    """What is added to F, where one learns from rewards."""


def init_carry(network: Network, batch: int) -> Carry:
    """Before the first step."""
    layers = tuple(init_traces(layer, batch) for layer in network.layers)
    return Carry(layers, jnp.zeros(batch, network.dtype))


def zero_gradients(network: Network) -> NetworkGradients:
    """Where a sum of gradients begins."""
    n_out = network.n_out
    layers = tuple(signals.zero_gradients(layer, n_out) for layer in network.layers)
    return NetworkGradients(layers, jnp.zeros(n_out, network.dtype))


def as_network(network: Network, gradients: NetworkGradients) -> Network:
    """The gradients as a network: of the weights themselves, `None` for all that is no number."""
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)

    def acting(arrays):
        network = eqx.combine(arrays, rest)
        layers = [(layer.effective(), trained_constants(layer)) for layer in network.layers]
        return layers, network.readout.weights, network.readout.bias

    layers = [
        ({kind: layer.share(kind, found.weights, axis=0) for kind in layer.kinds}, found.constants)
        for layer, found in zip(network.layers, gradients.layers, strict=True)
    ]
    seen = gradients.layers if len(network.w_out) == network.n else gradients.layers[-1:]
    w_out = jnp.concatenate([of_layer.readout for of_layer in seen])
    bias = None if network.readout.bias is None else gradients.readout_bias
    _, pullback = jax.vjp(acting, arrays)
    (result,) = pullback((layers, w_out, bias))
    return result


# Forward.


def forward(
    network: Network,
    start: NetworkState,
    inputs: Array,
    kept: Kept,
    *,
    n_steps: int,
) -> Response:
    """A stretch of a run of `n_steps`, and what the derivative needs of each layer."""

    def of_share(network: Network, start: NetworkState, inputs: Array, kept: Kept) -> Response:
        batch = inputs.shape[1]
        keep = [keeps_currents(layer, n_steps, batch) for layer in network.layers]
        return respond(
            network, start, inputs, kept, stop_z_gradients=True, as_bytes=True, keep_currents=keep
        )

    def found(shares: Response) -> Any:
        return Response(EXAMPLES, STEPS, _divided(shares.records))

    given = (EVERYWHERE, EXAMPLES, STEPS, STEPS)
    return by_shares(of_share, given, found, network, start, inputs, kept)


def _divided(records: tuple[Blocks, ...]) -> Any:
    """How they are divided over the devices of a mesh."""

    def of_layer(blocks: Blocks) -> Any:
        whole, rest = Block(STEPS, BLOCKS, BLOCKS, BLOCKS), Block(EXAMPLES, STEPS, STEPS, STEPS)
        return Blocks(whole, None if blocks.rest is None else rest)

    return tuple(map(of_layer, records))


# Reverse: all steps at once.


class Backward(NamedTuple):
    """What the derivative of a loss is, from the last step to the first."""

    gradients: NetworkGradients
    costates: list[list[Float[Array, "batch _"]]]
    """dE/ds of each layer's hidden variables before the first step."""
    outputs: Float[Array, "batch n_out"]
    """dE/dy likewise."""
    received: Float[Array, "known batch n_in"] | None
    """dE/d(what the first layer received), if asked for; with delays also of what was under way
    before the first step."""


@exact_products
def backward(
    network: Network,
    b: Float[Array, "n n_out"],
    records: tuple[Blocks, ...],
    derivatives: Derivatives,
    *,
    of_inputs: bool,
) -> Backward:
    """All steps at once, in reverse. `b` is the feedback matrix of all layers."""
    of_share = functools.partial(_backward, of_inputs=of_inputs)
    given = (EVERYWHERE, EVERYWHERE, _divided(records), _divided_derivatives(derivatives))
    found = Backward(SUMMED, EXAMPLES, EXAMPLES, STEPS)
    return by_shares(of_share, given, found, network, b, records, derivatives)


def _backward(
    network: Network,
    b: Float[Array, "n n_out"],
    records: tuple[Blocks, ...],
    derivatives: Derivatives,
    *,
    of_inputs: bool,
) -> Backward:
    error = network.readout.lead_back(derivatives.outputs)
    layers, costates, d_received = [], [], None
    for i, (layer, b_layer) in enumerate(zip(network.layers, by_layer(network, b), strict=True)):
        of_layer = Signals(
            network.readout_gain * error, derivatives.spikes[i], derivatives.states[i]
        )
        found = reverse.reverse(
            layer,
            layer.effective(),
            b_layer,
            records[i],
            of_layer,
            so_far=signals.zero_gradients(layer, network.n_out),
            of_below=of_inputs and i == 0,
        )
        layers.append(found.gradients)
        costates.append(found.costates)
        d_received = found.below if i == 0 else d_received
    gradients = NetworkGradients(tuple(layers), error.sum((0, 1)))
    return Backward(gradients, costates, network.kappa * error[0], d_received)


# Forward in time: with traces.


@exact_products
def advance(
    network: Network,
    b: Float[Array, "n n_out"],
    records: tuple[Blocks, ...],
    derivatives: Derivatives,
    carry: Carry,
    so_far: NetworkGradients,
) -> tuple[Carry, NetworkGradients]:
    """One window of steps: the traces after it, and its gradient added to those `so_far`."""
    if n_shares() == 1:  # added in place; shares begin at zero, for `so_far` is their sum already
        return _advance(network, b, records, derivatives, carry, so_far)

    def of_share(network: Network, *args: Any) -> tuple[Carry, NetworkGradients]:
        return _advance(network, *args, so_far=zero_gradients(network))

    given = (EVERYWHERE, EVERYWHERE, _divided(records), _divided_derivatives(derivatives), EXAMPLES)
    args = (network, b, records, derivatives, carry)
    carry, gradients = by_shares(of_share, given, (EXAMPLES, SUMMED), *args)
    return carry, jax.tree.map(jnp.add, so_far, gradients)


def _divided_derivatives(derivatives: Derivatives) -> Any:
    """How they are divided over the devices of a mesh."""
    credit: Any = None if derivatives.credit is None else CreditSignal(STEPS, EVERYWHERE)
    return Derivatives(STEPS, STEPS, STEPS, credit)


def _advance(
    network: Network,
    b: Float[Array, "n n_out"],
    records: tuple[Blocks, ...],
    derivatives: Derivatives,
    carry: Carry,
    so_far: NetworkGradients,
) -> tuple[Carry, NetworkGradients]:
    kappa, gain = network.kappa, network.readout_gain
    n_steps = len(derivatives.outputs)
    after, layers = [], []
    for i, (layer, b_layer) in enumerate(zip(network.layers, by_layer(network, b), strict=True)):
        of_layer = Signals(
            derivatives.outputs, derivatives.spikes[i], derivatives.states[i], derivatives.credit
        )
        evaluate = step_gradients if n_steps == 1 and of_layer.credit is None else window_gradients
        traces, gradients = evaluate(
            layer,
            layer.effective(),
            b_layer,
            records[i],
            of_layer,
            carry.layers[i],
            kappa,
            gain,
            so_far.layers[i],
        )
        after.append(traces)
        layers.append(gradients)
    error = network.readout.lead_back(derivatives.outputs)
    of_bias = so_far.readout_bias + error.sum((0, 1)) + kappa * carry.bias @ error[0]
    fading = sum(kappa**age for age in range(n_steps))
    bias = kappa**n_steps * carry.bias + fading
    credit = carry.credit
    if credit is not None and derivatives.credit is not None:
        error = network.readout.lead_back(derivatives.credit.error)
        before = kappa * carry.bias[:, None] * error[0]
        credit = derivatives.credit.decay * credit + before + error.sum(0)
    return Carry(tuple(after), bias, credit), NetworkGradients(tuple(layers), of_bias)
