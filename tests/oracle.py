"""E-prop by plain autodiff, with any feedback: what every evaluation of the engine must equal.

Nothing here is the engine's but the forward pass of a layer with its spikes stopped,
`Layer.unroll`. Spikes are stopped between layers too, and in the readout the error goes back
through B in place of W_out. All the rest is what JAX makes of it.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

import eprop
from eprop.trajectory import NetworkState, Trajectory


def respond(
    network: eprop.Network,
    inputs: Any,
    b: Any,
    *,
    start: NetworkState | None = None,
    kept: Any = None,
) -> tuple[NetworkState, Trajectory]:
    """The run of a network from `start`, or from rest, whose autodiff is e-prop with feedback B.

    `b` is `[n, n_out]`, a row for each neuron of all layers. `kept` is what dropout leaves.
    """
    inputs = jnp.asarray(inputs)
    start = network.init(inputs.shape[1]) if start is None else start
    n_unseen = network.n - len(network.w_out)
    w_out = jnp.concatenate([jnp.zeros((n_unseen, network.n_out)), network.w_out])
    below, first, ends, runs = inputs, 0, [], []
    drive = jnp.zeros((*inputs.shape[:2], network.n_out))
    for i, layer in enumerate(network.layers):
        if kept is not None and kept[i] is not None:
            scaled = below.astype(float) / (1 - layer.dropout.rate)
            below = jnp.where(kept[i], scaled, jnp.zeros(()))
        before = start.layers[i]
        if i > 0:  # spikes on their way between layers
            before = before._replace(past=stop_gradient(before.past))
        run = layer.unroll(before, below, layer.effective(), stop_z_gradients=True)
        z, rows = run.spikes, slice(first, first + layer.n)
        drive += stop_gradient(z) @ w_out[rows] + (z - stop_gradient(z)) @ stop_gradient(b[rows])
        states = run.states[0] if len(run.states) == 1 else run.states
        runs.append(eprop.LayerTrajectory(z, states))
        ends.append(run.end)
        below, first = stop_gradient(z), first + layer.n

    def leak(y, drive):
        y = network.kappa * y + network.readout_gain * drive
        y = y if network.readout_bias is None else y + network.readout_bias[None]
        return y, y

    y, outputs = jax.lax.scan(leak, start.outputs, drive)
    return NetworkState(tuple(ends), y), Trajectory(outputs, tuple(runs))


def value_and_grad(loss: Callable, feedback: eprop.AbstractFeedback) -> Callable:
    """As `eprop.value_and_grad(loss, EProp(feedback))`, by autodiff."""

    def evaluate(network, inputs, targets, kept=None):
        def of_network(network):
            b = feedback.matrix(network)
            return loss(respond(network, inputs, b, kept=kept)[1], targets)

        return eqx.filter_value_and_grad(of_network)(network)

    return evaluate
