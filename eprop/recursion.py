"""E-prop as the paper writes it: one step at a time, traces carried forward per synapse.

Each step costs (d + 1) · batch · n_pre · n_post numbers read and written, and no step is kept.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .feedback import AbstractFeedback
from .learning_signals import Loss, LossDerivatives, differentiate_loss
from .network import Network, Presynaptic, without_autapses
from .traces import Carry, ReadoutTraces, TraceState, step_traces


class Gradients(NamedTuple):
    """dE/dW of each weight; `readout_bias` also where the network has none."""

    synapses: Presynaptic
    w_out: Float[Array, "n_rec n_out"]
    readout_bias: Float[Array, " n_out"]
    cell: Any
    """As the trainable part of the cell."""


def zero_gradients(network: Network, trainable_cell: Any = None) -> Gradients:
    """Where a sum of gradients begins. No part of the cell is trainable if none is given."""
    if trainable_cell is None:
        trainable_cell = jax.tree.map(lambda _: None, network.cell)
    return Gradients(
        Presynaptic(jnp.zeros_like(network.w_in), jnp.zeros_like(network.w_rec)),
        jnp.zeros_like(network.w_out),
        jnp.zeros_like(network.w_out[0]),
        jax.tree.map(jnp.zeros_like, trainable_cell),
    )


def recursion(
    loss: Loss,
    feedback: AbstractFeedback,
    network: Network,
    carry: Carry,
    inputs: Array,
    targets: Any,
    has_aux: bool,
) -> tuple[Carry, Any, Any, Gradients]:
    """One step: `inputs` `[1, batch, n_in]`, `targets` likewise. Returns also value and aux."""
    kappa, gain = network.kappa, network.readout_gain
    z_tm1 = carry.network.spikes
    pre = network.presynaptic(inputs, z_tm1, z_tm1[None])
    state, trajectory, currents = network.unroll(carry.network, inputs, stop_z_gradients=True)
    value, aux, derivatives = differentiate_loss(loss, trajectory, targets, has_aux)
    derivatives = jax.tree.map(lambda x: x[0], derivatives)

    jacobians = network.cell.jacobians(carry.network.cell, currents[0])
    signal = feedback.learning_signal(network.w_out, derivatives.outputs)
    traces, gradients = [], []
    for old, pre_of_weight in zip(carry.synapses, pre, strict=True):
        new, trace = step_traces(old, jacobians, pre_of_weight[0], kappa, gain)
        traces.append(new)
        gradients.append(_product(signal, derivatives, new, trace))

    readout = ReadoutTraces(
        kappa * carry.readout.spikes + gain * state.spikes, kappa * carry.readout.bias + 1
    )
    w_in, w_rec = gradients
    return (
        Carry(state, Presynaptic(*traces), readout),
        value,
        aux,
        Gradients(
            Presynaptic(w_in, without_autapses(w_rec)),
            w_out=readout.spikes.T @ derivatives.outputs,
            readout_bias=readout.bias * derivatives.outputs.sum(0),
            cell=zero_gradients(network).cell,
        ),
    )


def _product(
    signal: Array, derivatives: LossDerivatives, traces: TraceState, trace: Array
) -> Float[Array, "n_pre n_post"]:
    """Learning signals times traces: L ē + (∂E/∂z) e + (∂E/∂s) · ε, summed over the batch."""
    gradient = jnp.einsum("bj,bij->ij", signal, traces.filtered)
    if derivatives.spikes is not None:
        gradient += jnp.einsum("bj,bij->ij", derivatives.spikes, trace)
    if derivatives.states is not None:
        gradient += jnp.einsum("kbj,kbij->ij", jnp.stack(derivatives.states), traces.vectors)
    return gradient
