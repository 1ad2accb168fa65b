"""Any optimiser of optax, online and in training; and a loss that says more than its value."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import eprop
from tests.cases import Options, make_case, slow_but
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error
from tests.errors import assert_raises, check

T, BATCH, UPDATES = 12, 2, 4
CASE = make_case("ALIF", Options(n_steps=T, batch=BATCH, n_refractory=2, terms=("outputs",)))
RULE = eprop.EProp(window=4)
DONE = np.zeros((T, BATCH), bool)
DONE[-1] = True  # each chunk begins from rest, as a batch of training does


def weights_but(*names):
    """Of each weight whether it is none of these."""
    everything = jax.tree.map(lambda _: True, eqx.filter(CASE.network, eqx.is_inexact_array))
    return eqx.tree_at(
        lambda net: [getattr(net, name) for name in names], everything, [False] * len(names)
    )


def labels(_):
    return jax.tree.map(lambda x: "learns" if x else "stays", weights_but("w_out"))


SGD = optax.sgd(1e-3)
OPTIMIZERS = {
    "schedule": optax.adam(optax.exponential_decay(0.01, 1, 0.5)),
    # A rate of exact binary fractions: optax counts in float32, which rounds others.
    "injected": optax.inject_hyperparams(optax.sgd)(lambda n: jnp.where(n > 2, 2.0**-11, 2.0**-10)),
    "plateau": optax.chain(SGD, optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.5)),
    "several steps": optax.MultiSteps(SGD, every_k_schedule=3),
    "several steps to a plateau": optax.MultiSteps(
        optax.chain(SGD, optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.5)), 2
    ),
    "frozen": optax.multi_transform({"learns": SGD, "stays": optax.set_to_zero()}, labels),
}


def loop(optimizer):
    """The network and the losses of the loop written out."""
    network, losses = CASE.network, []
    goes_by_value = isinstance(optimizer, optax.MultiSteps | optax.GradientTransformationExtraArgs)

    @jax.jit
    def step(network, state):
        evaluate = eprop.value_and_grad(CASE.loss, RULE)
        value, gradients = evaluate(network, CASE.inputs, CASE.targets)
        more = {"value": value} if goes_by_value else {}
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state, network, **more)
        return eqx.apply_updates(network, updates), state, value, gradients

    state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))
    for _ in range(UPDATES):
        before = network
        network, state, value, gradients = step(network, state)
        assert_alive(before, CASE.inputs, gradients)
        losses.append(value)
    return network, jnp.stack(losses)


def by_run(optimizer, **options):
    learner = eprop.OnlineLearner(
        CASE.network, CASE.loss, RULE, optimizer, update_every=T, **options
    )
    state, losses = learner.init(BATCH), []
    for _ in range(UPDATES):
        state, info = learner.run(state, (CASE.inputs, CASE.targets, DONE))
        losses.append(info.loss[0])
    return state.network, jnp.stack(losses)


def by_step(optimizer):
    learner = eprop.OnlineLearner(CASE.network, CASE.loss, RULE, optimizer, update_every=T)
    state, losses = learner.init(BATCH), np.zeros((UPDATES, T))
    for update, t in np.ndindex(losses.shape):
        now = jax.tree.map(lambda x: x[t], (CASE.inputs, CASE.targets, DONE))  # noqa: B023
        state, info = learner.step(state, *now)
        losses[update, t] = info.loss
    return state.network, losses.sum(1)


def by_fit(optimizer):
    state, rows = eprop.fit(
        eprop.training_step(CASE.loss, optimizer),
        eprop.init_training(CASE.network, RULE, optimizer),
        lambda _: (CASE.inputs, CASE.targets),
        iterations=UPDATES,
        progress=False,
    )
    return state.network, np.array([row["loss"] for row in rows])


@functools.cache
def expected(name):
    return loop(OPTIMIZERS[name])


class TestOptimizers:
    @pytest.mark.parametrize("way", slow_but([by_run], [by_run, by_step, by_fit]))
    @pytest.mark.parametrize("name", slow_but(["schedule", "plateau", "frozen"], OPTIMIZERS))
    def test_is_the_loop_written_out(self, name, way):
        network, losses = way(OPTIMIZERS[name])
        assert_trees_close(network, expected(name)[0], 1e-10)
        assert_close(losses, expected(name)[1], 1e-10)

    def test_they_differ(self):
        """Negative control: from plain descent, and each from the others."""
        networks = [loop(SGD)[0], *(expected(name)[0] for name in OPTIMIZERS)]
        for i, one in enumerate(networks):
            for other in networks[:i]:
                assert relative_error(one.w_in, other.w_in) > 1e-4

    def test_what_they_do(self):
        _, losses = expected("several steps")
        assert losses[0] == losses[1] == losses[2] > losses[3]
        network, _ = expected("frozen")
        np.testing.assert_array_equal(network.w_out, CASE.network.w_out)
        assert relative_error(network.w_rec, CASE.network.w_rec) > 1e-4
        learner = eprop.OnlineLearner(
            CASE.network, CASE.loss, RULE, OPTIMIZERS["plateau"], update_every=4
        )
        state, _ = learner.run(learner.init(BATCH), (CASE.inputs, CASE.targets))
        assert state.optimizer[1].scale == 0.5**2  # of three updates the first is the best so far
        assert state.loss == 0


class TestChangedByHand:
    """A hyperparameter in the state, as optax says it is to be changed."""

    OPTIMIZER = optax.inject_hyperparams(optax.sgd)(1e-3)

    def learner(self):
        return eprop.OnlineLearner(CASE.network, CASE.loss, RULE, self.OPTIMIZER, update_every=T)

    def state(self, rate):
        state = self.learner().init(BATCH)
        state.optimizer.hyperparams["learning_rate"] = rate
        return state

    @pytest.mark.parametrize(
        "rate", [0.25, 1, np.float32(0.25), np.float64(0.25), jnp.float32(0.25), np.array(0.25)]
    )
    def test_is_taken(self, rate):
        learner, chunk = self.learner(), (CASE.inputs, CASE.targets)
        by_chunk, _ = learner.run(self.state(rate), chunk)
        stepwise = self.state(rate)
        for t in range(T):
            stepwise, _ = learner.step(stepwise, *jax.tree.map(lambda x: x[t], chunk))  # noqa: B023
        before, gradients = CASE.network.w_in, CASE.grad(RULE)
        assert np.abs(gradients.w_in).max() > 1e-3
        for state in (by_chunk, stepwise):
            assert_close(state.network.w_in - before, -float(rate) * gradients.w_in, 1e-10)
            assert state.optimizer.hyperparams["learning_rate"].dtype == jnp.float64
        learner.predict(self.state(rate), CASE.inputs)

    def test_nothing_is_compiled_for_it(self):
        chunk, calls, seen = (CASE.inputs, CASE.targets), [], []

        def loss(*args):
            calls.append(1)
            return CASE.loss(*args)

        learner = eprop.OnlineLearner(CASE.network, loss, RULE, self.OPTIMIZER, update_every=T)
        for rate in (0.1, 0.2, 0.3):
            learner.run(self.state(rate), chunk)
            seen.append(len(calls))
        assert seen[0] and seen == seen[:1] * 3

    @pytest.mark.usefixtures("as_a_user_has_it")
    @check(
        {
            "shape": (
                np.ones(2),
                ValueError,
                ["optimizer.hyperparams.learning_rate of shape (2,)"],
            ),
            "text": ("0.1", ValueError, ["optimizer.hyperparams.learning_rate = '0.1'"]),
            "None": (None, ValueError, ["optimizer.hyperparams.learning_rate = None"]),
        }
    )
    def test_what_is_no_number(self, given, error, parts):
        run = functools.partial(self.learner().run, self.state(given), (CASE.inputs, CASE.targets))
        assert_raises(run, error, ["of another learner", *parts])

    def test_in_training(self):
        """Where a step is compiled by `fit` it is to be an array, as all that changes is."""
        state = eprop.init_training(CASE.network, RULE, self.OPTIMIZER)
        step = eprop.training_step(CASE.loss, self.OPTIMIZER)

        def run(rate):
            state.optimizer.hyperparams["learning_rate"] = rate
            return eprop.fit(
                step, state, [(CASE.inputs, CASE.targets)], iterations=1, progress=False
            )

        after, _ = run(jnp.asarray(0.25))
        difference = after.network.w_in - CASE.network.w_in
        assert_close(difference, -0.25 * CASE.grad(RULE).w_in, 1e-10)
        parts = ["optimizer.hyperparams.learning_rate of shape () and dtype float ", "an array"]
        assert_raises(lambda: run(0.25), TypeError, parts)


class TestAux:
    """What the loss sees of each step comes back in `Info`."""

    @staticmethod
    def loss(trajectory, targets):
        return CASE.loss(trajectory, targets), {
            "layers": trajectory.layers,
            "error": jnp.square(trajectory.outputs - targets["outputs"]).sum(-1),
            "active": trajectory.spikes.any((1, 2)),
        }

    @staticmethod
    def learner(window, optimizer=SGD, update_every=T, loss=loss, has_aux=True):
        rule = eprop.EProp(window=window)
        return eprop.OnlineLearner(
            CASE.network, loss, rule, optimizer, update_every=update_every, has_aux=has_aux
        )

    @pytest.mark.parametrize("window", [1, 4, None])
    @pytest.mark.parametrize("ends", slow_but([5], [None, 5, 7]))
    def test_is_of_the_trajectory(self, window, ends):
        done = None if ends is None else (np.arange(T) == ends)[:, None] & np.ones(BATCH, bool)
        learner, chunk = self.learner(window), (CASE.inputs, CASE.targets)
        _, info = learner.run(learner.init(BATCH), chunk if done is None else (*chunk, done))
        parts = [slice(T)] if ends is None else [slice(ends + 1), slice(ends + 1, T)]
        runs = [CASE.network(CASE.inputs[part]) for part in parts]
        whole = jax.tree.map(lambda *xs: jnp.concatenate(xs), *runs)
        assert 0 < whole.spikes.mean() < 0.5
        assert_trees_close(info.aux["layers"], whole.layers, 1e-12)
        error = jnp.square(whole.outputs - CASE.targets["outputs"]).sum(-1)
        assert_close(info.aux["error"], error, 1e-12)
        np.testing.assert_array_equal(info.aux["active"], whole.spikes.any((1, 2)))
        if ends is not None:
            never = CASE.network(CASE.inputs).outputs
            assert relative_error(whole.outputs, never) > 1e-3

    def test_of_steps(self):
        learner, chunk = self.learner(2, update_every=4), (CASE.inputs, CASE.targets)
        state, infos = learner.init(BATCH), []
        for t in range(T):
            state, info = learner.step(state, *jax.tree.map(lambda x: x[t], chunk))  # noqa: B023
            infos.append(info.aux)
        _, info = learner.run(learner.init(BATCH), chunk)
        assert_trees_close(jax.tree.map(lambda *xs: jnp.stack(xs), *infos), info.aux, 1e-10)

    def test_changes_nothing(self):
        with_aux, without = self.learner(4), self.learner(4, loss=CASE.loss, has_aux=False)
        chunk = (CASE.inputs, CASE.targets)
        (one, _), (other, info) = (
            learner.run(learner.init(BATCH), chunk) for learner in (with_aux, without)
        )
        assert_trees_close(one._replace(key=None), other._replace(key=None), 1e-12)
        assert info.aux is None

    def test_in_fit(self):
        learner = self.learner(None)
        chunk = (CASE.inputs, CASE.targets)
        _, rows = eprop.fit(learner.run, learner.init(BATCH), [chunk], iterations=1, progress=False)
        assert np.shape(rows[0]["aux.error"]) == (T, BATCH)

    @pytest.mark.usefixtures("as_a_user_has_it")
    @check(
        {
            "a mean": (
                lambda y, _: (y.outputs.sum(), {"mean": y.outputs.mean()}),
                ValueError,
                ["aux['mean'] has shape ()", "leading time axis of 12", "axis=(1, 2)"],
            ),
            "no axis of time": (
                lambda y, _: (y.outputs.sum(), y.outputs[0]),
                ValueError,
                ["aux has shape (2, 2)", "leading time axis of 12"],
            ),
            "text": (
                lambda y, _: (y.outputs.sum(), "text"),
                ValueError,
                ["aux has shape ()", "leading time axis"],
            ),
            "none": (
                lambda y, _: y.outputs.sum(),
                TypeError,
                ["has_aux=True", "(scalar, aux)"],
            ),
            "three": (
                lambda y, _: (y.outputs.sum(), y, y),
                TypeError,
                ["(scalar, aux), not 3 values"],
            ),
        }
    )
    def test_bad(self, given, error, parts):
        learner = self.learner(None, loss=given)
        chunk = (CASE.inputs, CASE.targets)
        assert_raises(lambda: learner.run(learner.init(BATCH), chunk), error, parts)

    @pytest.mark.usefixtures("as_a_user_has_it")
    def test_not_asked_for(self):
        learner = self.learner(None, loss=self.loss, has_aux=False)
        chunk = (CASE.inputs, CASE.targets)
        run = functools.partial(learner.run, learner.init(BATCH), chunk)
        assert_raises(run, TypeError, ["(scalar, aux) with has_aux=True"])
        assert_raises(
            lambda: self.learner(None, has_aux="yes"), TypeError, ["has_aux = 'yes'", "True or"]
        )


class TestFreezing:
    @pytest.mark.parametrize("of_function", [True, False])
    def test_masked(self, of_function):
        """By a network of booleans, or a function that makes one."""
        stays = weights_but("w_in", "w_rec")
        mask = (lambda _: stays) if of_function else stays
        network, _ = by_run(optax.chain(SGD, optax.masked(optax.set_to_zero(), mask)))
        np.testing.assert_array_equal(network.w_out, CASE.network.w_out)
        assert relative_error(network.w_rec, CASE.network.w_rec) > 1e-4

    def test_by_a_filter(self):
        network, _ = by_run(SGD, trainable=weights_but("w_in", "w_rec"))
        np.testing.assert_array_equal(network.w_rec, CASE.network.w_rec)
        assert relative_error(network.w_out, CASE.network.w_out) > 1e-4

    @pytest.mark.usefixtures("as_a_user_has_it")
    def test_labels_that_optax_takes_for_a_function(self):
        """A network can be called, so optax calls a network of labels."""
        given = optax.multi_transform({"learns": SGD, "stays": optax.set_to_zero()}, labels(None))
        assert_raises(lambda: by_run(given), TypeError, ["network.w_in = 'learns'", "lambda _:"])
