"""Comparisons that say which entries differ, and that can't pass because nothing happened."""

import jax
import jax.numpy as jnp
import numpy as np


def relative_error(actual, expected) -> float:
    """max |actual - expected| / max |expected|; 0 if both are zero throughout."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    difference = np.max(np.abs(actual - expected), initial=0.0)
    scale = np.max(np.abs(expected), initial=0.0)
    if np.isnan(difference):
        return np.inf
    return 0.0 if difference == 0 else difference / scale if scale > 0 else np.inf


def assert_close(actual, expected, tolerance: float, name: str = "array") -> None:
    """Equal shapes, and a `relative_error` of at most `tolerance`; else shows the worst entries."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    error = relative_error(actual, expected)
    if not error <= tolerance:
        raise AssertionError(
            f"{name}: relative error {error:.2e} > {tolerance:.0e}\n"
            + _worst(actual.astype(np.float64), expected.astype(np.float64))
        )


def assert_trees_close(actual, expected, tolerance: float, name: str = "") -> None:
    """`assert_close` leaf by leaf; the structures must be the same (`None` only beside `None`)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    expected = jax.tree.leaves(expected)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(actual), expected, strict=True
    ):
        assert_close(leaf, other, tolerance, f"{name}{jax.tree_util.keystr(path)}")


def assert_alive(network, inputs, gradients, low: float = 0.01, high: float = 0.5) -> None:
    """Some neurons spike, not all the time, and every weight matrix has a gradient.

    A silent network makes any two gradients equal.
    """
    fraction = float(_spiking(network, inputs))
    assert low < fraction < high, f"a fraction {fraction:.3f} of all neurons and steps spikes"
    for name in ("w_in", "w_rec", "w_out"):
        size = np.max(np.abs(getattr(gradients, name)))
        assert size > 1e-6, f"the gradient of {name} is {size:.1e} at most"


@jax.jit
def _spiking(network, inputs):
    return jnp.mean(network(inputs).spikes)


def _worst(actual: np.ndarray, expected: np.ndarray, count: int = 5) -> str:
    difference = np.nan_to_num(np.abs(actual - expected), nan=np.inf)
    order = np.argsort(difference, axis=None)[::-1][:count]
    lines = [
        f"  {tuple(int(i) for i in index)}: {actual[index]:.17g}, expected {expected[index]:.17g}"
        for index in (np.unravel_index(flat, actual.shape) for flat in order)
    ]
    n_different = int(np.sum(difference > 0))
    return "\n".join([f"{n_different} of {actual.size} entries differ, the worst are", *lines])
