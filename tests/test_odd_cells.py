"""Cells and sequences on which a careless evaluation goes wrong."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import eprop
import eprop.record
import eprop.response
from eprop.compiled import programs, without_kernels
from tests.cases import slow_but


class State(NamedTuple):
    v: Array


class Graded(eprop.AbstractCell):
    """A rate neuron that sends something at rest already, and a reset by what it sent."""

    n: int = eqx.field(static=True)
    dt: ClassVar[float] = 1.0

    def init(self, batch):
        return State(jnp.zeros((batch, self.n)))

    def step(self, state, current, z_tm1):
        return State(0.9 * state.v + current - 0.5 * z_tm1**2 * state.v)

    def output(self, state):
        return jnp.tanh(state.v + 0.7)


class AboveThreshold(eprop.AbstractCell):
    """A neuron that begins above its threshold, and a reset to zero."""

    n: int = eqx.field(static=True)
    dt: ClassVar[float] = 1.0
    spiking: ClassVar[bool] = True

    def init(self, batch):
        return State(jnp.ones((batch, self.n)))

    def step(self, state, current, z_tm1):
        return State(0.9 * state.v * (1 - z_tm1) + current)

    def output(self, state):
        return eprop.Triangular().spike(state.v - 0.5)


class Root(eprop.AbstractCell):
    """A neuron whose derivative is infinite without a current."""

    n: int = eqx.field(static=True)
    dt: ClassVar[float] = 1.0

    def init(self, batch):
        return State(jnp.zeros((batch, self.n)))

    def step(self, state, current, z_tm1):
        return State(0.5 * state.v + jnp.sqrt(current))

    def output(self, state):
        return state.v


def loss(trajectory, targets):
    return jnp.sum((trajectory.outputs - targets) ** 2)


def problem(cell, n_steps=15, positive=False):
    network = eprop.Network(cell, n_in=3, n_out=2, key=jax.random.key(0))
    if positive:
        weights = (jnp.abs(network.w_in), jnp.abs(network.w_rec))
        network = eqx.tree_at(lambda net: (net.w_in, net.w_rec), network, weights)
    inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (n_steps, 2, 3))
    inputs = jnp.ones_like(inputs) if positive else inputs
    return network, inputs, jnp.ones((n_steps, 2, 2))


def assert_same(found, oracle):
    for name in ("w_in", "w_rec", "w_out"):
        a, b = getattr(found, name), getattr(oracle, name)
        scale = np.abs(b).max()
        assert np.isfinite(scale) and scale > 1e-3, name
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize(
    "cell",
    slow_but([Graded(4)], [Graded(4), AboveThreshold(4)]),
    ids=lambda c: type(c).__name__,
)
def test_a_cell_that_sends_something_before_the_first_step(cell):
    """The network starts from z_0 = 0, whatever `output` says of the first state."""
    arguments = problem(cell)
    oracle = jax.jit(eprop.grad(loss, eprop.BPTT(stop_z_gradients=True)))(*arguments)
    for window in (1, 4, None):
        actual = jax.jit(eprop.grad(loss, eprop.EProp(window=window)))(*arguments)
        assert_same(actual, oracle)
    bptt = jax.jit(eprop.grad(loss, eprop.BPTT()))(*arguments)
    assert not np.allclose(bptt.w_rec, oracle.w_rec, rtol=1e-3)
    network, inputs, targets = arguments
    total = jax.jit(eprop.total_derivative, static_argnums=3)(network, inputs, targets, loss)
    traces = jax.jit(eprop.eligibility_traces)(network, inputs)
    factorised = jnp.einsum("tbj,tbij->ij", total, traces.w_in.trace)
    np.testing.assert_allclose(factorised, bptt.w_in, rtol=1e-10)


@pytest.mark.parametrize(("n_steps", "length"), slow_but([(13, 5)], [(13, 5), (15, 5), (16, 4)]))
def test_no_step_is_run_that_was_not_asked_for(n_steps, length, monkeypatch):
    """A step on zero input beyond the end would be infinite here, and zero times it not zero."""
    arguments = problem(Root(4), n_steps, positive=True)
    monkeypatch.setattr(eprop.record, "BLOCK_BYTES", 5 * 2 * 4 * 8)
    assert eprop.record.block_steps(arguments[0].layers, n_steps, 2) == length
    found = [
        eprop.grad(loss, rule)(*arguments)
        for rule in (eprop.EProp(), eprop.BPTT(stop_z_gradients=True))
    ]
    assert_same(*found)


def compiled_bytes(rule, n_steps):
    """The memory, beside arguments and results, of a compiled gradient that is never run."""
    network = eprop.Network(eprop.LIF(300), n_in=40, n_out=2, key=jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((n_steps, 64, 40), bool)
    targets = jax.ShapeDtypeStruct((n_steps, 64, 2), network.dtype)
    compiled = jax.jit(eprop.grad(loss, rule)).lower(network, inputs, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("rule", [eprop.EProp(), eprop.BPTT()], ids=str)
def test_a_sequence_of_prime_length_takes_no_more_memory(rule):
    prime, other = (compiled_bytes(rule, n_steps) for n_steps in (499, 500))
    assert other > 2**20 and abs(prime - other) < 0.1 * other


def test_nor_does_a_window():
    prime, other = (compiled_bytes(eprop.EProp(window=n), 2 * n) for n in (499, 500))
    assert other > 2**20 and abs(prime - other) < 0.1 * other


def test_memory_of_one_block(monkeypatch):
    """Negative control: what it would be, the cotangents of all currents at the least."""
    in_blocks = compiled_bytes(eprop.EProp(), 499)
    monkeypatch.setattr(eprop.response, "block_steps", lambda layers, n_steps, batch, **_: n_steps)
    cotangents = 499 * 64 * 300 * 8
    assert in_blocks < cotangents < compiled_bytes(eprop.EProp(), 499)


def test_memory_of_one_block_without_kernels(monkeypatch):
    with without_kernels():
        in_blocks = compiled_bytes(eprop.EProp(), 499)
        monkeypatch.setattr(
            eprop.response, "block_steps", lambda layers, n_steps, batch, **_: n_steps
        )
        assert compiled_bytes(eprop.EProp(), 499) > 4 * in_blocks


@pytest.mark.parametrize("kept", [0, 2**24])
def test_potentials_at_the_threshold_stay_on_their_side(kept, monkeypatch):
    """Weights on a grid put many potentials right at the threshold, where rounding decides."""
    monkeypatch.setattr("eprop.reverse.KEPT_BYTES", kept)
    with jax.enable_x64(False):
        cell = eprop.ALIF(64, tau_v=0.05, v_th=0.6, beta=0.05, n_refractory=0)
        network = eprop.Network(cell, n_in=40, n_out=2, key=jax.random.key(0))
        grid = [jnp.round(w * 20) / 20 for w in (network.w_in, network.w_rec)]
        network = eqx.tree_at(lambda net: (net.w_in, net.w_rec), network, grid)
        inputs = jax.random.bernoulli(jax.random.key(1), 0.3, (80, 16, 40))
        targets = jnp.ones((80, 16, 2))
        with without_kernels():  # where products round as the oracle's do
            found, oracle = (
                jax.jit(eprop.grad(loss, rule))(network, inputs, targets)
                for rule in (eprop.EProp(), eprop.BPTT(stop_z_gradients=True))
            )
        near = jnp.abs(network(inputs).states.v - 0.6) < 1e-6
        assert near.sum() > 20
        for name in ("w_in", "w_rec"):
            a, b = getattr(found, name), getattr(oracle, name)
            assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()


@pytest.mark.parametrize("synapses", ["dense", "sparse", "delayed"])
def test_potentials_at_the_threshold_on_compiled_programs(synapses):
    """What is run again is what was run, bit for bit: one spike too many would stay in `a`."""
    with jax.enable_x64(False):
        cell = eprop.ALIF(64, tau_v=0.05, v_th=0.6, beta=0.05, n_refractory=0)
        key = jax.random.key(0)
        of_layer = {
            "dense": lambda: {},
            "sparse": lambda: {
                "w_in": eprop.Sparse.random(40, 64, 20, key=key),
                "w_rec": eprop.Sparse.random(64, 64, 30, autapses=False, key=key),
            },
            "delayed": lambda: {"delay_rec": np.arange(64) % 4.0},
        }[synapses]()
        network = eprop.Network(cell, n_in=40, n_out=2, key=key, **of_layer)
        grid = [jnp.round(w * 20) / 20 for w in (network.w_in, network.w_rec)]
        network = eqx.tree_at(lambda net: (net.w_in, net.w_rec), network, grid)
        inputs = jax.random.bernoulli(jax.random.key(1), 0.3, (80, 16, 40))
        end, trajectory = network.run(network.init(16), inputs)  # states come of a second run
        assert not isinstance(programs(network.layers[0]), str)
        assert (np.abs(trajectory.states.v - 0.6) < 1e-6).sum() > 20
        for last, again in zip(end.layers[0].neurons[0], trajectory.states, strict=True):
            np.testing.assert_array_equal(last, again[-1])


def test_weights_that_are_not_numbers_are_refused_under_jit():
    network, inputs, targets = problem(eprop.LIF(4))
    for name in ("w_in", "w_rec", "w_out"):
        broken = eqx.tree_at(
            lambda net, name=name: getattr(net, name),
            network,
            getattr(network, name).at[0, 1].set(jnp.nan),
        )
        for rule in (eprop.EProp(), eprop.BPTT()):
            with pytest.raises(Exception, match=f"network.{name} of shape .* holds NaN"):
                jax.block_until_ready(
                    eqx.filter_jit(eprop.value_and_grad(loss, rule))(broken, inputs, targets)
                )


@pytest.mark.parametrize("post", [[-1], [4], 1, [True, False, True, False], [[0]], [0.5]])
def test_neurons_to_follow_are_indices(post):
    network, inputs, _ = problem(eprop.LIF(4))
    with pytest.raises((TypeError, ValueError), match="post"):
        eprop.eligibility_traces(network, inputs, post)
