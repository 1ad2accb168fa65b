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

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .cells import hidden_variables
from .feedback import AbstractFeedback
from .learning_signals import Loss, differentiate_loss
from .network import (
    Network,
    NetworkState,
    Trajectory,
    without_autapses,
)
from .recursion import Gradients, zero_gradients
from .sequences import in_blocks, leaky_filter, preceding
from .traces import (
    Carry,
    ReadoutTraces,
    SynapticTraces,
    advance_vector,
    common_traces,
    lead_common,
    sum_over_batch,
)

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


class Signals(NamedTuple):
    """What the loss says about each step."""

    error: Float[Array, "time batch n_out"]
    """∂E/∂y_t' of all t' >= t, led back through the readout's leak: Σ_t' κ^(t'-t) ∂E/∂y_t'."""
    error_tm1: Float[Array, "time batch n_out"]
    """The same of the step before."""
    spikes: Float[Array, "time batch n_rec"] | None
    """∂E/∂z_t, `None` if there is no such term."""
    states: list[Float[Array, "time batch n_rec"]] | None
    """∂E/∂s_t of each hidden variable, `None` if there is no such term."""
    fading: Float[Array, " time"]
    """By how much what enters the readout at t is in it after the last step."""


class Later(NamedTuple):
    """What the reverse pass knows of all later steps."""

    costates: list[Float[Array, "batch n_rec"]]
    """λ of each hidden variable."""
    gradients: Gradients
    units: list[list[Float[Array, "batch n_rec"]]]
    """The same for unit vectors at the end: of each hidden variable, and of the readout."""


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
    batch = inputs.shape[1]
    start = network.init(batch)
    length = network.block_length(*inputs.shape[:2])
    blocks, _, trajectory = _forward(network, start, inputs, length)
    value, aux, signals = _signals(loss, network, trajectory, targets, has_aux)

    nothing = [jnp.zeros_like(x) for x in hidden_variables(start.cell)]
    total = _readout_of_last(network, trajectory, signals, trainable_cell)
    later, _ = _reverse(
        feedback, network, trainable_cell, blocks, signals, Later(nothing, total, units=[])
    )

    def first_state(cell):
        cell = eqx.combine(cell, network.cell)
        return hidden_variables(eqx.tree_at(lambda net: net.cell, network, cell).init(batch).cell)

    _, pullback = jax.vjp(first_state, trainable_cell)
    (d_cell,) = pullback(later.costates)
    gradients = later.gradients
    return value, aux, gradients._replace(cell=jax.tree.map(jnp.add, gradients.cell, d_cell))


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
    length = network.block_length(*inputs.shape[:2])
    blocks, end, trajectory = _forward(network, carry.network, inputs, length)
    value, aux, signals = _signals(loss, network, trajectory, targets, has_aux)

    common = common_traces(network.cell)
    nothing = [jnp.zeros_like(x) for x in hidden_variables(end.cell)]
    units = [
        [x + float(i == k) for i, x in enumerate(nothing)]
        for k, constants in enumerate(common)
        if constants is None
    ]
    total = _readout_of_last(network, trajectory, signals, None)
    later = Later(nothing, total, [*units, nothing])
    later, of_units = _reverse(feedback, network, total.cell, blocks, signals, later)

    # What came before the window enters by what the carry knows of it.
    error = network.kappa * signals.error[0]
    costates = [*later.costates, feedback.learning_signal(network.w_out, error)]
    old, here = carry.synapses, later.gradients
    before = sum_over_batch(costates, [*old.vectors, old.filtered])
    gradients = Gradients(
        here.synapses + before,
        here.w_out + carry.readout.spikes.T @ error,
        here.readout_bias + carry.readout.bias @ error,
        total.cell,
    )

    # What leaves it: the old vectors led through the window, and what has arrived in it.
    pre = network.presynaptic(inputs, carry.network, trajectory.spikes)
    led = [
        advance_vector(unit, old.vectors, like=old.filtered) + jnp.einsum("tbi,tbj->bij", pre, r)
        for unit, r in zip(later.units, of_units, strict=True)
    ]
    vectors = lead_common(common, old.vectors, pre)
    vectors = [led.pop(0) if vector is None else vector for vector in vectors]
    faded = network.kappa ** len(inputs)
    readout = ReadoutTraces(
        faded * carry.readout.spikes + jnp.tensordot(signals.fading, trajectory.spikes, 1),
        faded * carry.readout.bias + signals.fading.sum() / network.readout_gain,
    )
    synapses = SynapticTraces(vectors, faded * old.filtered + led.pop())
    return Carry(end, synapses, readout), value, aux, gradients


def _forward(
    network: Network, start: NetworkState, inputs: Array, length: int
) -> tuple[Block, NetworkState, Trajectory]:
    """The blocks, the state after the last, and what happened."""
    small = len(inputs) * start.spikes.nbytes <= KEPT_BYTES
    keep = small or network.n_in + network.cell.n > KEPT_INPUTS

    def forward(state, inputs):
        end, trajectory, currents = network.unroll(state, inputs, stop_z_gradients=True)
        spikes = trajectory.spikes > 0 if network.cell.spiking else trajectory.spikes
        block = Block(state, inputs, spikes, currents if keep else None)
        return end, (block, trajectory.outputs, trajectory.states)

    end, (blocks, outputs, states) = jax.lax.scan(forward, start, in_blocks(inputs, length))
    outputs, spikes, states = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), (outputs, blocks.spikes, states)
    )
    return blocks, end, Trajectory(outputs, spikes.astype(outputs.dtype), states)


def _signals(
    loss: Loss, network: Network, trajectory: Trajectory, targets: Any, has_aux: bool
) -> tuple[Any, Any, Signals]:
    """`(value, aux, signals)` of the loss."""
    value, aux, derivatives = differentiate_loss(loss, trajectory, targets, has_aux)
    nothing = jnp.zeros_like(derivatives.outputs[:1])
    error = leaky_filter(derivatives.outputs, network.kappa, nothing[0], reverse=True)
    ages = jnp.arange(len(error) - 1, -1, -1, dtype=error.dtype)
    signals = Signals(
        error,
        jnp.concatenate([nothing, error[:-1]]),
        derivatives.spikes,
        derivatives.states,
        network.readout_gain * network.kappa**ages,
    )
    return value, aux, signals


def _reverse(
    feedback: AbstractFeedback,
    network: Network,
    trainable_cell: Any,
    blocks: Block,
    signals: Signals,
    later: Later,
) -> tuple[Later, list[Float[Array, "time batch n_rec"]]]:
    """From the last block to the first. Returns also r_t of each unit vector."""
    gain = network.readout_gain

    def reverse(later: Later, now: tuple[Block, Signals]) -> tuple[Later, list[Array]]:
        block, signals = now
        spikes = block.spikes.astype(signals.error.dtype)
        pre = network.presynaptic(block.inputs, block.start, spikes)
        z_tm1 = preceding(block.start.spikes, spikes)
        with_states = signals.states is not None
        pullback = _neurons(network, trainable_cell, block, pre, z_tm1, with_states)

        d_spikes = gain * feedback.learning_signal(network.w_out, signals.error)
        if signals.spikes is not None:
            d_spikes = d_spikes + signals.spikes
        d_cell, costates, d_currents = pullback((d_spikes, signals.states, later.costates))

        # One product for all weights: z_t of the readout is z_{t-1} of the next step's synapses.
        error_tm1 = gain * signals.error_tm1
        post = jnp.concatenate([d_currents, error_tm1], axis=-1)
        product = _product(pre, post)
        w_out = product[network.n_in :, network.cell.n :]
        here = Gradients(
            synapses=product[:, : network.cell.n],
            w_out=w_out if network.delays is None else _product(z_tm1, error_tm1),
            readout_bias=signals.error.sum((0, 1)),
            cell=d_cell,
        )
        gradients = jax.tree.map(jnp.add, later.gradients, here)

        # A unit vector on a hidden variable at the end, or on the readout, which sees all spikes.
        nothing = jnp.zeros_like(d_spikes)
        fading = jnp.broadcast_to(signals.fading[:, None, None], nothing.shape)
        on_spikes = [nothing] * (len(later.units) - 1) + [fading]
        on_states = jax.tree.map(jnp.zeros_like, signals.states)
        pulled = [pullback((on_spikes[k], on_states, unit)) for k, unit in enumerate(later.units)]
        units = [unit for _, unit, _ in pulled]
        return Later(costates, gradients, units), [r for _, _, r in pulled]

    length = blocks.spikes.shape[1]
    in_turn = (blocks, jax.tree.map(lambda x: in_blocks(x, length), signals))
    later, of_units = jax.lax.scan(reverse, later, in_turn, reverse=True)
    return later, [x.reshape(-1, *x.shape[2:]) for x in of_units]


def _product(
    pre: Float[Array, "time batch n_pre"], post: Float[Array, "time batch n_post"]
) -> Float[Array, "n_pre n_post"]:
    return jnp.tensordot(pre, post, axes=((0, 1), (0, 1)))


def _readout_of_last(
    network: Network, trajectory: Trajectory, signals: Signals, trainable_cell: Any
) -> Gradients:
    """The gradient from the last z_t, which is no later step's z_{t-1}."""
    w_out = network.readout_gain * trajectory.spikes[-1].T @ signals.error[-1]
    return zero_gradients(network, trainable_cell)._replace(w_out=w_out)


def _neurons(
    network: Network,
    trainable_cell: Any,
    block: Block,
    pre: Array,
    z_tm1: Array,
    with_states: bool,
) -> Callable[[Any], tuple[Any, list[Array], Array]]:
    """Run the neurons of a block, each by itself, under the currents that they got.

    Returns how cotangents on what they did (spikes, states, last state) pull back to those on the
    cell's parameters, the first state and the currents.
    """
    currents = block.currents
    if currents is None:  # in the order of the forward pass, for the same spikes
        x, z = jnp.split(pre, [network.n_in], axis=-1)
        currents = x @ network.w_in + z @ without_autapses(network.w_rec)
    hidden, counters = eqx.partition(block.start.cell, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(hidden)

    def neurons(trainable_cell, leaves, currents):
        cell = eqx.combine(trainable_cell, network.cell)

        def step(state, now):
            state = cell.step(state, *now)
            return state, (cell.output(state), hidden_variables(state) if with_states else None)

        start = eqx.combine(structure.unflatten(leaves), counters)
        last, (spikes, states) = jax.lax.scan(step, start, (currents, z_tm1))
        return spikes, states, hidden_variables(last)

    return jax.vjp(neurons, trainable_cell, leaves, currents)[1]
