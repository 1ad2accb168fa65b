"""Eligibility traces: how each synapse has changed its neuron's state, forward in time.

    ε_t = D_t ε_{t-1} + b_t pre_t        the eligibility vector, one entry per hidden variable
    e_t = c_t · ε_t                      the eligibility trace
    ē_t = κ ē_{t-1} + g e_t              the trace as the readout filters it

with the Jacobians D, b and c of the neuron's own equations. For `ALIF` this is formula (25) of
Bellec et al. 2020.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .cells import Jacobians, hidden_variables
from .network import Network, NetworkState, Presynaptic


class TraceState(NamedTuple):
    """What the recursion carries for one weight matrix."""

    vectors: Float[Array, "d batch n_pre n_post"]
    """ε, one matrix per hidden variable of the cell."""
    filtered: Float[Array, "batch n_pre n_post"]
    """ē."""


class ReadoutTraces(NamedTuple):
    """The readout's own traces: ∂E/∂y_t times trace is the gradient of its weights."""

    spikes: Float[Array, "batch n_rec"]
    """κ-filtered g z_t, for W_out."""
    bias: Float[Array, ""]
    """κ-filtered 1, for the bias."""


class Carry(NamedTuple):
    """All that e-prop takes from one step, or window of steps, to the next."""

    network: NetworkState
    synapses: Presynaptic
    """A `TraceState` for each weight matrix."""
    readout: ReadoutTraces


def init_carry(network: Network, batch: int) -> Carry:
    """The network at rest, and every trace zero."""
    state = network.init(batch)
    d, n = len(hidden_variables(state.cell)), network.cell.n

    def zeros(n_pre: int) -> TraceState:
        dtype = network.w_in.dtype
        return TraceState(
            jnp.zeros((d, batch, n_pre, n), dtype), jnp.zeros((batch, n_pre, n), dtype)
        )

    return Carry(
        state,
        Presynaptic(w_in=zeros(network.n_in), w_rec=zeros(n)),
        ReadoutTraces(jnp.zeros_like(state.spikes), jnp.zeros((), state.spikes.dtype)),
    )


def step_traces(
    traces: TraceState,
    jacobians: Jacobians,
    pre: Float[Array, "batch n_pre"],
    kappa: float,
    gain: float,
) -> tuple[TraceState, Float[Array, "batch n_pre n_post"]]:
    """One step of the recursion; returns the new state, and e_t."""
    carried = jnp.einsum("klbj,lbij->kbij", jacobians.state, traces.vectors)
    arrived = jnp.einsum("kbj,bi->kbij", jacobians.current, pre)
    vectors = carried + arrived
    trace = jnp.einsum("kbj,kbij->bij", jacobians.output, vectors)
    return TraceState(vectors, kappa * traces.filtered + gain * trace), trace


class EligibilityTraces(NamedTuple):
    """The traces of one weight matrix over a sequence."""

    vectors: Any
    """ε as the cell's state, each hidden variable `[time, batch, n_pre, n_post]`."""
    trace: Float[Array, "time batch n_pre n_post"]
    """e."""
    filtered: Float[Array, "time batch n_pre n_post"]
    """ē."""


def eligibility_traces(
    network: Network, inputs: ArrayLike, post: ArrayLike | None = None
) -> Presynaptic:
    """The `EligibilityTraces` of W_in and W_rec, for a look at them.

    **Arguments:** `inputs`: `[time, batch, n_in]`; `post`: the postsynaptic neurons to follow, as
    a vector of indices (all by default).

    The result holds (d + 2) numbers per step, example and synapse: fine for a figure, not for
    training, where nothing of this size is ever stored. The autapses' entries are zero.
    """
    inputs = network.check_inputs(inputs)
    post = jnp.arange(network.cell.n) if post is None else jnp.asarray(post)
    carry = init_carry(network, inputs.shape[1])
    start = carry.network
    run = network.unroll(start, inputs, stop_z_gradients=True)
    pre = network.presynaptic(inputs, start.spikes, run.trajectory.spikes)
    states_tm1 = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]),
        start.cell,
        run.trajectory.states,
    )

    def step(traces, now):
        pre_t, state_tm1, current_t = now
        jacobians = network.cell.jacobians(state_tm1, current_t)
        jacobians = jax.tree.map(lambda x: x[..., post], jacobians)
        new, seen = [], []
        for state, pre_of_weight in zip(traces, pre_t, strict=True):
            state, trace = step_traces(
                state, jacobians, pre_of_weight, network.kappa, network.readout_gain
            )
            new.append(state)
            seen.append((list(state.vectors), trace, state.filtered))
        return Presynaptic(*new), Presynaptic(*seen)

    synapses = jax.tree.map(lambda x: x[..., post], carry.synapses)
    _, seen = jax.lax.scan(step, synapses, (pre, states_tm1, run.currents))
    structure = jax.tree.structure(eqx.filter(start.cell, eqx.is_inexact_array))

    def named(vectors, trace, filtered):
        return EligibilityTraces(structure.unflatten(vectors), trace, filtered)

    autapse = jnp.arange(network.cell.n)[:, None] == post
    w_rec = jax.tree.map(lambda x: jnp.where(autapse, jnp.zeros_like(x), x), seen.w_rec)
    return Presynaptic(w_in=named(*seen.w_in), w_rec=named(*w_rec))
