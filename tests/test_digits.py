"""The experiment with handwritten digits and its figure, and the digits as spikes."""

import builtins
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from experiments import classification, digit_spikes
from experiments import digits as experiment
from experiments.learners import make_rule
from figures import digits as figure
from figures import finished
from tests.test_experiments import assert_drawn, assert_options, help_of

RESULTS = finished.RESULTS / "digits"
pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    seeds=(0, 3), row_ms=2.0, image_ms=8.0, answer_ms=4.0, n=8, batch_size=13, iterations=5,
    check_every=2,
)  # fmt: skip


def small(folder, **changes):
    return dataclasses.replace(SMALL, results=folder, **changes)


@pytest.fixture
def few(monkeypatch):
    """Sets of 26, 20 and 20 images."""
    split = digit_spikes.load()
    sizes = (26, 20, 20)
    few = [
        digit_spikes.Digits(of.images[:size], of.labels[:size])
        for of, size in zip(split, sizes, strict=True)
    ]
    monkeypatch.setattr(experiment, "load", lambda: digit_spikes.Split(*few))
    return digit_spikes.Split(*few)


class TestSpikes:
    IMAGE = np.zeros((1, 8, 8), np.float32)
    IMAGE[0, 0, 0], IMAGE[0, 0, 5], IMAGE[0, 2, 1], IMAGE[0, 7, 7] = 1.0, 0.5, 0.25, 1 / 16

    def test_rows_follow_each_other(self):
        spikes = np.asarray(digit_spikes.by_rows(self.IMAGE, row_steps=4, answer_steps=3))
        assert spikes.shape == (8 * 4 + 3, 1, 8) and spikes.dtype == bool
        expected = np.zeros((35, 8), bool)
        expected[:4, 0] = True
        expected[[1, 3], 5] = True
        expected[2 * 4 + 3, 1] = True  # and 1/16 of four steps is not one yet
        np.testing.assert_array_equal(spikes[:, 0], expected)

    @pytest.mark.parametrize("row_steps", [1, 8, 10, 16])
    def test_a_pixel_spikes_as_often_as_it_is_bright(self, row_steps):
        images = digit_spikes.load().test.images[:50]
        spikes = np.asarray(digit_spikes.by_rows(images, row_steps, 0))
        counts = spikes.reshape(8, row_steps, 50, 8).sum(1).transpose(1, 0, 2)
        np.testing.assert_array_equal(counts, np.floor(images.astype(np.float64) * row_steps))

    def test_brighter_pixels_spike_earlier(self):
        spikes = np.asarray(digit_spikes.by_latency(self.IMAGE, image_steps=33, answer_steps=7))
        assert spikes.shape == (40, 1, 64) and spikes.dtype == bool
        steps, pixels = np.nonzero(spikes[:, 0])
        assert dict(zip(pixels.tolist(), steps.tolist(), strict=True)) == {
            0: 0, 5: 16, 17: 24, 63: 30
        }  # fmt: skip

    def test_each_pixel_spikes_once_unless_it_is_black(self):
        images = digit_spikes.load().train.images
        spikes = np.asarray(digit_spikes.by_latency(images, 32, 16))
        np.testing.assert_array_equal(spikes.sum(0), images.reshape(-1, 64) > 0)
        assert not spikes[32:].any()


class TestImages:
    def test_sets_have_nothing_in_common(self):
        split = digit_spikes.load()
        assert [len(of.labels) for of in split] == [1300, 137, 360]
        from sklearn.datasets import load_digits

        everything = np.concatenate([of.images for of in split]).reshape(-1, 64)
        known = load_digits().data / 16
        order = [np.lexsort(x.T) for x in (everything, known)]
        np.testing.assert_array_equal(everything[order[0]], known[order[1]])

    def test_digits_have_the_same_share_of_every_set(self):
        for of in digit_spikes.load():
            shares = np.bincount(of.labels, minlength=10) / len(of.labels)
            assert np.all(np.abs(shares - 0.1) < 0.01) and of.images.max() == 1.0

    def test_are_split_the_same_each_time(self):
        jax.tree.map(np.testing.assert_array_equal, digit_spikes.load(), digit_spikes.load())

    def test_say_what_to_install(self, monkeypatch):
        real = builtins.__import__

        def without(name, *rest):
            if name.startswith("sklearn"):
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(SystemExit, match=r"pip install 'eprop\[digits\]'"):
            digit_spikes.load()


@pytest.mark.parametrize(
    "changes",
    [{}, {"encoding": "latency", "feedback": "symmetric"}, {"rule": "bptt"}],
    ids=["random", "latency", "bptt"],
)
def test_every_learner_leaves_whole_results(tmp_path, few, changes):
    config = small(tmp_path, **changes)
    summary = experiment.run(config, progress=False)
    assert summary["learner"] == config.learner and summary["test_images"] == 20
    assert all(0 <= found <= 1 for found in summary["test_accuracy"])
    for seed in config.seeds:
        rows = read_rows(config.folder / f"seed{seed}" / "metrics.jsonl")
        assert ["validation_accuracy" in row for row in rows] == [False, True] * 2 + [False]
        assert all(row["rate_hz"] > 10 for row in rows)
    assert_drawn(figure.draw([config.folder], tmp_path / "figure.png"))


def test_seeds_may_be_added(tmp_path, few, capsys):
    """A finished run goes on with others, as if all had been trained at once."""
    whole = experiment.run(small(tmp_path / "whole"), progress=False)
    alone = experiment.run(small(tmp_path / "added", seeds=(0,)), progress=False)
    added = experiment.run(small(tmp_path / "added"), progress=True)
    assert "Finished before" in capsys.readouterr().out
    timeless = [{k: x for k, x in found.items() if k != "seconds"} for found in (whole, added)]
    assert timeless[0] == timeless[1]
    assert alone["seeds"] == [0] and alone["test_accuracy"] == added["test_accuracy"][:1]
    with pytest.raises(SystemExit, match=r"another configuration \(n = 8 there, 9 here\).*--run"):
        experiment.run(small(tmp_path / "added", n=9), progress=False)


def test_a_run_that_was_refused_leaves_its_folder_free(tmp_path):
    with pytest.raises(ValueError, match="batch_size = 64 does not divide"):
        experiment.run(small(tmp_path, batch_size=64), progress=False)
    assert experiment.run(small(tmp_path, iterations=1), progress=False)["seeds"] == [0, 3]


@pytest.mark.parametrize("name", ["row_ms", "image_ms", "answer_ms"])
def test_times_are_at_least_a_step(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} = 0.4 ms is no step of dt = 1 ms"):
        small(tmp_path, **{name: 0.4})


def train(config, digits, folder=None):
    return classification.train(
        experiment.make_network(config, 0),
        make_rule(
            config.learner, jax.random.normal(classification.key_of(0, "feedback"), (config.n, 10))
        ),
        experiment.make_loss(config),
        experiment.make_optimizer(config),
        experiment.make_batches(config, 0, digits),
        config=config,
        folder=folder,
        progress=False,
    )


def test_the_rule_is_what_differs(few):
    after = {}
    for learner, changes in {
        "random": {},
        "symmetric": {"feedback": "symmetric"},
        "bptt": {"rule": "bptt"},
    }.items():
        config = dataclasses.replace(SMALL, iterations=1, **changes)
        after[learner] = train(config, few.train)[0].network
    assert len({np.asarray(network.w_rec).tobytes() for network in after.values()}) == 3
    for network in after.values():  # the gradient of the readout needs no rule
        np.testing.assert_allclose(network.w_out, after["bptt"].w_out, rtol=1e-9)


@pytest.mark.parametrize("encoding", ["rows", "latency"])
def test_what_is_learned(few, encoding):
    config = dataclasses.replace(
        SMALL, encoding=encoding, feedback="symmetric", n=24, iterations=100, learning_rate=1e-2
    )
    _, rows = train(config, few.train)
    first, last = (np.mean([row["accuracy"] for row in of]) for of in (rows[:4], rows[-4:]))
    assert first < 0.4 and last > 0.8


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, few, monkeypatch):
    whole, torn = small(tmp_path / "whole"), small(tmp_path / "torn")
    expected = experiment.run(whole, progress=False)

    def interrupted(config, seed, digits, make_batches=experiment.make_batches):
        batches = make_batches(config, seed, digits)

        def until(iteration):
            if (seed, iteration) == (3, 4):
                raise KeyboardInterrupt
            return batches(iteration)

        return until

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "make_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(torn, progress=False)
    assert not (torn.folder / "summary.json").exists()
    found = experiment.run(torn, progress=False)
    assert {k: v for k, v in found.items() if k != "seconds"} == {
        k: v for k, v in expected.items() if k != "seconds"
    }
    states = [
        eprop.checkpoints.load(
            config.folder / "seed3" / "checkpoint.eprop",
            eprop.init_training(
                experiment.make_network(config, 3),
                make_rule("random", jnp.ones((8, 10))),
                experiment.make_optimizer(config),
            ),
        )[0]
        for config in (torn, whole)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_an_epoch_shows_each_image_once(few):
    batches = experiment.make_batches(SMALL, 0, few.train)
    epochs = [[np.asarray(batches(i)[1]) for i in pair] for pair in ((1, 2), (3, 4))]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.sort(few.train.labels))
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    spikes, labels = batches(1)
    everything, known = experiment.encode(SMALL, few.train)
    for example, label in zip(spikes.swapaxes(0, 1), labels, strict=True):
        same = np.all(np.asarray(everything) == np.asarray(example)[:, None], axis=(0, 2))
        assert label in np.asarray(known)[same]


def test_batches_that_do_not_fit(few):
    with pytest.raises(ValueError, match=r"batch_size = 12 does not divide the 26 images"):
        experiment.make_batches(dataclasses.replace(SMALL, batch_size=12), 0, few.train)


def test_scores_are_means_of_the_time_to_answer():
    outputs = jnp.zeros((20, 1, 2)).at[15, 0, 0].set(9.0).at[17, 0, 1].set(2.0)
    np.testing.assert_array_equal(experiment.scores(SMALL, outputs), [[0.0, 0.5]])


class TestFigure:
    def test_of_both_encodings(self, tmp_path, few, monkeypatch, capsys):
        results = tmp_path / RESULTS
        for changes in ({}, {"rule": "bptt"}, {"encoding": "latency"}):
            experiment.run(small(results, seeds=(0,), **changes), progress=False)
        monkeypatch.chdir(tmp_path)
        figure.main([])
        assert capsys.readouterr().out.strip() == str(RESULTS / "figure.png")
        assert_drawn(results / "figure.png")

    def test_says_what_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"no finished run.*experiments\.digits"):
            figure.main([])


def test_help_names_every_option():
    text = help_of("digits")
    assert_options(text, experiment.Config)
    assert "latency" in text and "in ms" in text
