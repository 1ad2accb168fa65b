"""The pattern-generation experiment and its figure, on patterns of a few steps."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop import files
from eprop.files import read_rows
from eprop.tasks import Lemniscate, PatternGeneration
from experiments import pattern_generation as experiment
from experiments import patterns
from figures import figS7_pattern_generation as figure
from figures import finished
from tests.test_experiments import assert_drawn, assert_options, help_of

RESULTS = finished.RESULTS / "pattern_generation"
pytestmark = pytest.mark.experiment

TASK = PatternGeneration(n_in=20, duration_ms=60.0, rate_hz=200.0, periods_ms=(60.0, 30.0))
SETTING = patterns.Setting(task=TASK, n_lif=8, iterations=5, save_every=2)
SMALL = experiment.Config(setting=SETTING, seeds=(0, 3))
LEMNISCATE = dataclasses.replace(SETTING, task=Lemniscate(20, 60.0, 200.0), n_alif=4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of runs by random feedback and by BPTT."""
    folder = tmp_path_factory.mktemp("here") / RESULTS
    for rule in ("eprop", "bptt"):
        experiment.run(dataclasses.replace(SMALL, results=folder, rule=rule), progress=False)
    return folder


def metrics_of(folder, seed):
    """The rows of a run, without the time that each took."""
    rows = read_rows(folder / f"seed{seed}" / "metrics.jsonl")
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def assert_whole(folder, seeds):
    rows = {seed: metrics_of(folder, seed) for seed in seeds}
    for of_seed in rows.values():
        assert [row["iteration"] for row in of_seed] == list(range(1, 6))
        assert all(row["rate_hz"] > 10 for row in of_seed)
        assert of_seed[0]["squared_error"] != of_seed[-1]["squared_error"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["squared_error"] == {
        at: [of_seed[int(at) - 1]["squared_error"] for of_seed in rows.values()] for at in "15"
    }
    assert_drawn(figure.draw([folder], folder / "figure.png"))


@pytest.mark.parametrize("learner", ["random", "bptt"])
def test_a_run_leaves_whole_results(results, learner):
    assert_whole(results / learner, SMALL.seeds)
    firsts = [metrics_of(results / learner, seed)[0]["squared_error"] for seed in SMALL.seeds]
    assert firsts[0] != firsts[1]


@pytest.mark.parametrize(
    "changes", [{"feedback": "adaptive"}, {"setting": LEMNISCATE}], ids=["adaptive", "lemniscate"]
)
def test_so_do_others(tmp_path, changes):
    config = dataclasses.replace(SMALL, results=tmp_path, seeds=(0,), **changes)
    experiment.run(config, progress=False)
    assert_whole(config.folder, config.seeds)


def test_the_rule_is_what_differs():
    before = patterns.make_network(SETTING, 0)
    step = jax.jit(
        eprop.training_step(
            patterns.make_loss(SETTING), patterns.make_optimizer(SETTING), has_aux=True
        )
    )
    after = {}
    for learner in ("bptt", "symmetric", "random", "adaptive"):
        state = patterns.init(SETTING, learner, 0)
        jax.tree.map(np.testing.assert_array_equal, state.network, before)
        after[learner] = step(state, patterns.make_data(SETTING, 0))[0].network
    for name in ("w_in", "w_rec"):
        weights = {learner: getattr(network, name) for learner, network in after.items()}
        # At first adaptive feedback is random feedback.
        np.testing.assert_array_equal(weights.pop("adaptive"), weights["random"])
        different = {np.asarray(x).tobytes() for x in (getattr(before, name), *weights.values())}
        assert len(different) == 4


@pytest.mark.parametrize("learner", ["random", "bptt"])
def test_what_is_learned(learner):
    changes = {"optimizer": "adam", "learning_rate": 3e-2, "iterations": 100, "rate_penalty": 3.0}
    setting = dataclasses.replace(SETTING, n_lif=30, **changes)
    _, rows = patterns.train(setting, learner, 0, None, None, progress=False)
    assert rows[-1]["squared_error"] < 0.5 * rows[0]["squared_error"]


def test_loss():
    outputs, targets = jnp.array([[[1.0, 2.0]], [[0.0, 1.0]]]), jnp.zeros((2, 1, 2))
    spikes = jnp.array([[[1.0, 0.0]], [[0.0, 0.0]]])  # 0.5 and 0 spikes/ms
    value, info = patterns.make_loss(SETTING)(
        eprop.Trajectory(outputs, (eprop.LayerTrajectory(spikes, None),)), targets
    )
    assert info["squared_error"] == 3 and info["rate_hz"] == 250
    assert value == pytest.approx(3 + 300 * 0.5 * (0.49**2 + 0.01**2))


def test_an_interrupted_run_ends_as_if_it_had_not_been(results, tmp_path, monkeypatch):
    whole, config = results / "random", dataclasses.replace(SMALL, results=tmp_path)
    torn, seen = config.folder, []

    def interrupt(iteration, state, row):
        seen.append(iteration)
        if len(seen) == 8:  # in the second seed, after the checkpoint of its iteration 2
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(eprop, "fit", functools.partial(eprop.fit, callbacks=[interrupt]))
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, progress=False)
    assert seen == [1, 2, 3, 4, 5, 1, 2, 3] and not (torn / "summary.json").exists()
    first = (torn / "seed0" / "checkpoint.eprop").read_bytes()
    experiment.run(config, progress=False)
    assert (torn / "seed0" / "checkpoint.eprop").read_bytes() == first
    for seed in config.seeds:
        assert metrics_of(torn, seed) == metrics_of(whole, seed)
        fresh = patterns.init(SETTING, "random", seed)
        states = [
            eprop.checkpoints.load(folder / f"seed{seed}" / "checkpoint.eprop", fresh)[0]
            for folder in (torn, whole)
        ]
        jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_folder_belongs_to_one_configuration(results):
    longer = dataclasses.replace(SETTING, iterations=SETTING.iterations + 1)
    with pytest.raises(SystemExit, match=r"iterations = \d+ there, \d+ here.*--run"):
        experiment.run(dataclasses.replace(SMALL, results=results, setting=longer), progress=False)


def test_patterns_are_frozen_and_differ_between_seeds():
    inputs, targets = patterns.make_data(SETTING, 0)
    jax.tree.map(np.testing.assert_array_equal, patterns.make_data(SETTING, 0), (inputs, targets))
    for ours, others in zip((inputs, targets), patterns.make_data(SETTING, 1), strict=True):
        assert not np.array_equal(ours, others)


def test_the_default_is_the_official_code():
    setting = experiment.PRESETS["default"].setting
    assert setting.task == PatternGeneration()
    assert (setting.optimizer, setting.learning_rate, setting.iterations) == ("sgd", 1e-4, 2000)
    assert (setting.rate_target_hz, setting.rate_penalty) == (10.0, 300.0)
    network = patterns.make_network(setting, 0)
    assert isinstance(network.cell, eprop.ALIF) and network.cell.beta.value.tolist() == [0.0] * 100
    assert (network.cell.tau_v.value, network.cell.v_th.value) == (30.0, 0.03)
    assert (network.cell.n_refractory, network.cell.dt) == (0, 1.0)
    assert (network.readout.tau, network.readout.scale) == (30.0, True)
    assert network.cell.scale_current
    feedback = patterns.make_rule(setting, "random", 0).feedback
    for weights in (network.w_in, network.w_rec, network.w_out, feedback.b):  # N(0, 1) / sqrt(100)
        assert abs(float(weights.std()) - 0.1) < 5 * 0.1 / np.sqrt(2 * weights.size)


def test_the_lemniscate_is_drawn_by_adaptive_neurons():
    setting = experiment.PRESETS["lemniscate"].setting
    network = patterns.make_network(setting, 0)
    assert network.cell.beta.value.tolist() == [setting.beta] * 200 and network.n_out == 2
    assert experiment.PRESETS["lemniscate"].folder != experiment.PRESETS["default"].folder


class TestFigure:
    def test_of_several_runs(self, results, monkeypatch, capsys):
        monkeypatch.chdir(results.parents[1])
        figure.main([])
        assert capsys.readouterr().out.strip() == str(RESULTS / "figS7.png")
        both = (results / "figS7.png").read_bytes()
        figure.main([str(RESULTS / "random")])
        assert_drawn(results / "figS7.png")
        assert (results / "figS7.png").read_bytes() != both

    def test_refuses_to_compare_what_differs(self, results, tmp_path):
        shutil.copytree(results / "bptt", tmp_path / "bptt")
        other = dataclasses.replace(SETTING, n_lif=9)
        files.write_json(
            tmp_path / "bptt" / "config.json",
            files.as_json(dataclasses.replace(SMALL, rule="bptt", setting=other)),
        )
        with pytest.raises(ValueError, match=r"random and bptt.*n_lif = 8 there, 9 here"):
            figure.draw([results / "random", tmp_path / "bptt"], tmp_path / "figure.png")

    def test_says_what_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"no finished run.*experiments\.pattern_generation"):
            figure.main([])


def test_help_names_every_option_and_the_presets():
    text = help_of("pattern_generation")
    options = [field for field in dataclasses.fields(experiment.Config) if field.name != "setting"]
    assert_options(text, dataclasses.make_dataclass("Options", [(x.name, x.type) for x in options]))
    assert_options(text, patterns.Setting)
    assert "lemniscate" in text and "in ms" in text and "in Hz" in text
