"""E-prop as an adjoint: a network's run whose reverse-mode derivative is the rule's.

What comes back on the outputs is the readout's error: it is led back through the leak and sent to
each layer by the feedback. What comes back on spikes and states is direct. Each layer makes of
both its gradient, by itself; nothing passes from layer to layer. What goes on to the inputs is
r_t W_inᵀ of the first layer.

The same derivative can be found in two directions of time. In reverse, all at once. Or forward, a
window at a time with eligibility traces carried between windows, as where data arrive
(`eprop.online`, `eprop.streaming`): then later errors are not known yet, so there is none with
respect to the inputs.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import reverse
from .cells import hidden_variables
from .feedback import AbstractFeedback
from .layer import Layer
from .network import Network, NetworkState, Response, Trajectory, by_layer
from .recursion import step_gradients
from .replay import trained_constants
from .reverse import LayerGradients, Signals, keeps_currents
from .sequences import Blocks, cut, join, scan_blocks
from .traces import LayerTraces, init_traces
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


class Derivatives(NamedTuple):
    """Partial derivatives of the loss with respect to what a network did; `None` for zero."""

    outputs: Float[Array, "time batch n_out"]
    spikes: list[Float[Array, "time batch n"] | None]
    """Of each layer."""
    states: list[list[Float[Array, "time batch _"]] | None]
    """Of each hidden variable of each layer."""


def init_carry(network: Network, batch: int) -> Carry:
    """Before the first step."""
    layers = tuple(init_traces(layer, batch) for layer in network.layers)
    return Carry(layers, jnp.zeros(batch, network.dtype))


def zero_gradients(network: Network) -> NetworkGradients:
    """Where a sum of gradients begins."""
    n_out = network.n_out
    layers = tuple(reverse.zero_gradients(layer, n_out) for layer in network.layers)
    return NetworkGradients(layers, jnp.zeros(n_out, network.dtype))


def as_network(network: Network, gradients: NetworkGradients) -> Network:
    """The gradients as a network: of the weights themselves, `None` for all that is no number."""
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)

    def acting(arrays):
        network = eqx.combine(arrays, rest)
        layers = [(layer.effective(), trained_constants(layer)) for layer in network.layers]
        return layers, network.readout.weights, network.readout.bias

    layers = [(of_layer.weights, of_layer.constants) for of_layer in gradients.layers]
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
    kept: tuple[Array | None, ...],
    *,
    n_steps: int,
) -> Response:
    """A stretch of a run of `n_steps`, and what the derivative needs of each layer."""
    batch = inputs.shape[1]
    keep = [keeps_currents(layer, n_steps, batch) for layer in network.layers]
    return network.respond(
        start, inputs, kept, stop_z_gradients=True, as_bytes=True, keep_currents=keep
    )


# Reverse: all steps at once.


def backward(
    network: Network,
    b: Float[Array, "n n_out"],
    records: tuple[Blocks, ...],
    derivatives: Derivatives,
    at_end: list[list[Array]],
    *,
    of_inputs: bool,
) -> tuple[NetworkGradients, list[list[Array]], Array, Array | None]:
    """From the last step to the first.

    `at_end` is dE/ds of the layers' hidden variables after the last step. Returns the gradients,
    dE/ds before the first step, dE/dy likewise, and dE/dx if `of_inputs`.
    """
    error = network.readout.lead_back(derivatives.outputs)
    layers, costates, d_inputs = [], [], None
    for i, (layer, b_layer) in enumerate(zip(network.layers, by_layer(network, b), strict=True)):
        signals = Signals(
            network.readout_gain * error, derivatives.spikes[i], derivatives.states[i]
        )
        found = reverse.reverse(
            layer,
            layer.effective(),
            b_layer,
            records[i],
            signals,
            at_end[i],
            of_below=of_inputs and i == 0,
        )
        layers.append(found.gradients)
        costates.append(found.costates)
        d_inputs = found.below if i == 0 else d_inputs
    gradients = NetworkGradients(tuple(layers), error.sum((0, 1)))
    return gradients, costates, network.kappa * error[0], d_inputs


# Forward in time: with traces.


def advance(
    network: Network,
    b: Float[Array, "n n_out"],
    records: tuple[Blocks, ...],
    derivatives: Derivatives,
    carry: Carry,
) -> tuple[Carry, NetworkGradients]:
    """One window of steps: the traces after it, and its share of the gradient."""
    kappa, gain = network.kappa, network.readout_gain
    n_steps = len(derivatives.outputs)
    after, layers = [], []
    for i, (layer, b_layer) in enumerate(zip(network.layers, by_layer(network, b), strict=True)):
        signals = Signals(derivatives.outputs, derivatives.spikes[i], derivatives.states[i])
        w, record = layer.effective(), records[i]
        if n_steps == 1:
            record = jax.tree.map(lambda x: x[0], record.whole)  # its only block
        evaluate = step_gradients if n_steps == 1 else window_gradients
        traces, gradients = evaluate(
            layer, w, b_layer, record, signals, carry.layers[i], kappa, gain
        )
        after.append(traces)
        layers.append(gradients)
    error = network.readout.lead_back(derivatives.outputs)
    of_bias = error.sum((0, 1)) + kappa * carry.bias @ error[0]
    fading = sum(kappa**age for age in range(n_steps))
    bias = kappa**n_steps * carry.bias + fading
    return Carry(tuple(after), bias), NetworkGradients(tuple(layers), of_bias)


# The adjoint.


@eqx.filter_custom_vjp
def run(
    differentiated: tuple[Network, NetworkState | None, Array],
    feedback: AbstractFeedback,
    kept: tuple[Array | None, ...],
    window: int | None,
) -> tuple[NetworkState, Trajectory]:
    """The run of a network from a state under inputs, differentiated by e-prop.

    `differentiated` are these three, with `None` for the network at rest. `window` is the number
    of steps that are evaluated at a time, forward in time; `None` for all at once, in reverse.
    """
    del feedback, window
    network, start, inputs = differentiated
    start = _started(network, start, inputs)
    return forward(network, start, inputs, kept, n_steps=len(inputs))[:2]


@run.def_fwd
def _run_forward(perturbed, differentiated, feedback, kept, window):
    network, start, inputs = differentiated
    feedback.matrix(network)  # its errors come here, before the run
    start_or_rest = _started(network, start, inputs)
    of_inputs = bool(perturbed[2])
    if _is_whole(window, inputs):
        response = forward(network, start_or_rest, inputs, kept, n_steps=len(inputs))
        return response[:2], (response.records, of_inputs)
    if start is not None or of_inputs:
        what = "its inputs" if of_inputs else "the state that it starts from"
        raise ValueError(
            f"window={window} goes forward in time, so it can't differentiate a network by {what}: "
            f"write EProp(..., window=None)"
        )

    def of_window(state, now):
        response = forward(network, state, *now, n_steps=len(inputs))
        return response.end, (response.records, response.trajectory)

    end, results = scan_blocks(of_window, start_or_rest, cut((inputs, kept), window))
    (records, seen), (rest, last) = results.whole, results.rest or (None, None)
    return (end, join(Blocks(seen, last))), (Blocks(records, rest), of_inputs)


@run.def_bwd
def _run_backward(residuals, cotangents, perturbed, differentiated, feedback, kept, window):
    del perturbed
    network, start, inputs = differentiated
    records, of_inputs = residuals
    d_end, d_trajectory = cotangents
    b, batch = feedback.matrix(network), inputs.shape[1]
    shape = inputs.shape[:2]
    derivatives = _with_last(network, derivatives_of(network, d_trajectory, shape), d_end)
    at_end = [
        _hidden(layer, d.neurons, (batch,))
        for layer, d in zip(network.layers, d_end.layers, strict=True)
    ]

    if not _is_whole(window, inputs):
        derivatives = derivatives._replace(
            states=_with_end(derivatives.states, at_end, len(inputs))
        )

        def of_window(so_far, now):
            carry, total = so_far
            carry, gradients = advance(network, b, now[0], now[1], carry)
            return (carry, jax.tree.map(jnp.add, total, gradients)), None

        in_windows = cut(derivatives, window)
        rest = None if in_windows.rest is None else (records.rest, in_windows.rest)
        together = Blocks((records.whole, in_windows.whole), rest)
        so_far = (init_carry(network, batch), zero_gradients(network))
        (_, gradients), _ = scan_blocks(of_window, so_far, together)
        return as_network(network, gradients), _nothing(start), None

    gradients, costates, d_outputs, d_received = backward(
        network,
        b,
        records,
        derivatives,
        [
            _zeros(layer, (batch,)) if x is None else x
            for layer, x in zip(network.layers, at_end, strict=True)
        ],
        of_inputs=of_inputs,
    )
    d_inputs = None
    if of_inputs:
        _, before_dropout = jax.vjp(lambda x: network.received(0, x, kept), inputs)
        (d_inputs,) = before_dropout(d_received)
    d_network = as_network(network, gradients)
    if start is None:
        return _through_first_state(network, d_network, costates, batch), None, d_inputs
    return d_network, _as_state(start, costates, d_outputs), d_inputs


def _is_whole(window: int | None, inputs: Array) -> bool:
    return window is None or window >= len(inputs)


def _started(network: Network, start: NetworkState | None, inputs: Array) -> NetworkState:
    return network.init(inputs.shape[1]) if start is None else start


def _through_first_state(
    network: Network, d_network: Network, costates: list[list[Array]], batch: int
) -> Network:
    """Adds what the cells' constants do by way of the first state."""
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)

    def first_state(arrays):
        start = eqx.combine(arrays, rest).init(batch)
        return [hidden_variables(layer.neurons) for layer in start.layers]

    _, pullback = jax.vjp(first_state, arrays)
    return jax.tree.map(jnp.add, d_network, pullback(costates)[0])


# Cotangents of what JAX gives and takes.


def derivatives_of(network: Network, d_trajectory: Any, shape: tuple[int, int]) -> Derivatives:
    """Of a trajectory of cotangents, `None` where they are zero. `shape` is `(time, batch)`."""
    outputs = d_trajectory.outputs
    if outputs is None:
        outputs = jnp.zeros((*shape, network.n_out), network.dtype)
    of_layers = list(zip(network.layers, d_trajectory.layers, strict=True))
    states = [
        _hidden(layer, (x.states,) if len(layer.neurons.cells) == 1 else x.states, shape)
        for layer, x in of_layers
    ]
    return Derivatives(outputs, [x.spikes for _, x in of_layers], states)


def _with_last(network: Network, derivatives: Derivatives, d_end: Any) -> Derivatives:
    """Outputs and spikes at the end are those of the last step."""

    def add(x, last, n):
        if last is None:
            return x
        x = jnp.zeros((*derivatives.outputs.shape[:2], n), network.dtype) if x is None else x
        return x.at[-1].add(last)

    of_layers = zip(network.layers, derivatives.spikes, d_end.layers, strict=True)
    spikes = [add(x, end.spikes, layer.n) for layer, x, end in of_layers]
    outputs = add(derivatives.outputs, d_end.outputs, network.n_out)
    return derivatives._replace(outputs=outputs, spikes=spikes)


def _hidden(layer: Layer, cotangents: Any, leading: tuple[int, ...]) -> list[Array] | None:
    """The cotangents of the hidden variables as a list; `None` if all are zero."""
    zeros = _zeros(layer, leading)
    template = jax.eval_shape(lambda: layer.init(1).neurons)
    leaves = jax.tree.leaves(cotangents, is_leaf=lambda x: x is None)
    is_hidden = [jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(template)]
    found = [x for x, hidden in zip(leaves, is_hidden, strict=True) if hidden]
    if all(x is None for x in found):
        return None
    return [zero if x is None else x for x, zero in zip(found, zeros, strict=True)]


def _zeros(layer: Layer, leading: tuple[int, ...]) -> list[Array]:
    """A zero for each hidden variable, with leading axes for time and batch."""
    hidden = jax.eval_shape(lambda: hidden_variables(layer.init(1).neurons))
    return [jnp.zeros((*leading, x.shape[-1]), layer.dtype) for x in hidden]


def _with_end(
    states: list[list[Array] | None], at_end: list[list[Array] | None], n_steps: int
) -> list[list[Array] | None]:
    """The states' derivatives with those of the last states, which are the last step's."""

    def of_layer(x, last):
        if last is None:
            return x
        x = [jnp.zeros((n_steps, *y.shape), y.dtype) for y in last] if x is None else x
        return [a.at[-1].add(b) for a, b in zip(x, last, strict=True)]

    return [of_layer(x, last) for x, last in zip(states, at_end, strict=True)]


def _nothing(tree: Any) -> Any:
    return jax.tree.map(lambda _: None, tree)


def _as_state(start: NetworkState, costates: list[list[Array]], d_outputs: Array) -> Any:
    """Cotangents of hidden variables and outputs; that of the spikes is stopped."""

    def of_layer(layer, costates):
        leaves, structure = jax.tree.flatten(layer.neurons)
        hidden = iter(costates)
        neurons = [next(hidden) if eqx.is_inexact_array(x) else None for x in leaves]
        return _nothing(layer)._replace(neurons=structure.unflatten(neurons))

    layers = tuple(of_layer(*pair) for pair in zip(start.layers, costates, strict=True))
    return NetworkState(layers, d_outputs)
