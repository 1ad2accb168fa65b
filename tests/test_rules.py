"""`value_and_grad` and its conventions, whatever the rule."""

import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from tests.cases import Options, TrainableLIF, make_case, slow_but
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error

AUTODIFF = eprop.BPTT(stop_z_gradients=True)
RULES = {
    "whole": eprop.EProp(),
    "recursion": eprop.EProp(window=1),
    "windows": eprop.EProp(window=4),
    "bptt": eprop.BPTT(),
}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


@functools.cache
def case():
    made = make_case("ALIF", Options(readout_bias=True))
    assert_alive(made.network, made.inputs, made.grad(eprop.EProp()))
    return made


@functools.cache
def value_and_grad(rule):
    return case().value_and_grad(rule)


def evaluate(rule, loss=None, has_aux=False, of=eprop.value_and_grad, **options):
    function = of(loss or case().loss, rule, has_aux, **options)
    return jax.jit(function)(case().network, case().inputs, case().targets)


@contextlib.contextmanager
def compilations():
    """A list that grows by each program that is compiled meanwhile."""
    seen = []

    def listen(name, duration, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class TestConventions:
    def test_value(self, rule):
        value, _ = value_and_grad(rule)
        assert value.shape == ()
        trajectory = case().network(case().inputs)
        assert_close(value, case().loss(trajectory, case().targets), 1e-14)

    def test_gradients_are_a_network(self, rule):
        _, gradients = value_and_grad(rule)
        trainable = eqx.filter(case().network, eqx.is_inexact_array)
        assert jax.tree.structure(gradients) == jax.tree.structure(trainable)
        assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, trainable)
        assert isinstance(gradients, eprop.Network)

    def test_grad(self, rule):
        assert_trees_close(evaluate(rule, of=eprop.grad), value_and_grad(rule)[1], 1e-15)

    def test_inputs_and_targets_may_be_of_any_structure(self, rule):
        def loss(trajectory, targets):
            first, (second,) = targets
            return case().loss(trajectory, {"outputs": first, "importance": second["x"]})

        targets = (case().targets["outputs"], [{"x": case().targets["importance"]}])
        function = jax.jit(eprop.value_and_grad(loss, rule))
        actual = function(case().network, case().inputs, targets)
        assert_trees_close(actual, value_and_grad(rule), 1e-15)

    @pytest.mark.slow
    def test_without_jit(self):
        rule = RULES["windows"]
        function = eprop.value_and_grad(case().loss, rule)
        actual = function(case().network, case().inputs, case().targets)
        assert_trees_close(actual, value_and_grad(rule), 1e-14)


def loss_with_aux(trajectory, targets):
    n_spikes = trajectory.spikes.sum((0, 2))
    return case().loss(trajectory, targets), {"spikes": n_spikes, "steps": len(trajectory.spikes)}


class TestAux:
    def test_as_jax(self, rule):
        """`((value, aux), gradients)`, and `(gradients, aux)` for `grad`."""
        (value, aux), gradients = evaluate(rule, loss_with_aux, has_aux=True)
        assert_trees_close((value, gradients), value_and_grad(rule), 1e-15)
        same_gradients, same_aux = evaluate(rule, loss_with_aux, has_aux=True, of=eprop.grad)
        assert_trees_close((same_gradients, same_aux), (gradients, aux), 1e-15)

    @pytest.mark.parametrize("window", [1, 4, 5, 15, None])
    def test_is_of_the_whole_sequence(self, window):
        """The loss is called once, on all steps, whatever the window."""
        (_, aux), _ = evaluate(eprop.EProp(window=window), loss_with_aux, has_aux=True)
        spikes = case().network(case().inputs).spikes
        np.testing.assert_array_equal(aux["spikes"], spikes.sum((0, 2)))
        assert aux["steps"] == 15


class TestTargets:
    @pytest.mark.parametrize("window", [1, 4])
    def test_need_no_time_axis(self, window):
        """A label for each example, and a number: the loss sees them as they are given."""

        def loss(trajectory, targets):
            label, factor = targets
            surprise = eprop.losses.softmax_cross_entropy(trajectory.outputs, label)
            return factor * surprise

        def of(rule):
            function = jax.jit(eprop.value_and_grad(loss, rule))
            return function(case().network, case().inputs, (np.array([0, 1, 1]), 2.0))

        expected = of(AUTODIFF)
        assert_alive(case().network, case().inputs, expected[1])
        assert_trees_close(of(eprop.EProp(window=window)), expected, 1e-10)


class TestTrainable:
    def part_of(self, gradients, names):
        """The gradients of some weights, `None` for the others."""
        others = [name for name in ("w_in", "w_rec", "w_out", "readout_bias") if name not in names]
        return eqx.tree_at(
            lambda net: [getattr(net, name) for name in others], gradients, [None] * len(others)
        )

    @pytest.mark.parametrize("names", [("w_rec",), ("w_in", "w_out"), ("readout_bias",), ()])
    def test_network_of_booleans(self, rule, names):
        nothing = jax.tree.map(lambda _: False, case().network)
        chosen = eqx.tree_at(
            lambda net: [getattr(net, name) for name in names], nothing, [True] * len(names)
        )
        value, gradients = evaluate(rule, trainable=chosen)
        assert_close(value, value_and_grad(rule)[0], 1e-15)
        assert_trees_close(gradients, self.part_of(value_and_grad(rule)[1], names), 1e-15)

    def test_predicate(self, rule):
        """Here, matrices with 6 columns."""
        gradients = evaluate(rule, of=eprop.grad, trainable=lambda x: x.shape[-1] == 6)
        expected = self.part_of(value_and_grad(rule)[1], ("w_in", "w_rec"))
        assert_trees_close(gradients, expected, 1e-15)


@functools.cache
def trained_cell():
    """A threshold and a starting potential that are trained along with the weights."""
    rng = np.random.default_rng(0)
    cell = TrainableLIF(jnp.asarray(rng.uniform(0.5, 0.8, 6)), jnp.asarray(0.2), 6)
    made = make_case("LIF")
    made = made._replace(network=eqx.tree_at(lambda net: net.cell, made.network, cell))
    expected = made.grad(AUTODIFF)
    assert_alive(made.network, made.inputs, expected)
    assert min(np.min(np.abs(x)) for x in jax.tree.leaves(expected.cell)) > 1e-3
    return made, expected


class TestArraysOfACell:
    @pytest.mark.parametrize("window", slow_but([4], [1, 4, None]))
    def test_are_trained_at_every_window(self, window):
        made, expected = trained_cell()
        assert_trees_close(made.grad(eprop.EProp(window=window)), expected, 1e-10)

    def test_bptt_differs(self):
        made, expected = trained_cell()
        bptt = made.grad(eprop.BPTT())
        assert relative_error(bptt.cell.v_th, expected.cell.v_th) > 1e-2

    @pytest.mark.parametrize("window", [1, 4, None])
    def test_stay_as_they_are_if_told_so(self, window):
        made, expected = trained_cell()
        weights = jax.tree.map(lambda x: x.ndim == 2, made.network)
        rule = eprop.EProp(window=window)
        gradients = jax.jit(eprop.grad(made.loss, rule, trainable=weights))(
            made.network, made.inputs, made.targets
        )
        assert gradients.cell.v_th is None and gradients.cell.v_start is None
        for name in ("w_in", "w_rec", "w_out"):
            assert_close(getattr(gradients, name), getattr(expected, name), 1e-10, name)


class TestTransformations:
    def test_no_second_compilation(self, rule):
        """Other numbers of the same shapes find the compiled program."""
        n_traces = 0

        def loss(trajectory, targets):
            nonlocal n_traces
            n_traces += 1
            return case().loss(trajectory, targets)

        @jax.jit
        def step(network, rule, inputs, targets):
            gradients = eprop.grad(loss, rule)(network, inputs, targets)
            updates = jax.tree.map(lambda g: -1e-3 * g, gradients)
            return eprop.apply_updates(network, updates, rule)

        others = ~case().inputs, jax.tree.map(lambda x: 2 * x, case().targets)
        with compilations() as at_first:
            first, rule = step(case().network, rule, case().inputs, case().targets)
        assert n_traces > 0 and at_first
        traced = n_traces
        with compilations() as later:
            second, _ = step(first, rule, *others)
        assert n_traces == traced and not later
        assert np.any(second.w_in != first.w_in) and np.any(first.w_in != case().network.w_in)

    @pytest.mark.parametrize(
        "rule", slow_but([RULES["windows"]], [RULES["whole"], RULES["windows"]]), ids=str
    )
    def test_over_seeds(self, rule):
        """Networks built from their keys inside `vmap`, as one by one."""
        made = case()

        def of_key(key):
            network = eprop.Network(made.network.cell, n_in=3, n_out=2, key=key)
            return eprop.value_and_grad(made.loss, rule)(network, made.inputs, made.targets)

        keys = jax.random.split(jax.random.key(0), 3)
        together = jax.jit(jax.vmap(of_key))(keys)
        one = jax.jit(of_key)
        for i, key in enumerate(keys):
            assert_trees_close(jax.tree.map(lambda x, i=i: x[i], together), one(key), 1e-13)
        assert len(set(together[0].tolist())) == 3
        assert np.max(np.abs(together[1].w_rec)) > 1e-3

    def test_random_feedback_over_seeds(self):
        """A rule is a pytree: feedback matrices may be mapped over."""
        made, matrices = case(), np.random.default_rng(0).normal(size=(3, 6, 2))

        def of_matrix(b):
            rule = eprop.EProp(eprop.RandomFeedback(b), window=4)
            return eprop.grad(made.loss, rule)(made.network, made.inputs, made.targets)

        together = jax.jit(jax.vmap(of_matrix))(matrices)
        alone = jax.jit(of_matrix)(matrices[1])
        assert_trees_close(jax.tree.map(lambda x: x[1], together), alone, 1e-13)
        assert relative_error(together.w_in[0], together.w_in[1]) > 1e-2


def test_traces_of_some_neurons():
    """Those of the chosen neurons, as among the traces of all."""
    some, everything = (
        eprop.eligibility_traces(case().network, case().inputs, post)
        for post in (np.array([4, 1]), None)
    )
    assert_trees_close(some, jax.tree.map(lambda x: x[..., np.array([4, 1])], everything), 1e-15)
    assert all(np.any(x) for x in jax.tree.leaves(some))
