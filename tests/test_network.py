"""The network: readout, autapses, initial weights, kinds of input, precision."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
import eprop.reverse
from tests.cases import EACH_CELL, Options, make_case
from tests.comparison import assert_close, assert_trees_close

RULES = [eprop.EProp(), eprop.EProp(window=1), eprop.EProp(window=4), eprop.BPTT()]


@functools.cache
def case(cell="ALIF", **changes):
    made = make_case(cell, Options(**changes))
    assert 0.01 < made.network(made.inputs).spikes.mean() < 0.5
    return made


@functools.cache
def value_and_grad(cell, rule):
    return case(cell).value_and_grad(rule)


def replaced(network, **weights):
    for name, weight in weights.items():
        network = eqx.tree_at(lambda net, name=name: getattr(net, name), network, weight)
    return network


@pytest.mark.parametrize("readout_bias", [False, True])
@pytest.mark.parametrize("scale_readout", [False, True])
def test_readout(scale_readout, readout_bias):
    network, inputs, *_ = case(n_steps=150, scale_readout=scale_readout, readout_bias=readout_bias)
    trajectory = network(inputs)
    kappa = np.exp(-1.0 / 15.0)
    gain = 1 - kappa if scale_readout else 1.0
    bias = np.asarray(network.readout_bias) if readout_bias else 0.0
    y, expected = np.zeros((3, 2)), []
    for z in np.asarray(trajectory.spikes):
        y = kappa * y + gain * z @ np.asarray(network.w_out) + bias
        expected.append(y)
    assert network.kappa == pytest.approx(kappa, rel=1e-15)
    assert network.readout_gain == pytest.approx(gain, rel=1e-15)
    assert_close(trajectory.outputs, np.stack(expected), 1e-13)


@EACH_CELL
def test_a_trajectory_has_an_entry_per_step_example_and_neuron(cell):
    network, inputs, *_ = case(cell)
    trajectory = network(inputs)
    assert trajectory.outputs.shape == (15, 3, 2)
    assert trajectory.spikes.shape == (15, 3, 6)
    assert {x.shape for x in trajectory.states} == {(15, 3, 6)}
    assert (network.n_in, network.cell.n, network.n_out) == (3, 6, 2)


def test_the_future_is_not_known():
    network, inputs, *_ = case()
    changed = np.concatenate([inputs[:9], ~inputs[9:]])
    before, after = (network(x) for x in (inputs, changed))
    np.testing.assert_array_equal(before.outputs[:9], after.outputs[:9])
    assert np.any(before.states.v[9] != after.states.v[9])


def test_examples_of_a_batch_do_not_mix():
    network, inputs, *_ = case()
    together, alone = network(inputs), network(inputs[:, 1:2])
    assert_trees_close(jax.tree.map(lambda x: x[:, 1:2], together), alone, 1e-14)


@pytest.mark.parametrize("rule", [eprop.BPTT(stop_z_gradients=True), *RULES[:3]], ids=str)
def test_the_rule_changes_no_number(rule):
    network, inputs, *_ = case()
    assert_trees_close(network(inputs, rule), network(inputs), 0)


class TestAutapses:
    """The diagonal of W_rec is zero, whatever is stored there, and so is its gradient."""

    def with_stored_diagonal(self):
        made = case()
        return made, replaced(made.network, w_rec=made.network.w_rec + 7 * jnp.eye(6))

    def test_none_is_drawn(self):
        assert not np.any(np.diag(case().network.w_rec))

    def test_no_effect(self):
        made, network = self.with_stored_diagonal()
        assert_trees_close(network(made.inputs), made.network(made.inputs), 0)

    def test_no_effect_where_currents_are_computed_again(self, monkeypatch):
        made, network = self.with_stored_diagonal()
        monkeypatch.setattr(eprop.reverse, "KEPT_BYTES", 0)
        actual = made._replace(network=network).value_and_grad(RULES[0])
        assert_trees_close(actual, value_and_grad("ALIF", RULES[0]), 1e-14)

    @pytest.mark.parametrize("rule", RULES, ids=str)
    def test_no_gradient(self, rule):
        made, network = self.with_stored_diagonal()
        actual = made._replace(network=network).grad(rule)
        assert not np.any(np.diag(actual.w_rec))
        assert_trees_close(actual, value_and_grad("ALIF", rule)[1], 1e-14)
        off_diagonal = np.asarray(actual.w_rec)[~np.eye(6, dtype=bool)]
        assert np.count_nonzero(off_diagonal) > 15

    def test_no_trace(self):
        made, network = self.with_stored_diagonal()
        for trace in jax.tree.leaves(eprop.eligibility_traces(network, made.inputs).w_rec):
            assert not np.any(np.einsum("tbii->tbi", trace)) and np.any(trace)


class TestWeights:
    def network(self, n=300, **changes):
        arguments = {"n_in": 200, "n_out": 100, "key": jax.random.key(0)} | changes
        return eprop.Network(eprop.LIF(n), **arguments)

    def test_the_paper_is_the_default(self):
        network = self.network()
        n_recurrent = 300 * 299
        assert np.std(network.w_in) == pytest.approx(200**-0.5, rel=5 / (2 * 60000) ** 0.5)
        assert np.std(network.w_rec) * (300 / 299) ** 0.5 == pytest.approx(
            300**-0.5, rel=5 / (2 * n_recurrent) ** 0.5
        )
        limit = (6 / 400) ** 0.5  # Glorot's
        assert 0.99 * limit < np.max(np.abs(network.w_out)) <= limit
        assert abs(np.mean(network.w_in)) < 5 * 200**-0.5 / 60000**0.5
        assert network.readout_bias is None

    def test_draws_are_independent(self):
        first, second = self.network(), self.network(key=jax.random.key(1))
        assert not np.any(first.w_in == second.w_in)
        together = np.corrcoef(np.asarray(first.w_in).ravel(), first.w_rec[:200].ravel())
        assert abs(together[0, 1]) < 5 / 60000**0.5
        assert_trees_close(first, self.network(), 0)

    def test_initializer_or_array(self):
        def initializer(key, shape, dtype):
            return jnp.full(shape, 0.5, dtype)

        weights = {"w_in": initializer, "w_out": np.ones((3, 2)), "readout_bias": initializer}
        network = self.network(3, n_in=4, n_out=2, **weights)
        np.testing.assert_array_equal(network.w_in, np.full((4, 3), 0.5))
        np.testing.assert_array_equal(network.w_out, np.ones((3, 2)))
        np.testing.assert_array_equal(network.readout_bias, [0.5, 0.5])

    def test_no_key_is_needed_for_arrays(self):
        arrays = {"w_in": np.ones((4, 3)), "w_rec": np.ones((3, 3)), "w_out": np.ones((3, 2))}
        network = self.network(3, n_in=4, n_out=2, key=None, **arrays)
        np.testing.assert_array_equal(network.w_rec, 1 - np.eye(3))


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_kinds_of_input(rule, dtype):
    """Spikes may be booleans, integers or numbers."""
    made = case()
    assert made.inputs.dtype == bool
    other = made._replace(inputs=made.inputs.astype(dtype)).value_and_grad(rule)
    assert_trees_close(other, value_and_grad("ALIF", rule), 1e-15)


def in_float32(tree):
    return jax.tree.map(
        lambda x: (
            x.astype(np.float32) if eqx.is_inexact_array_like(x) and hasattr(x, "dtype") else x
        ),
        tree,
    )


@pytest.mark.parametrize("rule", [RULES[0], RULES[2]], ids=str)
@EACH_CELL
def test_float32(cell, rule):
    """Also beside float64, which the network does not turn into."""
    made = case(cell)
    network, targets = in_float32((made.network, made.targets))
    np.testing.assert_array_equal(network(made.inputs).spikes, made.network(made.inputs).spikes)
    single = made._replace(network=network, targets=targets).value_and_grad(rule)
    assert {x.dtype for x in jax.tree.leaves(single)} == {np.dtype(np.float32)}
    assert_trees_close(single, value_and_grad(cell, rule), 1e-4)


@pytest.mark.slow
def test_without_float64():
    """As in a user's session, whose numbers are all float32."""
    _, expected = value_and_grad("ALIF", RULES[0])
    with jax.enable_x64(False):
        made = make_case("ALIF")
        assert made.network.w_in.dtype == made.network(made.inputs).spikes.dtype == jnp.float32
        made = made._replace(targets=in_float32(made.targets))
        for rule in RULES[:3]:
            assert_trees_close(made.grad(rule), expected, 1e-4)
