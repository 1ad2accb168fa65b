"""A network's run itself, layer by layer and block by block, and its plain derivative."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .compiled import at_once, compiled, is_event_driven, tiled
from .kernels import readout_drive
from .precision import exact_products
from .record import Block, all_spikes, block_steps
from .sequences import Blocks, cut, join, scan_blocks
from .sharding import EVERYWHERE, EXAMPLES, STEPS, by_shares, everywhere
from .trajectory import LayerTrajectory, NetworkState, Response, Trajectory, of_one

Kept = tuple[Array | None, ...] | None
"""For each layer what dropout leaves of what it receives, booleans `[time, batch, n_in]`; `None`
where it leaves all."""


@exact_products
def respond(
    network: Any,
    start: NetworkState,
    inputs: Shaped[Array, "time batch n_in"],
    kept: Kept,
    *,
    stop_z_gradients: bool,
    as_bytes: bool,
    keep_currents: Sequence[bool] | None = None,
    perturbations: Sequence[Array] | None = None,
) -> Response:
    """The network's run.

    With `stop_z_gradients` the gradient of z is stopped wherever it passes from one neuron to
    another. With `as_bytes` no gradient passes through spikes at all, and those of spiking
    layers take a byte each. `keep_currents` says for each layer whether I_t is kept;
    `perturbations` are those of `Layer.unroll`.
    """
    w = [layer.effective() for layer in network.layers]
    tiles = [tiled(layer, len(inputs)) if as_bytes else None for layer in network.layers]
    for_gpu = any(x is not None for x in tiles)
    length = block_steps(network.layers, *inputs.shape[:2], for_gpu=for_gpu)
    fast = [compiled(layer, len(inputs)) if as_bytes else None for layer in network.layers]
    if is_event_driven(fast, inputs, kept):
        return at_once(network, fast, start, inputs, length)
    keep_currents = keep_currents or [False] * len(network.layers)

    def of_block(state: NetworkState, now: tuple[Array, Kept, Sequence[Array] | None]):
        below, kept, perturbations = now
        drive = jnp.zeros((*below.shape[:2], network.n_out), network.dtype)
        ends, blocks, states = [], [], []
        for i, (layer, w_out) in enumerate(
            zip(network.layers, network.readout_weights(), strict=True)
        ):
            received, start = network.received(i, below, kept), state.layers[i]
            programs, on_gpu = fast[i], tiles[i]
            if programs is not None:
                run, _ = programs.unroll(start, received, w[i], len(received))
                spikes = run.spikes
                if w_out is not None:
                    drive = readout_drive(spikes, w_out, drive)
            else:
                if on_gpu is not None:
                    run = on_gpu.unroll(start, received, w[i])
                else:
                    run = layer.unroll(
                        start,
                        received,
                        w[i],
                        stop_z_gradients=stop_z_gradients or as_bytes,
                        perturbation=None if perturbations is None else perturbations[i],
                    )
                spikes = run.spikes > 0 if as_bytes and layer.neurons.spiking else run.spikes
                if w_out is not None:
                    drive = drive + run.spikes @ w_out
            currents = run.currents if keep_currents[i] else None
            ends.append(run.end)
            blocks.append(Block(start, received, spikes, currents))
            states.append(of_one(run.states))
            below = jax.lax.stop_gradient(spikes) if stop_z_gradients else spikes
            if layer is not network.layers[-1]:
                below = everywhere(below, is_binary=spikes.dtype == bool)
        outputs = network.readout(drive, state.outputs)
        return NetworkState(tuple(ends), outputs[-1]), (tuple(blocks), (outputs, states))

    end, results = scan_blocks(of_block, start, cut((inputs, kept, perturbations), length))
    (whole, seen), (rest, last) = results.whole, results.rest or (None, None)
    outputs, states = join(Blocks(seen, last))
    records = tuple(
        Blocks(of_layer, None if rest is None else rest[i]) for i, of_layer in enumerate(whole)
    )
    layers = tuple(
        LayerTrajectory(all_spikes(of_layer).astype(network.dtype), of_states)
        for of_layer, of_states in zip(records, states, strict=True)
    )
    return Response(end, Trajectory(outputs, layers), records)


@eqx.filter_custom_jvp
def plain_run(
    network: Any,
    start: NetworkState,
    inputs: Array,
    kept: Kept,
    stop_z_gradients: bool,
) -> tuple[NetworkState, Trajectory]:
    """The run and the state after it, as JAX differentiates them: the rule BPTT.

    Where nothing is differentiated, spikes wait as one byte each.
    """
    return _by_shares(network, start, inputs, kept, stop_z_gradients, as_bytes=True)


@plain_run.def_jvp
def _plain_run_jvp(primals, tangents):
    """What is differentiated keeps its spikes as numbers: a boolean carries no gradient."""
    kept, stop_z_gradients = primals[3:]

    def run(network, start, inputs):
        return _by_shares(network, start, inputs, kept, stop_z_gradients, as_bytes=False)

    return eqx.filter_jvp(run, primals[:3], tangents[:3])


def _by_shares(
    network: Any,
    start: NetworkState,
    inputs: Array,
    kept: Kept,
    stop_z_gradients: bool,
    as_bytes: bool,
) -> tuple[NetworkState, Trajectory]:
    def of_share(network, start, inputs, kept):
        return respond(
            network, start, inputs, kept, stop_z_gradients=stop_z_gradients, as_bytes=as_bytes
        )[:2]

    given = (EVERYWHERE, EXAMPLES, STEPS, STEPS)
    return by_shares(of_share, given, (EXAMPLES, STEPS), network, start, inputs, kept)
