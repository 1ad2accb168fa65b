"""Eligibility vectors that are the same for every postsynaptic neuron are found, and no others."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eprop
from eprop.traces import common_traces, init_carry


class State(NamedTuple):
    i: Array
    v: Array


class Neuron(eprop.AbstractCell):
    """A synaptic current that decays, and a potential that sums it; `decay` may be anything."""

    n: int = eqx.field(static=True)
    decay: Array
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
            decay = jax.lax.cond(current.sum() > 0, lambda: decay, lambda: 0.9 * decay)
        i = decay * state.i + current
        if self.kind == "from v":
            i = i + 0.1 * self.output(state)
        return State(i, 0.9 * state.v + i - z_tm1)

    def output(self, state):
        return eprop.Triangular().spike(state.v - 0.5)


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
    (Neuron(3, ONE), [True, True]),
    (Neuron(3, SAME), [True, True]),
    (Neuron(3, EACH), [False, False]),
    (Neuron(3, ONE, "by state"), [False, False]),
    (Neuron(3, ONE, "by current"), [False, False]),
    (Neuron(3, ONE, "from v"), [False, False]),
]


@pytest.mark.parametrize(("cell", "expected"), CASES)
def test_what_is_common(cell, expected):
    assert [row is not None for row in common_traces(cell)] == expected


@pytest.mark.parametrize(("cell", "expected"), CASES)
def test_the_gradient_is_that_of_autodiff(cell, expected):
    network = eprop.Network(cell, n_in=2, n_out=2, key=jax.random.key(0))
    inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (12, 2, 2))
    targets = jnp.ones((12, 2, 2))

    def gradients(rule):
        def loss(trajectory, targets):
            return jnp.sum((trajectory.outputs - targets) ** 2)

        # Not the cell's own arrays: they are trained over whole sequences only.
        weights = jax.tree.map(lambda _: True, network)
        frozen = jax.tree.map(lambda _: False, network.cell)
        weights = eqx.tree_at(lambda net: net.cell, weights, frozen)
        return jax.jit(eprop.grad(loss, rule, trainable=weights))(network, inputs, targets)

    oracle = gradients(eprop.BPTT(stop_z_gradients=True))
    assert np.abs(oracle.w_rec).max() > 1e-3
    for window in (1, 5):
        found = gradients(eprop.EProp(window=window))
        for name in ("w_in", "w_rec", "w_out"):
            a, b = getattr(found, name), getattr(oracle, name)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


def test_constants_are_found_while_jax_traces():
    """Under `jit` all that a function makes is a tracer, unless it says otherwise."""
    widths = []

    def trace(key):
        network = eprop.Network(eprop.ALIF(3), n_in=2, n_out=1, key=key)
        widths.append([x.shape[-1] for x in init_carry(network, 2).synapses.vectors])
        return network.w_in

    jax.jit(trace)(jax.random.key(0))
    jax.vmap(trace)(jax.random.split(jax.random.key(0), 2))
    assert widths == [[1, 3], [1, 3]]


def test_a_traced_parameter_is_no_constant():
    found = []
    jax.jit(lambda cell: found.append(common_traces(cell)) or 0)(Neuron(3, ONE))
    assert found == [[None, None]]
