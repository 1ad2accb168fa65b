"""Cells: dynamics, Jacobians against brute force and closed form, and cells of one's own."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from tests.cases import CELLS, Options, slow_but
from tests.comparison import assert_close, assert_trees_close, relative_error

BATCH, N = 3, 6


def make(cell, n=N, **changes):
    rng = np.random.default_rng(3)
    options = Options(n_refractory=3, dt=0.5, **changes)
    return CELLS[cell](n, options, lambda low, high: rng.uniform(low, high, n))


def near_threshold(cell, seed=1):
    """A state in which some neurons spike and some are refractory, and a current."""
    rng = np.random.default_rng(seed)
    state = cell.init(BATCH)
    values = {
        name: rng.integers(0, 2, (BATCH, cell.n), dtype=np.int32)
        if name == "refractory"
        else rng.uniform(0.3, 1.0, (BATCH, cell.n))
        for name in state._fields
    }
    return type(state)(**jax.tree.map(jnp.asarray, values)), jnp.asarray(rng.normal(size=(3, 6)))


def floats(state):
    return [x for x in state if jnp.issubdtype(x.dtype, jnp.floating)]


def with_floats(state, values):
    values = iter(values)
    return type(state)(
        *(next(values) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in state)
    )


@pytest.mark.parametrize("cell", CELLS)
def test_jacobians_by_brute_force(cell):
    """Also: cells are elementwise, and z_{t-1} as the network has it is held fixed."""
    cell = make(cell)
    state, current = near_threshold(cell)
    z = cell.output(state)
    assert 0 < z.mean() < 1

    def step(hidden, current):
        return jnp.stack(floats(cell.step(with_floats(state, hidden), current, z)))

    def output(hidden):
        return cell.output(with_floats(cell.step(state, current, z), hidden))

    hidden, actual = jnp.stack(floats(state)), cell.jacobians(state, current)
    by_state, by_current = jax.jacfwd(step, (0, 1))(hidden, current)
    by_output = jax.jacfwd(output)(step(hidden, current))

    def elementwise(matrix):
        """`[..., batch, n]` of `[..., batch, n, batch, n]`; all else must be zero."""
        own = np.einsum("...bnbn->...bn", matrix)
        assert np.count_nonzero(matrix) == np.count_nonzero(own)
        return own

    expected = elementwise(np.moveaxis(by_state, 3, 1))
    assert_close(actual.state, expected, 1e-15, "D")
    assert_close(actual.current, elementwise(by_current), 1e-15, "b")
    assert_close(actual.output, elementwise(np.moveaxis(by_output, 2, 0)), 1e-15, "c")
    assert np.any(actual.output != 0) and np.any(actual.output == 0)


@pytest.mark.parametrize("scale_current", [False, True])
@pytest.mark.parametrize("name", ["LIF", "ALIF"])
def test_jacobians_in_closed_form(name, scale_current):
    cell = make(name, scale_current=scale_current)
    state, current = near_threshold(cell)
    d = len(floats(state))
    alpha, v_th = np.exp(-0.5 / cell.tau_v.value), cell.v_th.value
    rho = np.exp(-0.5 / cell.tau_a.value) if d == 2 else 0.0
    beta = cell.beta.value if d == 2 else np.zeros(N)

    def psi(state):
        x = (state.v - beta[None] * (state.a if d == 2 else 0) - v_th[None]) / v_th[None]
        h = {  # the pseudo-derivatives of the two cells in `CELLS`
            "LIF": lambda x: 0.3 * np.maximum(0, 1 - np.abs(x)),
            "ALIF": lambda x: 0.3 / (1 + np.abs(x) / 0.5) ** 2,
        }[name](np.asarray(x))
        return np.where(state.refractory > 0, 0, h / v_th)

    after = cell.step(state, current, cell.output(state))
    before, zeros = psi(state), np.zeros((BATCH, N))
    expected_d = [[zeros + alpha, zeros], [before, rho - beta * before]]
    actual = cell.jacobians(state, current)
    assert_close(actual.state, np.array(expected_d)[:d, :d], 1e-14, "D")
    zeta = 1 - alpha if scale_current else 1.0
    assert_close(actual.current, np.array([zeros + zeta, zeros])[:d], 1e-14, "b")
    assert_close(actual.output, np.array([psi(after), -beta * psi(after)])[:d], 1e-14, "c")


@pytest.mark.parametrize("scale_current", [False, True])
def test_jacobians_of_current_lif_in_closed_form(scale_current):
    cell = make("CurrentLIF", scale_current=scale_current)
    state, current = near_threshold(cell)
    after = cell.step(state, current, cell.output(state))
    decay, alpha = (np.exp(-0.5 / tau.value) for tau in (cell.tau_i, cell.tau_v))
    v_th, zeros = cell.v_th.value, np.zeros((BATCH, N))
    h = 0.3 / (1 + np.abs((after.v - v_th[None]) / v_th[None]) / 0.5) ** 2
    psi = np.where(after.refractory > 0, 0, h / v_th)
    actual, zeta = cell.jacobians(state, current), 1 - alpha if scale_current else 1.0
    expected = np.array([[zeros + decay, zeros], [zeros + zeta, zeros + alpha]])
    assert_close(actual.state, expected, 1e-14, "D")
    assert_close(actual.current, np.array([zeros + 1, zeros]), 1e-14, "b")
    assert_close(actual.output, np.array([zeros, psi]), 1e-14, "c")
    assert np.any(psi != 0) and np.any(psi == 0)


@pytest.mark.parametrize("n_refractory", [0, 1, 2, 5])
@pytest.mark.parametrize("cell", [eprop.LIF, eprop.ALIF, eprop.CurrentLIF])
def test_refractory_time(cell, n_refractory):
    """A spike is followed by n_ref - 1 silent steps without a pseudo-derivative."""
    neuron = cell(1, n_refractory=n_refractory)
    ones, zeros = jnp.ones((1, 1)), jnp.zeros((1, 1))
    state, z, spikes, psi = neuron.init(1), zeros, [], []
    for _ in range(20):
        state = neuron.step(state, zeros, z)
        state = state._replace(v=ones)  # always beyond threshold, and near it
        z, slope = jax.jvp(lambda v, s=state: neuron.output(s._replace(v=v)), (state.v,), (ones,))
        spikes.append(z.item())
        psi.append(slope.item())
    ready = np.arange(20) % max(n_refractory, 1) == 0
    np.testing.assert_array_equal(spikes, ready)
    np.testing.assert_array_equal(np.array(psi) > 0, ready)


def run(cell, drive):
    network = eprop.Network(
        cell,
        n_in=cell.n,
        n_out=1,
        w_in=np.eye(cell.n),
        w_rec=np.zeros((cell.n, cell.n)),
        w_out=np.ones((cell.n, 1)),
    )
    return network(drive)


DRIVE = np.random.default_rng(0).uniform(0, 0.4, (60, 2, 3))


@pytest.mark.parametrize("cell", slow_but([eprop.ALIF], [eprop.LIF, eprop.ALIF, eprop.CurrentLIF]))
def test_a_parameter_per_neuron(cell):
    """Each neuron behaves as in a population that all has its parameters."""
    parameters = {"tau_v": (5.0, 10.0, 30.0), "v_th": (0.5, 0.6, 0.9), "n_refractory": (0, 2, 4)}
    if cell is eprop.ALIF:
        parameters |= {"tau_a": (20.0, 50.0, 100.0), "beta": (0.0, 0.1, 0.4)}
    if cell is eprop.CurrentLIF:
        parameters |= {"tau_i": (1.0, 1.5, 2.0)}
    together = run(cell(3, **parameters), DRIVE)
    assert 0.01 < together.spikes.mean() < 0.5
    for j in range(3):
        alone = run(cell(3, **{name: value[j] for name, value in parameters.items()}), DRIVE)
        for actual, expected in zip(together.states, alone.states, strict=True):
            assert_close(actual[..., j], expected[..., j], 1e-15)


def test_alif_without_adaptation_is_lif():
    lif, alif = run(eprop.LIF(3), DRIVE), run(eprop.ALIF(3, beta=0.0), DRIVE)
    adapted = run(eprop.ALIF(3, beta=0.3), DRIVE)
    np.testing.assert_array_equal(lif.spikes, alif.spikes)
    assert_close(lif.states.v, alif.states.v, 0)
    assert 0 < adapted.spikes.sum() < alif.spikes.sum()


def test_scaled_current():
    """ζ = 1 - α; then a constant current is the potential that it leads to."""
    silent = eprop.LIF(1, tau_v=7.0, v_th=100.0, scale_current=True)
    v = run(silent, np.full((200, 1, 1), 3.0)).states.v
    assert_close(v[:, 0, 0], 3 * (1 - np.exp(-np.arange(1, 201) / 7)), 1e-13)


def test_a_spike_through_an_exponential_synapse():
    """The difference of two exponentials, which begins a step after the spike's."""
    silent = eprop.CurrentLIF(1, tau_v=10.0, tau_i=5.0, v_th=100.0)
    states = run(silent, np.eye(60)[:, :1, None]).states
    later = np.arange(60)
    decay, alpha = np.exp(-1 / 5), np.exp(-1 / 10)
    assert_close(states.i[:, 0, 0], decay**later, 1e-14)
    assert_close(states.v[:, 0, 0], (alpha**later - decay**later) / (alpha - decay), 1e-14)


class GradedState(NamedTuple):
    v: Any


class Graded(eprop.AbstractCell):
    """Does not spike: sends a smooth function of its potential."""

    n: int = eqx.field(static=True)
    dt: float = eqx.field(static=True, default=1.0)

    def init(self, batch):
        return GradedState(jnp.zeros((batch, self.n)))

    def step(self, state, current, z_tm1):
        return GradedState(0.9 * state.v + current - 0.1 * z_tm1)

    def output(self, state):
        return jnp.tanh(state.v)


class ConductanceState(NamedTuple):
    v: Any
    g: Any


class Conductance(eprop.AbstractCell):
    """D depends on the state, and the first variable on the second."""

    n: int = eqx.field(static=True)
    dt: float = eqx.field(static=True, default=1.0)

    def init(self, batch):
        zeros = jnp.zeros((batch, self.n))
        return ConductanceState(zeros, zeros)

    def step(self, state, current, z_tm1):
        g = 0.8 * state.g + current
        return ConductanceState(0.9 * state.v + g * (1.5 - state.v) - 0.6 * z_tm1, g)

    def output(self, state):
        return eprop.Triangular().spike((state.v - 0.6) / 0.6)


@pytest.mark.parametrize(
    "cell",
    slow_but([Conductance(5)], [Graded(5), Conductance(5)]),
    ids=["graded", "conductance"],
)
def test_a_cell_of_ones_own(cell):
    rng = np.random.default_rng(0)
    network = eprop.Network(
        cell, n_in=3, n_out=2, w_in=rng.uniform(0, 0.2, (3, 5)), key=jax.random.key(1)
    )
    inputs, targets = rng.random((12, 2, 3)) < 0.4, rng.normal(size=(12, 2, 2))

    def gradient(rule):
        def loss(trajectory, targets):
            return jnp.sum((trajectory.outputs - targets) ** 2) + jnp.sum(trajectory.states.v**2)

        return jax.jit(eprop.grad(loss, rule))(network, inputs, targets)

    assert np.abs(network(inputs).spikes).mean() > 0.01
    expected = gradient(eprop.BPTT(stop_z_gradients=True))
    for window in (1, 5, None):
        assert_trees_close(gradient(eprop.EProp(window=window)), expected, 1e-10)
    assert relative_error(gradient(eprop.BPTT()).w_rec, expected.w_rec) > 1e-2
