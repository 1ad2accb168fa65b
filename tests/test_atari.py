"""Atari: the network's shapes, and the experiment on a few decisions, interrupted in between."""

import dataclasses

import numpy as np
import pytest

from eprop import checkpoints
from experiments import atari as experiment
from figures import atari as figure
from figures import plotting
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    channels=(4, 3), n_lif=4, n_alif=4, v_th=0.1, batch_size=2, update_every=2, decisions=4,
    save_every=2, compared=1,
)  # fmt: skip


def test_the_network_is_the_papers():
    network = experiment.make_network(experiment.PRESETS["reference"])
    first, second, recurrent = network.layers
    assert (first.n, second.n, recurrent.n) == (20 * 20 * 16, 17 * 17 * 8, 400)
    assert network.n_in == 84 * 84 and network.n_out == 4
    assert first.recurrent is None and second.recurrent is None


def test_what_is_seen_is_the_last_image():
    games = experiment.make_games(SMALL)
    images = games.reset(seed=0)
    assert images.shape == (2, 1, 84, 84) and images.dtype == np.uint8
    kept = experiment.seen(dataclasses.replace(SMALL, background="kept"), images)
    assert kept.shape == (5, 2, 84 * 84) and kept.dtype == float
    np.testing.assert_allclose(kept[3].reshape(2, 1, 84, 84) * 255, images, rtol=1e-6)
    removed = experiment.seen(SMALL, images)
    np.testing.assert_allclose(np.ptp(kept[3] - removed[3], axis=1), 0, atol=1e-6)
    assert np.mean(kept == 0) < 0.1 and np.mean(removed == 0) > 0.7


@pytest.mark.parametrize("learner", ["random", "frozen"])
def test_a_run_that_is_interrupted_goes_on(learner, tmp_path):
    config = dataclasses.replace(SMALL, results=tmp_path, learner=learner)
    start = experiment.make_learner(config).network
    experiment.run(dataclasses.replace(config, decisions=2), progress=False)
    path = config.folder / "checkpoint.eprop"
    assert checkpoints.read_header(path)["metadata"]["episodes"] == []
    summary = experiment.run(config, progress=False)
    assert summary["frames"] == 4 * 2 * 4 and summary["rate_hz"] > 1
    assert 0 < summary["share_of_emulator"] < 1
    assert len(summary["scores_at_random"]) == 2 and set(summary["first_scores"]) == set()
    assert all(-21 <= score < -10 for score in summary["scores_at_random"])
    state, _ = experiment.load(path, experiment.make_learner(config).init(2, dtype=float))
    assert int(state.n_decisions) == 4
    for layer, before in zip(state.network.layers, start.layers, strict=True):
        changed = not np.array_equal(layer.below.weights, before.below.weights)
        assert changed == (learner == "random")
    assert not np.array_equal(state.network.w_out, start.w_out)
    with pytest.raises(SystemExit, match=r"another configuration \(learning_rate = 0.001 there"):
        experiment.run(dataclasses.replace(config, learning_rate=0.1), progress=False)


def finished_run(config):
    """The folder of a run that was never played."""
    folder = experiment.RunFolder(config.folder, config)
    scores = np.random.default_rng(0).integers(-21, 5, 60)
    folder.write_json("summary", {"scores_at_random": [-21.0, -20.0]})
    folder.write_json("episodes", [[1000 * i, float(x)] for i, x in enumerate(scores)])
    return config.folder


def test_a_game_at_random_is_asked_for():
    with pytest.raises(ValueError, match=r"compared = 0: .* at least 1"):
        dataclasses.replace(SMALL, compared=0)


def test_runs_are_told_apart(tmp_path, monkeypatch):
    """Those of one rule and seed by their folders, and by their lines."""
    changes = [{}, {"learner": "frozen"}, {"game": "fishing_derby"}]
    configs = [dataclasses.replace(experiment.PRESETS["default"], **x) for x in changes]
    configs.insert(1, experiment.PRESETS["reference"])
    folders = [finished_run(dataclasses.replace(x, results=tmp_path)) for x in configs]
    drawn = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: drawn.append(figure))
    figure.draw(folders, tmp_path / "figure.png")
    of_derby, of_pong = (
        [line for line in axes.lines if line.get_label().count("seed")] for axes in drawn[0].axes
    )
    labels = ["pong_random_seed0", "reference_pong_random_seed0", "only readouts, seed 0"]
    assert [line.get_label() for line in of_pong] == labels
    assert [line.get_label() for line in of_derby] == ["e-prop, random, seed 0"]
    assert len({line.get_color() for line in of_pong}) == 3
    assert of_pong[0].get_color() == of_derby[0].get_color() == plotting.COLOURS["random"]


def test_the_figure(tmp_path):
    folders = [
        finished_run(dataclasses.replace(SMALL, results=tmp_path, learner=learner))
        for learner in ("random", "frozen")
    ]
    assert_drawn(figure.draw(folders, tmp_path / "figure.png"))
    np.testing.assert_allclose(figure._averaged(np.arange(30.0))[[0, 2, 29]], [0, 1, 19.5])


def test_help():
    assert_options(help_of("atari"), experiment.Config)
