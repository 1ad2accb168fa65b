"""Eligibility vectors that are the same for every postsynaptic neuron are found, and no others."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eprop
from eprop.common_vectors import common_traces
from eprop.traces import init_traces
from tests.comparison import assert_trees_close
from tests.errors import assert_raises


class State(NamedTuple):
    i: Array
    v: Array


class Neuron(eprop.AbstractCell):
    """A synaptic current that decays, and a potential that sums it; `decay` may be anything."""

    n: int = eqx.field(static=True)
    decay: Any
    kind: str = eqx.field(static=True, default="constant")
    dt: ClassVar[float] = 1.0

    def init(self, batch):
        zeros = jnp.zeros((batch, self.n))
        return State(zeros, zeros)

    def step(self, state, current, z_tm1):
        decay = self.decay
        if self.kind == "by state":
            decay = jnp.where(state.v > 0.1, decay, 0.9 * decay)
        if self.kind == "by current":
            decay = jax.jit(lambda current: jnp.where(current > 0, decay, 0.9 * decay))(current)
        if self.kind == "by all currents":
            decay = jax.lax.cond(current.sum() > 0, lambda: decay, lambda: 0.9 * decay)
        i = decay * state.i + current
        if self.kind == "from v":
            i = i + 0.1 * self.output(state)
        return State(i, 0.9 * state.v + i - z_tm1)

    def output(self, state):
        return eprop.Triangular().spike(state.v - 0.5)


class OnlyV(Neuron):
    """An array that only the second of the variables knows of."""

    def step(self, state, current, z_tm1):
        i = 0.9 * state.i + current
        return State(i, self.decay * state.v + i - z_tm1)


ONE, EACH, SAME = jnp.array(0.8), jnp.array([[0.7, 0.8, 0.9]]), jnp.full((1, 3), 0.8)
CASES = [
    (eprop.LIF(3), [True]),
    (eprop.LIF(3, scale_current=True, tau_v=2.0), [True]),
    (eprop.LIF(3, tau_v=[20.0, 20.0, 20.0]), [True]),
    (eprop.LIF(3, tau_v=[10.0, 20.0, 20.0]), [False]),
    (eprop.LIF(3, v_th=[0.5, 0.6, 0.7]), [True]),
    (eprop.ALIF(3), [True, False]),
    (eprop.ALIF(3, tau_v=[10.0, 20.0, 20.0]), [False, False]),
    (eprop.CurrentLIF(3), [True, True]),
    (eprop.CurrentLIF(3, tau_v=[10.0, 20.0, 20.0]), [True, False]),
    (eprop.CurrentLIF(3, tau_i=[2.0, 5.0, 5.0]), [False, False]),
    (Neuron(3, 0.8), [True, True]),
    (Neuron(3, 0.8, "by state"), [False, False]),
    (Neuron(3, 0.8, "by current"), [False, False]),
    (Neuron(3, 0.8, "from v"), [False, False]),
    # An array is trained, or at least traced: not a constant, even if it is equal for all.
    *[(Neuron(3, array), [False, False]) for array in (ONE, EACH, SAME, np.full((1, 3), 0.8))],
    (OnlyV(3, ONE), [True, False]),
]


def found(cell):
    (of_current,) = common_traces(cell)
    return [row is not None for row in of_current]


@pytest.mark.parametrize(("cell", "expected"), CASES)
def test_what_is_common(cell, expected):
    assert found(cell) == expected
    traced = []
    eqx.filter_jit(lambda cell: traced.append(found(cell)))(cell)
    assert traced == [expected]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if i % 8 else [])
        for i, case in enumerate(CASES)
    ],
)
def test_the_gradient_is_that_of_autodiff(cell, expected):
    """Of the arrays of a cell, too."""
    network = eprop.Network(cell, n_in=2, n_out=2, key=jax.random.key(0))
    inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (12, 2, 2))
    targets = jnp.ones((12, 2, 2))

    def gradients(rule):
        def loss(trajectory, targets):
            return jnp.sum((trajectory.outputs - targets) ** 2)

        return jax.jit(eprop.grad(loss, rule))(network, inputs, targets)

    oracle = gradients(eprop.BPTT(stop_z_gradients=True))
    assert np.abs(oracle.w_rec).max() > 1e-3
    assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(oracle.cell))
    for window in (1, 5):
        assert_trees_close(gradients(eprop.EProp(window=window)), oracle, 1e-10)


def test_a_cell_in_which_all_hear_of_all_is_refused():
    """Its vectors would not be those of single neurons."""
    parts = ["Neuron mixes neurons", "each entry of [batch, n] by itself"]
    cell = Neuron(3, 0.8, "by all currents")
    assert_raises(lambda: eprop.Network(cell, n_in=2, n_out=2), ValueError, parts)


def test_constants_are_found_while_jax_traces():
    """Under `jit` all that a function makes is a tracer, unless it says otherwise."""
    axes = []

    def trace(key):
        network = eprop.Network(eprop.ALIF(3), n_in=2, n_out=1, key=key)
        for ports in init_traces(network.layers[0], 4).synapses.values():
            axes.append([x.ndim for port in ports for x in port.vectors])
        return network.w_in

    jax.jit(trace)(jax.random.key(0))
    jax.vmap(trace)(jax.random.split(jax.random.key(0), 2))
    assert len(axes) >= 2 and all(x == [2, 3] for x in axes)  # for all neurons, and for each
