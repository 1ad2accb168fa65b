"""E-prop a window of steps at a time: backpropagation through the neurons, not the network.

With the recurrent spikes held fixed a network is a set of separate neurons, each driven by its
input current I_t. Their derivatives need no weights: one reverse scan over neurons turns the
learning signals ℓ_t on their spikes into r_t = dE/dI_t, and the gradient of a weight matrix is
one matrix product, Σ_t pre_tᵀ r_t. What came before the window enters by the carried eligibility
vectors, and what leaves it is the same reverse scan of unit vectors. The proof that this is the
recursion's number is in the documentation, under "Derivation".
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .feedback import AbstractFeedback
from .learning_signals import Loss, differentiate_loss
from .network import Network, NetworkState, Presynaptic, leaky_filter, without_autapses
from .recursion import Gradients
from .traces import Carry, ReadoutTraces, TraceState


def window_gradients(
    loss: Loss,
    feedback: AbstractFeedback,
    network: Network,
    trainable_cell: Any,
    carry: Carry | None,
    inputs: Array,
    targets: Any,
    has_aux: bool,
) -> tuple[Carry | None, Any, Any, Gradients]:
    """`inputs` `[K, batch, n_in]`; `carry` is `None` for a sequence that is a single window.

    `trainable_cell` is the part of the cell to differentiate by, as from `equinox.filter`.
    Returns the carry after the window (`None` if there was none), the loss's value and aux, and
    the window's share of the gradient.
    """
    kappa, gain = network.kappa, network.readout_gain
    start = network.init(inputs.shape[1]) if carry is None else carry.network
    hidden, rest = eqx.partition(start.cell, eqx.is_inexact_array)

    def neurons(trainable_cell, hidden, input_current):
        cell = eqx.combine(trainable_cell, network.cell)
        begin = NetworkState(eqx.combine(hidden, rest), start.spikes, start.outputs)
        separate = eqx.tree_at(lambda net: net.cell, network, cell)
        end, trajectory = separate.unroll(begin, input_current, stop_z_gradients=True)
        floats = eqx.filter((trajectory.states, end.cell), eqx.is_inexact_array)
        return (trajectory.spikes, *floats), (end, trajectory)

    (spikes, _, last), pullback, (end, trajectory) = jax.vjp(
        neurons, trainable_cell, hidden, network.input_current(inputs), has_aux=True
    )
    value, aux, derivatives = differentiate_loss(loss, trajectory, targets, has_aux)

    # The error of y_t' reaches z_t through the readout's leak: Σ_t' κ^(t'-t) ∂E/∂y_t'.
    error = leaky_filter(
        derivatives.outputs, kappa, jnp.zeros_like(start.outputs), reverse=True
    )
    signal = gain * feedback.learning_signal(network.w_out, error) + derivatives.spikes
    nothing = jax.tree.map(jnp.zeros_like, last)
    d_cell, d_hidden, d_current = pullback((signal, derivatives.states, nothing))

    pre = network.presynaptic(inputs, start.spikes, trajectory.spikes)
    gradients = Gradients(
        jax.tree.map(lambda pre: _outer(pre, d_current), pre),
        w_out=gain * _outer(spikes, error),
        readout_bias=error.sum((0, 1)),
        cell=d_cell,
    )
    if carry is not None:
        # ... and from before the window, by what the carry knows of it.
        into = feedback.learning_signal(network.w_out, kappa * error[0])
        gradients = Gradients(
            Presynaptic(
                *(
                    gradient + _from_before(jax.tree.leaves(d_hidden), into, traces)
                    for gradient, traces in zip(gradients.synapses, carry.synapses, strict=True)
                )
            ),
            gradients.w_out + carry.readout.spikes.T @ (kappa * error[0]),
            gradients.readout_bias + carry.readout.bias * kappa * error[0].sum(0),
            d_cell,
        )
        carry = _advance(network, carry, end, pullback, pre, trajectory)
    w_in, w_rec = gradients.synapses
    synapses = Presynaptic(w_in, without_autapses(w_rec))
    return carry, value, aux, gradients._replace(synapses=synapses)


def _outer(pre: Float[Array, "time batch i"], post: Float[Array, "time batch j"]) -> Array:
    return jnp.tensordot(pre, post, axes=((0, 1), (0, 1)))


def _from_before(
    d_hidden: list[Array], d_filtered: Array, traces: TraceState
) -> Float[Array, "n_pre n_post"]:
    """(D_1ᵀ λ_1) · ε, for the hidden variables and for the readout's filter."""
    gradient = jnp.einsum("bj,bij->ij", d_filtered, traces.filtered)
    return gradient + jnp.einsum("kbj,kbij->ij", jnp.stack(d_hidden), traces.vectors)


def _advance(
    network: Network, carry: Carry, end: NetworkState, pullback: Any, pre: Presynaptic, trajectory
) -> Carry:
    """The carry after the window: the reverse scan of unit vectors, and a product each."""
    spikes = trajectory.spikes
    n_steps = spikes.shape[0]
    decays = network.kappa ** jnp.arange(n_steps - 1, -1, -1, dtype=spikes.dtype)
    weights = jnp.broadcast_to(network.readout_gain * decays[:, None, None], spikes.shape)
    floats = eqx.filter((trajectory.states, end.cell), eqx.is_inexact_array)
    states, last = jax.tree.map(jnp.zeros_like, floats)
    leaves, structure = jax.tree.flatten(last)

    def unit(k):
        return structure.unflatten([x + (i == k) for i, x in enumerate(leaves)])

    rows = [(jnp.zeros_like(spikes), states, unit(k)) for k in range(len(leaves))]
    rows.append((weights, states, last))
    _, through, arrived = jax.vmap(pullback)(jax.tree.map(lambda *x: jnp.stack(x), *rows))
    through = jnp.stack(jax.tree.leaves(through), axis=1)  # [d + 1, d, batch, n]

    def advance(traces: TraceState, pre: Array) -> TraceState:
        new = jnp.einsum("klbj,lbij->kbij", through, traces.vectors)
        new = new + jnp.einsum("tbi,ktbj->kbij", pre, arrived)
        faded = network.kappa**n_steps * traces.filtered
        return TraceState(vectors=new[:-1], filtered=faded + new[-1])

    synapses = [advance(*pair) for pair in zip(carry.synapses, pre, strict=True)]
    readout = ReadoutTraces(
        network.kappa**n_steps * carry.readout.spikes
        + network.readout_gain * jnp.tensordot(decays, spikes, 1),
        network.kappa**n_steps * carry.readout.bias + decays.sum(),
    )
    return Carry(end, Presynaptic(*synapses), readout)
