"""The experiment with random spike patterns and its figure, on few and short patterns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from experiments import classification
from experiments import spike_patterns as experiment
from experiments.learners import make_rule
from figures import finished
from figures import spike_patterns as figure
from tests.test_experiments import assert_drawn, assert_options, help_of

RESULTS = finished.RESULTS / "spike_patterns"
pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    seeds=(0, 3), n_patterns=12, n_in=15, duration_ms=40.0, rate_hz=60.0, n=8, weight_scale=1.5,
    iterations=5, check_every=2,
)  # fmt: skip


def small(folder, **changes):
    return dataclasses.replace(SMALL, results=folder, **changes)


def after_training(config, seed=0, folder=None):
    network = experiment.make_network(config, seed)
    data = experiment.make_data(config, seed)
    b = jax.random.normal(experiment.key_of(seed, "feedback"), (config.n, config.n_classes))
    rule = make_rule(config.learner, b)
    return classification.train(
        network,
        rule,
        experiment.make_loss(config),
        experiment.make_optimizer(config),
        lambda iteration: data,
        config=config,
        folder=folder,
        trainable=experiment.trainable(config, network),
        progress=False,
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"feedback": "symmetric", "recurrent": False}, {"rule": "bptt", "n_classes": 3}],
    ids=["random", "not recurrent", "bptt"],
)
def test_every_learner_leaves_whole_results(tmp_path, changes):
    config = small(tmp_path, **changes)
    summary = experiment.run(config, progress=False)
    assert summary["learner"] == config.learner and summary["seeds"] == [0, 3]
    assert all(0 <= found <= 1 for found in summary["accuracy"])
    assert summary["cross_entropy"][0] != summary["cross_entropy"][1]
    for seed in config.seeds:
        rows = read_rows(config.folder / f"seed{seed}" / "metrics.jsonl")
        assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5]
        assert all(row["rate_hz"] > 5 for row in rows)
    assert_drawn(figure.draw([config.folder], tmp_path / "figure.png"))


def test_the_rule_is_what_differs():
    networks = {}
    for learner, changes in {
        "random": {},
        "symmetric": {"feedback": "symmetric"},
        "bptt": {"rule": "bptt"},
    }.items():
        config = dataclasses.replace(SMALL, iterations=1, **changes)
        networks[learner] = after_training(config)[0].network
    weights = [np.asarray(network.w_in) for network in networks.values()]
    assert len({w.tobytes() for w in weights}) == 3
    for network in networks.values():  # the gradient of the readout needs no rule
        np.testing.assert_allclose(network.w_out, networks["bptt"].w_out, rtol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"rule": "bptt"}], ids=["random", "bptt"])
def test_what_is_learned(changes):
    config = dataclasses.replace(SMALL, iterations=80, learning_rate=2e-2, **changes)
    _, rows = after_training(config)
    assert rows[-1]["accuracy"] == 1 and rows[0]["accuracy"] < 0.9
    assert rows[-1]["cross_entropy"] < 0.5 * rows[0]["cross_entropy"]


@pytest.mark.parametrize("recurrent", [True, False])
def test_recurrent_synapses_are_there_or_not(recurrent):
    config = dataclasses.replace(SMALL, recurrent=recurrent)
    before, (state, _) = experiment.make_network(config, 0), after_training(config)
    assert np.any(state.network.w_in != before.w_in)
    assert np.any(before.w_rec != 0) == recurrent
    assert np.any(state.network.w_rec != before.w_rec) == recurrent


def test_without_recurrence_eprop_is_bptt_but_for_the_reset():
    """What is left of the network between a spike and the loss is the neuron's own reset."""
    config = dataclasses.replace(SMALL, recurrent=False)
    network, (inputs, labels) = experiment.make_network(config, 0), experiment.make_data(config, 0)

    def gradient(rule):
        loss = experiment.make_loss(config)
        found = eprop.grad(lambda *x: loss(*x)[0], rule)(network, inputs, labels)
        return np.asarray(found.w_in)

    stopped = gradient(eprop.BPTT(stop_z_gradients=True))
    np.testing.assert_allclose(
        gradient(eprop.EProp()), stopped, rtol=0, atol=1e-12 * np.abs(stopped).max()
    )
    assert np.abs(gradient(eprop.BPTT()) - stopped).max() > 1e-3 * np.abs(stopped).max()


def test_patterns_are_frozen_and_differ_between_seeds():
    inputs, labels = experiment.make_data(SMALL, 0)
    assert inputs.shape == (40, 12, 15) and set(np.asarray(labels).tolist()) == {0, 1}
    assert abs(float(inputs.mean()) - 0.06) < 0.01
    jax.tree.map(np.testing.assert_array_equal, experiment.make_data(SMALL, 0), (inputs, labels))
    assert not np.array_equal(experiment.make_data(SMALL, 1)[0], inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_classes": 1}, "n_classes = 1: .* at least 2"),
        ({"rate_hz": -1.0}, "rate_hz=-1.0 Hz .* from 0 to 1000 Hz"),
        ({"rate_hz": 600.0, "dt": 2.0}, "rate_hz=600.0 Hz .* from 0 to 500 Hz"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_scores_are_the_highest_outputs():
    outputs = jnp.array([[[0.0, -1.0]], [[2.0, 3.0]], [[1.0, -9.0]]])
    np.testing.assert_array_equal(experiment.scores(outputs), [[2.0, 3.0]])
    spikes = jnp.array([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])  # 1/3 and 0 spikes/ms
    trajectory = eprop.Trajectory(outputs, (eprop.LayerTrajectory(spikes, None),))
    value, info = experiment.make_loss(SMALL)(trajectory, jnp.array([0], jnp.int32))
    assert info["accuracy"] == 0 and info["rate_hz"] == pytest.approx(1000 / 6)
    assert info["cross_entropy"] == pytest.approx(np.log(1 + np.e))
    assert value == pytest.approx(np.log(1 + np.e) + (1 / 3 - 0.02) ** 2 + 0.02**2)


def test_the_tutorial_preset():
    """Zenke's SpyTorch, tutorial 1, but for a readout without synaptic current."""
    config = experiment.PRESETS["tutorial"]
    assert (config.n_patterns, config.n_in, config.n, config.n_classes) == (256, 100, 4, 2)
    assert (config.tau_i, config.tau_v, config.rate_hz, config.dt) == (5.0, 10.0, 5.0, 1.0)
    assert (config.learning_rate, config.rate_penalty, config.recurrent) == (2e-3, 0.0, False)
    assert config.folder != experiment.PRESETS["default"].folder


class TestFigure:
    def test_of_several_runs(self, tmp_path, monkeypatch, capsys):
        results = tmp_path / RESULTS
        for changes in ({}, {"rule": "bptt"}):
            experiment.run(small(results, **changes), progress=False)
        monkeypatch.chdir(tmp_path)
        figure.main([])
        assert capsys.readouterr().out.strip() == str(RESULTS / "figure.png")
        both = (results / "figure.png").read_bytes()
        figure.main([str(RESULTS / "random")])
        assert_drawn(results / "figure.png")
        assert (results / "figure.png").read_bytes() != both

    def test_refuses_to_compare_what_differs(self, tmp_path):
        configs = [small(tmp_path, seeds=(0,)), small(tmp_path, seeds=(0,), rule="bptt", n=9)]
        for config in configs:
            experiment.run(config, progress=False)
        with pytest.raises(ValueError, match=r"random and bptt.*n = 8 there, 9 here"):
            figure.draw([config.folder for config in configs], tmp_path / "figure.png")

    def test_says_what_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"no finished run.*experiments\.spike_patterns"):
            figure.main([])


def test_help_names_every_option_and_the_presets():
    text = help_of("spike_patterns")
    assert_options(text, experiment.Config)
    assert "tutorial" in text and "in ms" in text and "in Hz" in text
