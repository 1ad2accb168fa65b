"""Learning from rewards: every way to the gradient is the direct double sum over decisions."""

import functools
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
from tests.cases import EACH_CELL, Options, make_case, slow_but
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error
from tests.drawn_networks import N_IN as N_DRAWN
from tests.drawn_networks import LayerOptions, draw
from tests.drawn_networks import Options as DrawnOptions

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
    "again and again": ({t: (OVER, CUT)[t % 2] for t in range(D)}, {1: CUT}, {0: CUT, 1: OVER}, {}),
}
"""What becomes of each example's episodes after which decision."""


def script_of(name, steps, n_in=N_IN, seed=0):
    rng, ends = np.random.default_rng(seed), ENDS[name]
    is_ = {
        kind: np.array([[ends[b].get(t) == kind for b in range(B)] for t in range(D)])
        for kind in (OVER, CUT, SKIP)
    }
    rewards = np.where(is_[SKIP], np.nan, rng.normal(size=(D, B)))
    x, after = rng.random((2, D, steps, B, n_in)) < 0.6
    return Script(x, after, rewards, is_[OVER], is_[CUT], ~is_[SKIP])


@functools.cache
def case_of(cell="ALIF"):
    return make_case(cell, Options(n_in=N_IN, n_rec=5, n_out=3, readout_bias=True))


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
    total = jax.tree.map(jnp.zeros_like, eqx.filter(network, eqx.is_inexact_array))
    for example, first, last in episodes(script):
        here = slice(first, last + 1)
        seen = np.zeros((D + 1, *script.x[0, :, 0].shape), bool)
        seen[: last + 1 - first] = script.x[here, :, example]
        seen[last + 1 - first] = script.after[last, :, example]
        y = decided(network, seen, b)
        is_over, is_cut = script.terminated[last, example], script.truncated[last, example]
        final, y = y[last + 1 - first, -1], y[: last + 1 - first]
        n_actions = y.shape[1] - critic
        pi, deltas = jax.nn.softmax(y[:, :n_actions]), script.rewards[here, example]
        q = pi - jax.nn.one_hot(actions[here, example], n_actions)
        if critic:
            v = np.append(y[:, -1], 0 if is_over else final)
            deltas = deltas + discount * v[1:] - v[:-1]
            deltas[-1] *= is_over or is_cut
            q = jnp.concatenate([q, jnp.full((len(q), 1), -C_V)], axis=1)
        h = -jnp.sum(pi * jnp.log(pi), axis=1, keepdims=True)
        errors = jnp.pad(entropy * pi * (jnp.log(pi) + h), ((0, 0), (0, int(critic))))
        for t in range(len(deltas)):
            for past in range(t + 1):
                errors = errors.at[past].add(deltas[t] * discount ** (t - past) * q[past])
        errors = jnp.pad(errors, ((0, D + 1 - len(errors)), (0, 0)))
        total = jax.tree.map(jnp.add, total, led_back(network, seen, b, errors))
    return jax.tree.map(lambda x: x / B, total)


@eqx.filter_jit
def decided(network, seen, b):
    """The outputs at each decision, of an example alone, from rest."""
    inputs = seen.reshape(-1, 1, seen.shape[-1])
    return oracle.respond(network, inputs, b)[1].outputs[seen.shape[1] - 1 :: seen.shape[1], 0]


@eqx.filter_jit
def led_back(network, seen, b, errors):
    """What comes of errors on these outputs."""
    _, pullback = eqx.filter_vjp(lambda network: decided(network, seen, b), network)
    return pullback(errors)[0]


def learner_of(case, rule, *, discount=0.8, **options):
    options = {"value_weight": C_V, "entropy_weight": ENTROPY} | options
    return eprop.RewardLearner(case.network, rule, ADD_UP, discount=discount, **options)


def assert_learns(state, network, inputs, expected):
    assert_alive(network, inputs, expected)
    assert_trees_close(state.optimizer, expected, 1e-12, "gradient of ")


DRAWN = {
    "layers": DrawnOptions(
        (
            LayerOptions(("ALIF", "LIF"), bias=True),
            LayerOptions(("CurrentLIF",), "sparse", "sparse"),
        ),
        feedback="random",
        readout_of="last",
        readout_bias=True,
    ),
    "convolution and delays": DrawnOptions(
        (LayerOptions(("ALIF",), "convolution", delays="in rec"),), feedback="random"
    ),
    "convolutions": DrawnOptions(
        (
            LayerOptions(("LIF",), "convolution"),
            LayerOptions(("ALIF", "LIF"), "convolution", "convolution"),
        ),
        feedback="random",
    ),
    "several currents": DrawnOptions((LayerOptions(("LSTM",)),), tau_out=None),
}


class TestGradient:
    @pytest.mark.parametrize("ends", ENDS)
    @pytest.mark.parametrize("update_every", slow_but([3], [1, 2, 3, 6]))
    def test_double_sum(self, update_every, ends):
        case, script = case_of(), script_of(ends, steps=2)
        rule = eprop.EProp(eprop.RandomFeedback(case.b))
        learner = learner_of(case, rule, steps=2, update_every=update_every)
        state, actions = play(learner, script)
        assert len(np.unique(actions)) == 2
        expected = double_sum(case.network, case.b, script, actions, discount=0.8)
        assert_learns(state, case.network, script.x[:, 0], expected)
        wrong = double_sum(case.network, case.b, script, actions, discount=0.7)
        assert relative_error(wrong.w_rec, expected.w_rec) > 1e-3

    @pytest.mark.parametrize("discount", [0, 1])
    def test_discount(self, discount):
        case, script = case_of(), script_of("inside windows", steps=2)
        rule = eprop.EProp(eprop.RandomFeedback(case.b))
        learner = learner_of(case, rule, discount=discount, steps=2, update_every=3)
        state, actions = play(learner, script)
        expected = double_sum(case.network, case.b, script, actions, discount=discount)
        assert_learns(state, case.network, script.x[:, 0], expected)

    @pytest.mark.parametrize("update_every", slow_but([3], [1, 3]))
    @EACH_CELL
    def test_every_cell_step_by_step(self, cell, update_every):
        """A decision at each step, symmetric feedback."""
        case, script = case_of(cell), script_of("inside windows", steps=1)
        learner = learner_of(case, eprop.EProp(), update_every=update_every)
        state, actions = play(learner, script)
        w_out = case.network.w_out
        expected = double_sum(case.network, w_out, script, actions, discount=0.8)
        assert_trees_close(state.optimizer, expected, 1e-12, "gradient of ")
        assert float(np.abs(expected.w_in).max()) > 1e-4

    @pytest.mark.slow
    @pytest.mark.parametrize("name", DRAWN)
    def test_without_a_critic_in_every_network(self, name):
        """δ is what `learn` is given."""
        drawn = draw(DRAWN[name])
        script = script_of("inside windows", steps=2, n_in=N_DRAWN)
        learner = eprop.RewardLearner(
            drawn.network, eprop.EProp(drawn.feedback), ADD_UP, discount=0.8, steps=2,
            update_every=3, value_weight=None,
        )  # fmt: skip
        state, actions = play(learner, script)
        b = drawn.feedback.matrix(drawn.network)
        expected = double_sum(
            drawn.network, b, script, actions, discount=0.8, critic=False, entropy=0.0
        )
        assert_trees_close(state.optimizer, expected, 1e-12, "gradient of ")
        for layer in expected.layers:
            assert float(np.abs(layer.below.weights).max()) > 1e-6

    def test_rate_penalty(self):
        """As that of an online learner that hears of nothing else."""
        case, script = case_of(), script_of("none", steps=2)
        script = script._replace(rewards=np.zeros((D, B)))
        penalty = {"rate_penalty": eprop.RatePenalty(20.0, 1e3), "tau_rate": 7.0}
        learner = learner_of(
            case, eprop.EProp(), steps=2, update_every=3, value_weight=None, entropy_weight=0.0,
            **penalty,
        )  # fmt: skip
        state, _ = play(learner, script)
        online = eprop.OnlineLearner(
            case.network, lambda trajectory, _: 0 * trajectory.outputs.sum(), eprop.EProp(), ADD_UP,
            update_every=2 * D, **penalty,
        )  # fmt: skip
        inputs = script.x.reshape(2 * D, B, N_IN)
        expected, info = online.run(online.init(B), (inputs, None))
        assert_trees_close(state.optimizer, expected.optimizer, 1e-12)
        assert_close(state.rates.rates, info.rates, 1e-12)
        assert relative_error(0, expected.optimizer.w_rec) > 0.1


def actor_critic(script, actions, **options):
    """As a loss of a trajectory."""
    steps = script.x.shape[1]
    options = {"discount": 0.8, "value_weight": C_V, "entropy_weight": ENTROPY} | options

    def loss(trajectory, targets):
        return losses.actor_critic(
            trajectory.outputs, *targets, every=steps, mask=script.counts, **options
        )

    return loss, (actions, script.rewards, script.terminated, script.truncated)


ROLLOUTS = {
    "all over": ({5: OVER},) * B,
    "of any length": (
        {5: OVER},
        {2: OVER, **{t: SKIP for t in (3, 4, 5)}},
        {3: CUT, **{t: SKIP for t in (4, 5)}},
        {},
    ),
}
"""Each example is one episode, from rest."""
ENDS |= ROLLOUTS


class TestLoss:
    @pytest.mark.parametrize("ends", ROLLOUTS)
    @pytest.mark.parametrize("discount", slow_but([0.8], [0.0, 0.8, 1.0]))
    def test_double_sum(self, ends, discount):
        case, script = case_of(), script_of(ends, steps=3)
        rng = np.random.default_rng(1)
        actions = rng.integers(0, 2, (D, B))
        rule = eprop.EProp(eprop.RandomFeedback(case.b))
        # What follows a decision is seen next, in the same run.
        inputs = np.concatenate([script.x, script.after[-1:]])
        for t, b in np.argwhere(script.truncated):
            inputs[t + 1, :, b] = script.after[t, :, b]
        inputs = inputs.reshape(-1, B, N_IN)
        loss, targets = actor_critic(script, actions, discount=discount)
        evaluate = eprop.value_and_grad(loss, rule)
        value, gradients = jax.jit(evaluate)(case.network, inputs, targets)
        expected = double_sum(case.network, case.b, finished(script), actions, discount=discount)
        assert_alive(case.network, inputs, expected)
        assert_trees_close(gradients, expected, 1e-12, "gradient of ")
        assert np.isfinite(value)

        last = jax.jit(eprop.Network.__call__)(case.network, inputs).outputs[
            script.x.shape[1] - 1 :: script.x.shape[1], :, -1
        ]
        loss, _ = actor_critic(script, actions, discount=discount, next_values=last[1:])
        whole = inputs[: -script.x.shape[1]]
        of_rule = jax.jit(eprop.grad(loss, rule))(case.network, whole, targets)
        assert_trees_close(of_rule, expected, 1e-12)

    def test_bptt_differs(self):
        case, script = case_of(), script_of("all over", steps=3)
        actions = np.random.default_rng(1).integers(0, 2, (D, B))
        loss, targets = actor_critic(script, actions)
        inputs = script.x.reshape(-1, B, N_IN)
        bptt, symmetric, stopped = (
            jax.jit(eprop.grad(loss, rule))(case.network, inputs, targets)
            for rule in (eprop.BPTT(), eprop.EProp(), eprop.BPTT(stop_z_gradients=True))
        )
        assert_trees_close(symmetric, stopped, 1e-12)
        assert relative_error(bptt.w_in, symmetric.w_in) > 0.01

    def test_is_what_the_docstring_says(self):
        """A value by hand: two decisions of one example, the second terminal."""
        outputs = jnp.log(jnp.asarray([[[1.0, 3.0, np.e]], [[4.0, 1.0, np.e**2]]]))
        value = losses.actor_critic(
            outputs, np.array([[1], [0]]), np.array([[2.0], [5.0]]), np.array([[False], [True]]),
            np.zeros((2, 1), bool),
            discount=0.5, value_weight=3.0, entropy_weight=0.2,
        )  # fmt: skip
        first, second = 2.0 + 0.5 * 5.0 - 1.0, 5.0 - 2.0
        entropy = sum(-p * np.log(p) for p in (0.25, 0.75, 0.2, 0.8))
        expected = -first * np.log(0.75) - second * np.log(0.8)
        expected += 1.5 * (first**2 + second**2) - 0.2 * entropy
        assert value == pytest.approx(expected, rel=1e-12)


def finished(script):
    """With an end after the last decision of those that go on, by what would have followed."""
    truncated = script.truncated.copy()
    truncated[-1] |= script.counts[-1] & ~script.terminated[-1]
    return script._replace(truncated=truncated)


class TestWhatWasSeen:
    """`learn` goes by the run as it was when the network decided."""

    def test_the_same_spikes(self):
        case, script = case_of(), script_of("none", steps=3)
        learner = learner_of(case, eprop.EProp(), steps=3, update_every=2)
        state, _ = learner.act(learner.init(B), script.x[0])
        (block,) = state.decided.blocks
        spikes = case.network(script.x[0]).spikes
        assert spikes.any()
        np.testing.assert_array_equal(block.spikes[0].reshape(spikes.shape), spikes > 0)

        nothing = jnp.zeros_like(block.spikes)
        silenced = state.decided._replace(blocks=(block._replace(spikes=nothing),))
        no = np.zeros(B, bool)

        def learned(state):
            state, _ = learner.learn(state, np.ones(B), ~no, no)
            state, _ = learner.act(state, script.x[0] & False)
            return learner.learn(state, np.ones(B), ~no, no)[0].optimizer

        as_it_was, without = learned(state), learned(state._replace(decided=silenced))
        assert np.abs(as_it_was.w_out).max() > 0.01 and not without.w_out.any()


class Corridor(eprop.environments.AbstractEnvironment):
    """Go right (1) three times from the left end; it is broken off after five steps."""

    n_actions: int = 2

    def reset(self, key):
        return (jnp.zeros((), jnp.int32),) * 2, self._seen(0, key)

    def step(self, state, action, key):
        place, t = state
        place, t = jnp.maximum(place + 2 * action - 1, 0), t + 1
        return eprop.environments.Transition(
            (place, t), self._seen(place, key), jnp.where(place == 3, 1.0, -0.1), place == 3, t == 5
        )

    def _seen(self, place, key):
        here = jnp.broadcast_to(jnp.arange(N_IN, dtype=jnp.int32) == place, (2, N_IN))
        return jax.random.bernoulli(key, jnp.where(here, 0.8, 0.2))


def start(learner, batch=B):
    situation = eprop.environments.reset(Corridor(), batch, jax.random.key(3))
    return learner.init(batch, jax.random.key(4)), situation


def learning_corridor(update_every=4):
    """Its readouts are weak, so that it tries both actions."""
    case = case_of()
    network = eqx.tree_at(
        lambda net: (net.w_out, net.readout_bias),
        case.network,
        (0.05 * case.network.w_out, jnp.zeros(3)),
    )
    return eprop.RewardLearner(
        network, eprop.EProp(eprop.AdaptiveFeedback(case.b)), optax.adam(0.01), discount=0.9,
        steps=2, update_every=update_every, rate_penalty=eprop.RatePenalty(20.0, 1.0),
        entropy_weight=0.02,
    )  # fmt: skip


@pytest.mark.slow
class TestRollout:
    def test_is_acting_and_learning(self):
        learner = learning_corridor()
        state, situation = start(learner)
        rolled, after, played = learner.rollout(state, Corridor(), situation, 15)
        step = jax.vmap(Corridor().step, out_axes=eprop.environments.Transition(0, 1, 0, 0, 0))
        for t in range(15):
            key = jax.random.fold_in(jax.random.fold_in(state.key, state.n_decisions), 1)
            of_step, of_reset = jax.random.split(key, (2, B))
            state, actions = learner.act(state, situation.x)
            found = step(situation.state, actions, of_step)
            state, _ = learner.learn(
                state, found.reward, found.terminated, found.truncated, after=found.x
            )
            fresh, x = jax.vmap(Corridor().reset, out_axes=(0, 1))(of_reset)
            ended = found.terminated | found.truncated
            place, time = (jnp.where(ended, *x) for x in zip(fresh, found.state, strict=True))
            situation = eprop.environments.Situation(
                (place, time), jnp.where(ended[None, :, None], x, found.x)
            )
            np.testing.assert_array_equal(played.actions[t], actions)
            np.testing.assert_array_equal(played.terminated[t], found.terminated)
            np.testing.assert_array_equal(played.truncated[t], found.truncated)
        assert played.terminated.any() and played.truncated.any()
        assert_trees_close(rolled._replace(key=None), state._replace(key=None), 1e-9)
        assert_trees_close(after, situation, 0)
        assert relative_error(rolled.network.w_in, learner.network.w_in) > 1e-3

    def test_learns(self):
        learner = learning_corridor(update_every=5)
        state, situation = start(learner, 16)
        state, situation, before = learner.rollout(state, Corridor(), situation, 50)
        for _ in range(8):
            state, situation, played = learner.rollout(state, Corridor(), situation, 50)
        assert before.rewards.mean() + 0.1 < played.rewards.mean()

    def test_goes_on_from_a_checkpoint(self, tmp_path):
        """Also where an action has not come to anything yet: the same bits."""
        learner = learning_corridor()
        state, situation = start(learner)
        state, situation, _ = learner.rollout(state, Corridor(), situation, 6)
        state, _ = learner.act(state, situation.x)
        checkpoints.save(tmp_path / "state", (state, situation))
        loaded, _ = checkpoints.load(tmp_path / "state", start(learner))

        def go_on(state, situation):
            no = np.zeros(B, bool)
            state, _ = learner.learn(state, np.ones(B), no, no)
            return learner.rollout(state, Corridor(), situation, 5)

        ends = [go_on(*loaded), go_on(state, situation)]
        assert bits(ends[0]) == bits(ends[1])
        assert bits(ends[0][0].network) != bits(state.network)

    def test_fit_drives_it(self, tmp_path):
        learner = learning_corridor()

        def step(state, _):
            state, situation, played = learner.rollout(*state[:1], Corridor(), state[1], 4)
            return (state, situation), {"reward": played.rewards.mean()}

        def train(iterations):
            return eprop.fit(
                step, start(learner), itertools.repeat(None), iterations=iterations,
                folder=tmp_path / "run", save_every=2, progress=False,
            )  # fmt: skip

        train(3)
        resumed, rows = train(6)
        whole, all_rows = eprop.fit(
            step, start(learner), itertools.repeat(None), iterations=6, progress=False
        )
        assert bits(resumed) == bits(whole)
        assert [row["reward"] for row in rows] == [row["reward"] for row in all_rows]


def bits(tree):
    return [
        np.asarray(jax.random.key_data(x) if checkpoints.is_key(x) else x).tobytes()
        for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    ]
