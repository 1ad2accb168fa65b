"""The pole on a cart: Gymnasium's equations, the population code, and the experiment, reduced."""

import dataclasses

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eprop.files import read_rows
from experiments import cartpole as experiment
from figures import cartpole as figure
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    seeds=(0, 3),
    n_tuned=5,
    steps=4,
    n_lif=6,
    n_alif=6,
    v_th=0.3,
    batch_size=4,
    decisions=20,
    iterations=3,
    test_episodes=3,
)


def test_it_is_gymnasiums():
    """Step for step, for random actions, until it is over; in float64, as Gymnasium calculates."""
    theirs = gymnasium.make("CartPole-v1").unwrapped
    mine = experiment.CartPole(code=experiment.make_code(SMALL))
    step, rng, lengths = jax.jit(mine.step), np.random.default_rng(0), []
    for episode in range(5):
        theirs.reset(seed=episode)
        state = (jnp.asarray(theirs.state), jnp.zeros((), jnp.int32))
        while True:
            action = int(rng.integers(2))
            _, reward, terminated, _, _ = theirs.step(action)
            found = step(state, action, jax.random.key(0))
            state = found.state
            np.testing.assert_allclose(state[0], theirs.state, rtol=1e-12, atol=1e-14)
            assert found.reward == reward and found.terminated == terminated
            if terminated:
                break
        lengths.append(int(state[1]))
    assert min(lengths) > 7 and len(set(lengths)) > 1
    assert gymnasium.spec("CartPole-v1").max_episode_steps == experiment.LIMIT


def test_it_is_broken_off_at_the_limit():
    environment = experiment.CartPole(code=experiment.make_code(SMALL))
    upright = jnp.zeros(4)
    for t, cut in [(experiment.LIMIT - 2, False), (experiment.LIMIT - 1, True)]:
        found = environment.step((upright, jnp.asarray(t)), jnp.asarray(1), jax.random.key(0))
        assert found.truncated == cut and not found.terminated


@pytest.mark.parametrize("velocities", [True, False])
def test_the_code_tells_quantities_apart(velocities):
    config = dataclasses.replace(SMALL, velocities=velocities, n_tuned=20, steps=400)
    code = experiment.make_code(config)
    assert code.n_in == (80 if velocities else 40)

    def rates(*observation):
        return code(jnp.asarray(observation), jax.random.key(0)).mean(0)

    upright = rates(0.0, 0.0, 0.0, 0.0)
    assert 0.4 < upright.max() < 0.6 and upright.min() == 0
    assert np.abs(rates(0.0, 0.0, 0.05, 0.0) - upright).max() > 0.2
    moved = np.abs(rates(0.0, 1.0, 0.0, -1.0) - upright).max()
    assert moved > 0.2 if velocities else moved == 0


RUNS = {
    "all_random": {},
    "all_symmetric": {"feedback": "symmetric"},
    "positions_random": {"velocities": False},
}


def test_runs_leave_whole_results(tmp_path):
    folders = []
    for name, changes in RUNS.items():
        config = dataclasses.replace(SMALL, results=tmp_path, **changes)
        summary = experiment.run(config, progress=False)
        assert config.folder.name == name and summary["seeds"] == [0, 3]
        for found in (*summary["test_decisions"], *summary["greedy_decisions"]):
            assert 8 <= found <= 500
        for seed in config.seeds:
            rows = read_rows(config.folder / f"seed{seed}" / "metrics.jsonl")
            assert [row["iteration"] for row in rows] == [1, 2, 3]
            assert all(row["entropy"] > 0.1 and row["rate_hz"] > 1 for row in rows)
            assert sum(row["episodes"] for row in rows) > 0
        with np.load(config.folder / "trial.npz") as trial:
            assert trial["spikes"].any() and len(set(trial["actions"].tolist())) <= 2
        folders.append(config.folder)
    assert_drawn(figure.draw(folders, tmp_path / "all.png"))
    assert_drawn(figure.draw(folders[-1:], tmp_path / "one.png"))


def test_greedy_actions_are_the_more_probable_ones():
    """Drawn from a policy of as good as one half each, actions are of both kinds."""
    network = experiment.make_learner(SMALL, 0).network
    network = eqx.tree_at(lambda net: net.w_out, network, network.w_out * 1e-6)
    tests = [experiment.test(SMALL, network, 0, greedy=greedy) for greedy in (False, True)]
    for course, greedy in zip([course for _, course in tests], (False, True), strict=True):
        likely = course["outputs"][:, -1, :-1].argmax(-1)
        assert course["spikes"].any() and (course["actions"] == likely).all() == greedy


def test_help():
    assert_options(help_of("cartpole"), experiment.Config)
