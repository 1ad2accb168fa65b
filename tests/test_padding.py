"""Sequences of different lengths in one array: the same numbers as one by one, compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop import losses, pad
from tests.cases import Options, make_case, slow_but
from tests.comparison import assert_alive, assert_trees_close, relative_error
from tests.errors import assert_raises, check
from tests.test_rules import compilations

STEPS = (7, 15, 7)
RULES = {
    "e-prop": lambda b: eprop.EProp(),
    "random feedback": lambda b: eprop.EProp(eprop.RandomFeedback(b)),
    "windows": lambda b: eprop.EProp(window=4),
    "bptt": lambda b: eprop.BPTT(),
}


class TestArrays:
    def test_written_out(self):
        padded, mask = pad([np.array([1, 2, 3]), np.array([4])])
        np.testing.assert_array_equal(padded, [[1, 4], [2, 0], [3, 0]])
        np.testing.assert_array_equal(mask, [[True, True], [True, False], [True, False]])
        assert padded.dtype == int and mask.dtype == bool

    @pytest.mark.parametrize("dtype", [bool, np.int32, np.float32, ">f8"])
    def test_dtype_and_features(self, dtype):
        sequences = [np.ones((n, 2, 3), dtype) for n in STEPS]
        padded, mask = pad(sequences, 20)
        assert padded.shape == (20, 3, 2, 3) and padded.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(mask.sum(0), STEPS)
        np.testing.assert_array_equal(padded != 0, np.broadcast_to(mask.T, (3, 2, 3, 20)).T)

    @pytest.mark.parametrize(
        ("lengths", "n_steps"),
        [(None, 15), (15, 15), (16, 16), ((10, 15, 20), 15), ([40, 16], 16), (range(9, 30), 15)],
    )
    def test_lengths(self, lengths, n_steps):
        assert len(pad([jnp.ones((n, 2)) for n in STEPS], lengths)[0]) == n_steps


@functools.cache
def case():
    made = make_case("ALIF", Options(batch=len(STEPS), n_steps=max(STEPS)))
    assert_alive(made.network, made.inputs, made.grad(eprop.EProp()))
    return made


def sequences():
    inputs, targets = case().inputs, case().targets["outputs"]
    return [[x[:n, i] for i, n in enumerate(STEPS)] for x in (inputs, targets)]


def loss(trajectory, targets):
    """A sum over time, of all that takes a mask and is no mean."""
    values, mask = targets
    v = trajectory.states.v
    error = losses.mean_squared_error(trajectory.outputs, values, mask, n_steps=1)
    return error + losses.voltage_penalty(v, 0.1, mask, n_steps=1)


def gradient(rule, loss=loss):
    return jax.jit(eprop.value_and_grad(loss, rule))


@pytest.mark.parametrize("rule", slow_but(["e-prop"], RULES))
def test_gradients_add_up(rule):
    """The padded batch has the mean of its sequences' gradients, each run by itself."""
    rule = RULES[rule](case().b)
    of_rule, (inputs, targets) = gradient(rule), sequences()
    alone = [
        of_rule(case().network, x[:, None], (y[:, None], np.ones(len(x))))
        for x, y in zip(inputs, targets, strict=True)
    ]
    expected = jax.tree.map(lambda *x: sum(x) / len(STEPS), *alone)
    padded, mask = pad(inputs, 20)
    together = of_rule(case().network, padded, (pad(targets, 20)[0], mask))
    assert_trees_close(together, expected, 1e-12)
    # That the mask is what does it:
    unmasked = of_rule(case().network, padded, (pad(targets, 20)[0], np.ones_like(mask)))
    assert relative_error(unmasked[1].w_rec, expected[1].w_rec) > 1e-2
    assert_alive(case().network, padded, together[1])


def test_what_comes_after_the_end_makes_no_difference():
    of_rule, (inputs, targets) = gradient(eprop.EProp()), sequences()
    padded, mask = pad(inputs)
    noise = np.random.default_rng(0).random(padded.shape) < 0.5
    noisy = np.where(mask[..., None], padded, noise)
    y = np.where(mask[..., None], pad(targets)[0], np.nan)
    quiet, loud = (of_rule(case().network, x, (y, mask)) for x in (padded, noisy))
    assert_trees_close(loud, quiet, 1e-12)
    assert np.any(case().network(padded).spikes != case().network(noisy).spikes)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("firing_rate_penalty", {"target_rate": 10.0, "dt": 1.0}),
        ("running_rate_penalty", {"target_rate": 10.0, "dt": 1.0}),
        ("voltage_penalty", {"threshold": 0.5}),
    ],
)
class TestPenalties:
    V = np.random.default_rng(0).normal(size=(max(STEPS), len(STEPS), 5))

    def test_of_one_length_as_of_what_counts(self, name, arguments):
        """A mask over time leaves what the steps before its end give by themselves."""
        penalty = functools.partial(getattr(losses, name), **arguments)
        mask = np.arange(len(self.V)) < 6
        value, slope = jax.value_and_grad(penalty)(jnp.asarray(self.V), mask=mask)
        expected, expected_slope = jax.value_and_grad(penalty)(jnp.asarray(self.V[:6]))
        assert_trees_close((value, slope[:6]), (expected, expected_slope), 1e-13)
        assert not np.any(slope[6:]) and np.any(slope)
        assert relative_error(penalty(jnp.asarray(self.V)), expected) > 1e-2

    def test_weights_are_repetitions(self, name, arguments):
        """An example that counts twice is two."""
        penalty = functools.partial(getattr(losses, name), **arguments)
        mask = np.ones(self.V.shape[:2])
        mask[:, 1] = 2
        twice = jnp.asarray(self.V[:, [0, 1, 1, 2]])
        assert_trees_close(penalty(jnp.asarray(self.V), mask=mask), penalty(twice), 1e-13)
        assert relative_error(penalty(jnp.asarray(self.V)), penalty(twice)) > 1e-4

    def test_nothing_counts(self, name, arguments):
        penalty = functools.partial(getattr(losses, name), **arguments)
        v, nothing = jnp.asarray(self.V), np.zeros(len(self.V))
        assert_raises(lambda: penalty(v, mask=nothing), ValueError, ["no step counts"])
        value, slope = jax.jit(jax.value_and_grad(penalty))(v, mask=nothing)
        assert np.isfinite(value) and not np.any(slope)


def test_voltages_after_the_end_may_overflow():
    """And adaptive thresholds, too."""
    mask = np.arange(max(STEPS)) < 6
    v = jnp.asarray(TestPenalties.V).at[6:].set(jnp.inf)
    threshold = jnp.full(v.shape, 0.5).at[6:].set(jnp.inf)
    of_both = jax.value_and_grad(losses.voltage_penalty, argnums=(0, 1))
    value, slopes = of_both(v, threshold, mask)
    assert value > 0
    for slope in slopes:
        assert np.all(np.isfinite(slope)) and np.any(slope)


def test_compiled_once_for_each_length():
    """Nine batches of random lengths, one program for each of two lengths that there may be."""
    rng, n_traces = np.random.default_rng(0), 0

    def counted(trajectory, targets):
        nonlocal n_traces
        n_traces += 1
        return loss(trajectory, targets)

    of_rule = gradient(eprop.EProp(), counted)
    network, steps = case().network, rng.integers(3, 13, (9, 2))

    def run(lengths):
        for pair in steps:
            inputs, mask = pad([rng.random((n, network.n_in)) < 0.5 for n in pair], lengths)
            targets, _ = pad([rng.normal(size=(n, network.n_out)) for n in pair], lengths)
            of_rule(network, inputs, (targets, mask))

    with compilations() as at_first:
        run((6, 12))
    assert n_traces == 2 and at_first
    with compilations() as later:
        run((6, 12))
    assert n_traces == 2 and not later
    assert len(set(steps.max(1))) > 4  # as many programs without
    run(None)
    assert n_traces == 2 + len(set(steps.max(1)) - {6, 12})


ONE = np.ones((5, 2))


@check(
    {
        "array": (lambda: pad(ONE), TypeError, ["ndarray of shape (5, 2)", "a list of arrays"]),
        "text": (lambda: pad("ab"), TypeError, ["sequences are a str"]),
        "nothing": (lambda: pad([]), ValueError, ["sequences are empty"]),
        "lists": (lambda: pad([[1, 2], [3]]), TypeError, ["sequences[0] is a list", "np.asarray"]),
        "number": (lambda: pad([ONE, np.float64(1)]), TypeError, ["sequences[1] is a float64"]),
        "scalar": (lambda: pad([ONE, np.array(1)]), ValueError, ["sequences[1] has shape ()"]),
        "no step": (lambda: pad([ONE, ONE[:0]]), ValueError, ["sequences[1] has shape (0, 2)"]),
        "features": (
            lambda: pad([ONE, ONE[:, :1]]),
            ValueError,
            ["sequences[1] has shape (5, 1)", "sequences[0] (5, 2)", "number of steps only"],
        ),
        "dtype": (
            lambda: pad([ONE, ONE > 0]),
            ValueError,
            ["sequences[1] has shape (5, 2) and dtype bool", "float64"],
        ),
        "too long": (
            lambda: pad([ONE], (2, 4)),
            ValueError,
            ["the longest sequence has 5 steps", "lengths = (2, 4)"],
        ),
        "no lengths": (lambda: pad([ONE], ()), ValueError, ["5 steps", "lengths = ()"]),
        "length": (lambda: pad([ONE], 0), ValueError, ["lengths = 0 must be a whole number"]),
        "half a step": (lambda: pad([ONE], [8, 6.5]), ValueError, ["lengths = 6.5"]),
        "traced": (lambda: jax.jit(lambda x: pad([x])[0])(ONE), TypeError, ["is traced"]),
    }
)
@pytest.mark.usefixtures("as_a_user_has_it")
def test_bad_input(given, error, parts):
    assert_raises(given, error, parts)
