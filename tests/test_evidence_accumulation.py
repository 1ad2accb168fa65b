"""The evidence-accumulation experiment, on a task of a few steps."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from eprop.tasks import EvidenceAccumulation
from experiments import evidence_accumulation as experiment
from figures import evidence_accumulation as figure
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

TASK = EvidenceAccumulation(
    n_cues=3, cue_ms=8.0, interval_ms=10.0, delay_ms=10.0, recall_ms=10.0, n_group=2, rate_hz=400.0
)
SMALL = experiment.Config(
    n_lif=4,
    n_alif=4,
    task=TASK,
    batch_size=8,
    iterations=7,
    validate_every=3,
    criterion=0.0,
    validation_batches=2,
    test_batches=2,
)


def small(folder, **changes):
    return dataclasses.replace(SMALL, results=folder, **changes)


def metrics_of(config):
    """The rows of a run, without the time that each took."""
    rows = read_rows(config.folder / "metrics.jsonl")
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def after_one_iteration(config):
    step, batch = experiment.make_step(config), experiment.make_batches(config)(1)
    return jax.jit(step)(experiment.init(config), batch)[0].training


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The configuration and the summary of a run with the defaults, which no test changes."""
    config = small(tmp_path_factory.mktemp("whole"))
    return config, experiment.run(config, progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"feedback": "adaptive"},
        {"rule": "bptt"},
        {"n_alif": 0},
        {"density": 0.3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "default",
)
def test_every_learner_leaves_whole_results(whole, tmp_path, changes):
    config, summary = whole
    if changes:
        config = small(tmp_path, **changes)
        summary = experiment.run(config, progress=False)
    assert summary["iterations"] == 7 and summary["reached_criterion"] is False
    assert 0 <= summary["test_error"] <= 1 and summary["test_trials"] == 16
    rows = metrics_of(config)
    assert [row["iteration"] for row in rows] == list(range(1, 8))
    assert ["validation_error" in row for row in rows] == [False, False, True] * 2 + [False]
    assert all(row["rate_hz"] > 10 for row in rows)
    assert_drawn(figure.draw(config.folder))


def test_a_sparse_network_rewires(tmp_path):
    """As many synapses stay; the running average of a new one begins with it."""
    config = small(tmp_path, density=0.3, learning_rate=0.1)
    step, batch = jax.jit(experiment.make_step(config)), experiment.make_batches(config)
    state, n_new = experiment.init(config), 0
    assert state.training.network.w_rec.shape == (8, 2)
    for iteration in range(1, 6):
        before, (state, _) = state, step(state, batch(iteration))
        was, average, now = (
            net.layers[0].recurrent
            for net in (before.average, state.average, state.training.network)
        )
        np.testing.assert_array_equal(average.indices, now.indices)
        changed = np.asarray(now.indices != was.indices)
        keep = min(config.averaging, iteration / (iteration + 9))
        expected = np.where(changed, 0, was.weights + (1 - keep) * (now.weights - was.weights))
        np.testing.assert_allclose(average.weights, expected, rtol=1e-7, atol=1e-9)
        n_new += changed.sum()
    assert n_new > 2
    with pytest.raises(ValueError, match=r"density = 1\.5 .* at most 1"):
        experiment.init(small(tmp_path, density=1.5))


def test_the_rule_is_what_differs(tmp_path):
    learners = ({}, {"feedback": "symmetric"}, {"rule": "bptt"})
    states = [experiment.init(small(tmp_path, **changes)) for changes in learners]
    first = states[0].training.network
    for state in states[1:]:
        np.testing.assert_array_equal(state.training.network.w_rec, first.w_rec)
    trained = [
        after_one_iteration(small(tmp_path, **changes)).network.w_rec for changes in learners
    ]
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(trained))


def test_stopped_z_gradients_are_symmetric_eprop(tmp_path):
    after = {}
    for name, changes in {
        "autodiff": {"rule": "bptt", "stop_z_gradients": True},
        "eprop": {"feedback": "symmetric"},
    }.items():
        after[name] = after_one_iteration(small(tmp_path, **changes)).network.w_rec
    np.testing.assert_allclose(after["autodiff"], after["eprop"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("killed_at", [2, 5])
def test_an_interrupted_run_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch, killed_at):
    (whole, _), torn = whole, small(tmp_path)

    def interrupted(config, make_batches=experiment.make_batches):
        batches = make_batches(config)

        def batches_until(iteration):
            if iteration > killed_at:
                raise KeyboardInterrupt
            return batches(iteration)

        return batches_until

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "make_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(torn, progress=False)
    experiment.run(torn, progress=False)
    assert metrics_of(torn) == metrics_of(whole)
    states = [
        eprop.checkpoints.load(config.folder / "checkpoint.eprop", experiment.init(config))[0]
        for config in (torn, whole)
    ]
    assert not np.array_equal(states[1].average.w_rec, experiment.init(whole).average.w_rec)
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_run_stops_at_its_criterion_and_is_not_trained_again_and_says_so(tmp_path, capsys):
    config = small(tmp_path, criterion=1.1)
    assert experiment.run(config)["iterations"] == 3
    assert "Finished" not in capsys.readouterr().out
    checkpoint = (config.folder / "checkpoint.eprop").read_bytes()
    summary = experiment.run(config)
    assert f"Finished before, at iteration 3 in {config.folder}" in capsys.readouterr().out
    assert summary["reached_criterion"] is True and summary["iterations"] == 3
    assert (config.folder / "checkpoint.eprop").read_bytes() == checkpoint


def test_a_folder_belongs_to_one_configuration(whole):
    config, _ = whole
    with pytest.raises(SystemExit, match=r"learning_rate = 0\.005 there, 0\.1 here.*--run"):
        experiment.run(dataclasses.replace(config, learning_rate=0.1), progress=False)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    message = "iteration 2 gave NaN or infinity: .*loss = .*training.network.layers.0.below.weights"
    with pytest.raises(FloatingPointError, match=message):
        experiment.run(small(tmp_path, learning_rate=1e308), progress=False)


def test_trials_for_the_test_are_never_used_before(tmp_path):
    keys = [
        experiment.key_of(SMALL.seed, purpose)
        for purpose in ("weights", "feedback", "training", "validation", "test", "figure")
    ]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == len(keys)


def test_adaptive_feedback_follows_the_readout(tmp_path):
    config = small(tmp_path, feedback="adaptive", feedback_decay=0.1)
    state = experiment.init(config).training
    before = state.rule.feedback.b - state.network.w_out
    after = after_one_iteration(config)
    np.testing.assert_allclose(after.rule.feedback.b - after.network.w_out, 0.9 * before)


def test_the_network_is_half_adaptive():
    network = experiment.make_network(SMALL, jax.random.key(0))
    assert isinstance(network.cell, eprop.ALIF)
    assert network.cell.beta.value.tolist() == [0.0] * 4 + [SMALL.beta] * 4
    assert network.cell.n_refractory == 5


def test_answers_are_of_the_recall_window_only():
    outputs = jnp.zeros((4, 2, 2)).at[0, :, 0].set(9.0).at[3, 0, 1].set(1.0).at[3, 1, 0].set(1.0)
    mask = jnp.array([False, False, False, True])
    np.testing.assert_array_equal(experiment.answers(outputs, mask), [1, 0])


def test_help_names_every_option_and_the_presets():
    text = help_of("evidence_accumulation")
    assert_options(text, experiment.Config)
    assert "reference" in text and "in ms" in text


def test_the_reference_preset_is_the_official_code():
    reference = experiment.PRESETS["reference"]
    assert (reference.learning_rate, reference.batch_size, reference.criterion) == (5e-3, 64, 0.07)
    assert (reference.schedule, reference.averaging) == ("constant", 0.0)
    assert (reference.validation_batches, reference.test_batches) == (8, 16)
    assert (reference.rate_target_hz, reference.rate_penalty) == (10.0, 1.0)
