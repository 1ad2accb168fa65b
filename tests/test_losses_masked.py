"""Losses where not all counts: padding, empty masks, weights of classes, and odd arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import losses
from tests.comparison import assert_close
from tests.errors import assert_raises, check

T, B, K = 5, 2, 3
RNG = np.random.default_rng(0)
OUTPUTS = jnp.asarray(RNG.normal(size=(T, B, K)))
TARGETS = RNG.normal(size=(T, B, K))
LABELS = RNG.integers(0, K, (T, B))
MASKS = {
    "time": np.array([1, 0, 1, 1, 0]),
    "time and batch": RNG.random((T, B)) < 0.6,
    "weights": RNG.random((T, B)) * (RNG.random((T, B)) < 0.6),
}


def masked(array, mask, fill):
    """With something else where the mask is 0."""
    off = np.broadcast_to((mask == 0).reshape(*mask.shape, *[1] * (2 - mask.ndim)), (T, B))
    assert off.any() and not off.all()
    return np.where(off.reshape(*off.shape, *[1] * (array.ndim - 2)), fill, array)


def both(loss, *args, **kwargs):
    """Value and gradient, as they are and compiled."""
    evaluate = jax.value_and_grad(loss)
    plain = evaluate(OUTPUTS, *args, **kwargs)
    compiled = jax.jit(lambda outputs, args: evaluate(outputs, *args, **kwargs))(OUTPUTS, args)
    for x, y in zip(plain, compiled, strict=True):
        assert_close(x, y, 1e-13)
    return plain


@pytest.mark.parametrize("n_steps", [None, 7])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
class TestPadding:
    @pytest.mark.parametrize("fill", [-1, K, 10**6])
    def test_labels(self, mask, fill, n_steps):
        expected = both(losses.softmax_cross_entropy, LABELS, mask, n_steps=n_steps)
        padded = masked(LABELS, mask, fill)
        assert not np.array_equal(padded, LABELS)
        actual = both(losses.softmax_cross_entropy, padded, mask, n_steps=n_steps)
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(x, y)
        assert np.all(np.isfinite(actual[1])) and np.any(actual[1] != 0)

    @pytest.mark.parametrize("fill", [np.nan, np.inf, 1e300])
    def test_targets(self, mask, fill, n_steps):
        expected = both(losses.mean_squared_error, TARGETS, mask, n_steps=n_steps)
        padded = masked(TARGETS, mask, fill)
        actual = both(losses.mean_squared_error, padded, mask, n_steps=n_steps)
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(x, y)
        assert np.all(np.isfinite(actual[1])) and np.any(actual[1] != 0)

    def test_outputs(self, mask, n_steps):
        """Of a network that has run on beyond the end, into overflow."""
        outputs = jnp.asarray(masked(OUTPUTS, mask, np.inf))
        for loss, targets in (
            (losses.softmax_cross_entropy, LABELS),
            (losses.mean_squared_error, TARGETS),
        ):
            value, gradient = jax.value_and_grad(loss)(outputs, targets, mask, n_steps=n_steps)
            expected = loss(OUTPUTS, targets, mask, n_steps=n_steps)
            assert_close(value, expected, 1e-14)
            assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_a_label_that_counts_and_is_no_class():
    """An error; NaN where it is traced: neither is passed over."""
    mask = MASKS["time"]
    wrong = LABELS.copy()
    wrong[0, 0] = -1
    parts = ["labels go from -1", "with 3 readouts they must be 0 to 2", "a mask of 0"]
    assert_raises(lambda: losses.softmax_cross_entropy(OUTPUTS, wrong, mask), ValueError, parts)
    value = jax.jit(losses.softmax_cross_entropy)(OUTPUTS, wrong, mask)
    assert np.isnan(value)


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("label", [2**32 + 1, -(2**32)])
def test_labels_of_many_bits(label, x64):
    """Which JAX takes for 1 or 0 while it has only 32."""
    with jax.enable_x64(x64):
        outputs = jnp.zeros((T, B, K))
        labels = np.full(B, label)
        with pytest.raises(ValueError, match=f"{label}"):
            losses.softmax_cross_entropy(outputs, labels)
        mask = np.arange(T) < 2
        labels = np.where(mask[:, None], LABELS, label)
        assert_close(losses.softmax_cross_entropy(outputs, labels, mask), np.log(K), 1e-6)


class TestNothingCounts:
    CASES = (
        (losses.softmax_cross_entropy, LABELS),
        (losses.mean_squared_error, TARGETS),
    )

    @pytest.mark.parametrize("shape", [(T,), (T, B)])
    def test_is_an_error(self, shape):
        for loss, targets in self.CASES:
            parts = ["no step counts", "Leave this batch out"]
            assert_raises(lambda: loss(OUTPUTS, targets, np.zeros(shape)), ValueError, parts)  # noqa: B023

    @pytest.mark.parametrize("shape", [(T,), (T, B)])
    def test_is_zero_if_traced(self, shape):
        for loss, targets in self.CASES:
            evaluate = jax.jit(jax.value_and_grad(loss))
            value, gradient = evaluate(OUTPUTS, targets, np.zeros(shape))
            assert value == 0 and not np.any(gradient)
            value, gradient = evaluate(OUTPUTS, targets, np.ones(shape))
            assert value > 0 and np.any(gradient)

    def test_of_a_sum_over_time_it_is_zero(self):
        """A stretch of a stream without a target."""
        for loss, targets in self.CASES:
            assert loss(OUTPUTS, targets, np.zeros(T), n_steps=1) == 0


class TestClassWeights:
    WEIGHTS = np.array([0.5, 0.0, 3.0])

    def expected(self, mask, n_steps=None):
        total = count = 0.0
        for t in range(T):
            for b in range(B):
                y, label = np.asarray(OUTPUTS[t, b]), LABELS[t, b]
                w = self.WEIGHTS[label] * mask[t, b]
                total += w * (np.log(np.exp(y).sum()) - y[label])
                count += w
        return total / (count if n_steps is None else n_steps * B)

    @pytest.mark.parametrize("n_steps", [None, 7])
    def test_written_out(self, n_steps):
        assert set(LABELS.flat) == {0, 1, 2}
        for mask in (np.ones((T, B)), MASKS["weights"]):
            value, gradient = both(
                losses.softmax_cross_entropy,
                LABELS,
                mask,
                class_weights=self.WEIGHTS,
                n_steps=n_steps,
            )
            assert_close(value, self.expected(mask, n_steps), 1e-14)
            off = (LABELS == 1) | (mask == 0)
            assert not np.any(np.asarray(gradient)[off])
            assert np.all(np.any(np.asarray(gradient)[~off] != 0, axis=-1))

    def test_with_padding(self):
        mask = MASKS["time"]
        values = [
            losses.softmax_cross_entropy(OUTPUTS, labels, mask, class_weights=self.WEIGHTS)
            for labels in (LABELS, masked(LABELS, mask, -1))
        ]
        assert values[0] == values[1] != losses.softmax_cross_entropy(OUTPUTS, LABELS, mask)

    def test_of_one_are_none(self):
        assert_close(
            losses.softmax_cross_entropy(OUTPUTS, LABELS, class_weights=np.full(K, 2.0)),
            losses.softmax_cross_entropy(OUTPUTS, LABELS),
            1e-14,
        )

    def test_all_labels_of_a_class_that_doesnt_count(self):
        def loss(outputs):
            return losses.softmax_cross_entropy(
                outputs, np.ones(B, int), class_weights=self.WEIGHTS
            )

        assert_raises(lambda: loss(OUTPUTS), ValueError, ["no step counts", "classes"])
        assert jax.jit(loss)(OUTPUTS) == 0

    def test_a_traced_label_that_is_no_class_is_still_nan(self):
        loss = jax.jit(
            lambda x: losses.softmax_cross_entropy(OUTPUTS, x, class_weights=self.WEIGHTS)
        )
        assert np.isnan(loss(np.array([1, -1]))) and np.isfinite(loss(np.array([0, 1])))


def mse(*args, **kwargs):
    return lambda: losses.mean_squared_error(OUTPUTS, *args, **kwargs)


def ce(*args, **kwargs):
    return lambda: losses.softmax_cross_entropy(OUTPUTS, *args, **kwargs)


V = jnp.zeros((T, B, 4))


@check(
    {
        "complex targets": (mse(TARGETS * 1j), TypeError, ["targets have dtype complex128"]),
        "complex mask": (mse(TARGETS, np.ones(T) * 1j), TypeError, ["mask have dtype complex"]),
        "text": (mse("ones"), TypeError, ["targets = 'ones' is no array of numbers"]),
        "ragged": (mse([[1.0], [1.0, 2.0]]), TypeError, ["targets = [[1.0], [1.0, 2.0]]"]),
        "None": (mse(None), TypeError, ["targets = None is no array of numbers"]),
        "negative mask": (mse(TARGETS, -np.ones(T)), ValueError, ["mask", "from -1.0"]),
        "NaN in the mask": (mse(TARGETS, np.full(T, np.nan)), ValueError, ["mask", "nan"]),
        "infinite": (ce(LABELS, np.full(T, np.inf)), ValueError, ["mask", "to inf"]),
        "n_steps": (mse(TARGETS, n_steps=-1), ValueError, ["n_steps = -1", "greater than 0"]),
        "no steps": (ce(LABELS, n_steps=0), ValueError, ["n_steps = 0", "greater than 0"]),
        "NaN steps": (ce(LABELS, n_steps=np.nan), ValueError, ["n_steps = nan", "finite"]),
        "several": (ce(LABELS, n_steps=[1, 2]), ValueError, ["n_steps = [1, 2]", "one number"]),
        "text for steps": (ce(LABELS, n_steps="5"), TypeError, ["n_steps = '5'", "number"]),
        "weights' shape": (
            ce(LABELS, class_weights=np.ones(2)),
            ValueError,
            ["class_weights have shape (2,)", "(3,)"],
        ),
        "negative weights": (
            ce(LABELS, class_weights=-np.ones(3)),
            ValueError,
            ["class_weights of shape (3,) goes from -1.0"],
        ),
        "dt": (
            lambda: losses.firing_rate_penalty(V, 10.0, dt=-1),
            ValueError,
            ["dt = -1", "greater than 0"],
        ),
        "dt of running rates": (
            lambda: losses.running_rate_penalty(V, 10.0, dt=0),
            ValueError,
            ["dt = 0", "greater than 0"],
        ),
        "rate": (
            lambda: losses.firing_rate_penalty(V, -10.0, dt=1.0),
            ValueError,
            ["target_rate", "-10.0"],
        ),
        "threshold": (
            lambda: losses.voltage_penalty(V, -0.6),
            ValueError,
            ["threshold", "down to -0.6", "must be positive"],
        ),
        "one threshold": (
            lambda: losses.voltage_penalty(V, [0.6, 0.6, 0.0, 0.6]),
            ValueError,
            ["threshold of shape (4,) goes down to 0.0"],
        ),
    }
)
@pytest.mark.usefixtures("as_a_user_has_it")
def test_bad_input(given, error, parts):
    assert_raises(given, error, parts)


class TestInTraining:
    """Where the loss is traced, and the labels are padded with -1."""

    NETWORK = eprop.Network(eprop.LIF(3, v_th=0.1), n_in=2, n_out=K, key=jax.random.key(0))
    INPUTS = RNG.random((T, B, 2)) < 0.5
    MASK = MASKS["time"]

    def loss(self, trajectory, targets):
        labels, mask = targets
        return losses.softmax_cross_entropy(trajectory.outputs, labels, mask, n_steps=1)

    def test_fit(self):
        step = eprop.training_step(self.loss, optax.sgd(0.1))
        state = eprop.init_training(self.NETWORK, eprop.EProp(), optax.sgd(0.1))
        after = [
            eprop.fit(
                step,
                state,
                lambda _: (self.INPUTS, (labels, self.MASK)),  # noqa: B023
                iterations=2,
                progress=False,
            )
            for labels in (LABELS, masked(LABELS, self.MASK, -1))
        ]
        assert after[0][1][1]["loss"] == after[1][1][1]["loss"] != after[0][1][0]["loss"]
        jax.tree.map(np.testing.assert_array_equal, after[0][0], after[1][0])

    def test_online_learner(self):
        learner = eprop.OnlineLearner(self.NETWORK, self.loss, eprop.EProp(), optax.sgd(0.1))
        mask = np.broadcast_to(self.MASK[:, None], (T, B))
        after = [
            learner.run(learner.init(B), (self.INPUTS, (labels, mask)))[0].network
            for labels in (LABELS, masked(LABELS, self.MASK, -1))
        ]
        jax.tree.map(np.testing.assert_array_equal, *after)
        assert not np.array_equal(after[0].w_out, self.NETWORK.w_out)
