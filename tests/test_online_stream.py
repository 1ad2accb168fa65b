"""The online-learning experiment, on patterns of a few steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from eprop.tasks import PatternGeneration, SwitchingPatterns
from experiments import online_stream as experiment
from figures import online_stream as figure
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

PATTERN = PatternGeneration(n_in=40, duration_ms=100.0, rate_hz=100.0, periods_ms=(100.0, 50.0))
SMALL = experiment.Config(
    n=20, task=SwitchingPatterns(PATTERN, repetitions=100), phases=3, learning_rate=5e-3
)


def small(folder, **changes):
    return dataclasses.replace(SMALL, results=folder, **changes)


def rows_of(config):
    rows = read_rows(config.folder / "metrics.jsonl")
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's configuration and its summary."""
    config = small(tmp_path_factory.mktemp("results"))
    with jax.enable_x64(False):
        return config, experiment.run(config, progress=False)


def test_learns_each_curve(finished):
    """And the copy that was frozen at the first switch does not."""
    _, summary = finished
    assert len(summary["phases"]) == 3
    for phase in summary["phases"]:
        assert phase["last_error"] < 0.5 * phase["first_error"]
    for phase in summary["phases"][1:]:
        assert phase["last_error"] < 0.5 < 1 < phase["frozen_error"]
    assert (summary["steps"], summary["updates"]) == (30_000, 3000)


def test_leaves_whole_results(finished):
    config, summary = finished
    rows = rows_of(config)
    assert [row["iteration"] for row in rows] == list(range(1, 301))
    with np.load(config.folder / "shown.npz") as arrays:
        outputs, targets = arrays["outputs"], arrays["targets"]
    assert outputs.shape == (3, 2, 100, 1) and targets.shape == (3, 100, 1)
    for i, repetition in enumerate(config.shown):
        for j, name in enumerate(("error", "frozen_error")):
            error = np.mean((outputs[i, j] - targets[i]) ** 2) / np.var(targets[i])
            assert error == pytest.approx(rows[repetition][name], rel=1e-4)
    assert_drawn(figure.draw(config.folder))
    assert len(experiment.table(summary).splitlines()) == 4


def test_the_copy_is_frozen_at_the_first_switch(tmp_path):
    config = small(tmp_path, task=SwitchingPatterns(PATTERN, repetitions=2))
    step, batches = jax.jit(experiment.make_step(config)), experiment.make_batches(config)
    states = [experiment.init(config)]
    for iteration in range(1, 5):
        states.append(step(states[-1], batches(iteration))[0])
    for state in states[1:3]:
        np.testing.assert_array_equal(state.frozen.w_rec, state.learning.network.w_rec)
    for state in states[3:]:
        np.testing.assert_array_equal(state.frozen.w_rec, states[2].learning.network.w_rec)
        assert not np.array_equal(state.frozen.w_rec, state.learning.network.w_rec)
    assert not np.array_equal(states[1].frozen.w_rec, states[0].frozen.w_rec)


def test_an_interrupted_run_ends_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    whole, _ = finished
    torn = small(tmp_path)

    def interrupted(config, make_batches=experiment.make_batches):
        batches = make_batches(config)

        def until(iteration):
            if iteration > 147:
                raise KeyboardInterrupt
            return batches(iteration)

        return until

    with jax.enable_x64(False):
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "make_batches", interrupted)
            with pytest.raises(KeyboardInterrupt):
                experiment.run(torn, progress=False)
        experiment.run(torn, progress=False)
        assert rows_of(torn) == rows_of(whole)
        like = experiment.init(whole)
        states = [
            eprop.checkpoints.load(config.folder / "checkpoint.eprop", like)[0]
            for config in (torn, whole)
        ]
    assert not np.array_equal(states[1].frozen.w_in, like.frozen.w_in)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        if not eprop.checkpoints.is_key(a):
            np.testing.assert_array_equal(a, b)


def test_fails_where_nothing_is_learned():
    metrics = [{"error": 1.0, "frozen_error": 2.0, "seconds": 1.0}] * 300
    summary = experiment.summarise(SMALL, metrics)
    assert not summary["passed"] and summary["smallest_factor"] == 1
    assert [phase["recovery_ms"] for phase in summary["phases"]] == [None] * 3
    assert [phase["frozen_error"] for phase in summary["phases"]] == [None, 2.0, 2.0]
    assert experiment.table(summary).count("never") == 3


def test_recovery_is_counted_from_the_switch():
    errors = np.tile([1.0, 0.5, 0.19, *[0.01] * 97], 3)
    rows = [{"error": x, "frozen_error": 2.0, "seconds": 1.0} for x in errors.tolist()]
    summary = experiment.summarise(SMALL, rows)
    assert summary["passed"] and summary["smallest_factor"] == pytest.approx(100)
    assert [phase["recovery_ms"] for phase in summary["phases"]] == [300.0] * 3


def test_relative_error_of_the_best_constant_is_one():
    targets = jnp.sin(jnp.arange(100.0))[:, None, None]
    assert experiment.relative_error(jnp.full_like(targets, targets.mean()), targets) == (
        pytest.approx(1)
    )


def test_a_switch_is_needed():
    with pytest.raises(ValueError, match="phases = 1 has no switch"):
        small("results", phases=1)


def test_help_names_every_option():
    text = help_of("online_stream")
    assert_options(text, experiment.Config)
    assert "in ms" in text and "in Hz" in text
