"""Dropout: what is lost, that every evaluation loses the same, and that it needs a key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from tests import oracle
from tests.cases import slow_but
from tests.comparison import assert_close, assert_trees_close, relative_error
from tests.errors import assert_raises, check

TOLERANCE = 1e-10
N_STEPS, BATCH, N_IN = 12, 3, 4
RNG = np.random.default_rng(0)
INPUTS = RNG.random((N_STEPS, BATCH, N_IN)) < 0.6
TARGETS = RNG.normal(size=(N_STEPS, BATCH, 2))
FEEDBACK = eprop.RandomFeedback(RNG.normal(size=(11, 2)))
KEY = jax.random.key(7)
BOTH = (eprop.Dropout(0.4), eprop.Dropout(0.3, per_step=False))


@functools.cache
def network(dropout=BOTH):
    """Two layers, each with a dropout of its own, and delays behind it."""
    rng = np.random.default_rng(1)

    def layer(cell, n_in, size, dropout, **changes):
        return eprop.Layer(
            cell,
            n_in=n_in,
            w_in=rng.uniform(0, 2 * size / n_in, (n_in, cell.n)),
            w_rec=0.2 * rng.normal(size=(cell.n, cell.n)),
            dropout=dropout,
            **changes,
        )

    first = layer(
        eprop.LIF(6, n_refractory=1), N_IN, 0.5, dropout[0], delay_in=np.array([0.0, 2.0, 1.0, 0.0])
    )
    last = layer(eprop.ALIF(5, n_refractory=1, beta=0.1), 6, 1.5, dropout[1])
    return eprop.Network([first, last], n_out=2, w_out=rng.normal(size=(5, 2)))


def loss(trajectory, targets):
    """A sum over time."""
    error = 0.5 * jnp.sum(jnp.square(trajectory.outputs - targets))
    return error + jnp.sum(trajectory.layers[0].states.v ** 2)


@functools.cache
def run(dropout, with_key=True):
    return jax.jit(lambda net, x, key: net(x, key=key))(
        network(dropout), INPUTS, KEY if with_key else None
    )


# What is lost.


@pytest.mark.parametrize("per_step", [True, False])
def test_what_is_kept(per_step):
    dropout = eprop.Dropout(0.3, per_step)
    kept = np.asarray(dropout.draw(KEY, (50, 8, 40)))
    count = 50 * 8 * 40 if per_step else 8 * 40
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / count)
    assert (kept == kept[:1]).all() != per_step, "once for a sequence, or anew at each step"
    assert (kept[:, :1] != kept).any(1).any(), "another for each example"
    assert (kept != np.asarray(dropout.draw(jax.random.key(8), (50, 8, 40)))).any()
    np.testing.assert_array_equal(kept, dropout.draw(KEY, (50, 8, 40)))


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float64])
def test_what_is_left_is_scaled_up(dtype):
    """So that the mean is what it was."""
    dropout, activity = eprop.Dropout(0.2), np.ones((200, 10, 20), dtype)
    kept = dropout.draw(KEY, activity.shape)
    left = np.asarray(dropout.apply(jnp.asarray(activity), kept, jnp.float64))
    np.testing.assert_array_equal(left, np.where(kept, 1 / 0.8, 0.0))
    assert abs(left.mean() - 1) < 0.01


def test_each_layer_loses_something_of_its_own():
    kept = network().draw_dropout(KEY, (N_STEPS, BATCH, N_IN))
    assert [x.shape for x in kept] == [(N_STEPS, BATCH, N_IN), (N_STEPS, BATCH, 6)]
    assert (np.asarray(kept[0]) != np.asarray(kept[1])[..., :N_IN]).any()
    alike = network((BOTH[0], BOTH[0])).draw_dropout(KEY, (N_STEPS, BATCH, 6))
    assert (np.asarray(alike[0]) != np.asarray(alike[1])[..., :N_IN]).any()
    only = network((None, BOTH[1])).draw_dropout(KEY, (N_STEPS, BATCH, N_IN))
    assert only[0] is None and only[1] is not None


# Where it acts.


def test_without_a_key_nothing_is_lost():
    without = run((None, None))
    jax.tree.map(np.testing.assert_array_equal, run(BOTH, with_key=False), without)
    assert relative_error(run(BOTH).outputs, without.outputs) > 0.1
    state = network().init(BATCH)
    _, trajectory = jax.jit(lambda s: network().run(s, INPUTS))(state)
    jax.tree.map(np.testing.assert_array_equal, trajectory, without)


def test_a_rate_of_zero_loses_nothing():
    none = (eprop.Dropout(0.0), eprop.Dropout(0.0, per_step=False))
    jax.tree.map(np.testing.assert_array_equal, run(none), run((None, None)))


def test_a_key_without_dropout_changes_nothing():
    jax.tree.map(
        np.testing.assert_array_equal, run((None, None)), run((None, None), with_key=False)
    )


def test_the_same_key_loses_the_same_under_every_rule():
    rules = [eprop.EProp(FEEDBACK), eprop.EProp(FEEDBACK, window=5), eprop.BPTT(True)]
    for rule in rules:
        other = jax.jit(lambda key: network()(INPUTS, rule, key=key))  # noqa: B023
        assert_trees_close(other(KEY), run(BOTH), 1e-12)
    assert relative_error(other(jax.random.key(8)).outputs, run(BOTH).outputs) > 0.1


@pytest.mark.slow
def test_learning_from_a_stream_loses_nothing():
    def learned(dropout):
        rule = eprop.EProp(FEEDBACK, window=4)
        learner = eprop.OnlineLearner(network(dropout), loss, rule, optax.sgd(1e-3), update_every=4)
        return learner.run(learner.init(BATCH), (INPUTS, TARGETS))[0].network

    learned_with, without = (jax.tree.leaves(learned(dropout)) for dropout in (BOTH, (None, None)))
    for x, y in zip(learned_with, without, strict=True):
        np.testing.assert_array_equal(x, y)


# Gradients.


@functools.cache
def expected():
    """By the oracle: value, and gradients of network and inputs."""
    kept = network().draw_dropout(KEY, INPUTS.shape)

    def of(network, inputs):
        return loss(oracle.respond(network, inputs, FEEDBACK.b, kept=kept)[1], TARGETS)

    return jax.jit(jax.value_and_grad(of, (0, 1)))(network(), jnp.asarray(INPUTS, float))


def test_network_and_gradients_are_alive():
    for layer in run(BOTH).layers:
        assert 0.05 < layer.spikes.mean() < 0.6
    for leaf in jax.tree.leaves(expected()[1]):
        assert np.abs(leaf).max() > 1e-6


@pytest.mark.parametrize("window", slow_but([5, None], [1, 4, 5, None]))
def test_every_window(window):
    evaluate = jax.jit(eprop.value_and_grad(loss, eprop.EProp(FEEDBACK, window)))
    value, actual = evaluate(network(), INPUTS, TARGETS, KEY)
    assert_close(value, expected()[0], TOLERANCE, "loss")
    assert_trees_close(actual, expected()[1][0], TOLERANCE, f"window={window}")
    _, without = evaluate(network(), INPUTS, TARGETS)
    assert relative_error(actual.w_out, without.w_out) > 0.1, "without a key"


def test_inputs():
    """What was lost has no gradient."""

    def of(inputs):
        return loss(network()(inputs, eprop.EProp(FEEDBACK), key=KEY), TARGETS)

    actual = jax.jit(jax.grad(of))(jnp.asarray(INPUTS, float))
    assert_close(actual, expected()[1][1], TOLERANCE, "dE/dx")
    lost = ~np.asarray(network().draw_dropout(KEY, INPUTS.shape)[0])
    assert not np.asarray(actual)[lost].any()
    in_time = np.asarray(actual)[:-2][~lost[:-2]]  # the last ones arrive too late to matter
    assert (in_time != 0).mean() > 0.9


def test_bptt_sees_through_it():
    """Another gradient, with the same losses."""
    evaluate = jax.jit(eprop.value_and_grad(loss, eprop.BPTT()))
    value, actual = evaluate(network(), INPUTS, TARGETS, KEY)
    assert_close(value, expected()[0], TOLERANCE, "loss")
    of_network = expected()[1][0]
    assert_close(actual.w_out, of_network.w_out, TOLERANCE, "w_out")
    first, last = actual.layers[0].below.weights, of_network.layers[0].below.weights
    assert relative_error(first, last) > 1e-2


def test_keys_side_by_side():
    keys = jax.random.split(KEY, 2)
    evaluate = eprop.grad(loss, eprop.EProp(FEEDBACK))
    together = jax.jit(jax.vmap(evaluate, (None, None, None, 0)))(network(), INPUTS, TARGETS, keys)
    for i in range(2):
        alone = jax.jit(evaluate)(network(), INPUTS, TARGETS, keys[i])
        one = jax.tree.map(lambda x: x[i], together)  # noqa: B023
        assert_trees_close(one, alone, TOLERANCE)
    assert relative_error(together.w_out[0], together.w_out[1]) > 0.1


@pytest.mark.usefixtures("as_a_user_has_it")
def test_a_rate_is_a_number_of_python():
    """As an array it would be compared with that of each other network, which arrays can't be."""
    dropout = eprop.Dropout(jnp.asarray(0.25), per_step=np.bool_(False))
    assert dropout == eprop.Dropout(0.25, per_step=False)
    assert type(dropout.rate) is float and dropout.per_step is False


@pytest.mark.usefixtures("as_a_user_has_it")
@check(
    {
        "negative": (lambda: eprop.Dropout(-0.1), ValueError, ["rate = -0.1", "at least 0"]),
        "all": (lambda: eprop.Dropout(1.0), ValueError, ["rate = 1.0", "less than 1"]),
        "NaN": (lambda: eprop.Dropout(np.nan), ValueError, ["rate = nan"]),
        "switch": (lambda: eprop.Dropout(True), TypeError, ["rate = True"]),
        "per step": (
            lambda: eprop.Dropout(0.1, per_step=1),
            TypeError,
            ["per_step = 1", "True or False"],
        ),
        "number": (
            lambda: eprop.Layer(eprop.LIF(3), n_in=2, dropout=0.1, key=KEY),
            TypeError,
            ["dropout = 0.1", "write Dropout(0.2)"],
        ),
        "class": (
            lambda: eprop.Network(eprop.LIF(3), n_in=2, n_out=1, dropout=eprop.Dropout, key=KEY),
            TypeError,
            ["dropout", "write Dropout(0.2)"],
        ),
        "number as key": (
            lambda: network()(INPUTS, key=0),
            TypeError,
            ["key = 0", "jax.random.key(0)"],
        ),
    }
)
def test_errors(given, error, parts):
    assert_raises(given, error, parts)
