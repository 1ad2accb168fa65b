"""A look inside: eligibility traces, learning signals, and the total derivative.

For figures and checks, not for training, where nothing of this size is ever stored.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from . import checks
from .common_vectors import common_traces
from .feedback import AbstractFeedback, SymmetricFeedback
from .network import Network, by_layer
from .response import respond
from .rules import Loss, call_loss
from .sequences import preceding
from .synapses import AbstractSynapses
from .traces import by_synapse, init_traces, step_traces


class EligibilityTraces(NamedTuple):
    """The traces of one kind of synapses over a sequence."""

    vectors: Any
    """ε as the cell's state, each hidden variable `[time, batch, fan_in, n_post]`; for a layer of
    several populations a tuple of these, each of its own columns."""
    trace: Float[Array, "time batch fan_in n_post"]
    """e."""
    filtered: Float[Array, "time batch fan_in n_post"]
    """ē."""


class Synapses(NamedTuple):
    """Something for the synapses from below, and for the recurrent ones."""

    w_in: Any
    w_rec: Any


class LearningSignals(NamedTuple):
    """E-prop's two learning signals: dE/dW = Σ_t L_t ē_t + Σ_t (∂E/∂z_t) e_t.

    Of the neurons of all layers, in their order. A loss that looks at the states adds
    Σ_t (∂E/∂s_t) · ε_t, which is not in here.
    """

    readout: Float[Array, "time batch n"]
    """L_t = B ∂E/∂y_t, which goes with the trace filtered by the readout."""
    direct: Float[Array, "time batch n"]
    """∂E/∂z_t, which goes with the trace itself."""


def eligibility_traces(
    network: Network, inputs: ArrayLike, post: Any = None, *, layer: int = 0
) -> Synapses:
    """The `EligibilityTraces` of W_in and W_rec of one layer, for a look at them.

        >>> import eprop, jax
        >>> network = eprop.Network(eprop.LIF(9, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(0))
        >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (20, 2, 5))
        >>> of_first = eprop.eligibility_traces(network, inputs, post=[0])
        >>> of_first.w_rec.trace.shape  # [time, batch, fan_in, n_post]
        (20, 2, 9, 1)

    **Arguments:** `inputs`: `[time, batch, n_in]`; `post`: the postsynaptic neurons to follow, as
    a vector of indices (all by default; columns of the weights, for cells with several currents);
    `layer`: which layer.

    The result holds (d + 2) numbers per step, example and synapse: fine for a figure, not for
    training. Entries of synapses that don't exist, autapses say, are zero.
    """
    network, inputs = network.checked(inputs)
    if layer not in range(len(network.layers)):
        raise ValueError(f"layer = {layer!r} must be from 0 to {len(network.layers) - 1}")
    batch, here = inputs.shape[1], network.layers[layer]
    columns = jnp.arange(here.neurons.n_post)
    post = columns if post is None else checks.indices("post", post, here.neurons.n_post)
    state = network.init(batch)
    _, trajectory = network.run(state, inputs)
    below = inputs if layer == 0 else trajectory.layers[layer - 1].spikes
    start = state.layers[layer]
    run = here.unroll(start, below, here.effective(), stop_z_gradients=True)
    pre = here.presynaptic(start, below, run.spikes)
    commons = [common_traces(cell) for cell in here.neurons.cells]
    states_tm1 = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), start.neurons, run.states
    )

    def step(traces, now):
        pre_t, states, current, z_tm1 = now
        jacobians = [
            cell.jacobians(*of_cell)
            for cell, *of_cell in zip(
                here.neurons.cells,
                states,
                here.neurons.currents_of_cells(current),
                here.neurons.by_neurons(z_tm1),
                strict=True,
            )
        ]

        def of_port(synapses, port, old, pre_t):
            new, trace = step_traces(
                synapses,
                port,
                commons[port.population][port.current],
                old,
                jacobians[port.population],
                pre_t,
                network.kappa,
                network.readout_gain,
            )
            vectors = [by_synapse(synapses, x, port) for x in new.vectors]
            return new, ([jnp.broadcast_to(x, trace.shape) for x in vectors], trace, new.filtered)

        after, seen = {}, {}
        for kind, synapses in here.synapses.items():
            ports = zip(here.neurons.ports, traces[kind], strict=True)
            results = [of_port(synapses, *pair, pre_t[kind]) for pair in ports]
            after[kind] = [new for new, _ in results]
            seen[kind] = [x for _, x in results]
        return after, seen

    sequence = (pre, states_tm1, run.currents, preceding(start.spikes, run.spikes))
    _, seen = jax.lax.scan(step, init_traces(here, batch).synapses, sequence)

    def of_kind(kind):
        if kind not in here.kinds:
            return None
        exists = _exists(here.kinds[kind])  # [fan_in, n_post]
        rows = here.rows.get(kind, slice(None))
        of_kind = seen["dense" if kind in here.rows else kind]

        def all_ports(of_ports):
            x = jnp.concatenate(of_ports, axis=-1)[:, :, rows]
            return jnp.where(exists, x, jnp.zeros((), x.dtype))[..., post]

        vectors = []
        for population, of_cell in enumerate(start.neurons):
            ports = [i for i, p in enumerate(here.neurons.ports) if p.population == population]
            hidden = eqx.filter(of_cell, eqx.is_inexact_array)
            by_variable = [
                [of_kind[i][0][k] for i in ports] for k in range(len(jax.tree.leaves(hidden)))
            ]
            if len(here.neurons.cells) == 1:
                by_variable = [all_ports(x) for x in by_variable]
            else:
                by_variable = [jnp.concatenate(x, axis=-1)[:, :, rows] for x in by_variable]
            vectors.append(jax.tree.unflatten(jax.tree.structure(hidden), by_variable))
        traces = [all_ports([port[k] for port in of_kind]) for k in (1, 2)]
        return EligibilityTraces(vectors[0] if len(vectors) == 1 else tuple(vectors), *traces)

    return Synapses(of_kind("below"), of_kind("recurrent"))


def _exists(synapses: AbstractSynapses) -> Bool[Array, "fan_in n_post"]:
    """Whether a weight acts at a synapse, whatever its number: it does if it has a derivative."""

    def of_weights(weights):
        return eqx.tree_at(lambda s: s.weights, synapses, weights).effective()

    ones = jnp.ones_like(synapses.weights)
    _, derivative = jax.jvp(of_weights, (ones,), (ones,))
    return synapses.spread(derivative) != 0


def learning_signals(
    network: Network,
    inputs: ArrayLike,
    targets: Any,
    loss: Loss,
    feedback: AbstractFeedback = SymmetricFeedback(),  # noqa: B008 (immutable)
) -> LearningSignals:
    """The learning signals of e-prop with `feedback`, `[time, batch, n]` each.

    `inputs` are `[time, batch, n_in]`; `loss(trajectory, targets)` is called once, on the whole
    sequence.
    """
    hint = "SymmetricFeedback(), or of a rule its rule.feedback"
    checks.instance("feedback", feedback, AbstractFeedback, hint)
    checks.function("loss", loss, "learning_signals(network, inputs, targets, loss, feedback)")
    trajectory = network(inputs)

    def of_trajectory(trajectory):
        return call_loss(loss, trajectory, targets, has_aux=False)[0]

    derivatives = eqx.filter_grad(of_trajectory)(trajectory)
    direct = jnp.concatenate([layer.spikes for layer in derivatives.layers], axis=-1)
    return LearningSignals(derivatives.outputs @ feedback.matrix(network).T, direct)


def total_derivative(
    network: Network, inputs: ArrayLike, targets: Any, loss: Loss
) -> Float[Array, "time batch n"]:
    """dE/dz_t of all layers' neurons: what z_t does to the loss by every way, by reverse mode.

    The ideal learning signal: Σ_t dE/dz_t e_t is the gradient of BPTT (the paper's equation 1),
    where e_t are the `eligibility_traces`, for a loss that doesn't look at the states. An
    influence of the spike on the neuron's own state that its cell keeps (the threshold
    adaptation) is in the trace, and so not in here.
    """
    network, inputs = network.checked(inputs)
    start = network.init(inputs.shape[1])

    def perturbed(perturbation):
        by_neuron = jnp.moveaxis(perturbation, -1, 0)
        parts = [jnp.moveaxis(x, 0, -1) for x in by_layer(network, by_neuron)]
        trajectory = respond(
            network,
            start,
            inputs,
            None,
            stop_z_gradients=False,
            as_bytes=False,
            perturbations=parts,
        ).trajectory
        return call_loss(loss, trajectory, targets, has_aux=False)[0]

    return jax.grad(perturbed)(jnp.zeros((*inputs.shape[:2], network.n), network.dtype))
