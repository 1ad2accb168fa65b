"""The experiment with recordings of events, reduced: made-up ones, and files of each kind."""

import dataclasses

import numpy as np
import pytest

from eprop.files import read_rows
from experiments import heidelberg_digits as experiment
from experiments.events import Events, Recordings
from experiments.spoken_digits import made_up
from figures import heidelberg_digits as figure
from tests.test_events import entry, moving, spoken
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    n=8, dt=20.0, lengths=(20, 40), answer_ms=60.0, batch_size=6, iterations=5, check_every=2
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "made_up", lambda n, seed: made_up(min(n, 30), seed))

    def small(folder=tmp_path / "results", **changes):
        return dataclasses.replace(SMALL, results=folder, **changes)

    return small


def heidelberg(folder):
    """A folder with files like SHD's, of 20 and of 10 recordings."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("test", 10)):
        times = [np.sort(rng.uniform(0, 0.5, 40)) for _ in range(n)]
        units = [rng.integers(0, 700, 40) for _ in range(n)]
        spoken(folder / f"shd_{part}.h5", times, units, np.arange(n) % 20)
    return folder


def n_mnist(folder):
    for part, n in (("Train", 20), ("Test", 10)):
        recordings = [
            (i % 10, [entry(i, k, k % 2, 10000 * k) for k in range(20)]) for i in range(n)
        ]
        moving(folder / part, recordings)
    return folder


@pytest.mark.parametrize("source", [None, heidelberg, n_mnist])
def test_every_source_leaves_whole_results(tmp_path, small, source):
    few_spikes = {"data": source(tmp_path / "data"), "v_th": 0.02} if source else {}
    config = small(seeds=(0, 3), **few_spikes)
    summary = experiment.run(config, progress=False)
    assert summary["test_recordings"] == (10 if source else 30)
    assert len(summary["test_accuracy"]) == 2
    assert all(0 <= found <= 1 for found in summary["test_accuracy"])
    rows = read_rows(config.folder / "seed3" / "metrics.jsonl")
    assert ["validation_accuracy" in row for row in rows] == [False, True] * 2 + [False]
    assert all(row["rate_hz"] > 1 for row in rows)
    assert_drawn(figure.draw([config.folder], tmp_path / "figure.png"))


@pytest.mark.parametrize("changes", [{"feedback": "symmetric"}, {"rule": "bptt"}])
def test_what_is_learned(small, changes):
    config = small(n=40, iterations=60, learning_rate=1e-2, **changes)
    experiment.run(config, progress=False)
    rows = read_rows(config.folder / "seed0" / "metrics.jsonl")
    first, last = (np.mean([row["accuracy"] for row in of]) for of in (rows[:4], rows[-4:]))
    assert first < 0.4 and last > 0.8


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, small, monkeypatch):
    whole, torn = small(tmp_path / "whole"), small(tmp_path / "torn")
    expected = experiment.run(whole, progress=False)

    def interrupted(config, seed, split, make_batches=experiment.make_batches):
        batches = make_batches(config, seed, split)

        def until(iteration):
            if iteration == 4:
                raise KeyboardInterrupt
            return batches(iteration)

        return until

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "make_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(torn, progress=False)
    found = experiment.run(torn, progress=False)
    assert found | {"seconds": 0} == expected | {"seconds": 0}


def test_only_readouts_learn_where_the_rest_is_frozen(small, monkeypatch):
    config, networks = small(frozen=True), []
    record_trial = experiment.record_trial

    def recorded(config, network, split):
        networks.append(network)
        return record_trial(config, network, split)

    monkeypatch.setattr(experiment, "record_trial", recorded)
    experiment.run(config, progress=False)
    experiment.run(small(feedback="symmetric"), progress=False)
    at_first = experiment.make_network(config, 0, 64, 10)
    for name in ("w_in", "w_rec"):
        drawn, frozen, learned = (getattr(x, name) for x in (at_first, *networks))
        np.testing.assert_array_equal(frozen, drawn)
        assert np.abs(learned - drawn).max() > 1e-3
    assert np.abs(networks[0].w_out - at_first.w_out).max() > 1e-3


def test_an_epoch_shows_each_recording_once(small):
    config = small(batch_size=9)
    split = experiment.open_data(config)
    assert not set(split.learned) & set(split.validation)
    batches = experiment.make_batches(config, 0, split)
    epoch = [batches(i) for i in (1, 2, 3)]
    labels = np.concatenate([labels for _, (labels, _) in epoch])
    np.testing.assert_array_equal(np.sort(labels), np.sort(split.train.labels[split.learned]))
    again = batches(1)
    np.testing.assert_array_equal(again[0], epoch[0][0])
    assert {inputs.shape[1:] for inputs, _ in epoch} == {(9, 64)}


FOUR = Recordings(
    # After 0, 10, ... ms in channels 0, 1, 0, ..., so many events as the recording's number + 1.
    lambda i: Events(10.0 * np.arange(i + 1), np.arange(i + 1) % 2),
    labels=np.array([2, 0, 1, 2]),
    n_features=2,
    n_classes=3,
)


def test_the_last_batch_is_filled_to_one_size():
    config = dataclasses.replace(SMALL, batch_size=2, dt=10.0)
    found = list(experiment.read_all(config, FOUR, np.array([3, 0, 1])))
    assert [batch.labels.tolist() for batch in found] == [[2, 2], [0, 0]]
    assert [batch.mask.sum(0).tolist() for batch in found] == [[4, 1], [2, 2]]
    assert [batch.n for batch in found] == [2, 1]


def test_spikes_are_counted_in_parts_of_each_recording_s_own_length():
    config = dataclasses.replace(SMALL, batch_size=3, dt=10.0)
    chosen = np.array([3, 0, 1, 2])
    counts, labels = experiment.count_spikes(config, FOUR, chosen, n_parts=1)
    np.testing.assert_array_equal(counts, [[2, 2], [1, 0], [1, 1], [2, 1]])
    np.testing.assert_array_equal(labels, [2, 2, 0, 1])
    counts, _ = experiment.count_spikes(config, FOUR, chosen, n_parts=2)
    by_half = [[1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 1], [1, 0, 1, 1]]
    np.testing.assert_array_equal(counts, by_half)


def test_the_order_of_sounds_is_not_in_spike_counts(small):
    """With 300 recordings to learn from; each digit has the sounds of another one."""
    train, test = made_up(300, 0), made_up(100, 1)
    split = experiment.Split(train, test, np.arange(300), np.arange(0))
    config = small(dt=4.0, lengths=(150, 350), batch_size=50)
    by_counts, by_tenths = (experiment.counts_alone(config, split, n) for n in (1, 10))
    assert by_counts < 0.5 < 0.6 < by_tenths


def test_scores_are_means_of_the_time_to_answer():
    config = dataclasses.replace(SMALL, answer_ms=40.0)
    mask = np.arange(5)[:, None] < np.array([5, 1])
    outputs = np.zeros((5, 2, 2), np.float64)
    outputs[3, 0, 1], outputs[2, 0, 0], outputs[0, 1, 0], outputs[1, 1, 1] = 4.0, 9.0, 3.0, 9.0
    found = experiment.scores(config, np.asarray(outputs), np.asarray(mask))
    np.testing.assert_allclose(found, [[0.0, 2.0], [3.0, 0.0]])


class TestErrors:
    def test_a_folder_without_files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"one \*_train\.h5 is needed in .*zenkelab"):
            experiment.main(["--data", str(tmp_path)])

    def test_too_few_recordings(self, small):
        with pytest.raises(ValueError, match="batch_size = 40, but there are 27 recordings"):
            experiment.open_data(small(batch_size=40))


def test_help_names_every_option():
    text = help_of("heidelberg_digits")
    assert_options(text, experiment.Config)
    assert "SHD" in text and "in ms" in text
