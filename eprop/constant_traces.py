"""Traces of the constants that are trained, such as time constants: one for each neuron.

    ε_t = D_t ε_{t-1} + ∂s_t/∂θ          of each hidden variable
    e_t = c_t · ε_t + ∂z_t/∂θ

They are what forward differentiation of the neurons by θ gives.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .cells import hidden_variables
from .layer import Layer, LayerState, trained_constants
from .replay import NeuronsOf


class ConstantTraces(NamedTuple):
    """The traces of the constants that are trained, as many as there are `directions`."""

    vectors: list[Float[Array, "batch directions _"]]
    """ε of each hidden variable of each population."""
    filtered: Float[Array, "batch directions n"]
    """ē."""


class _Constant(NamedTuple):
    """A trained array, and the neurons of its population."""

    array: Array
    neurons: slice

    @property
    def is_per_neuron(self) -> bool:
        n = self.neurons.stop - self.neurons.start
        return self.array.ndim > 0 and self.array.shape[-1] == n

    @property
    def shape_of_directions(self) -> tuple[int, ...]:
        return self.array.shape[:-1] if self.is_per_neuron else self.array.shape

    @property
    def n_directions(self) -> int:
        return math.prod(self.shape_of_directions)


def _each_constant(layer: Layer) -> list[_Constant]:
    of_populations = [port.neurons for port in layer.neurons.ports if port.current == 0]
    return [
        _Constant(array, neurons)
        for cell, neurons in zip(trained_constants(layer).cells, of_populations, strict=True)
        for array in jax.tree.leaves(cell)
    ]


def directions(layer: Layer) -> tuple[Any, int]:
    """All directions in which the trained constants can move: arrays with such an axis first.

    An array `[..., n]` of a population of n neurons has a direction for each of its leading
    entries: all neurons are moved at once, as each is changed by its own number only. Any other
    array has one for each entry. Returns the number of directions, too.
    """
    constants, begin, moved = _each_constant(layer), 0, []
    count = sum(x.n_directions for x in constants)
    for x in constants:
        basis = np.zeros((count, x.n_directions))
        basis[begin : begin + x.n_directions] = np.eye(x.n_directions)
        basis = basis.reshape(count, *x.shape_of_directions, *[1] * x.is_per_neuron)
        moved.append(jnp.broadcast_to(jnp.asarray(basis, x.array.dtype), (count, *x.array.shape)))
        begin += x.n_directions
    return jax.tree.unflatten(jax.tree.structure(trained_constants(layer)), moved), count


def collect_constants(layer: Layer, of_directions: Float[Array, "directions n"]) -> Any:
    """A sum for each direction and neuron as one for each entry of the trained constants."""
    begin, collected = 0, []
    for x in _each_constant(layer):
        sums = of_directions[begin : begin + x.n_directions, x.neurons]
        sums = sums if x.is_per_neuron else sums.sum(-1)
        collected.append(sums.reshape(x.array.shape))
        begin += x.n_directions
    return jax.tree.unflatten(jax.tree.structure(trained_constants(layer)), collected)


def init_constants(layer: Layer, batch: int) -> ConstantTraces:
    """Before the first step: a constant may have set the first state."""
    moved, count = directions(layer)
    arrays = trained_constants(layer)

    def first_state(arrays):
        return hidden_variables(eqx.combine(arrays, layer.neurons).init(batch))

    def along(direction):
        return jax.jvp(first_state, (arrays,), (direction,))[1]

    if count == 0:
        vectors = [x[:, None][:, :0] for x in first_state(arrays)]
    else:
        vectors = jax.vmap(along, out_axes=1)(moved)
    vectors = [x.astype(layer.dtype) for x in vectors]
    return ConstantTraces(vectors, jnp.zeros((batch, count, layer.n), layer.dtype))


def lead_constants(
    layer: Layer,
    run: NeuronsOf,
    start: LayerState,
    traces: ConstantTraces,
    kappa: float,
    gain: float,
) -> tuple[ConstantTraces, Float[Array, "time batch directions n"]]:
    """The traces after some steps, and e_t of each: forward differentiation of the neurons."""
    moved, count = directions(layer)
    hidden = hidden_variables(start.neurons)
    if count == 0:
        n_steps, batch, n = run.z_tm1.shape
        return traces, jnp.zeros((n_steps, batch, 0, n), layer.dtype)

    def along(direction, vectors):
        def of_constants(arrays, hidden):
            spikes, _, last = run(arrays, hidden, run.currents)
            return spikes, last

        at = (trained_constants(layer), hidden)
        return jax.jvp(of_constants, at, (direction, vectors))[1]

    trace, vectors = jax.vmap(along, in_axes=(0, 1), out_axes=(2, 1))(moved, traces.vectors)
    ages = np.arange(len(trace) - 1, -1, -1)
    fading = jnp.asarray(gain * kappa**ages, trace.dtype)
    filtered = kappa ** len(trace) * traces.filtered + jnp.tensordot(fading, trace, 1)
    return ConstantTraces(vectors, filtered), trace
