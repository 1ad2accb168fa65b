"""Feedback: how the readout's error comes back, and how a feedback matrix learns."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from tests.cases import Options, make_case
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error

RNG = np.random.default_rng(0)
W_OUT, B = RNG.normal(size=(6, 2)), RNG.normal(size=(6, 2))
DECAY = 0.1
FEEDBACKS = {
    "symmetric": (eprop.SymmetricFeedback(), W_OUT),
    "random": (eprop.RandomFeedback(B), B),
    "adaptive": (eprop.AdaptiveFeedback(B, decay=DECAY), B),
}


@pytest.fixture(params=FEEDBACKS)
def feedback(request):
    return FEEDBACKS[request.param]


@functools.cache
def network_with_w_out():
    return eqx.tree_at(lambda net: net.w_out, make_case("ALIF").network, jnp.asarray(W_OUT))


def test_matrix(feedback):
    """A row for each neuron, in the network's dtype, and nothing that is trained through it."""
    feedback, matrix = feedback
    network = network_with_w_out()
    np.testing.assert_array_equal(feedback.matrix(network), matrix)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), network)
    assert feedback.matrix(single).dtype == jnp.float32
    gradient = eqx.filter_grad(lambda feedback: feedback.matrix(network).sum())(feedback)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("window", [1, 4, None])
@pytest.mark.parametrize("name", ["random", "adaptive"])
def test_b_has_no_gradient(name, window):
    """A rule may be among what is differentiated by."""
    case, (feedback, matrix) = make_case("ALIF"), FEEDBACKS[name]

    def loss(feedback):
        trajectory = case.network(case.inputs, eprop.EProp(feedback, window))
        return case.loss(trajectory, case.targets)

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(feedback)
    np.testing.assert_array_equal(gradient.b, np.zeros_like(matrix))


def test_learning_signals_of_a_network(feedback):
    """L = B ∂E/∂y and ∂E/∂z, of a loss whose derivatives are known."""
    feedback, matrix = feedback
    _, inputs, targets, _, _ = make_case("ALIF")
    network = network_with_w_out()

    def loss(trajectory, targets):
        error = trajectory.outputs - targets["outputs"]
        return 0.5 * jnp.sum(error**2) + jnp.sum(jnp.asarray(rates) * trajectory.spikes)

    trajectory, rates = network(inputs), RNG.normal(size=(15, 3, 6))
    actual = eprop.learning_signals(network, inputs, targets, loss, feedback)
    error = np.asarray(trajectory.outputs) - targets["outputs"]
    assert_close(actual.readout, np.einsum("jk,tbk->tbj", matrix, error), 1e-13)
    assert_close(actual.direct, rates, 0)


def test_no_direct_signal_where_the_loss_does_not_look():
    case = make_case("LIF", Options(terms=("outputs",)))
    signals = eprop.learning_signals(case.network, case.inputs, case.targets, case.loss)
    assert np.any(signals.readout) and not np.any(signals.direct)
    assert signals.direct.shape == signals.readout.shape


@pytest.mark.parametrize("window", [1, 4, None])
def test_w_out_is_not_transported(window):
    """With random feedback the gradient of W_in does not depend on W_out but by the error."""
    case = make_case("ALIF")

    def loss(trajectory, targets):  # an error of 1, whatever the outputs
        return jnp.sum(trajectory.outputs)

    @jax.jit
    def gradient(feedback, w_out):
        network = eqx.tree_at(lambda net: net.w_out, case.network, w_out)
        rule = eprop.EProp(feedback, window)
        return jax.jit(eprop.grad(loss, rule))(network, case.inputs, case.targets).w_in

    random, other = eprop.RandomFeedback(case.b), jnp.asarray(-3 * W_OUT)
    first = gradient(random, jnp.asarray(W_OUT))
    assert np.max(np.abs(first)) > 1e-2
    assert_close(gradient(random, other), first, 1e-14)
    assert relative_error(gradient(eprop.SymmetricFeedback(), other), first) > 0.1


def test_adaptive_gradients_are_those_of_its_matrix():
    case = make_case("ALIF")
    random = case.grad(eprop.EProp(eprop.RandomFeedback(case.b)))
    assert_alive(case.network, case.inputs, random)
    adaptive = case.grad(eprop.EProp(eprop.AdaptiveFeedback(case.b)))
    assert_trees_close(adaptive, random, 0)


class TestUpdates:
    def updates(self, network, seed=0):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape)), eqx.filter(network, eqx.is_array)
        )

    @pytest.mark.parametrize("name", ["symmetric", "random", "bptt"])
    def test_are_added(self, name):
        network = make_case("ALIF", Options(readout_bias=True)).network
        rule = eprop.BPTT() if name == "bptt" else eprop.EProp(FEEDBACKS[name][0], window=3)
        updates = self.updates(network)
        new, same_rule = eprop.apply_updates(network, updates, rule)
        assert_trees_close(new, eqx.apply_updates(network, updates), 0)
        assert_trees_close(same_rule, rule, 0)

    def test_kolen_pollack(self):
        """B and W_out get one update, and both decay: so their difference shrinks by 1 - decay."""
        network = make_case("ALIF", Options(readout_bias=True)).network
        rule = eprop.EProp(eprop.AdaptiveFeedback(B, decay=DECAY), window=3)
        first = B - np.asarray(network.w_out)
        for step in range(1, 6):
            updates = self.updates(network, seed=step)
            new, rule = eprop.apply_updates(network, updates, rule)
            assert_close(new.w_out, (1 - DECAY) * network.w_out + updates.w_out, 1e-14)
            difference = np.asarray(rule.feedback.b) - np.asarray(new.w_out)
            assert_close(difference, (1 - DECAY) ** step * first, 1e-13)
            for name in ("w_in", "w_rec", "readout_bias"):
                plain = getattr(network, name) + getattr(updates, name)
                assert_close(getattr(new, name), plain, 0, name)
            network = new
        assert rule.window == 3 and rule.feedback.decay == DECAY

    def test_without_decay_b_is_only_carried_along(self):
        network = make_case("LIF").network
        rule = eprop.EProp(eprop.AdaptiveFeedback(B, decay=0.0))
        updates = self.updates(network)
        _, rule = eprop.apply_updates(network, updates, rule)
        assert_close(rule.feedback.b, B + np.asarray(updates.w_out), 1e-15)

    def test_nothing_is_learned_from_a_readout_that_is_not_trained(self):
        network = make_case("LIF").network
        rule = eprop.EProp(eprop.AdaptiveFeedback(B))
        updates = eqx.tree_at(lambda net: net.w_out, self.updates(network), None)
        new, rule = eprop.apply_updates(network, updates, rule)
        assert_close(new.w_out, network.w_out, 0)
        assert_close(rule.feedback.b, B, 0)
        assert np.any(new.w_in != network.w_in)

    def test_under_jit(self):
        network = make_case("LIF").network
        rule, updates = eprop.EProp(eprop.AdaptiveFeedback(B)), self.updates(network)
        outside = eprop.apply_updates(network, updates, rule)
        assert_trees_close(jax.jit(eprop.apply_updates)(network, updates, rule), outside, 1e-15)


def test_nothing_decays_between_the_updates_of_several_steps():
    """`optax.MultiSteps` hands on zeros until it has gathered as many gradients."""
    case = make_case("ALIF")
    start = eprop.AdaptiveFeedback(case.b, decay=DECAY)
    optimizer = optax.MultiSteps(optax.sgd(1e-3), 3)
    step = jax.jit(eprop.training_step(case.loss, optimizer))
    states = [eprop.init_training(case.network, eprop.EProp(start), optimizer)]
    for _ in range(3):
        states.append(step(states[-1], (case.inputs, case.targets))[0])
    for state in states[1:3]:
        assert_trees_close(state.network, case.network, 0.0, "weights")
        np.testing.assert_array_equal(state.rule.feedback.b, case.b)
    update = states[3].network.w_out - (1 - DECAY) * case.network.w_out
    assert np.abs(update).max() > 1e-6
    assert_close(states[3].rule.feedback.b, (1 - DECAY) * case.b + update, 1e-12)


@pytest.mark.usefixtures("as_a_user_has_it")
@pytest.mark.parametrize("name", ["symmetric", "adaptive"])
def test_weights_and_feedback_keep_their_dtype(name):
    """Whatever the optimiser's, as a learning rate of float64 would make it."""
    single, double = jnp.asarray(W_OUT, jnp.float32), jnp.asarray(B)
    feedback = {"symmetric": eprop.SymmetricFeedback(), "adaptive": eprop.AdaptiveFeedback(double)}
    w_out, after = feedback[name].after_update(single, double)
    assert w_out.dtype == jnp.float32
    keep = 0.99 if name == "adaptive" else 1.0
    assert_close(w_out, (keep * W_OUT + B).astype(np.float32), 1e-6)
    if name == "adaptive":
        _, after = eprop.AdaptiveFeedback(double.astype(jnp.float32)).after_update(double, double)
        assert after.b.dtype == jnp.float32


def test_an_update_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(6, 2\) has shape \(6, 6\)"):
        eprop.SymmetricFeedback().after_update(jnp.asarray(W_OUT), jnp.ones((6, 6)))
