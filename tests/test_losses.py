"""Losses against NumPy, with masks, and by windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eprop import losses
from tests.comparison import assert_close
from tests.errors import assert_raises, check

T, B, K, N = 12, 3, 4, 5
RNG = np.random.default_rng(0)
OUTPUTS, TARGETS = RNG.normal(size=(2, T, B, K))
LABELS = RNG.integers(0, K, (T, B))
SPIKES = (RNG.random((T, B, N)) < 0.3).astype(float)
VOLTAGES = RNG.normal(size=(T, B, N))
MASKS = {
    "none": None,
    "of time": RNG.random(T) < 0.5,
    "of time and batch": RNG.random((T, B)) < 0.5,
    "weights": RNG.random((T, B)),
}


def mean(per_step, mask, n_steps=None):
    """Over the entries that the mask lets count, one after the other."""
    total, count = 0.0, 0.0
    for t in range(T):
        for b in range(B):
            weight = 1.0 if mask is None else float(mask[t] if mask.ndim == 1 else mask[t, b])
            total, count = total + weight * per_step[t, b], count + weight
    return total / (count if n_steps is None else n_steps * B)


def squared(t, b):
    return np.mean((OUTPUTS[t, b] - TARGETS[t, b]) ** 2)


def surprise(t, b, label):
    return -np.log(np.exp(OUTPUTS[t, b, label]) / np.exp(OUTPUTS[t, b]).sum())


def table(function):
    return np.array([[function(t, b) for b in range(B)] for t in range(T)])


@pytest.mark.parametrize("n_steps", [None, 40])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
class TestMeans:
    def test_mean_squared_error(self, mask, n_steps):
        actual = losses.mean_squared_error(jnp.asarray(OUTPUTS), TARGETS, mask, n_steps=n_steps)
        assert_close(actual, mean(table(squared), mask, n_steps), 1e-14)

    def test_softmax_cross_entropy(self, mask, n_steps):
        actual = losses.softmax_cross_entropy(jnp.asarray(OUTPUTS), LABELS, mask, n_steps=n_steps)
        expected = table(lambda t, b: surprise(t, b, LABELS[t, b]))
        assert_close(actual, mean(expected, mask, n_steps), 1e-14)

    def test_softmax_cross_entropy_of_one_label(self, mask, n_steps):
        label = LABELS[0]
        actual = losses.softmax_cross_entropy(jnp.asarray(OUTPUTS), label, mask, n_steps=n_steps)
        expected = table(lambda t, b: surprise(t, b, label[b]))
        assert_close(actual, mean(expected, mask, n_steps), 1e-14)


def test_cross_entropy_of_large_outputs():
    """No overflow: softmax does not see what all outputs have in common."""
    shifted = losses.softmax_cross_entropy(jnp.asarray(OUTPUTS) + 1e4, LABELS)
    assert_close(shifted, losses.softmax_cross_entropy(jnp.asarray(OUTPUTS), LABELS), 1e-10)


def test_a_label_that_is_no_class():
    """Where it is traced it can't be an error, but neither is it passed over."""
    loss = jax.jit(losses.softmax_cross_entropy)
    assert np.isnan(loss(jnp.asarray(OUTPUTS), np.full(B, K)))
    assert np.isnan(loss(jnp.asarray(OUTPUTS), np.full(B, -1)))


@pytest.mark.parametrize("target_rate", [10.0, 400, np.linspace(100, 500, N)], ids=str)
def test_firing_rate_penalty(target_rate):
    """In spikes per ms; dt = 0.5 ms makes rates twice those of a step."""
    actual = losses.firing_rate_penalty(jnp.asarray(SPIKES), target_rate, dt=0.5)
    rates = SPIKES.sum((0, 1)) / (T * B * 0.5)
    assert_close(actual, np.sum((rates - np.asarray(target_rate) / 1000) ** 2), 1e-14)


@pytest.mark.parametrize("target_rate", [10.0, np.linspace(100, 500, N)], ids=str)
def test_running_rate_penalty(target_rate):
    actual = losses.running_rate_penalty(jnp.asarray(SPIKES), target_rate, dt=0.5)
    expected = 0.0
    for t in range(T):
        rates = SPIKES[: t + 1].sum((0, 1)) / ((t + 1) * B * 0.5)
        expected += np.sum((rates - np.asarray(target_rate) / 1000) ** 2) / T
    assert_close(actual, expected, 1e-14)


@pytest.mark.parametrize("n_steps", [None, 40])
@pytest.mark.parametrize(
    "threshold",
    [0.6, np.linspace(0.3, 1.2, N), np.abs(VOLTAGES[::-1]) + 0.1],
    ids=["one", "per neuron", "per step"],
)
def test_voltage_penalty(threshold, n_steps):
    actual = losses.voltage_penalty(jnp.asarray(VOLTAGES), threshold, n_steps=n_steps)
    above = np.maximum(0, (VOLTAGES - threshold) / threshold) ** 2
    below = np.maximum(0, (-VOLTAGES - threshold) / threshold) ** 2
    assert 0 < np.mean(above > 0) < 1 and 0 < np.mean(below > 0) < 1
    assert_close(actual, mean((above + below).sum(-1), None, n_steps), 1e-14)


def test_no_penalty_within_the_thresholds():
    v = jnp.asarray(np.clip(VOLTAGES, -0.6, 0.6))
    assert losses.voltage_penalty(v, 0.6) == 0
    assert not np.any(jax.grad(losses.voltage_penalty)(v, 0.6))


@pytest.mark.parametrize("name", ["mean_squared_error", "softmax_cross_entropy", "voltage_penalty"])
def test_windows_add_up(name):
    """With the whole sequence's number of steps; and without they don't."""
    loss = getattr(losses, name)
    arguments = {
        "mean_squared_error": (OUTPUTS, TARGETS, MASKS["weights"]),
        "softmax_cross_entropy": (OUTPUTS, LABELS, MASKS["of time and batch"]),
        "voltage_penalty": (VOLTAGES, np.abs(VOLTAGES[::-1]) + 0.1),
    }[name]

    def total(n_steps, length):
        windows = [[x[i : i + length] for x in arguments] for i in range(0, T, length)]
        return sum(loss(jnp.asarray(x), *rest, n_steps=n_steps) for x, *rest in windows)

    assert_close(total(T, 5), total(T, T), 1e-14)
    assert_close(total(T, 1), total(T, T), 1e-14)
    assert abs(total(None, 5) / total(None, T) - 1) > 0.1


OF_THREE = jnp.zeros((T, B, K))


@pytest.mark.usefixtures("as_a_user_has_it")
@check(
    {
        "outputs of one example": (
            lambda: losses.mean_squared_error(OF_THREE[:, 0], OF_THREE[:, 0]),
            ValueError,
            ["outputs have shape (12, 4)", "[time, batch, n]", "outputs[:, None]"],
        ),
        "outputs of one step": (
            lambda: losses.softmax_cross_entropy(OF_THREE[-1], LABELS[-1]),
            ValueError,
            ["outputs have shape (3, 4)", "outputs[None]"],
        ),
        "spikes": (
            lambda: losses.firing_rate_penalty(SPIKES[:, 0], 10.0, dt=1.0),
            ValueError,
            ["spikes have shape (12, 5)"],
        ),
        "running rates": (
            lambda: losses.running_rate_penalty(SPIKES[:, 0], 10.0, dt=1.0),
            ValueError,
            ["spikes have shape (12, 5)"],
        ),
        "potentials": (
            lambda: losses.voltage_penalty(VOLTAGES[0], 1.0),
            ValueError,
            ["v have shape (3, 5)"],
        ),
    }
)
def test_two_axes_are_not_enough(given, error, parts):
    """For with one readout they would fit each other, step by example."""
    assert_raises(given, error, parts)


@pytest.mark.usefixtures("as_a_user_has_it")
@check(
    {
        "rate": (lambda s: losses.firing_rate_penalty(s, -10.0, dt=1.0), ValueError, ["-10.0"]),
        "threshold": (lambda s: losses.voltage_penalty(s, -1.0), ValueError, ["-1.0", "positive"]),
        "class weights": (
            lambda s: losses.softmax_cross_entropy(s, LABELS, class_weights=[1, -5, 1, 1, 1]),
            ValueError,
            ["class_weights", "from -5 to 1"],
        ),
        "mask": (
            lambda s: losses.mean_squared_error(s, s, mask=np.where(np.arange(T), 1, -1)),
            ValueError,
            ["mask", "from -1 to 1"],
        ),
        "NaN": (
            lambda s: losses.mean_squared_error(s, s, mask=np.full(T, np.nan)),
            ValueError,
            ["mask", "finite"],
        ),
    }
)
def test_what_is_known_is_checked_in_a_program_too(given, error, parts):
    assert_raises(lambda: jax.jit(given)(SPIKES), error, parts)


@pytest.mark.parametrize("n_classes", [128, 256, 300])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_labels_of_few_bits(dtype, n_classes):
    """Of which there may be fewer than there are classes."""
    outputs = jnp.asarray(RNG.normal(size=(2, 3, n_classes)))
    labels = np.array([0, 100, 127], dtype)
    expected = losses.softmax_cross_entropy(outputs, labels)
    assert np.isfinite(expected)
    assert_close(jax.jit(losses.softmax_cross_entropy)(outputs, labels), expected, 1e-14)
    wrong = jax.jit(losses.softmax_cross_entropy)(outputs[..., :100], labels)
    assert np.isnan(wrong)
