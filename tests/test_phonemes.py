"""Phoneme recognition as an experiment: batches, training, baselines, and the figure."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from eprop.files import read_rows
from experiments import phoneme_baselines as baselines
from experiments import phonemes as experiment
from experiments.benchmarks import phoneme_gradient as benchmark
from experiments.speech import batches, learning, settings
from experiments.speech.corpus import Corpus, Sentence, stacked
from figures import fig2_phonemes as figure
from figures import finished
from tests.test_experiments import assert_drawn, assert_options, help_of

RESULTS = finished.RESULTS / "phonemes"
pytestmark = pytest.mark.experiment

N_FEATURES, PHONEMES = 41, ("a", "b", "c", "sil")


def sentences(n, seed):
    """Each phoneme for a few frames, told by features of its own, under noise."""
    rng = np.random.default_rng((seed, n))
    typical = 2 * np.random.default_rng(0).normal(size=(len(PHONEMES), N_FEATURES))

    def sentence(i):
        steps = rng.integers(1, len(PHONEMES), rng.integers(3, 7))
        said = np.cumsum(steps) % len(PHONEMES)  # none twice in a row
        labels = np.repeat(said, rng.integers(2, 5, len(said))).astype(np.int32)
        features = typical[labels] + rng.normal(size=(len(labels), N_FEATURES))
        return Sentence(
            f"{seed}_{i}", features.astype(np.float32), labels, said.astype(np.int32),
            160 * len(labels),
        )  # fmt: skip

    return tuple(sentence(i) for i in range(n))


SETS = {"train": sentences(10, 0), "development": sentences(4, 1), "test": sentences(5, 2)}
CORPUS = Corpus(
    PHONEMES, PHONEMES, np.arange(4, dtype=np.int32), **SETS, settings={"data": "of the tests"}
)


def seen(_data, _features, stack=1):
    """In place of `corpus.load`."""
    parts = {
        name: tuple(stacked(sentence, stack) for sentence in part) for name, part in SETS.items()
    }
    return CORPUS._replace(**parts)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for module in (experiment, baselines):
        monkeypatch.setattr(module, "load", seen)


def small(folder, task="framewise", cell="lsnn", **changes):
    changes = {
        "n_lif": 4, "n_alif": 4, "n_lstm": 5, "repeats": 2, "batch_size": 4, "n_lengths": 1,
        "stack": 1, "epochs": 1, "results": folder, "seeds": (3,),
    } | changes  # fmt: skip
    return dataclasses.replace(settings.preset("default", task, cell), **changes)


TWO_LAYERS = {"layers": 2}


@pytest.mark.parametrize(
    ("task", "cell", "changes"),
    [
        ("framewise", "lsnn", {"seeds": (0, 3), "epochs": 2}),
        ("framewise", "lstm", {"rule": "bptt", "repeats": 1}),
        ("framewise", "lsnn", {"frozen": True, "bidirectional": False}),
        ("ctc", "lsnn", TWO_LAYERS | {"stack": 2, "feedback": "symmetric"}),
        ("ctc", "lstm", TWO_LAYERS | {"feedback": "adaptive", "through_layers": True}),
    ],
    ids=["framewise", "lstm", "frozen", "ctc", "ctc lstm"],
)
def test_every_kind_of_run_leaves_whole_results(tmp_path, task, cell, changes):
    config = small(tmp_path, task, cell, **changes)
    summary = experiment.run(config, progress=False)
    assert summary["learner"] == config.learner and summary["phonemes"] == list(PHONEMES)
    assert all(0 <= error < 3 for error in summary["test_error"])
    for seed, audio in zip(config.seeds, summary["audio_seconds"], strict=True):
        rows = read_rows(config.folder / f"seed{seed}" / "metrics.jsonl")
        assert ["development_error" in row for row in rows] == [False, False, True] * config.epochs
        assert audio == pytest.approx(sum(row["audio_seconds"] for row in rows))
        best = min(row["development_error"] for row in rows if "development_error" in row)
        assert best == pytest.approx(summary["development_error"][config.seeds.index(seed)])
    assert_drawn(figure.draw([config.folder], tmp_path / "figure.png"))


def trained(config):
    """State and metrics after training, without a folder's."""
    batch, per_epoch = batches.make_batches(CORPUS.train, SHAPES, config.batch_size, 0)
    step = jax.jit(learning.make_step(config, 0, per_epoch))
    state, rows = learning.init(config, 0, CORPUS, per_epoch), []
    for iteration in range(1, config.epochs * per_epoch + 1):
        state, info = step(state, batch(iteration))
        rows.append(info)
    return state, rows


SHAPES = batches.shapes_of([*CORPUS.train, *CORPUS.development, *CORPUS.test], 1)


def error(config, state):
    judge = experiment.Judge(config, CORPUS, SHAPES)
    return judge.error(judge.errors(state.recogniser, CORPUS.train))


@pytest.mark.parametrize(
    ("task", "cell"), [("framewise", "lsnn"), ("framewise", "lstm"), ("ctc", "lstm")]
)
def test_what_is_learned(tmp_path, task, cell):
    changes = {"feedback": "symmetric", "learning_rate": 2e-2, "rate_penalty": 0.0}
    sizes = {"n_lif": 12, "n_alif": 12, "n_lstm": 12, "tau_readout": None}
    config = small(tmp_path, task, cell, **changes, **sizes, epochs=30)
    untrained = learning.init(config, 0, CORPUS, 3)
    before, after = error(config, untrained), error(config, trained(config)[0])
    assert after < 0.25 and before > 0.5


def test_the_rule_is_what_differs(tmp_path):
    after = {}
    for changes in ({"feedback": "random"}, {"feedback": "symmetric"}, {"rule": "bptt"}):
        config = small(tmp_path, batch_size=10, **changes)
        after[config.learner] = trained(config)[0].recogniser
    for direction in (0, 1):
        networks = [model.networks[0][direction] for model in after.values()]
        assert len({np.asarray(network.w_rec).tobytes() for network in networks}) == 3
        for network in networks:  # the gradient of the readout needs no rule
            np.testing.assert_allclose(network.w_out, networks[0].w_out, rtol=1e-9)


def test_delays_go_from_neuron_to_neuron(tmp_path):
    for delay, expected in {6: [0, 1, 2, 3, 4, 5, 6, 0], 1: [0, 1] * 4}.items():
        config = small(tmp_path, delay_rec=delay)
        for network in learning.make_network(config, 0, 5, 3).networks[0]:
            np.testing.assert_array_equal(network.layers[0].delays["recurrent"], expected)
    without = learning.make_network(small(tmp_path, delay_rec=0), 0, 5, 3)
    assert without.networks[0][0].layers[0].delays == {}


def test_frozen_networks_stay_as_they_are(tmp_path):
    config = small(tmp_path, frozen=True)
    before, after = learning.init(config, 0, CORPUS, 3).recogniser, trained(config)[0].recogniser
    for x, y in zip(before.networks[0], after.networks[0], strict=True):
        jax.tree.map(np.testing.assert_array_equal, x.layers, y.layers)
        assert np.abs(x.w_out - y.w_out).max() > 1e-3
    assert np.abs(before.bias - after.bias).max() > 1e-3


def test_a_transcription_without_room_is_refused(tmp_path, monkeypatch):
    first, *others = CORPUS.train
    cut = first._replace(features=first.features[:2], labels=first.labels[:2])
    monkeypatch.setattr(experiment, "load", lambda *_: CORPUS._replace(train=(cut, *others)))
    with pytest.raises(ValueError, match=r"sentence 0_0 has 2 frames"):
        experiment.run(small(tmp_path, "ctc"), progress=False)
    assert not any(tmp_path.iterdir())


class TestBatches:
    def test_an_epoch_has_each_sentence(self):
        batch, per_epoch = batches.make_batches(CORPUS.train, SHAPES, 4, seed=0)
        assert per_epoch == 3
        epochs = [[batch(3 * epoch + i) for i in (1, 2, 3)] for epoch in range(2)]
        for epoch in epochs:
            counts = {x.features.tobytes(): 0 for x in CORPUS.train}
            for of in epoch:
                for j, n in enumerate(of.lengths):
                    counts[of.features[:n, j].tobytes()] += 1
            assert sorted(counts.values()) == [1] * 8 + [2] * 2
        assert not np.array_equal(epochs[0][0].features, epochs[1][0].features)

    def test_are_the_same_again(self):
        first, second = (batches.make_batches(CORPUS.train, SHAPES, 4, seed=0)[0] for _ in "ab")
        second(9)
        jax.tree.map(np.testing.assert_array_equal, first(5), second(5))

    def test_have_few_shapes(self):
        many = sentences(60, 5)
        shapes = batches.shapes_of(many, 3)
        batch, per_epoch = batches.make_batches(many, shapes, 4, seed=0)
        found = [batch(i) for i in range(1, 3 * per_epoch + 1)]
        frames = {len(of.labels) for of in found}
        assert frames == set(shapes.frames) and len(frames) == 3
        assert {of.phonemes.shape for of in found} == {(4, shapes.phonemes)}
        padded, heard = sum(of.labels.size for of in found), sum(of.lengths.sum() for of in found)
        assert padded < 1.5 * heard  # sentences of like lengths are together

    def test_hold_what_is_said(self):
        of = batches.batch_of(CORPUS.train[:2], SHAPES)
        for j, sentence in enumerate(CORPUS.train[:2]):
            n, n_phonemes = len(sentence.labels), len(sentence.phonemes)
            assert (of.lengths[j], of.n_phonemes[j]) == (n, n_phonemes)
            np.testing.assert_array_equal(of.features[:n, j], sentence.features)
            np.testing.assert_array_equal(of.labels[:n, j], sentence.labels)
            np.testing.assert_array_equal(of.phonemes[j, :n_phonemes], sentence.phonemes)
            assert not of.features[n:, j].any()

    @pytest.mark.parametrize("size", [0, 11])
    def test_of_a_size_that_there_is_not(self, size):
        with pytest.raises(ValueError, match=rf"batch_size = {size} must be from 1 to 10"):
            batches.make_batches(CORPUS.train, SHAPES, size, seed=0)

    def test_outputs_come_back_in_order(self):
        found = batches.outputs_of(lambda of: of.features, CORPUS.test, SHAPES, 2)
        for x, sentence in zip(found, CORPUS.test, strict=True):
            np.testing.assert_array_equal(x, sentence.features)


class TestSettings:
    def test_presets_go_by_task_and_cell(self):
        read = experiment.read_arguments
        assert read([]) == settings.preset("default", "framewise", "lsnn")
        assert read(["--cell", "lstm", "--epochs", "3"]).repeats == 1
        ctc = read(["reference", "--task", "ctc", "--cell", "lsnn", "--rule", "bptt"])
        assert (ctc.layers, ctc.n_alif, ctc.batch_size, ctc.rule) == (3, 720, 8, "bptt")
        assert ctc.folder.name == "reference_ctc_lsnn_bptt"
        assert (ctc.v_th, ctc.beta, ctc.rate_penalty) == (0.205, 0.0737, 0)
        framewise = read(["reference"])
        assert (framewise.v_th, framewise.beta, framewise.rate_penalty) == (0.205, 0.184, 50)
        assert (framewise.dropout, read([]).dropout, ctc.dropout) == (0, 0.5, 0.3)
        assert (framewise.delay_rec, read([]).delay_rec, ctc.delay_rec) == (0, 6, 0)
        assert (framewise.feedback_decay, ctc.feedback_decay) == (1e-2, 1e-4)
        assert read(["reference", "--layers", "2"]).layers == 2

    @pytest.mark.parametrize(
        ("changes", "iteration", "rate"),
        [
            ({"schedule": "cosine"}, 60, 0.0),
            ({"schedule": "steps"}, 60, 0.1),
            ({"schedule": "steps", "step_every": 20}, 45, 0.1 * 0.3**2),
            ({"schedule": "steps", "ramp": 20}, 10, 0.05),
            ({"schedule": "steps", "ramp": 20}, 40, 0.1),
        ],
    )
    def test_learning_rates(self, tmp_path, changes, iteration, rate):
        config = small(tmp_path, learning_rate=0.1, l2=0.0, **changes)
        optimizer = learning.make_optimizer(config, per_epoch=30)
        state, weight = optimizer.init(np.ones(())), np.ones(())
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(iteration + 1):  # of gradients that stay, Adam's step is the rate
                update, state = optimizer.update(np.ones(()), state, weight)
        assert -update == pytest.approx(rate, rel=1e-4, abs=1e-9)


class TestBaselines:
    def test_errors(self, tmp_path):
        config = baselines.Config(results=tmp_path, context=1)
        found = baselines.run(config)["test_error"]
        majority, alone, around = found.values()
        assert majority > 0.6 and alone < 0.1 and around < 0.2
        assert (config.folder / "summary.json").exists()

    def test_features_that_depend_on_others(self):
        """Differences of frames, beside the frames: their covariance has no inverse."""
        rng = np.random.default_rng(0)
        means = rng.normal(size=(4, 20))

        def sentence(name):
            labels = np.repeat(rng.integers(0, 4, 15), 4).astype(np.int32)
            v = means[labels] + rng.normal(size=(60, 20))
            around = np.pad(v, ((1, 1), (0, 0)), mode="edge")
            features = np.concatenate([v, around[2:] - around[:-2]], axis=1)
            return Sentence(name, features.astype(np.float32), labels, labels[::4], 9600)

        train, test = ([sentence(str(i)) for i in range(20)] for _ in range(2))
        assert baselines.majority_error(train, test) > 0.6
        assert baselines.discriminant_error(train, test, context=3) < 0.01

    def test_context(self):
        found = baselines.with_context(np.arange(4.0)[:, None], 1)
        np.testing.assert_array_equal(found, [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]])

    def test_command(self, tmp_path, capsys):
        baselines.main(["--results", str(tmp_path), "--context", "0"])
        assert capsys.readouterr().out.count("frames are wrong") >= 2


class TestFigure:
    def test_compares_rules_cells_and_tasks(self, tmp_path, monkeypatch, capsys):
        results = tmp_path / RESULTS
        for task, cell, changes in (
            ("framewise", "lsnn", {}),
            ("framewise", "lsnn", {"rule": "bptt"}),
            ("ctc", "lstm", {}),
        ):
            experiment.run(small(results, task, cell, **changes), progress=False)
        monkeypatch.chdir(tmp_path)
        baselines.main([])
        capsys.readouterr()
        figure.main([])
        assert capsys.readouterr().out.strip() == str(RESULTS / "figure.png")
        assert_drawn(results / "figure.png")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("phonemes", experiment.Config),
        ("phoneme_baselines", baselines.Config),
        ("benchmarks.phoneme_gradient", benchmark.Config),
    ],
)
def test_help_names_every_option(name, config):
    assert_options(help_of(name), config)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes = ["--n-lif", "4", "--n-alif", "4", "--epochs", "1", "--batch-size", "10"]
    experiment.main([*changes, "--repeats", "1", "--n-lengths", "1"])
    out = capsys.readouterr().out
    assert "Frames of test sentences that are wrong, lsnn by random, seeds 0: " in out
    assert "s of speech a second" in out
    assert_drawn(RESULTS / "framewise_lsnn_random" / "figure.png")


class TestBenchmark:
    @pytest.mark.parametrize(("task", "cell"), [("framewise", "lsnn"), ("ctc", "lstm")])
    def test_measures_each_rule(self, tmp_path, monkeypatch, capsys, task, cell):
        few = small(tmp_path, task, cell, batch_size=3)
        monkeypatch.setattr(settings, "preset", lambda *_: few)
        arguments = ["--task", task, "--cell", cell, "--frames", "12", "--rounds", "1"]
        assert benchmark.main([*arguments, "--results", str(tmp_path)]) == 0
        assert "epoch of TIMIT" in capsys.readouterr().out
        metrics = json.loads((tmp_path / f"reference_{task}_{cell}" / "metrics.json").read_text())
        assert metrics["batch_size"] == 3 and metrics["rules"]["bptt"]["of_bptt"] == 1
        assert set(metrics["rules"]) == {"bptt", "symmetric", "random"}
        if cell == "lsnn":
            assert metrics["rules"]["random"]["rate_hz"] > 1

    def test_frames_are_stacked_as_the_preset_says(self, tmp_path, monkeypatch):
        few, batches = small(tmp_path, "ctc", "lstm", batch_size=2, stack=3), []
        monkeypatch.setattr(settings, "preset", lambda *_: few)
        monkeypatch.setattr(
            benchmark, "make_gradient", lambda _, batch: lambda: batches.append(batch) or (0, {})
        )
        rows = {"bptt": {"median_seconds": 60.0}}
        monkeypatch.setattr(benchmark, "time_in_turn", lambda *_: rows)
        monkeypatch.setattr(benchmark, "RULES", {"bptt": {}})
        benchmark.measure(benchmark.Config("default", "ctc", "lstm", frames=18))
        (batch,) = batches
        assert batch.features.shape == (6, 2, 3 * 123) and batch.labels.shape == (6, 2)
        assert batch.lengths.tolist() == [6, 6]
        assert rows["bptt"]["epoch_minutes"] == 3696 / 2 * 102 / 6
