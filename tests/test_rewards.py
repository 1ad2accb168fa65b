"""Learning from rewards: every way to the gradient is the direct double sum over decisions."""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import checkpoints, losses
from tests import oracle
from tests.cases import CELLS, Options, make_case
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error

D, B, N_IN = 6, 4, 3
C_V, ENTROPY = 0.7, 0.3


def add_up(gradients, total, part=None):
    return jax.tree.map(jnp.zeros_like, gradients), jax.tree.map(jnp.add, total, gradients)


ADD_UP = optax.GradientTransformation(
    lambda part: jax.tree.map(jnp.zeros_like, part),
    add_up,  # pyright: ignore[reportArgumentType]
)
"""An optimiser that changes nothing: its state is the sum of all gradients."""


class Script(NamedTuple):
    """What is seen and heard, decision by decision, whatever the network does."""

    x: Any
    after: Any
    rewards: Any
    terminated: Any
    truncated: Any
    counts: Any


OVER, CUT, SKIP = "over", "cut", "skip"
ENDS = {
    "none": ({}, {}, {}, {}),
    "inside windows": ({1: OVER}, {2: CUT, 4: OVER}, {0: OVER}, {}),
    "at windows' ends": ({2: OVER}, {2: CUT, 5: CUT}, {5: OVER}, {}),
    "a step to begin anew": ({1: OVER, 2: SKIP}, {2: CUT, 3: SKIP}, {4: CUT, 5: SKIP}, {}),
    "at every decision": tuple({t: (OVER, CUT)[t % 2] for t in range(D)} for _ in range(B)),
}
"""What becomes of each example's episodes after which decision."""


def script_of(ends, steps, seed=0):
    rng = np.random.default_rng(seed)
    is_ = {
        kind: np.array([[ends[b].get(t) == kind for b in range(B)] for t in range(D)])
        for kind in (OVER, CUT, SKIP)
    }
    rewards = np.where(is_[SKIP], np.nan, rng.normal(size=(D, B)))
    x, after = rng.random((2, D, steps, B, N_IN)) < 0.6
    return Script(x, after, rewards, is_[OVER], is_[CUT], ~is_[SKIP])


def case_of(cell="ALIF", **options):
    n_rec = options.pop("n_rec", 5)
    return make_case(
        cell, Options(n_in=N_IN, n_rec=n_rec, n_out=3, n_refractory=1, readout_bias=True, **options)
    )


def play(learner, script, key=1):
    """The last state and the actions."""
    state, actions = learner.init(B, jax.random.key(key)), []
    for t in range(D):
        now = jax.tree.map(lambda x: jnp.asarray(x[t]), script)  # noqa: B023
        state, chosen = learner.act(state, now.x)
        actions.append(chosen)
        state, _ = learner.learn(
            state, now.rewards, now.terminated, now.truncated, after=now.after, counts=now.counts
        )
    return state, np.stack(actions)


def episodes(script):
    """`(example, first decision, last decision)` of each, also of those that don't end."""
    for b in range(B):
        begin = 0
        for t in range(D):
            if not script.counts[t, b]:
                begin = t + 1
            elif script.terminated[t, b] or script.truncated[t, b] or t == D - 1:
                yield b, begin, t
                begin = t + 1


def double_sum(network, b, script, actions, *, discount, critic=True, entropy=ENTROPY):
    """Σ_t δ_t Σ_{t' <= t} γ^(t-t') L_t' ē_t' - c dH, each by autodiff with spikes stopped.

    The δ of an episode's last decision is left out if the episode goes on.
    """
    steps = script.x.shape[1]
    total = jax.tree.map(jnp.zeros_like, network)

    def decided(network, inputs):
        return oracle.respond(network, inputs, b)[1].outputs[steps - 1 :: steps, 0]

    for example, first, last in episodes(script):
        here = slice(first, last + 1)
        inputs = script.x[here, :, example].reshape(-1, 1, N_IN)
        seen = jnp.concatenate([inputs, script.after[last, :, example][:, None]])
        outputs = decided(network, seen)
        y, final = outputs[:-1], outputs[-1, -1]
        n_actions = y.shape[1] - critic
        pi = jax.nn.softmax(y[:, :n_actions])
        a = jax.nn.one_hot(actions[here, example], n_actions)
        rewards = script.rewards[here, example]
        deltas = rewards
        if critic:
            v = np.append(y[:, -1], 0 if script.terminated[last, example] else final)
            deltas = rewards + discount * v[1:] - v[:-1]
            if not (script.terminated[last, example] or script.truncated[last, example]):
                deltas[-1] = 0
        q = pi - a
        if critic:
            q = jnp.concatenate([q, jnp.full((len(q), 1), -C_V)], axis=1)
        h = -jnp.sum(pi * jnp.log(pi), axis=1, keepdims=True)
        direct = entropy * pi * (jnp.log(pi) + h)
        weights = jnp.pad(direct, ((0, 0), (0, int(critic))))
        for t in range(len(deltas)):
            for past in range(t + 1):
                weights = weights.at[past].add(deltas[t] * discount ** (t - past) * q[past])
        _, pullback = eqx.filter_vjp(lambda net: decided(net, inputs), network)  # noqa: B023
        total = jax.tree.map(jnp.add, total, pullback(weights)[0])
    return jax.tree.map(lambda x: x / B, total)


def learner_of(case, rule, *, discount=0.8, **options):
    options = {"value_weight": C_V, "entropy_weight": ENTROPY} | options
    return eprop.RewardLearner(case.network, rule, ADD_UP, discount=discount, **options)


def assert_learns(state, network, inputs, expected):
    assert_alive(network, inputs, expected)
    assert_trees_close(state.optimizer, expected, 1e-12, "gradient of ")


class TestGradient:
    @pytest.mark.parametrize("ends", ENDS)
    @pytest.mark.parametrize("update_every", [1, 2, 3, 6])
    def test_double_sum(self, update_every, ends):
        case, script = case_of(), script_of(ENDS[ends], steps=2)
        rule = eprop.EProp(eprop.RandomFeedback(case.b))
        learner = learner_of(case, rule, steps=2, update_every=update_every)
        state, actions = play(learner, script)
        assert len(np.unique(actions)) == 2
        expected = double_sum(case.network, case.b, script, actions, discount=0.8)
        assert_learns(state, case.network, script.x[:, 0], expected)
        wrong = double_sum(case.network, case.b, script, actions, discount=0.7)
        if ends != "at every decision":
            assert relative_error(wrong.w_rec, expected.w_rec) > 1e-3
