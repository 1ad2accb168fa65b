"""Surrogates: a step forward, the bump of the docstring backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from tests.comparison import assert_close

X = np.concatenate([np.linspace(-3, 3, 61), [-0.37, 0.21]])
CASES = {
    # surrogate, h(x), where it has fallen to which fraction of its height
    "triangular": (
        eprop.Triangular(gamma=0.4),
        lambda x: 0.4 * np.maximum(0, 1 - np.abs(x)),
        (1.0, 0.0),
    ),
    "exponential": (
        eprop.Exponential(gamma=0.4, width=0.7),
        lambda x: 0.4 * np.exp(-np.abs(x) / 0.7),
        (0.7, 1 / np.e),
    ),
    "fast sigmoid": (
        eprop.FastSigmoid(gamma=0.4, width=0.7),
        lambda x: 0.4 / (1 + np.abs(x) / 0.7) ** 2,
        (0.7, 1 / 4),
    ),
    "arctan": (
        eprop.Arctan(gamma=0.4, width=0.7),
        lambda x: 0.4 / (1 + (x / 0.7) ** 2),
        (0.7, 1 / 2),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_formula(case):
    surrogate, h, _ = case
    assert_close(surrogate.pseudo_derivative(jnp.asarray(X)), h(X), 1e-15)


def test_height_and_width(case):
    surrogate, _, (width, fraction) = case
    at = surrogate.pseudo_derivative(jnp.asarray([0.0, width, -width]))
    assert_close(at, 0.4 * np.array([1, fraction, fraction]), 1e-15)


def test_the_paper_is_the_default():
    assert eprop.LIF(2).surrogate == eprop.ALIF(2).surrogate == eprop.Triangular(gamma=0.3)


def test_spike_is_a_step(case):
    surrogate, *_ = case
    x = jnp.asarray([-1.0, -1e-12, 0.0, 1e-12, 1.0])
    np.testing.assert_array_equal(surrogate.spike(x), [0, 0, 0, 1, 1])  # at threshold: none yet


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_derivative_of_a_spike(case, mode):
    surrogate, h, _ = case
    assert_close(mode(surrogate.spike)(jnp.asarray(X)), np.diag(h(X)), 1e-15)


def test_silence(case):
    """While refractory there is neither a spike nor a derivative."""
    surrogate, h, _ = case
    silent = np.arange(len(X)) % 2 == 0

    def spike(x):
        return surrogate.spike(x, silent=jnp.asarray(silent))

    np.testing.assert_array_equal(spike(jnp.asarray(X)), np.where(silent, 0, X > 0))
    derivative = jax.jacfwd(spike)(jnp.asarray(X))
    assert_close(derivative, np.diag(np.where(silent, 0, h(X))), 1e-15)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_precision_is_kept(case, dtype):
    surrogate, *_ = case
    x = jnp.asarray(X, dtype)
    assert surrogate.spike(x).dtype == surrogate.pseudo_derivative(x).dtype == dtype
