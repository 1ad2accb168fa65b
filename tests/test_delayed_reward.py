"""The experiment with a decision and its reward, and its figure, on few and short trials."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from eprop.tasks import EvidenceAccumulation
from experiments import delayed_reward as experiment
from experiments import evidence_accumulation
from experiments.learners import make_rule
from figures import delayed_reward as figure
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    seeds=(0, 3),
    n_lif=8,
    n_alif=8,
    v_th=0.3,
    task=EvidenceAccumulation(
        n_cues=1, cue_ms=20.0, interval_ms=25.0, delay_ms=15.0, recall_ms=10.0, rate_hz=200.0
    ),
    batch_size=8,
    iterations=4,
    check_every=2,
    validation_batches=1,
    test_batches=2,
)

LEARNERS = {
    "random": {},
    "symmetric": {"feedback": "symmetric"},
    "bptt": {"rule": "bptt"},
    "lif_only": {"n_lif": 16, "n_alif": 0, "run": "lif_only"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run by every learner."""
    results = tmp_path_factory.mktemp("results")
    configs = {
        name: dataclasses.replace(SMALL, results=results, **changes)
        for name, changes in LEARNERS.items()
    }
    return {
        name: (config, experiment.run(config, progress=False)) for name, config in configs.items()
    }


def test_every_learner_leaves_whole_results(runs, tmp_path):
    for config, summary in runs.values():
        assert summary["learner"] == config.learner and summary["seeds"] == [0, 3]
        assert summary["test_trials"] == 16 and summary["training_trials"] == 32
        assert all(0 <= found <= 1 for found in summary["test_accuracy"])
        for seed in config.seeds:
            rows = read_rows(config.folder / f"seed{seed}" / "metrics.jsonl")
            assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
            assert all(abs(row["reward"]) <= 1 and row["rate_hz"] > 1 for row in rows)
            assert 0.9 * np.log(2) < rows[0]["entropy"] <= np.log(2)  # it tries both
    folders = [config.folder for config, _ in runs.values()]
    assert_drawn(figure.draw(folders, tmp_path / "all.png"))
    assert_drawn(figure.draw(folders[-1:], tmp_path / "one.png"))


def test_only_the_control_has_other_neurons(runs, tmp_path):
    wide = dataclasses.replace(SMALL, n_lif=9, results=tmp_path, seeds=(0,), feedback="symmetric")
    experiment.run(wide, progress=False)
    folders = [runs[name][0].folder for name in ("random", "lif_only")]
    assert_drawn(figure.draw(folders, tmp_path / "control.png"))
    with pytest.raises(ValueError, match=r"random and symmetric .*n_lif"):
        figure.draw([*folders, wide.folder], tmp_path / "wide.png")


def test_the_rule_is_what_differs(runs):
    rows = {
        name: read_rows(config.folder / "seed0" / "metrics.jsonl")
        for name, (config, _) in runs.items()
    }
    first = {name: of_run[0]["loss"] for name, of_run in rows.items()}
    last = {name: of_run[-1]["loss"] for name, of_run in rows.items()}
    rules = ("random", "symmetric", "bptt")
    assert len({first[name] for name in rules}) == 1 and len({last[name] for name in rules}) == 3


def test_a_reward_is_for_the_right_side():
    rewards = experiment.rewards_of(np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]))
    assert rewards.tolist() == [1, 1, -1, -1]


def test_an_answer_is_the_mean_of_the_last_readouts():
    outputs = jax.random.normal(jax.random.key(0), (SMALL.task.n_steps, 2, 3))
    for answer_ms, n_last in [(1.0, 1), (4.0, 4), (10.0, 10)]:
        config = dataclasses.replace(SMALL, answer_ms=answer_ms)
        found = experiment.decisive(config, outputs)
        np.testing.assert_allclose(found, outputs[-n_last:].mean(0), rtol=1e-12)
    for answer_ms in (0.0, 0.4, 10.5):
        with pytest.raises(ValueError, match="answer_ms"):
            dataclasses.replace(SMALL, answer_ms=answer_ms)


@pytest.mark.parametrize("check_every", [0, 5])
def test_learning_is_looked_at(check_every):
    """Or there would be nothing to draw of it, after all the training."""
    with pytest.raises(ValueError, match=f"check_every = {check_every} .* iterations = 4"):
        dataclasses.replace(SMALL, check_every=check_every)


def test_evidence_is_that_of_the_supervised_experiment():
    """Its trials and its neurons; only what is said about answers is less."""
    mine, supervised = experiment.PRESETS["evidence"], evidence_accumulation.Config()
    assert mine.task == supervised.task and mine.task.n_cues == 7
    for name in ("n_lif", "n_alif", "tau_v", "tau_a", "tau_out", "v_th", "beta", "gamma"):
        assert getattr(mine, name) == getattr(supervised, name)
    assert mine.refractory_ms == supervised.refractory_ms


def test_several_cues_in_short(tmp_path):
    """Named by its preset, as on the command line."""
    options = {
        "task.n-cues": 3, "task.cue-ms": 20, "task.interval-ms": 25, "task.delay-ms": 15,
        "task.recall-ms": 10, "task.rate-hz": 200, "answer-ms": 10, "n-lif": 8, "n-alif": 8,
        "v-th": 0.3, "seeds": 0, "batch-size": 8, "iterations": 2, "check-every": 1,
        "validation-batches": 1, "test-batches": 2, "results": tmp_path,
    }  # fmt: skip
    experiment.main(["evidence", *(str(x) for k, v in options.items() for x in (f"--{k}", v))])
    assert_drawn(tmp_path / "random" / "figure.png")
    rows = read_rows(tmp_path / "random" / "seed0" / "metrics.jsonl")
    assert len(rows) == 2 and rows[0]["rate_hz"] > 1
    with np.load(tmp_path / "random" / "trial.npz") as trial:
        assert len(trial["inputs"]) == 3 * 25 + 15 + 10


def test_what_is_drawn_is_of_either_side(runs):
    config, _ = runs["random"]
    with np.load(config.folder / "trial.npz") as trial:
        assert trial["labels"].tolist() == [0, 1]
        assert trial["spikes"].any() and trial["outputs"].shape == (config.task.n_steps, 2, 3)


def test_it_learns_without_a_delay():
    """The cue is on while it is asked: a few hundred rewards are enough."""
    task = EvidenceAccumulation(
        n_cues=1, cue_ms=20.0, interval_ms=21.0, delay_ms=0.0, recall_ms=1.0, rate_hz=300.0
    )
    config = dataclasses.replace(
        SMALL,
        seeds=(0,),
        task=task,
        batch_size=32,
        learning_rate=5e-3,
        iterations=60,
        test_batches=8,
    )
    network = experiment.make_network(config, 0)
    rule = make_rule("random", jax.random.normal(jax.random.key(1), (16, 3)))
    training = eprop.init_training(network, rule, experiment.make_optimizer(config))
    step = eqx.filter_jit(experiment.make_step(config))
    state, batch = experiment.State(training, network), experiment.make_batches(config, 0)
    accuracy = experiment.make_accuracy(config, 8)
    before = accuracy(network, jax.random.key(5))
    for iteration in range(1, 61):
        state, _ = step(state, batch(iteration))
    assert before < 0.7 and accuracy(state.training.network, jax.random.key(5)) > 0.9


def test_help():
    text = help_of("delayed_reward")
    assert_options(text, experiment.Config)
    assert all(preset in text for preset in experiment.PRESETS)
