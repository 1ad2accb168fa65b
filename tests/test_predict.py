"""`OnlineLearner.predict`: the network goes on, and nothing is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from tests.comparison import assert_trees_close, relative_error
from tests.errors import assert_raises, check

N_STEPS, BATCH = 12, 2
RNG = np.random.default_rng(0)
INPUTS = RNG.random((2 * N_STEPS, BATCH, 3)) < 0.5
TARGETS = RNG.normal(size=(2 * N_STEPS, BATCH, 1))
SEEN, AHEAD = INPUTS[:N_STEPS], INPUTS[N_STEPS:]


def loss(trajectory, targets):
    return jnp.sum(jnp.square(trajectory.outputs - targets))


@functools.cache
def learner():
    network = eprop.Network(
        eprop.ALIF(5, beta=0.2, n_refractory=2),
        n_in=3,
        n_out=1,
        w_in=np.random.default_rng(1).uniform(0, 0.4, (3, 5)),
        delay_rec=2.0,
        key=jax.random.key(0),
    )
    rule = eprop.EProp(eprop.AdaptiveFeedback(np.ones((5, 1))))
    return eprop.OnlineLearner(network, loss, rule, optax.adam(1e-3), update_every=4)


@functools.cache
def states():
    """After learning, a step past an update; what is predicted from there; and the trajectory."""
    learned, _ = learner().run(learner().init(BATCH), (SEEN, TARGETS[:N_STEPS]))
    learned, _ = learner().step(learned, INPUTS[0], TARGETS[0])
    return learned, *learner().predict(learned, AHEAD)


def test_outputs_are_those_of_the_network():
    learned, after, trajectory = states()
    expected_state, expected = jax.jit(lambda net, s: net.run(s, AHEAD))(
        learned.network, learned.progress.network
    )
    jax.tree.map(np.testing.assert_array_equal, trajectory, expected)
    jax.tree.map(np.testing.assert_array_equal, after.progress.network, expected_state)
    assert 0.05 < trajectory.spikes.mean() < 0.6


def test_nothing_else_is_touched():
    learned, after, _ = states()
    restored = after._replace(progress=after.progress._replace(network=learned.progress.network))
    assert jax.tree.structure(restored) == jax.tree.structure(learned)
    for new, old in zip(jax.tree.leaves(restored), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(_numbers(new), _numbers(old))
    moved = (after.progress.network, learned.progress.network)
    outputs, before = (state.outputs for state in moved)
    assert relative_error(outputs, before) > 0.1
    assert learned.since_update == 1 and any(
        np.abs(x).max() > 0 for x in jax.tree.leaves(learned.gradients)
    )


def _numbers(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_the_state_given_is_still_there():
    """To look ahead only, drop the state that is returned: learning goes on as if nothing was."""
    learned, *_ = states()
    later, _ = learner().step(learned, INPUTS[1], TARGETS[1])
    learner().predict(learned, AHEAD)
    again, _ = learner().step(learned, INPUTS[1], TARGETS[1])
    for x, y in zip(jax.tree.leaves(later), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(_numbers(x), _numbers(y))


def test_in_chunks():
    learned, after, trajectory = states()
    state, parts, begin = learned, [], 0
    for length in (5, 1, 1, 5):
        state, part = learner().predict(state, AHEAD[begin : begin + length])
        parts.append(part)
        begin += length
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    assert_trees_close(together, trajectory, 1e-12)
    assert_trees_close(state.progress.network, after.progress.network, 1e-12)


def test_learning_goes_on_from_what_was_predicted():
    """The neurons are where the prediction left them, the traces where learning did."""
    learned, after, _ = states()
    later, info = learner().step(after, INPUTS[2], TARGETS[2])
    assert later.n_steps == learned.n_steps + 1 and jnp.isfinite(info.loss)
    _, trajectory = learner().predict(after, INPUTS[2][None])
    np.testing.assert_allclose(info.outputs, trajectory.outputs[0], rtol=1e-12)


def test_within_jit():
    learned, _, trajectory = states()
    other = jax.jit(lambda state: learner().predict(state, AHEAD)[1])(learned)
    assert_trees_close(other, trajectory, 1e-12)


@pytest.mark.usefixtures("as_a_user_has_it")
@check(
    {
        "state": (
            lambda: learner().predict(learner().network.init(2), AHEAD),
            TypeError,
            ["state", "learner.init(batch)"],
        ),
        "batch": (
            lambda: learner().predict(learner().init(3), AHEAD),
            ValueError,
            ["inputs are of 2 examples", "the state is of 3", "learner.init(2)"],
        ),
        "one step without time": (
            lambda: learner().predict(learner().init(2), AHEAD[0]),
            ValueError,
            ["inputs", "(2, 3)", "[time, batch, feature]"],
        ),
        "features": (
            lambda: learner().predict(learner().init(2), AHEAD[..., :2]),
            ValueError,
            ["inputs", "2 features", "takes 3"],
        ),
    }
)
def test_errors(given, error, parts):
    assert_raises(given, error, parts)


def test_inputs_that_are_no_numbers():
    inputs = np.where(AHEAD, np.nan, 0.0)
    with pytest.raises(Exception, match=r"inputs of shape \(12, 2, 3\) holds NaN"):
        jax.block_until_ready(learner().predict(learner().init(2), inputs))
