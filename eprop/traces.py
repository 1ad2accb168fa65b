"""Eligibility traces: how each synapse has changed its neuron's state, forward in time.

    ε_t = D_t ε_{t-1} + b_t pre_t        the eligibility vector, one entry per hidden variable
    e_t = c_t · ε_t                      the eligibility trace
    ē_t = κ ē_{t-1} + g e_t              the trace as the readout filters it

with the Jacobians D, b and c of the neuron's own equations. For `ALIF` this is formula (25) of
Bellec et al. 2020.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from . import checks
from .cells import AbstractCell, Jacobians, hidden_variables
from .network import Network, NetworkState, Synapses
from .sequences import preceding


class SynapticTraces(NamedTuple):
    """What e-prop carries of the synapses; n_pre is n_in + n_rec."""

    vectors: list[Float[Array, "batch n_pre _"]]
    """ε, one array per hidden variable of the cell; `[batch, n_pre, 1]` if it is the same for
    all postsynaptic neurons (see `common_traces`)."""
    filtered: Float[Array, "batch n_pre n_post"]
    """ē."""


class ReadoutTraces(NamedTuple):
    """The readout's own traces: ∂E/∂y_t times trace is the gradient of its weights."""

    spikes: Float[Array, "batch n_rec"]
    """κ-filtered g z_t, for W_out."""
    bias: Float[Array, " batch"]
    """κ-filtered 1, for the bias."""


class Carry(NamedTuple):
    """All that e-prop takes from one step, or window of steps, to the next.

    Every array has a leading axis of examples.
    """

    network: NetworkState
    synapses: SynapticTraces
    readout: ReadoutTraces


class EligibilityTraces(NamedTuple):
    """The traces of one weight matrix over a sequence."""

    vectors: Any
    """ε as the cell's state, each hidden variable `[time, batch, n_pre, n_post]`."""
    trace: Float[Array, "time batch n_pre n_post"]
    """e."""
    filtered: Float[Array, "time batch n_pre n_post"]
    """ē."""


def init_carry(network: Network, batch: int) -> Carry:
    """The network at rest, and every trace zero."""
    state = network.init(batch)
    n_pre, n = network.synapses.shape
    zeros = jnp.zeros((batch, n_pre, n), state.spikes.dtype)
    common = common_traces(network.cell)
    vectors = [zeros[..., :1] if constants else zeros for constants in common]
    readout = ReadoutTraces(jnp.zeros_like(state.spikes), zeros[:, 0, 0])
    return Carry(state, SynapticTraces(vectors, zeros), readout)


def common_traces(cell: AbstractCell) -> list[list[float] | None]:
    """The constants of each hidden variable whose eligibility vectors are those of every neuron.

    That is so where D and b are constants, equal for all neurons, that lead from the current and
    from other such variables only: a membrane potential with one α is the filtered presynaptic
    activity, whatever the postsynaptic neuron does. A vector then does for a matrix. The cell is
    taken to be elementwise over neurons, as every cell must be.

    For each hidden variable its row of D with its entry of b at the end, or `None`.
    """
    with jax.ensure_compile_time_eval():
        state = cell.init(1)
        current = jnp.zeros_like(hidden_variables(state)[0])
    rows = _constants(cell.linear_step, state, current, current)
    common = [True] * len(rows)

    def is_common(row):
        *from_state, from_current = row
        relevant = [x for x, known in zip(from_state, common, strict=True) if known]
        others = [x for x, known in zip(from_state, common, strict=True) if not known]
        equal = all(x is not None and (x == x.flat[0]).all() for x in [*relevant, from_current])
        return equal and all(x is not None and not x.any() for x in others)

    for _ in rows:  # one variable found to differ makes those that it drives differ
        common = [is_common(row) for row in rows]
    return [
        [float(x.flat[0]) for x in row] if known else None
        for row, known in zip(rows, common, strict=True)
    ]


def lead_common(
    common: list[list[float] | None],
    vectors: list[Float[Array, "batch n_pre _"]],
    pre: Float[Array, "time batch n_pre"],
) -> list[Float[Array, "batch n_pre 1"] | None]:
    """The common vectors after some steps: Σ_t D^(K-t) b pre_t + D^K ε; `None` for the others."""
    d = len(common)
    constants = np.array([row or [0.0] * (d + 1) for row in common])
    arrived, power = [], np.eye(d)
    for _ in range(len(pre)):  # from the last step back
        arrived.append(power @ constants[:, -1])
        power = power @ constants[:, :-1]
    response = jnp.asarray(np.array(arrived[::-1]), pre.dtype)

    def lead(k):
        old = sum(
            float(power[k, i]) * vectors[i] for i, row in enumerate(common) if row is not None
        )
        return old + jnp.tensordot(response[:, k], pre, 1)[..., None]

    return [None if row is None else lead(k) for k, row in enumerate(common)]


def _constants(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result as NumPy arrays, with `None` for what depends on its arguments."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    varying = {id(x) for x in jaxpr.jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(x) in varying for x in equation.invars):
            varying |= {id(x) for x in equation.outvars}
    with jax.ensure_compile_time_eval():
        values = jax.tree.leaves(function(*args))
    leaves = [
        None if id(variable) in varying or isinstance(value, jax.core.Tracer) else np.asarray(value)
        for variable, value in zip(jaxpr.jaxpr.outvars, values, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def step_traces(
    traces: SynapticTraces,
    jacobians: Jacobians,
    pre: Float[Array, "batch n_pre"],
    kappa: float,
    gain: float,
) -> tuple[SynapticTraces, Float[Array, "batch n_pre n_post"]]:
    """One step of the recursion; returns the new state, and e_t."""
    vectors = [
        advance_vector(jacobians.state[k], traces.vectors, like=vector)
        + pre[:, :, None] * jacobians.current[k, :, None, : vector.shape[-1]]
        for k, vector in enumerate(traces.vectors)
    ]
    products = (c[:, None] * x for c, x in zip(jacobians.output, vectors, strict=True))
    trace = functools.reduce(jnp.add, products)
    return SynapticTraces(vectors, kappa * traces.filtered + gain * trace), trace


def advance_vector(
    row: Iterable[Float[Array, "batch n_post"]],
    vectors: list[Float[Array, "batch n_pre _"]],
    like: Float[Array, "batch n_pre _"],
) -> Float[Array, "batch n_pre _"]:
    """Σ_l D_kl ε_l, of the shape of `like`: a common vector comes from common ones alone."""
    width = like.shape[-1]
    terms = (
        d[:, None, :width] * vector
        for d, vector in zip(row, vectors, strict=True)
        if vector.shape[-1] <= width
    )
    return functools.reduce(jnp.add, terms)


def sum_over_batch(
    signals: Sequence[Float[Array, "batch n_post"]],
    traces: Sequence[Float[Array, "batch n_pre _"]],
) -> Float[Array, "n_pre n_post"]:
    """Σ_b Σ_k signal_k,bj trace_k,bij: what the traces make of the signals on their neurons.

    One example after the other: every trace is read once, and the sum stays in the cache.
    """

    def add(total, example):
        return total + sum(
            signal[None] * trace for signal, trace in zip(*example, strict=True)
        ), None

    n_pre, n_post = traces[0].shape[1], signals[0].shape[1]
    nothing = jnp.zeros((n_pre, n_post), signals[0].dtype)
    return jax.lax.scan(add, nothing, (list(signals), list(traces)))[0]


def eligibility_traces(network: Network, inputs: ArrayLike, post: Any = None) -> Synapses:
    """The `EligibilityTraces` of W_in and W_rec, for a look at them.

    **Arguments:** `inputs`: `[time, batch, n_in]`; `post`: the postsynaptic neurons to follow, as
    a vector of indices (all by default).

    The result holds (d + 2) numbers per step, example and synapse: fine for a figure, not for
    training, where nothing of this size is ever stored. The autapses' entries are zero.
    """
    network, inputs = network.checked(inputs)
    neurons = jnp.arange(network.cell.n)
    post = neurons if post is None else checks.indices("post", post, network.cell.n)
    carry = init_carry(network, inputs.shape[1])
    start = carry.network
    run = network.unroll(start, inputs, stop_z_gradients=True)
    pre = network.presynaptic(inputs, start, run.trajectory.spikes)
    z_tm1 = preceding(start.spikes, run.trajectory.spikes)
    states_tm1 = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]),
        start.cell,
        run.trajectory.states,
    )

    def step(traces, now):
        pre_t, *of_neurons = now
        jacobians = network.cell.jacobians(*of_neurons)
        traces, trace = step_traces(traces, jacobians, pre_t, network.kappa, network.readout_gain)
        seen = [*traces.vectors, trace, traces.filtered]
        return traces, [jnp.broadcast_to(x, trace.shape)[..., post] for x in seen]

    _, seen = jax.lax.scan(step, carry.synapses, (pre, states_tm1, run.currents, z_tm1))
    structure = jax.tree.structure(eqx.filter(start.cell, eqx.is_inexact_array))

    def named(seen):
        *vectors, trace, filtered = seen
        return EligibilityTraces(structure.unflatten(vectors), trace, filtered)

    w_in, w_rec = zip(*(network.split(x) for x in seen), strict=True)
    autapse = neurons[:, None] == post[None]
    w_rec = [jnp.where(autapse, jnp.zeros_like(x), x) for x in w_rec]
    return Synapses(w_in=named(w_in), w_rec=named(w_rec))
