"""E-prop a window of steps at a time: backpropagation through the neurons, not the network.

With the recurrent spikes held fixed a network is a set of separate neurons, each driven by its
input current I_t. Their derivatives need no weights: one reverse scan over neurons turns the
learning signals ℓ_t on their spikes into r_t = dE/dI_t, and the gradient of a weight matrix is
one matrix product, Σ_t pre_tᵀ r_t. What came before the window enters by the carried eligibility
vectors, and what leaves it is the same reverse scan of unit vectors. The proof that this is the
recursion's number is in the documentation, under "Derivation".

Memory, not arithmetic, sets the time. So a long sequence is worked through in blocks of steps
that fit into the processor's cache: the forward pass keeps the spikes, one byte each, and the
state at the start of each block. With the spikes known, the reverse pass runs the neurons of a
block again from there; their input currents are one matrix product, or kept where that is cheaper.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .cells import hidden_variables
from .feedback import AbstractFeedback
from .learning_signals import Loss, LossDerivatives, differentiate_loss
from .network import (
    Network,
    NetworkState,
    Presynaptic,
    Trajectory,
    in_blocks,
    leaky_filter,
    without_autapses,
)
from .recursion import Gradients, zero_gradients
from .traces import Carry, ReadoutTraces, TraceState

KEPT_BYTES = 2**24
"""Currents are kept if they are no larger than this (beyond, memory is fresh at each call) ..."""

KEPT_INPUTS = 512
"""... or if each is the sum of more inputs than this, so that adding them up again takes longer."""


class Block(NamedTuple):
    """What the forward pass keeps of some steps."""

    start: NetworkState
    inputs: Array
    spikes: Array
    currents: Array | None
    """I_t; `None` to have them computed again."""


def sequence_gradients(
    loss: Loss,
    feedback: AbstractFeedback,
    network: Network,
    trainable_cell: Any,
    inputs: Array,
    targets: Any,
    has_aux: bool,
) -> tuple[Any, Any, Gradients]:
    """A whole sequence `[time, batch, n_in]` as one window: `(value, aux, gradients)`.

    `trainable_cell` is the part of the cell to differentiate by, as from `equinox.filter`.
    """
    n_steps, batch = inputs.shape[:2]
    start = network.init(batch)
    length = network.block_length(n_steps, batch)
    current_bytes = n_steps * start.spikes.nbytes
    keep = current_bytes <= KEPT_BYTES or network.n_in + network.cell.n > KEPT_INPUTS

    def forward(state, inputs):
        end, trajectory, currents = network.unroll(state, inputs, stop_z_gradients=True)
        spikes = trajectory.spikes > 0 if network.cell.spiking else trajectory.spikes
        block = Block(state, inputs, spikes, currents if keep else None)
        return end, (block, trajectory.outputs, trajectory.states)

    # The last block may run over the end; what it does there has no influence on the loss.
    _, (blocks, outputs, states) = jax.lax.scan(forward, start, in_blocks(inputs, length))
    trajectory = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[:n_steps], Trajectory(outputs, blocks.spikes, states)
    )
    value, aux, signals = _signals(loss, network, trajectory, targets, has_aux)

    def reverse(later, now):
        d_end, total = later
        d_start, gradients, *_ = _block_gradients(feedback, network, trainable_cell, *now, d_end)
        return (d_start, jax.tree.map(jnp.add, total, gradients)), None

    later = (_zeros_like(hidden_variables(start.cell)), zero_gradients(network, trainable_cell))
    signals = jax.tree.map(lambda x: in_blocks(x, length), signals)
    (d_start, gradients), _ = jax.lax.scan(reverse, later, (blocks, signals), reverse=True)

    _, rest = jax.vjp(lambda cell: _start(network, cell, batch), trainable_cell)
    (d_cell,) = rest(d_start)
    d_cell = jax.tree.map(jnp.add, gradients.cell, d_cell)
    return value, aux, gradients._replace(cell=d_cell)


def window_gradients(
    loss: Loss,
    feedback: AbstractFeedback,
    network: Network,
    carry: Carry,
    inputs: Array,
    targets: Any,
    has_aux: bool,
) -> tuple[Carry, Any, Any, Gradients]:
    """One window `[K, batch, n_in]` of a longer sequence.

    Returns the carry after it, the loss's value and aux, and the window's share of the gradient.
    """
    end, trajectory, currents = network.unroll(carry.network, inputs, stop_z_gradients=True)
    value, aux, signals = _signals(loss, network, trajectory, targets, has_aux)
    block = Block(carry.network, inputs, trajectory.spikes, currents)
    nothing = _zeros_like(hidden_variables(end.cell))
    d_start, here, pullback, pre = _block_gradients(
        feedback, network, zero_gradients(network).cell, block, signals, nothing
    )

    # What came before the window enters by what the carry knows of it.
    error = network.kappa * signals.outputs[0]
    d_filtered = feedback.learning_signal(network.w_out, error)
    w_in, w_rec = (_from_before(d_start, d_filtered, traces) for traces in carry.synapses)
    before = Presynaptic(w_in, without_autapses(w_rec))
    gradients = Gradients(
        jax.tree.map(jnp.add, here.synapses, before),
        here.w_out + carry.readout.spikes.T @ error,
        here.readout_bias + carry.readout.bias * error.sum(0),
        here.cell,
    )
    d_spikes = jnp.zeros_like(trajectory.spikes)
    d_states = _zeros_like(signals.states)
    rows = [(d_spikes, d_states, unit) for unit in _units(nothing)]
    fading = _fading(network, trajectory.spikes)
    rows.append((d_spikes + fading[:, None, None], d_states, nothing))
    _, through, arrived = jax.vmap(pullback)(jax.tree.map(lambda *x: jnp.stack(x), *rows))
    through = jnp.stack(through, axis=1)

    def advance(traces: TraceState, pre: Array) -> TraceState:
        new = jnp.einsum("klbj,lbij->kbij", through, traces.vectors)
        new = new + jnp.einsum("tbi,ktbj->kbij", pre, arrived)
        faded = network.kappa ** len(inputs) * traces.filtered
        return TraceState(vectors=new[:-1], filtered=faded + new[-1])

    synapses = [advance(*pair) for pair in zip(carry.synapses, pre, strict=True)]
    faded = jax.tree.map(lambda x: network.kappa ** len(inputs) * x, carry.readout)
    readout = ReadoutTraces(
        faded.spikes + jnp.tensordot(fading, trajectory.spikes, 1),
        faded.bias + fading.sum() / network.readout_gain,
    )
    return Carry(end, Presynaptic(*synapses), readout), value, aux, gradients


def _signals(
    loss: Loss, network: Network, trajectory: Trajectory, targets: Any, has_aux: bool
) -> tuple[Any, Any, LossDerivatives]:
    """`(value, aux, derivatives)`, the error of the outputs led back through the readout's leak.

    What enters the readout at t is in y_t' of every later t', by κ^(t'-t).
    """
    spikes = trajectory.spikes.astype(trajectory.outputs.dtype)
    value, aux, derivatives = differentiate_loss(
        loss, trajectory._replace(spikes=spikes), targets, has_aux
    )
    nothing = jnp.zeros_like(derivatives.outputs[0])
    error = leaky_filter(derivatives.outputs, network.kappa, nothing, reverse=True)
    return value, aux, derivatives._replace(outputs=error)


def _block_gradients(
    feedback: AbstractFeedback,
    network: Network,
    trainable_cell: Any,
    block: Block,
    signals: LossDerivatives,
    d_end: list[Array],
) -> tuple[list[Array], Gradients, Any, Presynaptic]:
    """The gradient from one block, given λ after it.

    Returns λ before it, the gradient, and how other cotangents on what its neurons did (spikes,
    states, last state) pull back to the cell's parameters, the first state and the currents.
    """
    spikes = block.spikes.astype(network.w_in.dtype)
    pre = network.presynaptic(block.inputs, block.start.spikes, spikes)
    currents = block.currents
    if currents is None:
        currents = pre.w_in @ network.w_in + pre.w_rec @ without_autapses(network.w_rec)
    hidden, counters = eqx.partition(block.start.cell, eqx.is_inexact_array)
    structure = jax.tree.structure(hidden)

    def neurons(trainable_cell, hidden, currents):
        cell = eqx.combine(trainable_cell, network.cell)

        def step(state, now):
            state = cell.step(state, *now)
            seen = None if signals.states is None else hidden_variables(state)
            return state, (cell.output(state), seen)

        start = eqx.combine(structure.unflatten(hidden), counters)
        last, (spikes, states) = jax.lax.scan(step, start, (currents, pre.w_rec))
        return spikes, states, hidden_variables(last)

    _, pullback = jax.vjp(neurons, trainable_cell, jax.tree.leaves(hidden), currents)
    signal = network.readout_gain * feedback.learning_signal(network.w_out, signals.outputs)
    if signals.spikes is not None:
        signal = signal + signals.spikes
    d_cell, d_start, d_current = pullback((signal, signals.states, d_end))
    gradients = Gradients(
        Presynaptic(
            _outer(pre.w_in, d_current), without_autapses(_outer(pre.w_rec, d_current))
        ),
        network.readout_gain * _outer(spikes, signals.outputs),
        signals.outputs.sum((0, 1)),
        d_cell,
    )
    return d_start, gradients, pullback, pre


def _start(network: Network, cell: Any, batch: int) -> list[Array]:
    network = eqx.tree_at(lambda net: net.cell, network, eqx.combine(cell, network.cell))
    return hidden_variables(network.init(batch).cell)


def _zeros_like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _outer(pre: Float[Array, "time batch i"], post: Float[Array, "time batch j"]) -> Array:
    return jnp.tensordot(pre, post, axes=((0, 1), (0, 1)))


def _from_before(
    d_hidden: list[Array], d_filtered: Array, traces: TraceState
) -> Float[Array, "n_pre n_post"]:
    """(D_1ᵀ λ_1) · ε, for the hidden variables and for the readout's filter."""
    gradient = jnp.einsum("bj,bij->ij", d_filtered, traces.filtered)
    return gradient + jnp.einsum("kbj,kbij->ij", jnp.stack(d_hidden), traces.vectors)


def _units(like: list[Array]) -> list[list[Array]]:
    return [[x + float(i == k) for i, x in enumerate(like)] for k in range(len(like))]


def _fading(network: Network, spikes: Array) -> Float[Array, " time"]:
    """By how much the spikes of each step are in the readout after the last."""
    ages = jnp.arange(len(spikes) - 1, -1, -1, dtype=spikes.dtype)
    return network.readout_gain * network.kappa**ages
