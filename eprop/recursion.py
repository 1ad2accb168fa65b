"""E-prop as the paper writes it: one step at a time, traces carried forward per synapse.

Each step costs (d + 1) · batch · n_pre · n_post numbers read and written, and no step is kept.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .feedback import AbstractFeedback
from .learning_signals import Loss, differentiate_loss
from .network import Network
from .traces import Carry, ReadoutTraces, step_traces, sum_over_batch


class Gradients(NamedTuple):
    """dE/dW of each weight."""

    synapses: Float[Array, "n_pre n_rec"]
    """Of W_in and W_rec, side by side as in `Network.synapses`; autapses still have an entry."""
    w_out: Float[Array, "n_rec n_out"]
    readout_bias: Float[Array, " n_out"]
    """Also where the network has none."""
    cell: Any
    """As the trainable part of the cell."""


def zero_gradients(network: Network, trainable_cell: Any = None) -> Gradients:
    """Where a sum of gradients begins. No part of the cell is trainable if none is given."""
    if trainable_cell is None:
        trainable_cell = jax.tree.map(lambda _: None, network.cell)
    return Gradients(
        jnp.zeros_like(network.synapses),
        jnp.zeros_like(network.w_out),
        jnp.zeros_like(network.w_out[0]),
        jax.tree.map(jnp.zeros_like, trainable_cell),
    )


def step_gradients(
    loss: Loss,
    feedback: AbstractFeedback,
    network: Network,
    carry: Carry,
    inputs: Array,
    targets: Any,
    has_aux: bool,
) -> tuple[Carry, Any, Any, Gradients]:
    """One step: `inputs` `[1, batch, n_in]`, and targets with such a time axis.

    Returns the carry after it, the loss's value and aux, and the step's share of the gradient.
    """
    start = carry.network
    end, trajectory, currents = network.unroll(start, inputs, stop_z_gradients=True)
    value, aux, derivatives = differentiate_loss(loss, trajectory, targets, has_aux)
    derivatives = jax.tree.map(lambda x: x[0], derivatives)

    pre = network.presynaptic(inputs, start, trajectory.spikes)
    jacobians = network.cell.jacobians(start.cell, currents[0], start.spikes)
    traces, trace = step_traces(
        carry.synapses, jacobians, pre[0], network.kappa, network.readout_gain
    )
    # L ē + (∂E/∂z) e + (∂E/∂s) · ε
    signals = [feedback.learning_signal(network.w_out, derivatives.outputs)]
    of_signals = [traces.filtered]
    if derivatives.spikes is not None:
        signals.append(derivatives.spikes)
        of_signals.append(trace)
    if derivatives.states is not None:
        signals += derivatives.states
        of_signals += traces.vectors

    readout = ReadoutTraces(
        network.kappa * carry.readout.spikes + network.readout_gain * end.spikes,
        network.kappa * carry.readout.bias + 1,
    )
    gradients = Gradients(
        sum_over_batch(signals, of_signals),
        readout.spikes.T @ derivatives.outputs,
        readout.bias @ derivatives.outputs,
        zero_gradients(network).cell,
    )
    return Carry(end, traces, readout), value, aux, gradients
