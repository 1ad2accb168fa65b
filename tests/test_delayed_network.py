"""The delayed network: what is counted, and a whole run with its figure."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from experiments import delayed_network
from experiments.delayed_network import Config, best_accuracy, log_probabilities, sample_points

pytestmark = pytest.mark.experiment


def test_points():
    points = sample_points(Config(n_points=2000))
    for label in (0, 1):
        of_class = points.position[points.label == label]
        np.testing.assert_allclose(of_class.mean(0), 2 * label - 1, atol=0.15)
        np.testing.assert_allclose(of_class.std(0), 1, atol=0.1)
    assert best_accuracy(points) == pytest.approx(0.9214, abs=0.02)  # Φ(√2)


def test_spikes_are_counted_late():
    spikes = np.zeros((6, 2, 2))
    spikes[:3, 0, 0] = 1  # two of them arrive in time ...
    spikes[1:3, 0, 1] = 1  # ... and one of these
    spikes[5, 1] = 1  # too late
    trajectory = eprop.Trajectory(
        jnp.zeros((6, 2, 1)), (eprop.LayerTrajectory(jnp.asarray(spikes), None),)
    )
    log_p = log_probabilities(Config(delay=4.0, n_steps=6), trajectory)
    expected = np.log([[2 / 3 + 1e-6, 1 / 3 + 1e-6], [1e-6, 1e-6]])
    np.testing.assert_allclose(log_p, expected, rtol=1e-6)
    for delay in (6.0, 8.0):  # all are too late
        log_p = log_probabilities(Config(delay=delay, n_steps=6), trajectory)
        np.testing.assert_allclose(log_p, np.log(1e-6), rtol=1e-6)


def test_a_run(tmp_path, capsys):
    arguments = ["--results", str(tmp_path), "--n-points", "40", "--seeds", "0", "--epochs", "4"]
    with jax.enable_x64(False):
        delayed_network.main(arguments)
    summary = json.loads((tmp_path / "default" / "summary.json").read_text())
    for result in summary["rules"].values():
        (accuracy,) = result["accuracy"]
        assert len(accuracy) == 5 and accuracy[-1] > accuracy[0] + 0.2
        assert result["difference_of_spikes"] == 0
        # Two programs: with little optimisation they round differently.
        rounding = 1e-5 if jax.config.read("jax_disable_most_optimizations") else 0.0
        assert result["difference_of_gradients"] <= rounding * result["largest_gradient"]
        assert result["largest_gradient"] > 1
    assert (tmp_path / "default" / "figure.png").stat().st_size > 10_000
    assert "rotating against concatenated" in capsys.readouterr().out


def test_the_delay_matters():
    """Else any two buffers would agree."""
    with jax.enable_x64(False):
        config = Config(n_points=20, epochs=0)
        rule, line = eprop.BPTT(), eprop.RotatingBuffer()
        _, late = delayed_network.train(config, rule, 0, line)
        _, at_once = delayed_network.train(dataclasses.replace(config, delay=0.0), rule, 0, line)
    assert late.spikes.sum() > 20
    late, at_once = late.gradients.w_rec[0], at_once.gradients.w_rec[0]
    assert np.abs(late - at_once).max() > 0.01 * np.abs(late).max()
