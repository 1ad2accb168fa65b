"""Gymnasium's vector environments: whichever way they begin anew, the same episodes come of it."""

import gymnasium
import numpy as np
import optax
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import eprop
from eprop.environments import GymnasiumEnvironments
from tests.cases import Options, make_case, slow_but

MODES = list(AutoresetMode)
LENGTHS = (3, 1, 4)
"""Decisions of an episode, of each of three environments."""


class Counter(gymnasium.Env):
    """It shows the number of the episode and of the step; ends after `length` steps.

    Episodes end by turns: the first is over, the second is cut, and so on.
    """

    observation_space = gymnasium.spaces.Box(-1, 1000, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, length):
        self.length, self.episode = length, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observation, {}

    def step(self, action):
        assert self.t < self.length, "stepped after its end"
        self.t += 1
        ended, even = self.t == self.length, self.episode % 2 == 0
        return self.observation, 10.0 * action + self.t, ended and even, ended and not even, {}

    @property
    def observation(self):
        return np.array([self.episode, self.t], np.float32)


def vector_of(mode):
    makers = [lambda length=length: Counter(length) for length in LENGTHS]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def played(mode, n_steps=16):
    """What each went through: `(seen, action, reward, terminated, truncated, after)`."""
    environments, rng = GymnasiumEnvironments(vector_of(mode)), np.random.default_rng(0)
    assert (environments.batch, environments.n_actions) == (3, 3)
    seen, went_through = environments.reset(seed=0), [[], [], []]
    queues = rng.integers(0, 3, (3, n_steps)).tolist()
    for _ in range(n_steps):
        actions = np.array([queue[0] for queue in queues])
        step = environments.step(actions)
        for b in np.flatnonzero(step.counts):
            queues[b].append(queues[b].pop(0))
            went_through[b].append(
                (*seen[b].tolist(), actions[b], step.rewards[b], step.terminated[b],
                 step.truncated[b], *step.after[b].tolist())
            )  # fmt: skip
        seen = step.observations
    return went_through


def expected(b, n_steps):
    """By the definition of `Counter`."""
    for i in range(n_steps):
        episode, t = divmod(i, LENGTHS[b])
        ended = t == LENGTHS[b] - 1
        yield episode, t, ended and episode % 2 == 0, ended and episode % 2 == 1


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_episodes(mode):
    for b, steps in enumerate(played(mode)):
        skipped = 0 if mode != AutoresetMode.NEXT_STEP else 16 // (LENGTHS[b] + 1)
        assert len(steps) == 16 - skipped
        for step, (episode, t, over, cut) in zip(steps, expected(b, len(steps)), strict=True):
            *seen, action, reward, terminated, truncated, _, _ = step
            assert seen == [episode, t] and reward == 10 * action + t + 1
            assert (terminated, truncated) == (over, cut)
            assert list(step[-2:]) == [episode, t + 1]


@pytest.mark.parametrize("name", slow_but(["sync"], ["sync", "vector_entry_point"]))
def test_cartpole_is_played_and_learned(name):
    """A loop as the documentation has it; the state goes on where environments begin anew."""
    case = make_case("ALIF", Options(n_in=4, n_out=3))
    environments = GymnasiumEnvironments(
        gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode=name)
    )
    learner = eprop.RewardLearner(
        case.network, eprop.EProp(), optax.sgd(1e-3), discount=0.9, steps=2, update_every=3
    )
    state, seen, ended = learner.init(3, dtype=float), environments.reset(seed=1), 0
    for _ in range(40):
        x = np.broadcast_to(seen.astype(float), (2, 3, 4))
        state, actions = learner.act(state, x)
        step = environments.step(actions)
        after = np.broadcast_to(step.after.astype(float), (2, 3, 4))
        state, _ = learner.learn(
            state, step.rewards, step.terminated, step.truncated, after=after, counts=step.counts
        )
        fresh = np.asarray(state.outcomes.at_rest_after[(state.n_recorded - 1) % 3])
        np.testing.assert_array_equal(fresh, step.terminated | step.truncated | ~step.counts)
        assert not np.asarray(state.neurons.outputs)[fresh].any()
        seen, ended = step.observations, ended + step.terminated.sum()
    assert ended > 1
    assert np.abs(state.network.w_in - case.network.w_in).max() > 1e-6
