"""The tasks, held against their specification.

A measured count of n independent draws of probability p may be 5 standard deviations,
5 sqrt(n p (1 - p)), from n p: keys are fixed, and a fresh key would fail once in two million.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.patches import StepPatch

from eprop.tasks import EvidenceAccumulation, Lemniscate, PatternGeneration, SwitchingPatterns
from eprop.tasks.pattern_generation import spikes

KEY = jax.random.key(20)
TASKS = [EvidenceAccumulation(), PatternGeneration(), Lemniscate()]
LEFT, RIGHT, RECALL, NOISE = (slice(10 * group, 10 * group + 10) for group in range(4))
SHORT = EvidenceAccumulation(cue_ms=1.0, interval_ms=1.0, delay_ms=0.0, recall_ms=1.0, n_group=1)


@pytest.fixture(scope="module")
def trials():
    return jax.tree.map(np.asarray, EvidenceAccumulation().sample(KEY, 256))


def assert_rate(draws, p):
    draws = np.asarray(draws)
    assert abs(draws.sum() - draws.size * p) <= 5 * math.sqrt(draws.size * p * (1 - p))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("rate_hz", [0.0, 3.0, 10.0, 40.0, 500.0, 999.0])
@pytest.mark.parametrize("dt", [0.5, 1.0])
def test_rate_of_spikes(rate_hz, dt):
    draws = np.asarray(spikes(KEY, (999, 333), rate_hz, dt))
    assert draws.dtype == bool and draws.shape == (999, 333)
    assert_rate(draws, rate_hz * dt / 1000)


def test_rate_too_low_for_sixteen_bits():
    rate_hz = 1000 * 0.4 / 2**16  # 16 bits would round it to no spike at all
    assert_rate(spikes(KEY, (2**23,), rate_hz, 1.0), rate_hz / 1000)


def test_two_draws_from_one_word_are_independent():
    first, second = np.asarray(spikes(KEY, (2**18, 2), 300.0, 1.0)).T
    assert_rate(first & second, 0.3**2)


def test_defaults_are_the_reference():
    task = EvidenceAccumulation()
    assert (task.n_in, task.n_out, task.n_steps) == (40, 2, 2250)
    assert task.cue_windows == [(50 + 150 * k, 150 + 150 * k) for k in range(7)]
    assert task.recall_window == (2100, 2250)


def test_shapes_and_dtypes(trials):
    assert trials.inputs.shape == (2250, 256, 40) and trials.inputs.dtype == bool
    assert trials.labels.shape == (256,) and trials.labels.dtype == np.int32
    assert trials.mask.shape == (2250,) and trials.mask.dtype == bool
    assert trials.cues.shape == (256, 7) and trials.cues.dtype == np.int32


def test_mask_is_the_recall_window(trials):
    np.testing.assert_array_equal(np.flatnonzero(trials.mask), np.arange(2100, 2250))


def test_groups_fire_in_their_windows_only(trials):
    # A window's step is silent in all 256 trials by chance once in 10^13 or less.
    in_cue = np.zeros(2250, bool)
    for k in range(7):
        in_cue[50 + 150 * k : 150 + 150 * k] = True
    for side, group in ((0, LEFT), (1, RIGHT)):
        np.testing.assert_array_equal(trials.inputs[:, :, group].any(axis=(1, 2)), in_cue)
        for k in range(7):
            window = trials.inputs[50 + 150 * k : 150 + 150 * k, :, group].any(axis=(0, 2))
            np.testing.assert_array_equal(window, trials.cues[:, k] == side)
    np.testing.assert_array_equal(trials.inputs[:, :, RECALL].any(axis=(1, 2)), trials.mask)
    assert trials.inputs[:, :, NOISE].any(axis=(1, 2)).all()


def test_rates_of_groups(trials):
    cues = trials.inputs[:1050].reshape(7, 150, 256, 40)[:, 50:]
    assert_rate(cues[:, :, :, LEFT] | cues[:, :, :, RIGHT], 0.04)  # one of them is active
    assert_rate(trials.inputs[2100:, :, RECALL], 0.04)
    assert_rate(trials.inputs[:, :, NOISE], 0.01)


def test_rates_do_not_depend_on_the_time_step():
    task = EvidenceAccumulation(dt=0.5)
    inputs = np.asarray(task.sample(KEY, 32).inputs)
    assert task.n_steps == len(inputs) == 4500
    assert_rate(inputs[4200:, :, RECALL], 0.02)
    assert_rate(inputs[:, :, NOISE], 0.005)
    assert not inputs[: 2 * 50, :, : RIGHT.stop].any() and inputs[2 * 50, :, : RIGHT.stop].any()


def test_label_is_the_majority(trials):
    np.testing.assert_array_equal(trials.labels, np.median(trials.cues, axis=1))


def test_labels_are_balanced_and_cues_favour_a_side():
    n = 40_000
    trials = jax.tree.map(np.asarray, SHORT.sample(KEY, n))
    assert_rate(trials.labels, 0.5)
    count = trials.cues.sum(axis=1)
    for k in range(8):  # a mixture of two binomials: right is favoured, or left
        ways, few, many = math.comb(7, k), 0.3**k * 0.7 ** (7 - k), 0.7**k * 0.3 ** (7 - k)
        assert_rate(count == k, ways * (few + many) / 2)


def test_float64_mode_draws_the_same_trials():
    with jax.enable_x64(False):
        trials = EvidenceAccumulation().sample(KEY, 4)
    with jax.enable_x64(True):
        assert_same(trials, EvidenceAccumulation().sample(KEY, 4))


def test_patterns():
    inputs, targets = jax.tree.map(np.asarray, PatternGeneration(n_out=3).sample(KEY, 20))
    assert inputs.shape == (1000, 20, 100) and inputs.dtype == bool
    assert targets.shape == (1000, 20, 3) and targets.dtype == jnp.zeros(()).dtype
    assert_rate(inputs, 0.05)
    assert not np.array_equal(inputs[:, 0], inputs[:, 1])
    assert_same(targets, np.broadcast_to(targets[:, :1], targets.shape))
    np.testing.assert_array_equal(targets[0], 0)
    np.testing.assert_allclose(targets[-1], 0, atol=1e-5)
    np.testing.assert_allclose(np.abs(targets).max(axis=0), 1, rtol=1e-6)


def test_targets_are_sines_of_the_given_periods():
    n = 2000
    _, targets = PatternGeneration(n_out=n).sample(KEY, 1)
    spectrum = np.fft.rfft(np.asarray(targets[:-1, 0], np.float64), axis=0)  # the last is the first
    n_cycles = [1, 2, 3, 5]  # 1000, 500, 333 and 200 ms
    sines = spectrum[n_cycles]
    others = np.delete(spectrum, [0, *n_cycles], axis=0)
    assert np.abs(others).max() < 1e-4 * np.abs(sines).max()

    ratios = np.abs(sines[:, None]) / np.abs(sines[None])  # amplitudes from 0.5 to 2
    assert 3.5 < ratios.max() < 4.001
    directions = sines / np.abs(sines)  # uniform phases: each part has mean 0 and variance 1/2
    assert np.abs(directions.mean(axis=1).real).max() < 5 * math.sqrt(0.5 / n)
    assert np.abs(directions.mean(axis=1).imag).max() < 5 * math.sqrt(0.5 / n)


def test_lemniscate():
    """Bernoulli's equation, and once around both loops: the right one first, from above."""
    task = Lemniscate(duration_ms=401.0)
    inputs, targets = jax.tree.map(np.asarray, task.sample(KEY, 20))
    assert inputs.shape == (401, 20, 100) and inputs.dtype == bool
    assert targets.shape == (401, 20, 2) and targets.dtype == jnp.zeros(()).dtype
    assert_rate(inputs, 0.05)
    assert not np.array_equal(inputs[:, 0], inputs[:, 1])
    assert_same(targets, np.broadcast_to(targets[:, :1], targets.shape))
    x, y = targets[:, 0].T
    np.testing.assert_allclose((x**2 + y**2) ** 2, x**2 - y**2, atol=1e-6)
    np.testing.assert_allclose([x[0], y[0], x[200], y[200], x[-1], y[-1]], 0, atol=1e-6)
    np.testing.assert_allclose([x[100], x[300]], [1, -1], atol=1e-6)
    assert (x[1:200] > 0).all() and (x[201:400] < 0).all()
    assert y[50] > 0.3 and y[150] < -0.3 and y[250] > 0.3 and y[350] < -0.3


@pytest.mark.parametrize("task", TASKS)
def test_a_pure_function_of_the_key(task):
    trials, other = task.sample(KEY, 4), task.sample(jax.random.key(21), 4)
    assert_same(trials, task.sample(KEY, 4))
    assert not np.array_equal(trials.inputs, other.inputs)


@pytest.mark.parametrize("task", [EvidenceAccumulation(), PatternGeneration()])
def test_what_is_asked_is_drawn_too(task):
    trials, other = task.sample(KEY, 4), task.sample(jax.random.key(21), 4)
    assert not np.array_equal(trials[-1], other[-1])  # cues, or targets


@pytest.mark.parametrize("task", TASKS)
def test_jit_and_vmap(task):
    keys = jax.random.split(KEY, 3)
    batches = [task.sample(key, 4) for key in keys]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    traced = []

    @jax.jit
    def sample(key):
        traced.append(key)
        return task.sample(key, 4)

    def assert_close(a, b):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=1e-5)

    jax.tree.map(assert_close, sample(keys[1]), batches[1])
    jax.tree.map(assert_close, sample(keys[2]), batches[2])
    assert len(traced) == 1
    jax.tree.map(assert_close, jax.jit(jax.vmap(sample))(keys), stacked)


@pytest.mark.parametrize(
    ("task", "parameters", "message"),
    [
        (EvidenceAccumulation, {"n_cues": 6}, "n_cues=6 is even.*n_cues=5 or 7"),
        (EvidenceAccumulation, {"n_cues": 0}, "n_cues=0"),
        (EvidenceAccumulation, {"n_group": -1}, "n_group=-1.*at least 1"),
        (EvidenceAccumulation, {"delay_ms": -50.0}, "delay_ms=-50.0.*zero or more"),
        (EvidenceAccumulation, {"recall_ms": 0.0}, "recall_ms=0.*recall_ms=1 or more"),
        (EvidenceAccumulation, {"cue_ms": 100.5}, "cue_ms=100.5 ms.*cue_ms=100 or 101"),
        (EvidenceAccumulation, {"cue_ms": 200.0}, "interval_ms=150.0 .*cue_ms=200.0.*200 or more"),
        (EvidenceAccumulation, {"interval_ms": math.nan}, "interval_ms=nan"),
        (EvidenceAccumulation, {"rate_hz": 1001.0}, "rate_hz=1001.0 Hz.*0 to 1000 Hz"),
        (EvidenceAccumulation, {"rate_hz": math.nan}, "rate_hz=nan Hz"),
        (EvidenceAccumulation, {"noise_hz": -1.0}, "noise_hz=-1.0 Hz"),
        (EvidenceAccumulation, {"p_favoured": 1.2}, "p_favoured=1.2.*0 to 1"),
        (EvidenceAccumulation, {"dt": 0.0}, "dt=0.0.*dt=1.0"),
        (PatternGeneration, {"n_in": 0}, "n_in=0.*at least 1"),
        (PatternGeneration, {"duration_ms": 999.5}, "duration_ms=999.5 ms.*999 or 1000"),
        (PatternGeneration, {"rate_hz": 2000.0}, "rate_hz=2000.0 Hz"),
        (PatternGeneration, {"periods_ms": ()}, "periods_ms"),
        (PatternGeneration, {"periods_ms": (2000.0,)}, "2000.0 ms.*up to duration_ms=1000"),
        (PatternGeneration, {"periods_ms": (1.0,)}, "1.0 ms.*above 2 ms"),
        (PatternGeneration, {"amplitude_min": 3.0}, "amplitude_min=3.0"),
        (Lemniscate, {"n_in": 0}, "n_in=0.*at least 1"),
        (Lemniscate, {"rate_hz": 2000.0}, "rate_hz=2000.0 Hz"),
        (Lemniscate, {"duration_ms": 999.5}, "duration_ms=999.5 ms.*999 or 1000"),
        (Lemniscate, {"duration_ms": 5.0}, "duration_ms=5.0 leaves 5 steps.*8 or more"),
    ],
)
def test_refuses_parameters(task, parameters, message):
    with pytest.raises(ValueError, match=message):
        task(**parameters)


@pytest.mark.parametrize("task", TASKS)
def test_refuses_batches_and_examples_that_are_none(task):
    with pytest.raises(ValueError, match=r"batch_size=0.*at least 1"):
        task.sample(KEY, 0)
    with pytest.raises(IndexError, match=r"example=4.*from 0 to 3"):
        task.plot(task.sample(KEY, 4), example=4)


@pytest.mark.parametrize("task", TASKS)
def test_plot(task):
    trials = task.sample(KEY, 4)
    figure = task.plot(trials, example=1)
    top, bottom = figure.axes
    assert top.get_title(loc="left") and top.get_ylabel() and bottom.get_ylabel()
    assert bottom.get_xlabel() == "time (ms)"

    # Each neuron has a row of ticks, one at each of its spikes.
    rows = [collection for collection in top.collections if hasattr(collection, "get_lineoffset")]
    assert len(rows) == trials.inputs.shape[2]
    for row, train in zip(rows, np.asarray(trials.inputs[:, 1]).T, strict=True):
        np.testing.assert_array_equal(row.get_positions(), np.flatnonzero(train))
    assert len({row.get_lineoffset() for row in rows}) == len(rows)

    figure.draw_without_rendering()


def test_plot_of_evidence():
    task = EvidenceAccumulation()
    trials = task.sample(KEY, 4)
    for example in range(4):
        cues, label = trials.cues[example], ("left", "right")[int(trials.labels[example])]
        top, bottom = task.plot(trials, example).axes
        assert top.get_title(loc="left").endswith(f"so the answer is {label}")
        (stairs,) = (patch for patch in bottom.patches if isinstance(patch, StepPatch))
        values, edges, _ = stairs.get_data()
        np.testing.assert_array_equal(values[1:], np.cumsum(np.where(cues == 1, 1, -1)))
        np.testing.assert_array_equal(edges[1:-1], 50 + 150 * np.arange(7))


def test_switching_patterns():
    task = SwitchingPatterns(PatternGeneration(n_in=5, duration_ms=200.0, periods_ms=(100.0,)), 3)
    stream = [jax.tree.map(np.asarray, task.sample(KEY, i, 2)) for i in range(7)]
    assert task.phase_ms == 600.0
    first = task.pattern.sample(KEY, 2)
    for i, (inputs, targets) in enumerate(stream):
        np.testing.assert_array_equal(inputs, first.inputs)
        np.testing.assert_array_equal(targets, stream[i // 3 * 3].targets)
    curves = [stream[i].targets for i in (0, 3, 6)]
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.combinations(curves, 2))
    jitted = jax.jit(lambda i: task.sample(KEY, i, 2))(jnp.asarray(4))
    assert_same(jitted.inputs, first.inputs)
    np.testing.assert_allclose(jitted.targets, stream[4].targets, atol=1e-5)
    other = task.sample(jax.random.key(21), 0, 2)
    assert not np.array_equal(other.inputs, first.inputs)
    with pytest.raises(ValueError, match=r"repetitions=0.*at least 1"):
        SwitchingPatterns(repetitions=0)
