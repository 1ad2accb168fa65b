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

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .cells import hidden_variables
from .evaluation import (
    Derivatives,
    advance,
    as_network,
    backward,
    forward,
    init_carry,
    zero_gradients,
)
from .feedback import AbstractFeedback
from .layer import Layer
from .network import Network
from .response import Kept
from .sequences import Blocks, cut, join, scan_blocks
from .trajectory import NetworkState, Trajectory


@eqx.filter_custom_vjp
def run(
    differentiated: tuple[Network, NetworkState | None, Array],
    feedback: AbstractFeedback,
    kept: Kept,
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
    network, start, inputs = _only_once(differentiated)
    feedback.matrix(network)  # its errors come here, before the run
    start_or_rest = _started(network, start, inputs)
    under_way = None if start is None else perturbed[1].layers[0].past
    of_inputs = bool(perturbed[2]) or any(jax.tree.leaves(under_way))
    if _is_whole(window, inputs):
        response = forward(network, start_or_rest, inputs, kept, n_steps=len(inputs))
        return response[:2], (response.records, of_inputs)
    if start is not None or of_inputs:
        what = "a network by its inputs" if of_inputs else "a run that goes on from a state"
        raise ValueError(
            f"window={window} goes forward in time from rest, so it can't differentiate {what}: "
            f"write EProp(..., window=None)"
        )

    def of_window(state, now):
        response = forward(network, state, *now, n_steps=len(inputs))
        return response.end, (response.records, response.trajectory)

    end, results = scan_blocks(of_window, start_or_rest, cut((inputs, kept), window))
    (records, seen), (rest, last) = results.whole, results.rest or (None, None)
    return (end, join(Blocks(seen, last))), (Blocks(records, rest), of_inputs)


@eqx.filter_custom_jvp
def _only_once(differentiated: Any) -> Any:
    """The same; where it is differentiated, that would be e-prop's gradient once more."""
    return differentiated


@_only_once.def_jvp
def _differentiated_once_more(primals, tangents):
    raise ValueError(
        "e-prop's gradient has no derivative of its own: for second derivatives use BPTT()"
    )


@run.def_bwd
def _run_backward(residuals, cotangents, perturbed, differentiated, feedback, kept, window):
    del perturbed
    network, start, inputs = differentiated
    records, of_inputs = residuals
    d_end, d_trajectory = cotangents
    b, batch = feedback.matrix(network), inputs.shape[1]
    shape = inputs.shape[:2]
    derivatives = _with_end(network, derivatives_of(network, d_trajectory, shape), d_end)
    if not _is_whole(window, inputs):

        def of_window(so_far, now):
            return advance(network, b, *now, *so_far), None

        in_windows = cut(derivatives, window)
        rest = None if in_windows.rest is None else (records.rest, in_windows.rest)
        together = Blocks((records.whole, in_windows.whole), rest)
        so_far = (init_carry(network, batch), zero_gradients(network))
        (_, gradients), _ = scan_blocks(of_window, so_far, together)
        return as_network(network, gradients), _nothing(start), None

    found = backward(network, b, records, derivatives, of_inputs=of_inputs)
    d_past, d_inputs = None, None
    if found.received is not None:
        d_past, d_received = _of_inputs(found.received, d_end.layers[0].past, len(inputs))
        if eqx.is_inexact_array(inputs):
            _, before_dropout = jax.vjp(lambda x: network.received(0, x, kept), inputs)
            (d_inputs,) = before_dropout(d_received)
    d_network = as_network(network, found.gradients)
    if start is None:
        return _through_first_state(network, d_network, found.costates, batch), None, d_inputs
    return d_network, _as_state(start, found.costates, found.outputs, d_past), d_inputs


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


def derivatives_of(network: Network, d_trajectory: Any, shape: tuple[int, ...]) -> Derivatives:
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


def _with_end(network: Network, derivatives: Derivatives, d_end: Any) -> Derivatives:
    """With the cotangents of the state at the end, whose numbers are those of the last step."""
    n_steps, batch = derivatives.outputs.shape[:2]

    def add(x, last):
        if last is None:
            return x
        x = jnp.zeros((n_steps, *last.shape), network.dtype) if x is None else x
        return x.at[-1].add(last)

    def of_layer(layer, spikes, states, end):
        last = _hidden(layer, end.neurons, (batch,))
        if last is not None:
            states = [add(*pair) for pair in zip(states or [None] * len(last), last, strict=True)]
        return add(spikes, end.spikes), states

    layers = zip(network.layers, derivatives.spikes, derivatives.states, d_end.layers, strict=True)
    spikes, states = zip(*(of_layer(*layer) for layer in layers), strict=True)
    return Derivatives(add(derivatives.outputs, d_end.outputs), list(spikes), list(states))


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


def _of_inputs(
    d_known: Array, d_past_at_end: dict[str, Array | None], n_steps: int
) -> tuple[Array, Array]:
    """What is under way at the end are the last of the known inputs: those before and those given.

    Returns the cotangents of both, `[batch, d_max, n_in]` and `[time, batch, n_in]`.
    """
    at_end = d_past_at_end.get("below")
    if at_end is not None:
        d_known = d_known.at[-at_end.shape[1] :].add(jnp.moveaxis(at_end, 1, 0))
    n_before = len(d_known) - n_steps
    return jnp.moveaxis(d_known[:n_before], 0, 1), d_known[n_before:]


def _nothing(tree: Any) -> Any:
    return jax.tree.map(lambda _: None, tree)


def _as_state(
    start: NetworkState, costates: list[list[Array]], d_outputs: Array, d_past: Array | None
) -> Any:
    """Cotangents of hidden variables, outputs and inputs under way; that of spikes is stopped."""

    def of_layer(layer, costates):
        leaves, structure = jax.tree.flatten(layer.neurons)
        hidden = iter(costates)
        neurons = [next(hidden) if eqx.is_inexact_array(x) else None for x in leaves]
        return _nothing(layer)._replace(neurons=structure.unflatten(neurons))

    first, *others = (of_layer(*pair) for pair in zip(start.layers, costates, strict=True))
    if "below" in first.past:
        first = first._replace(past=first.past | {"below": d_past})
    return NetworkState((first, *others), d_outputs)
