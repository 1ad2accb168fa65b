"""Learning online: one step or a chunk at a time is one learner, and nothing of it is lost."""

import functools
import itertools
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eprop
from eprop import checkpoints, losses
from tests.cases import EACH_CELL, Options, make_case, slow_but
from tests.comparison import (
    assert_alive,
    assert_close,
    assert_trees_close,
    relative_error,
)
from tests.test_delays import with_delays

T = 12
OPTIONS = Options(n_steps=T, n_refractory=2, readout_bias=True)
AUTODIFF = eprop.BPTT(stop_z_gradients=True)


def keep_gradient(gradients, state, part=None):
    return jax.tree.map(jnp.zeros_like, gradients), gradients


KEEP = optax.GradientTransformation(
    lambda part: jax.tree.map(jnp.zeros_like, part),
    keep_gradient,  # pyright: ignore[reportArgumentType]
)
"""An optimiser that changes nothing: its state is the gradient of the last update."""


def squared_error(trajectory, targets):
    """A sum over time and examples, which no two steps enter alike."""
    per_step = 0.5 * jnp.square(trajectory.outputs - targets["outputs"]).sum((1, 2))
    first = jnp.square(trajectory.states[0]).sum((1, 2))
    return jnp.sum(targets["importance"] * (per_step + first))


def at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def stepwise(learner, state, inputs, targets, done=None):
    """The last state, and the info of each step."""
    infos = []
    for t in range(len(inputs)):
        state, info = learner.step(state, *at((inputs, targets, done), t))
        infos.append(info)
    return state, infos


def assert_states_close(actual, expected, tolerance):
    """Of all that is carried; the key is no number."""
    actual, expected = (state._replace(key=None) for state in (actual, expected))
    assert_trees_close(actual, expected, tolerance)


def filtered(state):
    """ē of all synapses."""
    (layer,) = state.progress.traces.layers
    return [port.filtered for ports in layer.synapses.values() for port in ports]


def bits(tree):
    return [
        np.asarray(jax.random.key_data(x) if checkpoints.is_key(x) else x).tobytes()
        for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    ]


class TestGradient:
    """With one update for the whole sequence."""

    @EACH_CELL
    def test_steps(self, cell):
        case = make_case(cell, OPTIONS)
        value, expected = case.value_and_grad(AUTODIFF)
        assert_alive(case.network, case.inputs, expected)
        learner = eprop.OnlineLearner(case.network, case.loss, eprop.EProp(), KEEP, update_every=T)
        state, infos = stepwise(learner, learner.init(3), case.inputs, case.targets)
        assert_trees_close(state.optimizer, expected, 1e-10, "gradient of ")
        assert_close(sum(info.loss for info in infos), value, 1e-10, "loss")

    @pytest.mark.parametrize("window", slow_but([3], [1, 3, None]))
    def test_run_with_random_feedback(self, window):
        case = make_case("ALIF", OPTIONS)
        rule = eprop.EProp(eprop.RandomFeedback(case.b), window)
        learner = eprop.OnlineLearner(case.network, case.loss, rule, KEEP, update_every=T)
        state, info = learner.run(learner.init(3), (case.inputs, case.targets))
        value, expected = case.value_and_grad(rule)
        assert_trees_close(state.optimizer, expected, 1e-10, "gradient of ")
        assert_close(info.loss, value[None], 1e-10, "loss")
        symmetric = case.grad(AUTODIFF)
        assert relative_error(symmetric.w_rec, expected.w_rec) > 0.01

    def test_trainable(self):
        case = make_case("ALIF", OPTIONS)
        only_w_rec = jax.tree.map(lambda x: x is case.network.w_rec, case.network)
        learner = eprop.OnlineLearner(
            case.network, case.loss, eprop.EProp(), optax.sgd(1e-3), trainable=only_w_rec
        )
        state, _ = learner.run(learner.init(3), (case.inputs, case.targets))
        for name in ("w_in", "w_out", "readout_bias"):
            np.testing.assert_array_equal(getattr(state.network, name), getattr(case.network, name))
        assert relative_error(state.network.w_rec, case.network.w_rec) > 1e-4


LEARNERS = {
    "every step": (1, None, 2),
    "windows of 2 in 4": (4, 2, 1),
    "windows of 1 in 6": (6, 1, 3),
    "one update": (12, None, 2),
}
"""`update_every`, window and batch."""


@functools.cache
def learner_of(name):
    update_every, window, batch = LEARNERS[name]
    case = make_case("ALIF", Options(n_steps=T, n_refractory=2, batch=batch))
    rule = eprop.EProp(eprop.AdaptiveFeedback(case.b), window)
    return case, eprop.OnlineLearner(
        case.network, squared_error, rule, optax.adam(0.02), update_every=update_every,
        rate_penalty=eprop.RatePenalty(20.0, 1e3), tau_rate=7.0,
    )  # fmt: skip


@pytest.mark.slow
@given(name=st.sampled_from(list(LEARNERS)), seed=st.integers(0, 2**16), ends=st.booleans())
@settings(max_examples=15, deadline=None)
def test_run_is_repeated_steps(name, seed, ends):
    """Weights, traces, rates and optimiser, whatever the window and whoever ends when."""
    case, learner = learner_of(name)
    rng, batch = np.random.default_rng(seed), case.inputs.shape[1]
    inputs = rng.random(case.inputs.shape) < 0.8
    done = rng.random((T, batch)) < rng.uniform(0, 0.5) if ends else None
    start = learner.init(batch)
    by_steps, infos = stepwise(learner, start, inputs, case.targets, done)
    chunk = (inputs, case.targets) if done is None else (inputs, case.targets, done)
    by_run, info = learner.run(start, chunk)
    assert_states_close(by_run, by_steps, 1e-10)
    assert relative_error(by_run.network.w_in, case.network.w_in) > 1e-3
    assert_close(info.outputs, jnp.stack([x.outputs for x in infos]), 1e-10, "outputs")
    signals = jnp.stack([x.learning_signals for x in infos])
    assert_close(info.learning_signals, signals, 1e-10, "learning signals")
    per_update = np.reshape([x.loss for x in infos], (-1, learner.update_every)).sum(1)
    assert_close(info.loss, per_update, 1e-10, "loss")
    assert_close(info.rates, infos[-1].rates, 1e-10, "rates")
    assert_trees_close(info.trace_norms, infos[-1].trace_norms, 1e-10, "norms")


def test_chunks_go_on_where_the_last_ended():
    case, learner = learner_of("windows of 2 in 4")
    whole, _ = learner.run(learner.init(1), (case.inputs, case.targets))
    state = learner.init(1)
    for part in (slice(0, 8), slice(8, T)):
        state, _ = learner.run(state, at((case.inputs, case.targets), part))
    assert_states_close(state, whole, 1e-12)
    assert relative_error(whole.network.w_rec, case.network.w_rec) > 1e-3
    fresh, _ = learner.run(learner.init(1), at((case.inputs, case.targets), slice(8, T)))
    assert relative_error(filtered(fresh)[0], filtered(whole)[0]) > 0.01


ENDS = ((3, 8), (6,), ())
"""The last steps of the examples that each stream has one after the other."""
DONE = np.zeros((T, len(ENDS)), bool)
for stream, last_steps in enumerate(ENDS):
    DONE[list(last_steps), stream] = True


def sum_over_examples(case):
    """The gradient summed over the examples, each run from rest, by autodiff."""
    total = jax.tree.map(jnp.zeros_like, case.network)
    for b, ends in enumerate(ENDS):
        bounds = [0, *(end + 1 for end in ends), T]
        for begin, end in itertools.pairwise(bounds):
            example = case._replace(
                inputs=case.inputs[begin:end, b : b + 1],
                targets={
                    "outputs": case.targets["outputs"][begin:end, b : b + 1],
                    "importance": case.targets["importance"][begin:end],
                },
            )
            total = jax.tree.map(jnp.add, total, example.grad(AUTODIFF))
    assert_alive(case.network, case.inputs, total)
    return total


class TestResets:
    """A batch whose examples end at different times, the next beginning where one ended."""

    @staticmethod
    @functools.cache
    def alone(cell, delays=(0, 0)):
        case = with_delays(make_case(cell, OPTIONS)._replace(loss=squared_error), *delays)
        return case, sum_over_examples(case)

    def gradient(self, case, window, done):
        learner = eprop.OnlineLearner(
            case.network, case.loss, eprop.EProp(window=window), KEEP, update_every=T
        )
        chunk = (case.inputs, case.targets) if done is None else (case.inputs, case.targets, done)
        return learner.run(learner.init(3), chunk)[0].optimizer

    @pytest.mark.parametrize(
        ("cell", "window"),
        slow_but(
            [("ALIF", 1), ("own cell", 4)],
            [("ALIF", 1), ("ALIF", 4), ("ALIF", None), ("LIF", 4), ("own cell", 4)],
        ),
    )
    def test_as_if_each_had_run_alone(self, cell, window):
        case, expected = self.alone(cell)
        actual = self.gradient(case, window, DONE)
        assert_trees_close(actual, expected, 1e-10, "gradient of ")

    @pytest.mark.parametrize("window", slow_but([4], [1, 4]))
    def test_what_is_under_way_is_lost(self, window):
        """With delays of some steps, spikes that an example sent reach no other."""
        case, expected = self.alone("ALIF", delays=(2, 1))
        actual = self.gradient(case, window, DONE)
        assert_trees_close(actual, expected, 1e-10, "gradient of ")
        assert relative_error(self.alone("ALIF")[1].w_rec, expected.w_rec) > 0.01

    def test_steps(self):
        case, expected = self.alone("ALIF")
        learner = eprop.OnlineLearner(case.network, case.loss, eprop.EProp(), KEEP, update_every=T)
        state, _ = stepwise(learner, learner.init(3), case.inputs, case.targets, DONE)
        assert_trees_close(state.optimizer, expected, 1e-10, "gradient of ")

    @pytest.mark.parametrize("window", [1, 4, None])
    def test_they_matter(self, window):
        """Negative control: without them, or one step off, the gradient is another."""
        case, expected = self.alone("ALIF")
        for done in (None, np.zeros_like(DONE), np.roll(DONE, 1, axis=0)):
            actual = self.gradient(case, window, done)
            assert relative_error(actual.w_rec, expected.w_rec) > 0.01

    def test_all_that_is_left_is_rest(self):
        """Of the example that ended, and of no other."""
        case, learner = learner_of("every step")
        rest, done = learner.init(2), np.zeros((T, 2), bool)
        done[-1, 0] = True
        state, _ = learner.run(rest, (case.inputs, case.targets, done))
        after, fresh = (jax.tree.leaves(x.progress) for x in (state, rest))
        for now, at_rest in zip(after, fresh, strict=True):
            np.testing.assert_array_equal(now[0], at_rest[0])
        assert not np.array_equal(filtered(state)[0][1], filtered(rest)[0][1])


class DecayingState(NamedTuple):
    v: Any


class Decaying(eprop.AbstractCell):
    """A cell of one's own, whose constant is as it comes."""

    n: int = eqx.field(static=True)
    decay: Any
    dt: ClassVar[float] = 1.0

    def init(self, batch):
        return DecayingState(jnp.zeros((batch, self.n)))

    def step(self, state, current, z_tm1):
        decay = jnp.broadcast_to(self.decay, state.v.shape)
        return DecayingState(decay * state.v + current - 0.6 * z_tm1)

    def output(self, state):
        return eprop.Triangular().spike((state.v - 0.6) / 0.6)


class DecayingByNumber(Decaying):
    decay: float = eqx.field(static=True)


DECAYING = {
    "number": DecayingByNumber(6, 0.9),
    "array for all": Decaying(6, jnp.asarray(0.9)),
    "array for each": Decaying(6, jnp.full(6, 0.9)),
    "array of NumPy": Decaying(6, np.full(6, 0.9)),
}


class TestConstantsOfACell:
    """The same number in any form: as a field that is traced it must not be taken for another."""

    @staticmethod
    @functools.cache
    def case(name):
        made = make_case("LIF", OPTIONS)._replace(loss=squared_error)
        network = eqx.tree_at(lambda net: net.cell, made.network, DECAYING[name])
        return made._replace(network=network)

    @staticmethod
    @functools.cache
    def expected(name):
        return sum_over_examples(TestConstantsOfACell.case(name))

    def learner(self, name):
        case, rule = self.case(name), eprop.EProp(window=4)
        return eprop.OnlineLearner(case.network, case.loss, rule, KEEP, update_every=T)

    @pytest.mark.parametrize("name", slow_but(["number", "array for each"], DECAYING))
    def test_run(self, name):
        """By windows, and step by step where an example ends in one."""
        case, learner = self.case(name), self.learner(name)
        state, _ = learner.run(learner.init(3), (case.inputs, case.targets, DONE))
        assert_trees_close(state.optimizer, self.expected(name), 1e-10, "gradient of ")

    @pytest.mark.parametrize("name", DECAYING)
    def test_steps(self, name):
        case, learner = self.case(name), self.learner(name)
        state, _ = stepwise(learner, learner.init(3), case.inputs, case.targets, DONE)
        assert_trees_close(state.optimizer, self.expected(name), 1e-10, "gradient of ")

    def test_arrays_are_trained_and_numbers_are_not(self):
        assert not jax.tree.leaves(self.expected("number").cell)
        gradients = [self.expected(name).cell.decay for name in list(DECAYING)[1:]]
        assert [x.shape for x in gradients] == [(), (6,), (6,)]
        assert all(np.abs(x).max() > 1e-2 for x in gradients)
        assert_close(gradients[1].sum(), gradients[0], 1e-12, "decay")
        for name in DECAYING:
            assert_close(self.expected(name).w_rec, self.expected("number").w_rec, 1e-12, name)


class TestMasks:
    """Targets are `(values, mask)`, and the loss weights its steps with the mask."""

    @staticmethod
    def loss(trajectory, targets):
        values, mask = targets
        return losses.mean_squared_error(trajectory.outputs, values, mask, n_steps=T)

    def learned(self, values, mask, window=None):
        case = make_case("ALIF", OPTIONS)
        rule = eprop.EProp(window=window)
        learner = eprop.OnlineLearner(case.network, self.loss, rule, KEEP, update_every=T)
        return learner.run(learner.init(3), (case.inputs, (values, mask)))

    @pytest.mark.parametrize("window", slow_but([4], [1, 4, None]))
    def test_steps_without_a_target(self, window):
        case = make_case("ALIF", OPTIONS)
        rng = np.random.default_rng(3)
        values, mask = case.targets["outputs"], rng.random((T, 3)) < 0.5
        garbage = np.where(mask[..., None], values, 1e3 * rng.normal(size=values.shape))
        state, info = self.learned(garbage, mask, window)
        masked = case._replace(targets=(values, mask), loss=self.loss)
        assert_trees_close(state.optimizer, masked.grad(AUTODIFF), 1e-10, "gradient of ")
        assert not info.learning_signals[~mask].any() and info.learning_signals[mask].all()
        everything, _ = self.learned(values, np.ones_like(mask), window)
        assert relative_error(state.optimizer.w_rec, everything.optimizer.w_rec) > 0.01


class TestInfo:
    @pytest.mark.parametrize("cell", slow_but(["ALIF"], ["ALIF", "LIF"]))
    def test_says_what_happened(self, cell):
        """LIF neurons of one time constant share their traces; the norm counts each."""
        options = Options(
            n_steps=T, terms=("outputs",), heterogeneous=cell == "ALIF", autapses=True
        )
        case = make_case(cell, options)
        learner = eprop.OnlineLearner(case.network, case.loss, eprop.EProp(), KEEP, update_every=T)
        _, info = learner.run(learner.init(3), (case.inputs, case.targets))
        trajectory = case.network(case.inputs)
        assert trajectory.spikes.any()
        assert_close(info.outputs, trajectory.outputs, 1e-12, "outputs")
        signals = eprop.learning_signals(case.network, case.inputs, case.targets, case.loss)
        assert_close(info.learning_signals, signals.readout, 1e-12, "learning signals")
        assert_close(info.rates, 1000 * trajectory.spikes.mean((0, 1)), 1e-12, "rates")
        traces = eprop.eligibility_traces(case.network, case.inputs)
        at_end = [jax.tree.leaves(at(x.vectors, -1)) for x in (traces.w_in, traces.w_rec)]
        for norm, *vectors in zip(info.trace_norms, *at_end, strict=True):
            each = np.concatenate([np.ravel(x) for x in vectors])
            assert norm > 0.1
            assert_close(norm, np.linalg.norm(each), 1e-12, "norm")


class TestPure:
    def test_compiled_once(self):
        """However often it is called, with whatever weights, from a checkpoint too."""
        case, calls = make_case("ALIF", OPTIONS), []

        def loss(trajectory, targets):
            calls.append(len(trajectory.outputs))
            return squared_error(trajectory, targets)

        learner = eprop.OnlineLearner(
            case.network, loss, eprop.EProp(), optax.adam(0.01), update_every=4
        )
        chunk = (case.inputs, case.targets)
        state, _ = learner.run(learner.init(3), chunk)
        state, _ = stepwise(learner, state, *at(chunk, slice(1)))
        seen = list(calls)
        assert set(seen) == {1, 2, 4}  # the halves of a window: whether it is a sum over time
        state, _ = stepwise(learner, state, *at(chunk, slice(1, T)))
        for _ in range(3):
            state, _ = learner.run(state, chunk)
        doubled = jax.tree.map(lambda w: 2 * w, state.network)
        learner.run(state._replace(network=doubled), chunk)
        assert calls == seen

    def test_within_jit(self):
        case, learner = learner_of("every step")
        state, now = learner.init(2), at((case.inputs, case.targets), 0)
        outside, inside = learner.step(state, *now), eqx.filter_jit(learner.step)(state, *now)
        assert_states_close(inside[0], outside[0], 1e-12)
        assert_trees_close(inside[1], outside[1], 1e-12)

    def test_seeds_side_by_side(self):
        case = make_case("ALIF", OPTIONS)

        def learned(key):
            w_rec = 0.3 * jax.random.normal(key, case.network.w_rec.shape)
            network = eqx.tree_at(lambda net: net.w_rec, case.network, w_rec)
            learner = eprop.OnlineLearner(
                network, squared_error, eprop.EProp(window=2), optax.sgd(1e-3), update_every=4
            )
            state, _ = learner.run(learner.init(3, key), (case.inputs, case.targets))
            return state.network.w_in, filtered(state)

        keys = jax.random.split(jax.random.key(0), 2)
        together = jax.vmap(learned)(keys)
        for i, key in enumerate(keys):
            assert_trees_close(at(together, i), learned(key), 1e-10)
        assert relative_error(together[0][0], together[0][1]) > 1e-4

    def test_goes_on_from_a_checkpoint(self, tmp_path):
        """From the middle of an update, to the same bits."""
        case, learner = learner_of("one update")
        start = learner.init(2, jax.random.key(5))
        chunk = (case.inputs, case.targets)
        first, last = at(chunk, slice(7)), at(chunk, slice(7, T))
        middle, _ = stepwise(learner, start, *first)
        assert middle.since_update == 7
        checkpoints.save(tmp_path / "state", middle)
        loaded, _ = checkpoints.load(tmp_path / "state", learner.init(2))
        ends = [stepwise(learner, state, *last)[0] for state in (middle, loaded)]
        assert bits(ends[0]) == bits(ends[1]) != bits(stepwise(learner, start, *last)[0])

    def test_fit_drives_it(self):
        case, learner = learner_of("windows of 2 in 4")
        chunk = (case.inputs, case.targets)
        state, rows = eprop.fit(
            learner.run, learner.init(1), [chunk, chunk], iterations=2, progress=False
        )
        expected = learner.run(learner.run(learner.init(1), chunk)[0], chunk)[0]
        assert_states_close(state, expected, 1e-12)
        assert len(rows) == 2 and rows[1]["trace_norms.0"] > 0
