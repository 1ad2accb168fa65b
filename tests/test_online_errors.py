"""Bad input of an online learner: each a clear error, after which all is as it was."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import checkpoints
from tests.cases import Options, make_case
from tests.comparison import assert_close
from tests.errors import assert_raises, check

pytestmark = pytest.mark.usefixtures("as_a_user_has_it")

T, BATCH = 12, 2
CASE = make_case("ALIF", Options(n_steps=T, batch=BATCH))
INPUTS, TARGETS = CASE.inputs.astype(float), CASE.targets["outputs"]
NAN_IN, NAN_OUT = INPUTS.copy(), TARGETS.copy()
NAN_IN[7, 0, 1] = NAN_OUT[6, 1, 0] = np.nan


def loss(trajectory, targets):
    return 0.5 * jnp.square(trajectory.outputs - targets).sum()


def learner_of(network=CASE.network, optimizer=None, **changes):
    optimizer = optax.sgd(1e-3) if optimizer is None else optimizer
    options = {"rule": eprop.EProp(window=2), "update_every": 4} | changes
    return eprop.OnlineLearner(network, loss, optimizer=optimizer, **options)


def other_network(n_rec, n_in=3):
    options = Options(n_in=n_in, n_rec=n_rec, n_steps=T, batch=BATCH)
    return make_case("ALIF", options).network


@functools.cache
def learning():
    """A learner, and its state after a chunk."""
    learner = learner_of()
    return learner, learner.run(learner.init(BATCH), (INPUTS, TARGETS))[0]


def bits(tree):
    return [
        np.asarray(jax.random.key_data(x) if checkpoints.is_key(x) else x).tobytes()
        for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    ]


def other_cells():
    """A network whose neurons have other time constants, all shapes the same."""
    return eqx.tree_at(lambda net: net.cell, CASE.network, eprop.ALIF(6))


BAD_LEARNERS = {
    "network": ({"network": CASE}, TypeError, ["network", "no Network"]),
    "BPTT": ({"rule": eprop.BPTT()}, TypeError, ["BPTT", "can't learn online"]),
    "update_every": ({"update_every": 0}, ValueError, ["update_every = 0", "at least 1"]),
    "tau_rate": ({"tau_rate": -1.0}, ValueError, ["tau_rate", "-1.0"]),
    "optimizer": ({"optimizer": optax.sgd}, TypeError, ["optimizer", "optax.adam(1e-3)"]),
    "penalty": ({"rate_penalty": 20.0}, TypeError, ["rate_penalty = 20.0", "RatePenalty(10.0"]),
    "target rate": (
        {"rate_penalty": eprop.RatePenalty(-1.0)},
        ValueError,
        ["rate_penalty.target_rate = -1.0", "at least 0"],
    ),
    "weight": (
        {"rate_penalty": eprop.RatePenalty(10.0, np.nan)},
        ValueError,
        ["rate_penalty.weight", "finite"],
    ),
    "window": (
        {"rule": eprop.EProp(window=3)},
        ValueError,
        ["update_every = 4", "windows of 3", "divides it"],
    ),
}


@check(BAD_LEARNERS)
def test_bad_learner(given, error, parts):
    assert_raises(lambda: learner_of(**given), error, parts)


BAD_CHUNKS = {
    "no tuple": ([INPUTS, TARGETS], TypeError, ["(inputs, targets)"]),
    "four": ((INPUTS, TARGETS, None, None), TypeError, ["(inputs, targets, done)"]),
    "width": ((INPUTS[..., :2], TARGETS), ValueError, ["2 features", "takes 3"]),
    "axes": ((INPUTS[:, 0], TARGETS), ValueError, ["(12, 3)", "[time, batch, feature]"]),
    "batch": ((INPUTS[:, :1], TARGETS), ValueError, ["of 1 examples", "learner.init(1)"]),
    "targets": ((INPUTS, TARGETS[:11]), ValueError, ["targets", "(11, 2, 2)", "axis of 12"]),
    "length": ((INPUTS[:10], TARGETS[:10]), ValueError, ["10 steps", "update_every = 4", "step"]),
    "done": (
        (INPUTS, TARGETS, np.zeros((T, 1), bool)),
        ValueError,
        ["done has shape (12, 1)", "(12, 2)"],
    ),
    "done of numbers": (
        (INPUTS, TARGETS, np.zeros((T, BATCH))),
        ValueError,
        ["dtype float64", "boolean"],
    ),
    "dtype": ((INPUTS.astype(np.float32), TARGETS), TypeError, ["float32", "astype"]),
    "NaN": ((NAN_IN, TARGETS), ValueError, ["inputs", "(12, 2, 3)", "NaN or infinity"]),
    "NaN at once": ((INPUTS * np.nan, TARGETS), ValueError, ["inputs", "NaN or infinity"]),
    "NaN to learn": (
        (INPUTS, NAN_OUT),
        FloatingPointError,
        ["loss", "NaN or infinite after step 20", "as it was"],  # of 12 before, and 8 of these
    ),
}


def test_no_loss():
    assert_raises(
        lambda: eprop.OnlineLearner(CASE.network, None, eprop.EProp(), optax.sgd(1e-3)),
        TypeError,
        ["loss = None", "loss(trajectory, targets)"],
    )


@check(BAD_CHUNKS)
def test_bad_chunk(given, error, parts):
    """And learning goes on from the same state as if nothing had been."""
    learner, state = learning()
    before = bits(state)
    assert_raises(lambda: learner.run(state, given), error, parts)
    assert bits(state) == before


class TestLossesThatAreNoSum:
    """A mean over the steps at hand would weigh each window by its length."""

    @staticmethod
    def mean(trajectory, targets):
        return jnp.square(trajectory.outputs - targets).mean()

    def learner(self, window, update_every=4):
        rule, optimizer = eprop.EProp(window=window), optax.sgd(1e-3)
        return eprop.OnlineLearner(
            CASE.network, self.mean, rule, optimizer, update_every=update_every
        )

    @pytest.mark.parametrize("window", [2, 4, None])
    def test_are_refused(self, window):
        learner = self.learner(window)
        state = learner.init(BATCH)
        before = bits(state)
        parts = ["no sum over time", f"on {window or 4} steps", "jnp.sum", "RatePenalty"]
        assert_raises(lambda: learner.run(state, (INPUTS, TARGETS)), ValueError, parts)
        assert bits(state) == before

    def test_are_refused_where_the_first_steps_do_not_count(self):
        def loss(trajectory, now, n_steps=None):
            return eprop.losses.mean_squared_error(trajectory.outputs, *now, n_steps=n_steps)

        inputs, targets = (np.resize(x, (40, *x.shape[1:])) for x in (INPUTS, TARGETS))
        chunk = (inputs, (targets, np.repeat([0.0, 1.0], 20)))

        def learner_of(loss):
            return eprop.OnlineLearner(
                CASE.network, loss, eprop.EProp(), optax.sgd(1e-3), update_every=40
            )

        parts = ["no sum over time", "on 40 steps"]
        learner = learner_of(loss)
        assert_raises(lambda: learner.run(learner.init(BATCH), chunk), ValueError, parts)
        learner = learner_of(functools.partial(loss, n_steps=1))
        learner.run(learner.init(BATCH), chunk)

    @pytest.mark.parametrize(("window", "update_every"), [(1, 4), (None, 1)])
    def test_are_taken_step_by_step(self, window, update_every):
        """Where each call is of one step there is nothing to weigh."""
        learner = self.learner(window, update_every)
        by_run, _ = learner.run(learner.init(BATCH), (INPUTS[:4], TARGETS[:4]))
        state = learner.init(BATCH)
        for x, target in zip(INPUTS[:4], TARGETS[:4], strict=True):
            state, _ = learner.step(state, x, target)
        assert_close(by_run.network.w_in, state.network.w_in, 1e-12)
        assert np.abs(state.network.w_in - CASE.network.w_in).max() > 1e-6


def test_a_good_chunk_follows():
    learner, state = learning()
    assert_raises(lambda: learner.run(state, (INPUTS, NAN_OUT)), FloatingPointError, ["loss"])
    after, _ = learner.run(state, (INPUTS, TARGETS))
    assert after.n_steps == 2 * T and bits(after) != bits(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after._replace(key=None)))


BAD_STEPS = {
    "width": ((INPUTS[0, :, :2], TARGETS[0]), ValueError, ["2 features", "takes 3"]),
    "batch": ((INPUTS[0, :1], TARGETS[0, :1]), ValueError, ["of 1 examples"]),
    "example": (
        (INPUTS[0, 0], TARGETS[0]),
        ValueError,
        ["x_t has shape (3,)", "[batch, n_in]", "write x_t[None]"],
    ),
    "chunk": ((INPUTS[:4], TARGETS[:4]), ValueError, ["x_t has shape (4, 2, 3)"]),
    "done": (
        (INPUTS[0], TARGETS[0], np.array(True)),
        ValueError,
        ["done has shape ()", "boolean", "(2,)"],
    ),
    "done's dtype": (
        (INPUTS[0], TARGETS[0], np.zeros(2, int)),
        ValueError,
        ["done has", "boolean"],
    ),
    "NaN": ((NAN_IN[7], TARGETS[7]), ValueError, ["inputs", "NaN or infinity"]),
    "NaN to learn": ((INPUTS[6], NAN_OUT[6]), FloatingPointError, ["loss", "after step 13"]),
}


@check(BAD_STEPS)
def test_bad_step(given, error, parts):
    learner, state = learning()
    before = bits(state)
    assert_raises(lambda: learner.step(state, *given), error, parts)
    assert bits(state) == before


BAD_STATES = {
    "no state": (lambda: CASE.network, TypeError, ["state", "learner.init(batch)"]),
    "size": (
        lambda: learner_of(other_network(6, n_in=4)).init(BATCH),
        ValueError,
        ["another learner", "network.layers.0.below.weights of", "(4, 6)", "(3, 6)"],
    ),
    "cell": (
        lambda: learner_of(other_cells()).init(BATCH),
        ValueError,
        ["another learner", "network.layers.0.neurons.cells.0.", " there, "],
    ),
    "optimizer": (
        lambda: learner_of(optimizer=optax.adam(1e-3)).init(BATCH),
        ValueError,
        ["another learner", "optimizer.0 = optax", "ScaleByAdamState there"],
    ),
    "feedback": (
        lambda: learner_of(rule=eprop.EProp(eprop.RandomFeedback(CASE.b))).init(BATCH),
        ValueError,
        ["another learner", "feedback = eprop", "RandomFeedback there, ", "Symmetric"],
    ),
    "batch": (lambda: learner_of().init(5), ValueError, ["of 2 examples", "is of 5"]),
    "amid an update": (
        lambda: learning()[0].step(learning()[1], INPUTS[0], TARGETS[0])[0],
        ValueError,
        ["1 steps past its last update", "use step"],
    ),
}


@check(BAD_STATES)
def test_bad_state(given, error, parts):
    state = given()
    assert_raises(lambda: learning()[0].run(state, (INPUTS, TARGETS)), error, parts)


def test_a_state_past_its_update_is_updated():
    """As a learner that updates less often leaves it."""
    state = learner_of(update_every=8).init(BATCH)
    for t in range(6):
        state, _ = learner_of(update_every=8).step(state, INPUTS[t], TARGETS[t])
    after, _ = learner_of().step(state, INPUTS[6], TARGETS[6])
    assert state.since_update == 6 and after.since_update == 0
    assert np.abs(after.network.w_in - state.network.w_in).max() > 1e-6


def test_checkpoint_of_another_network(tmp_path):
    _, state = learning()
    checkpoints.save(tmp_path / "state", state)
    other = learner_of(other_network(5)).init(BATCH)
    assert_raises(
        lambda: checkpoints.load(tmp_path / "state", other),
        checkpoints.CheckpointError,
        ["another state", "n = 6 there, 5 here", "below.weights of shape (3, 6)", "(3, 5)"],
    )


class TestNotFinite:
    """Not what goes in but what comes out."""

    def test_weights_that_an_update_blows_up(self):
        """Where the loss and its gradient are still numbers."""
        schedule = optax.scale_by_schedule(lambda n: jnp.where(n < 1, 0.0, jnp.inf))
        learner = learner_of(optimizer=schedule)
        state = learner.init(BATCH)
        before = bits(state)
        parts = ["network.layers.0.below.weights", "infinite after step 8", "as it was"]
        first = INPUTS[:8], TARGETS[:8]
        assert_raises(functools.partial(learner.run, state, first), FloatingPointError, parts)
        assert bits(state) == before
        assert_raises(
            functools.partial(learner.run, state, (INPUTS, TARGETS)),
            FloatingPointError,
            ["loss", "after step 12"],
        )
        for t in range(7):
            state, _ = learner.step(state, INPUTS[t], TARGETS[t])
        last = INPUTS[7], TARGETS[7]
        assert_raises(functools.partial(learner.step, state, *last), FloatingPointError, parts)

    def test_gradient(self):
        """Of a loss that is a number itself: √0 has no slope."""

        def at_its_edge(trajectory, targets):
            return jnp.sqrt(jnp.square(trajectory.outputs - trajectory.outputs)).sum()

        names = {1: "network.layers.0.below.weights", 5: "gradients.layers.0.weights"}
        for update_every, name in names.items():
            learner = eprop.OnlineLearner(
                CASE.network,
                at_its_edge,
                eprop.EProp(),
                optax.sgd(1e-3),
                update_every=update_every,
            )
            state = learner.init(BATCH)
            assert_raises(
                functools.partial(learner.step, state, INPUTS[0], TARGETS[0]),
                FloatingPointError,
                [name, "after step 1"],
            )


def test_within_jit_too():
    """What can only be seen when it runs is an error of the runtime."""
    learner, state = learning()
    run = eqx.filter_jit(learner.run)
    run(state, (INPUTS, TARGETS))
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        jax.block_until_ready(run(state, (NAN_IN, TARGETS))[0].network.w_in)
