"""MinAtar's Breakout: pgx's game as an environment, scores, and the experiment, reduced."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eprop import environments
from eprop.files import read_rows
from experiments import breakout as experiment
from figures import breakout as figure
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    seeds=(0, 3),
    steps=3,
    n_lif=4,
    n_alif=4,
    v_th=0.3,
    batch_size=3,
    limit=50,
    decisions=20,
    iterations=2,
    test_games=3,
)


def test_what_is_seen_is_the_screen():
    environment = experiment.make_environment(SMALL)
    (game, t), x = environment.reset(jax.random.key(0))
    assert x.shape == (3, 400) and x.dtype == bool and t == 0
    screen = np.asarray(x[0]).reshape(10, 10, 4)
    paddle, ball, bricks = screen[..., 0], screen[..., 1], screen[..., 3]
    assert paddle.sum() == 1 and ball.sum() == 1
    assert bricks.sum() == 30 and bricks[1:4].all()
    np.testing.assert_array_equal(x, np.broadcast_to(game.observation.reshape(-1), (3, 400)))


def test_actions_move_the_paddle_and_the_limit_breaks_off():
    environment = experiment.make_environment(SMALL)
    step = jax.jit(environment.step)

    def paddle(action, key):
        state, _ = environment.reset(jax.random.key(0))
        for _ in range(3):
            found = step(state, jnp.asarray(action, jnp.int32), key)
            state = found.state
        return int(np.argmax(found.x[0].reshape(10, 10, 4)[9, :, 0]))

    stay, left, right = (paddle(action, jax.random.key(1)) for action in range(3))
    assert left < stay < right
    state, _ = environment.reset(jax.random.key(0))
    for t, cut in [(SMALL.limit - 2, False), (SMALL.limit - 1, True)]:
        later = (state[0], jnp.asarray(t, jnp.int32))
        assert step(later, jnp.asarray(0, jnp.int32), jax.random.key(0)).truncated == cut


def test_score_is_of_games_that_ended():
    rewards = np.array([[1, 5], [2, 0], [3, 0], [9, 0]])
    ended = np.array([[0, 0], [1, 0], [1, 0], [0, 0]])
    assert experiment.score(np.stack([rewards, ended])) == 3.0
    assert experiment.score(np.stack([rewards, 0 * ended])) == 0.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    configs = [
        dataclasses.replace(SMALL, results=results, learner=learner)
        for learner in ("random", "symmetric", "frozen")
    ]
    return [(config, experiment.run(config, progress=False)) for config in configs]


def test_runs_leave_whole_results(runs, tmp_path):
    for config, summary in runs:
        assert config.folder.name == config.learner == summary["learner"]
        assert all(games > 3 for games in summary["test_games"] + summary["training_games"])
        assert 0 < np.mean(summary["random_policy"]) < 2
        for seed in config.seeds:
            rows = read_rows(config.folder / f"seed{seed}" / "metrics.jsonl")
            assert [row["iteration"] for row in rows] == [1, 2]
            assert all(row["entropy"] > 0.5 and row["rate_hz"] > 1 for row in rows)
        with np.load(config.folder / "trial.npz") as trial:
            assert trial["spikes"].any() and trial["screens"].any()
    folders = [config.folder for config, _ in runs]
    assert_drawn(figure.draw(folders, tmp_path / "all.png"))
    assert_drawn(figure.draw(folders[-1:], tmp_path / "one.png"))


@pytest.mark.parametrize("limit", [4, 30])
def test_a_short_game_is_drawn_as_long_as_it_is(limit, runs, tmp_path):
    folder = shutil.copytree(runs[0][0].folder, tmp_path / "short")
    with np.load(folder / "trial.npz") as trial:
        np.savez(folder / "trial.npz", **{name: x[:limit] for name, x in trial.items()})
    assert_drawn(figure.draw([folder], tmp_path / "figure.png"))


def test_frozen_is_frozen():
    for learner, changes in [("random", True), ("frozen", False)]:
        config = dataclasses.replace(SMALL, learner=learner)
        learner, environment = (
            experiment.make_learner(config, 0),
            experiment.make_environment(config),
        )
        situation = environments.reset(environment, 3, jax.random.key(0))
        state, _, _ = learner.rollout(learner.init(3), environment, situation, 5)
        before, after = learner.network.layers[0], state.network.layers[0]
        assert np.array_equal(before.below.weights, after.below.weights) != changes
        assert np.array_equal(before.recurrent.weights, after.recurrent.weights) != changes
        assert not np.array_equal(learner.network.w_out, state.network.w_out)


def test_help():
    assert_options(help_of("breakout"), experiment.Config)
