"""Bad input where one learns from rewards: each a clear error, after which all is as it was."""

import functools
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium.vector import AutoresetMode

import eprop
from eprop import losses
from eprop.environments import GymnasiumEnvironments, Transition
from tests.cases import Options, make_case
from tests.errors import assert_raises, check

pytestmark = pytest.mark.usefixtures("as_a_user_has_it")

B, N_IN, STEPS = 2, 3, 2
CASE = make_case("ALIF", Options(n_out=3, batch=B))
RANDOM = eprop.EProp(eprop.RandomFeedback(CASE.b))
X = np.ones((STEPS, B, N_IN), bool)
NO, REWARDS = np.zeros(B, bool), np.ones(B)
NAN = np.array([0.0, np.nan])


def learner_of(network=CASE.network, rule=RANDOM, optimizer=None, **changes):
    optimizer = optax.sgd(1e-3) if optimizer is None else optimizer
    options = {"discount": 0.9, "steps": STEPS, "update_every": 2} | changes
    return eprop.RewardLearner(network, rule, optimizer, **options)


@functools.cache
def acted():
    learner = learner_of()
    return learner, learner.act(learner.init(B), X)[0]


trained_cell = eprop.ALIF(6, tau_a=jnp.full(6, 100.0))


def with_trained_constants():
    return eprop.Network(trained_cell, n_in=3, n_out=3, key=jax.random.key(0))


@check(
    {
        "network": ({"network": 3}, TypeError, ["Network"]),
        "rule": ({"rule": eprop.BPTT()}, TypeError, ["EProp"]),
        "optimizer": ({"optimizer": 0.1}, TypeError, ["optax.adam"]),
        "discount": ({"discount": 1.5}, ValueError, ["discount = 1.5", "from 0 to 1"]),
        "negative discount": ({"discount": -0.1}, ValueError, ["discount = -0.1"]),
        "discount NaN": ({"discount": np.nan}, ValueError, ["discount = nan"]),
        "steps": ({"steps": 0}, ValueError, ["steps = 0"]),
        "update_every": ({"update_every": 2.5}, ValueError, ["update_every = 2.5"]),
        "value_weight": ({"value_weight": -1.0}, ValueError, ["value_weight = -1.0"]),
        "entropy_weight": ({"entropy_weight": np.inf}, ValueError, ["entropy_weight = inf"]),
        "rate_penalty": ({"rate_penalty": 3.0}, TypeError, ["RatePenalty("]),
        "window": ({"rule": eprop.EProp(window=4)}, ValueError, ["window = 4", "update_every"]),
        "feedback": (
            {"rule": eprop.EProp(eprop.RandomFeedback(np.ones((6, 2))))},
            ValueError,
            ["(6, 2)", "(6, 3)"],
        ),
        "no action": (
            {"network": make_case("ALIF", Options(n_out=1)).network, "rule": eprop.EProp()},
            ValueError,
            ["n_out = 1", "value"],
        ),
    }
)
def test_learner(given, error, parts):
    assert_raises(lambda: learner_of(**given), error, parts)


def test_trained_constants():
    network = with_trained_constants()
    assert_raises(lambda: learner_of(network), ValueError, ["constants", "losses.actor_critic"])
    only_weights = jax.tree.map(lambda x: x is network.w_rec, network)
    learner_of(network, trainable=only_weights)


@check(
    {
        "state": ({"state": 3}, TypeError, ["learner.init"]),
        "another network": (
            {"state": learner_of(make_case("ALIF", Options(n_rec=5, n_out=3)).network,
                                 eprop.EProp()).init(B)},
            ValueError,
            ["another learner", "network"],
        ),
        "another feedback": (
            {"state": learner_of(rule=eprop.EProp()).init(B)}, ValueError, ["feedback"]
        ),
        "another update_every": (
            {"state": learner_of(update_every=3).init(B)}, ValueError, ["update_every = 3"]
        ),
        "another steps": (
            {"state": learner_of(steps=3).init(B)}, ValueError, ["steps = 3", "steps = 2"]
        ),
        "another penalty": (
            {"state": learner_of(rate_penalty=eprop.RatePenalty()).init(B)},
            ValueError,
            ["a rate penalty", "no rate penalty"],
        ),
        "no time": ({"x": X[0]}, ValueError, ["x has shape (2, 3)"]),
        "steps": ({"x": X[:1]}, ValueError, ["(1, 2, 3)", "(2, 2, 3)"]),
        "batch": ({"x": np.ones((2, 3, 3), bool)}, ValueError, ["(2, 3, 3)"]),
        "inputs": ({"x": np.ones((2, 2, 4), bool)}, ValueError, ["4 features"]),
        "dtype": ({"x": X.astype(float)}, TypeError, ["dtype float64", "dtype=jnp.float64"]),
    }
)  # fmt: skip
def test_act(given, error, parts):
    learner = learner_of()
    options = {"state": learner.init(B), "x": X} | given
    assert_raises(lambda: learner.act(**options), error, parts)


def test_act_with_nan():
    learner, x = learner_of(), X.astype(float)
    x[0, 1, 2] = np.nan
    state = learner.init(B, dtype=float)
    assert_raises(lambda: learner.act(state, x), ValueError, ["x of shape", "NaN"])


def test_out_of_turn():
    learner, state = acted()
    assert_raises(lambda: learner.act(state, X), ValueError, ["act was called twice"])
    fresh = learner.init(B)
    assert_raises(
        lambda: learner.learn(fresh, REWARDS, NO, NO), ValueError, ["learn comes after act"]
    )


@check(
    {
        "rewards NaN": ({"rewards": NAN}, ValueError, ["rewards of shape (2,)", "NaN"]),
        "rewards' shape": ({"rewards": np.ones((B, 1))}, ValueError, ["rewards have shape (2, 1)"]),
        "rewards complex": ({"rewards": np.ones(B) * 1j}, TypeError, ["complex"]),
        "terminated": ({"terminated": np.zeros(B)}, ValueError, ["terminated", "float64"]),
        "truncated": ({"truncated": NO[:1]}, ValueError, ["truncated has shape (1,)"]),
        "counts": ({"counts": np.ones(3, bool)}, ValueError, ["counts has shape (3,)"]),
        "after": ({"truncated": ~NO}, ValueError, ["after=x"]),
        "after's shape": ({"after": X[:1]}, ValueError, ["after has shape (1, 2, 3)"]),
    }
)
def test_learn(given, error, parts):
    learner, state = acted()
    before = [np.asarray(x) for x in jax.tree.leaves(state.network)]
    options = {"rewards": REWARDS, "terminated": NO, "truncated": NO} | given
    assert_raises(lambda: learner.learn(state, **options), error, parts)
    for x, y in zip(before, jax.tree.leaves(state.network), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_is_traced():
    """Under `jit` NaN and missing values are errors where they are used."""
    learner, state = acted()

    @eqx.filter_jit
    def learn(rewards, truncated):
        return learner.learn(state, rewards, NO, truncated)[0].outcomes

    learn(REWARDS, NO)
    for given, words in [((NAN, NO), "NaN"), ((REWARDS, ~NO), "after=x")]:
        with pytest.raises(RuntimeError, match=words):
            learn(*given)


def test_out_of_turn_where_traced():
    learner, state = acted()
    after, _ = learner.learn(state, REWARDS, NO, NO)

    @eqx.filter_jit
    def act(state):
        return learner.act(state, X)[1]

    @eqx.filter_jit
    def learn(state):
        return learner.learn(state, REWARDS, NO, NO)[0].outcomes

    act(after)
    learn(state)
    for step, wrong, words in [(act, state, "act was called twice"), (learn, after, "comes after")]:
        with pytest.raises(RuntimeError, match=words):
            step(wrong)


def test_optimizers_that_go_by_the_loss():
    """There is none, so they say what they miss."""
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    for optimizer in (plateau, optax.polyak_sgd()):
        learner = learner_of(optimizer=optimizer, update_every=1)
        state, _ = learner.act(learner.init(B), X)
        assert_raises(lambda: learner.learn(state, REWARDS, NO, NO), TypeError, ["'value'"])  # noqa: B023


def test_weights_that_are_no_numbers():
    learner = learner_of(optimizer=optax.sgd(np.inf), update_every=1)
    state, _ = learner.act(learner.init(B), X)
    assert_raises(
        lambda: learner.learn(state, REWARDS, NO, NO), FloatingPointError, ["network", "decision 1"]
    )


class Lamp(eprop.environments.AbstractEnvironment):
    """It is off."""

    reward: Any = 0.0
    n_in: int = N_IN
    n_actions: int = 2
    further_n_in: int = N_IN
    later: Any = 0.0

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros((STEPS, self.n_in), bool)

    def step(self, state, action, key):
        no = jnp.zeros((), bool)
        x = jnp.zeros((STEPS, self.further_n_in), bool)
        return Transition(state + self.later, x, jnp.asarray(self.reward), no, no)


def test_rollout():
    learner = learner_of()
    state, situation = learner.init(B), eprop.environments.reset(Lamp(), B, jax.random.key(0))
    learner.rollout(state, Lamp(), situation, 3)
    wide = eprop.environments.reset(Lamp(n_in=4), B, jax.random.key(0))
    many = eprop.environments.reset(Lamp(), 5, jax.random.key(0))
    for given, error, parts in [
        ((state, 3, situation, 3), TypeError, ["AbstractEnvironment"]),
        ((state, Lamp(), 3, 3), TypeError, ["Situation"]),
        ((state, Lamp(), situation, 0), ValueError, ["n_decisions = 0"]),
        ((state, Lamp(n_in=4), wide, 3), ValueError, ["4 features"]),
        ((state, Lamp(), many, 3), ValueError, ["(2, 5, 3)"]),
        ((state, Lamp(np.nan), situation, 3), ValueError, ["environment's rewards", "NaN"]),
        ((acted()[1], Lamp(), situation, 3), ValueError, ["act was called"]),
        ((state, Lamp(n_actions=3), situation, 3), ValueError, ["n_actions = 3", "network 2"]),
        ((state, Lamp(further_n_in=4), situation, 3), ValueError, ["(2, 4)", "(2, 3)", "reset"]),
        ((state, Lamp(later=np.zeros(2)), situation, 3), ValueError, ["((2,), ", "reset gives"]),
        ((state, Lamp(reward=np.zeros(2)), situation, 3), TypeError, ["reward", "(2,)"]),
        ((state, Lamp(reward=True), situation, 3), TypeError, ["reward", "bool"]),
        ((state, Lamp(), situation._replace(state=()), 3), ValueError, ["situation has", "reset"]),
    ]:
        assert_raises(lambda given=given: learner.rollout(*given), error, parts)
    assert_raises(lambda: eprop.environments.reset(3, B, None), TypeError, ["AbstractEnvironment"])


class Flicker(Lamp):
    """It shows NaN for a decision; its state is how many there were."""

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros((STEPS, N_IN))

    def step(self, state, action, key):
        no = jnp.zeros((), bool)
        x = jnp.full((STEPS, N_IN), jnp.where(state == 1, jnp.nan, 0.0))
        return Transition(state + 1.0, x, jnp.asarray(0.0), no, no)


def test_rollout_with_nan():
    learner = learner_of(update_every=10)
    state = learner.init(B, dtype=float)
    situation = eprop.environments.reset(Flicker(), B, jax.random.key(0))
    learner.rollout(state, Flicker(), situation, 1)
    assert_raises(
        lambda: learner.rollout(state, Flicker(), situation, 3), ValueError, ["step holds NaN"]
    )


OUTPUTS = jnp.zeros((4, B, 3))
DECISIONS = np.zeros((2, B), bool)


@check(
    {
        "actions too high": ({"actions": np.full((2, B), 2)}, ValueError, ["actions", "0 to 1"]),
        "actions negative": ({"actions": np.full((2, B), -1)}, ValueError, ["-1 to -1"]),
        "actions' shape": ({"actions": np.zeros((3, B), int)}, ValueError, ["(3, 2)"]),
        "actions for all": ({"actions": np.zeros(B, int)}, ValueError, ["shape (2,)", "(2, 2)"]),
        "actions as numbers": ({"actions": np.zeros((2, B))}, TypeError, ["integers"]),
        "rewards NaN": ({"rewards": np.full((2, B), np.nan)}, ValueError, ["rewards", "NaN"]),
        "rewards' shape": ({"rewards": np.zeros(2)}, ValueError, ["(2,)"]),
        "terminated": ({"terminated": np.zeros((2, B))}, ValueError, ["terminated", "float64"]),
        "truncated": ({"truncated": np.zeros(B, bool)}, ValueError, ["truncated has shape (2,)"]),
        "discount": ({"discount": 1.5}, ValueError, ["discount = 1.5"]),
        "every": ({"every": 3}, ValueError, ["every = 3", "(4, 2, 3)"]),
        "no end": ({"terminated": DECISIONS}, ValueError, ["next_values"]),
        "next_values": ({"next_values": np.zeros(B)}, ValueError, ["next_values have shape (2,)"]),
        "next_values NaN": (
            {"next_values": np.full((2, B), np.nan), "terminated": DECISIONS},
            ValueError,
            ["next_values", "NaN"],
        ),
        "value_weight": ({"value_weight": -1.0}, ValueError, ["value_weight = -1.0"]),
        "no value_weight": ({"value_weight": None}, TypeError, ["value_weight", "None"]),
        "entropy_weight": ({"entropy_weight": np.nan}, ValueError, ["entropy_weight = nan"]),
        "a number": ({"rewards": 1.0}, ValueError, ["rewards have shape ()"]),
        "outputs": ({"outputs": OUTPUTS[0]}, ValueError, ["outputs (2, 3)"]),
        "no outputs": ({"outputs": 0.0}, ValueError, ["outputs ()"]),
        "mask": ({"mask": -np.ones(2)}, ValueError, ["mask"]),
        "one readout": ({"outputs": OUTPUTS[..., :1]}, ValueError, ["two readouts"]),
    }
)
def test_loss(given, error, parts):
    options = {
        "outputs": OUTPUTS,
        "actions": np.zeros((2, B), int),
        "rewards": np.zeros((2, B)),
        "terminated": ~DECISIONS,
        "truncated": DECISIONS,
        "discount": 0.9,
        "every": 2,
    }
    assert np.isfinite(losses.actor_critic(**options))
    assert_raises(lambda: losses.actor_critic(**options | given), error, parts)


def test_traced_actions_that_are_none():
    def loss(actions):
        return losses.actor_critic(
            OUTPUTS, actions, np.zeros((2, B)), ~DECISIONS, DECISIONS, discount=0.9, every=2
        )

    for action, is_one in [(0, True), (1, True), (2, False), (-1, False)]:
        assert np.isfinite(jax.jit(loss)(jnp.full((2, B), action))) == is_one


def vector_of(name="CartPole-v1", **options):
    return gymnasium.make_vec(name, num_envs=B, **options)


class TestGymnasium:
    def test_no_vector(self):
        assert_raises(
            lambda: GymnasiumEnvironments(gymnasium.make("CartPole-v1")), TypeError, ["make_vec"]
        )

    def test_other_actions(self):
        environments = vector_of("Pendulum-v1")
        assert_raises(
            lambda: GymnasiumEnvironments(environments), TypeError, ["Box", "Discrete(n)"]
        )

    def test_unknown_autoreset(self):
        environments = vector_of(vectorization_mode="sync")
        for mode in ("sometimes", None):
            environments.metadata = environments.metadata | {"autoreset_mode": mode}
            assert_raises(
                lambda: GymnasiumEnvironments(environments), ValueError, [repr(mode), "NEXT_STEP"]
            )

    @check(
        {
            "too high": (np.array([0, 2]), ValueError, ["0 to 1"]),
            "negative": (np.array([0, -1]), ValueError, ["0 to 1"]),
            "one for all": (np.array(0), ValueError, ["shape ()"]),
            "numbers": (np.zeros(B), ValueError, ["float64"]),
        }
    )
    def test_actions(self, given, error, parts):
        environments = GymnasiumEnvironments(vector_of())
        environments.reset(seed=0)
        assert_raises(lambda: environments.step(given), error, parts)

    def test_modes_are_those_there_are(self):
        """A mode that is new must be thought about."""
        assert {mode.name for mode in AutoresetMode} == {"NEXT_STEP", "SAME_STEP", "DISABLED"}
