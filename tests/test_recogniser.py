"""Networks in both directions and several layers, and what they are trained on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from experiments.speech import objectives
from experiments.speech.corpus import Sentence
from experiments.speech.recogniser import make_recogniser, reverse
from tests.comparison import assert_close, assert_trees_close, relative_error

pytestmark = pytest.mark.experiment

KEYS = jax.random.split(jax.random.key(0), 4)
LENGTHS = np.array([9, 5, 7])
LABELS = jax.random.randint(KEYS[0], (9, 3), 0, 4)
FEATURES = jax.random.normal(KEYS[1], (9, 3, 6))


LSNN = [eprop.LIF(4, v_th=0.4), eprop.ALIF(4, v_th=0.4, beta=0.1, tau_a=30.0)]


def recogniser(cells=LSNN, **changes):
    settings = {
        "n_features": 6, "n_out": 4, "n_layers": 1, "bidirectional": True, "repeats": 3,
        "tau_readout": 3.0, "passes_errors": False, "key": KEYS[2],
    }  # fmt: skip
    return make_recogniser(cells, **settings | changes)


def lstm(**changes):
    glorot = jax.nn.initializers.glorot_uniform()
    of_layer = {"w_in": glorot, "w_rec": glorot, "bias": glorot_row, "autapses": True}
    return recogniser(eprop.LSTM(8), repeats=1, tau_readout=None, **of_layer, **changes)


def glorot_row(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) / 3


def rules_of(model, rule):
    return tuple(tuple(rule(network) for network in layer) for layer in model.networks)


def random_rules(model, key=KEYS[3]):
    keys = iter(jax.random.split(key, 99))

    def rule(network):
        b = jax.random.normal(next(keys), network.w_out.shape)
        return eprop.EProp(eprop.RandomFeedback(b))

    return rules_of(model, rule)


def loss(model, rules, features=FEATURES, lengths=LENGTHS):
    """Of outputs and of the first layer's spikes."""
    response = model(features, lengths, rules)
    value = objectives.framewise(model.read(response.drive), LABELS, lengths)
    heard = objectives.mask_of(lengths * model.repeats, len(features) * model.repeats)
    for run in response.activity[0]:
        value = value + eprop.losses.firing_rate_penalty(run.spikes, 100.0, heard, dt=1.0)
    return value


def gradient(model, rule=None, **given):
    rules = rules_of(model, lambda _: rule or eprop.EProp())
    return jax.jit(jax.grad(loss))(model, rules, **given)


def one_by_one(model, rule=eprop.BPTT(stop_z_gradients=True)):  # noqa: B008
    """The same loss, an utterance at a time, without padding, written out."""
    surprise, n_frames, counted = 0.0, int(LENGTHS.sum()), [0.0] * len(model.networks[0])
    for b, length in enumerate(LENGTHS.tolist()):
        below, drive = jnp.repeat(FEATURES[:length, b], model.repeats, axis=0), 0.0
        for layer in model.networks:
            heard = []
            for direction, network in zip((1, -1), layer, strict=False):
                run = network(below[::direction, None], rule)
                drive = drive + run.outputs[::direction, 0]
                heard.append(run.spikes[::direction, 0])
            if layer is model.networks[0]:
                counted = [x + z.sum(0) for x, z in zip(counted, heard, strict=True)]
            below = jnp.concatenate(heard, axis=1)
            below = below if model.passes_errors else jax.lax.stop_gradient(below)
        y = jnp.zeros(4)
        for frame, label in enumerate(LABELS[:length, b]):
            steps = [drive[frame * model.repeats + i] for i in range(model.repeats)]
            y = model.kappa * y + sum(steps) / len(steps)
            surprise -= jax.nn.log_softmax(y + model.bias)[label]
    rates = [x / (n_frames * model.repeats) for x in counted]
    return surprise / n_frames + sum(jnp.sum((rate - 0.1) ** 2) for rate in rates)


SHAPES = {
    "one way": {"bidirectional": False},
    "both ways": {},
    "two layers": {"n_layers": 2},
    "errors through layers": {"n_layers": 2, "passes_errors": True},
    "delays": {"delay_rec": np.arange(8) % 3},
}


@pytest.mark.parametrize("make", [recogniser, lstm], ids=["lsnn", "lstm"])
class TestGradients:
    @pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
    def test_are_those_of_autodiff_with_stopped_spikes(self, make, changes):
        model = make(**changes)
        expected = jax.jit(jax.grad(one_by_one))(model)
        actual = gradient(model)
        assert_trees_close(actual, expected, 1e-10)
        for leaf in jax.tree.leaves(actual):
            assert np.abs(leaf).max() > 1e-6
        for of_layer in model(FEATURES, LENGTHS).activity:
            for run in of_layer:
                assert 0.01 < np.abs(run.spikes).mean() < 0.6

    def test_differ_from_those_of_other_rules(self, make):
        model = make(n_layers=2)
        symmetric, bptt = gradient(model), gradient(model, eprop.BPTT())
        random = jax.jit(jax.grad(loss))(model, random_rules(model))
        for others in (bptt, random):
            pairs = zip(
                itertools.chain(*symmetric.networks), itertools.chain(*others.networks), strict=True
            )
            for x, y in pairs:
                assert relative_error(x.w_rec, y.w_rec) > 1e-3
                assert_close(x.w_out, y.w_out, 1e-10)  # the readout needs no rule
            assert_close(symmetric.bias, others.bias, 1e-10)


def test_random_feedback_that_is_the_readout_is_symmetric():
    model = recogniser(n_layers=2)
    rules = rules_of(model, lambda x: eprop.EProp(eprop.RandomFeedback(x.w_out)))
    assert_trees_close(jax.jit(jax.grad(loss))(model, rules), gradient(model), 1e-12)


def test_bptt_is_plain_autodiff():
    model = recogniser(n_layers=2, passes_errors=True)
    expected = jax.jit(jax.grad(lambda model: one_by_one(model, eprop.BPTT())))(model)
    assert_trees_close(gradient(model, eprop.BPTT()), expected, 1e-10)


def test_what_is_behind_the_end_does_not_matter():
    model = recogniser()
    behind = ~objectives.mask_of(LENGTHS, len(FEATURES))
    other = jnp.where(behind[..., None], 3.0, FEATURES)
    assert_trees_close(gradient(model, features=other), gradient(model), 1e-12)
    longer = gradient(model, lengths=jnp.full(3, 9))  # but where the end is does
    assert relative_error(longer.bias, gradient(model).bias) > 1e-3


class TestLayers:
    def of_first(self, model, rules):
        return jax.jit(jax.grad(loss))(model, rules).networks[0]

    @pytest.mark.parametrize("passes", [False, True])
    def test_errors_come_down_only_where_they_are_let(self, passes):
        model = recogniser(n_layers=2, passes_errors=passes)
        rules = random_rules(model)
        deaf = rules_of(
            model, lambda x: eprop.EProp(eprop.RandomFeedback(jnp.zeros(x.w_out.shape)))
        )
        with_upper = self.of_first(model, rules)
        without = self.of_first(model, (rules[0], deaf[1]))
        difference = relative_error(with_upper[0].w_rec, without[0].w_rec)
        assert difference > 1e-3 if passes else difference == 0


def test_adaptive_feedback_learns_what_the_readout_learns():
    model = recogniser(n_layers=2)
    rules = rules_of(model, lambda x: eprop.EProp(eprop.AdaptiveFeedback(2 * x.w_out, decay=0.1)))
    updates = jax.tree.map(lambda x: jnp.full_like(x, 0.5), model)
    after, new_rules = model.updated(updates, rules)
    for i, j in itertools.product(range(2), range(2)):
        before, now = model.networks[i][j], after.networks[i][j]
        assert_close(now.w_out, 0.9 * before.w_out + 0.5, 1e-12)
        assert_close(new_rules[i][j].feedback.b, 1.8 * before.w_out + 0.5, 1e-12)
        assert_close(now.w_in, before.w_in + 0.5, 1e-12)
    assert_close(after.bias, model.bias + 0.5, 1e-12)


@pytest.mark.parametrize("name", ["n_layers", "repeats"])
def test_there_is_one_at_least(name):
    with pytest.raises(ValueError, match=rf"{name} = 0"):
        recogniser(**{name: 0})


def test_dropout_is_drawn_by_the_key():
    model = recogniser(n_layers=2, dropout=eprop.Dropout(0.3))
    plain, one, again, other = (
        model(FEATURES, LENGTHS, key=key).drive for key in (None, KEYS[0], KEYS[0], KEYS[1])
    )
    np.testing.assert_array_equal(one, again)
    assert relative_error(one, other) > 1e-2 < relative_error(one, plain)
    np.testing.assert_array_equal(plain, recogniser(n_layers=2)(FEATURES, LENGTHS).drive)


def test_reversal_is_within_the_length():
    sequence = jnp.arange(4.0)[:, None, None] + jnp.zeros((4, 2, 1))
    found = reverse(sequence, jnp.array([4, 2]))[..., 0]
    np.testing.assert_array_equal(found.T, [[3, 2, 1, 0], [1, 0, 2, 3]])
    np.testing.assert_array_equal(reverse(found[..., None], jnp.array([4, 2])), sequence)


# CTC.

N_OUT, BLANK = 3, 2
PHONEMES = jnp.array([[0, 1, 0], [1, 1, 1], [0, 0, 0]])  # 1 1 takes a blank; behind it is padding
N_PHONEMES = jnp.array([3, 2, 1])
FRAMES = np.array([5, 4, 3])


def all_paths(target, frames):
    """The paths that say it."""
    paths = itertools.product(range(N_OUT), repeat=frames)
    merged = ((path, [x for x, _ in itertools.groupby(path)]) for path in paths)
    return np.array([path for path, said in merged if [x for x in said if x != BLANK] == target])


PATHS = [
    all_paths(target[:n].tolist(), frames)
    for target, n, frames in zip(PHONEMES, N_PHONEMES.tolist(), FRAMES.tolist(), strict=True)
]


def brute_force(outputs):
    """The mean over the utterances of -log Σ_paths Π_frames p."""
    total = 0.0
    for b, paths in enumerate(PATHS):
        log_p = jax.nn.log_softmax(outputs[:, b])
        of_paths = sum(log_p[frame, paths[:, frame]] for frame in range(paths.shape[1]))
        total -= jax.nn.logsumexp(of_paths)
    return total / len(PATHS)


def by_optax(outputs):
    return objectives.ctc(outputs, FRAMES, PHONEMES, N_PHONEMES)


class TestCTC:
    def test_is_a_sum_over_all_alignments(self):
        assert [len(paths) for paths in PATHS] == [28, 5, 6]
        outputs = 2 * jax.random.normal(KEYS[0], (5, 3, N_OUT))
        both = [jax.jit(jax.value_and_grad(f))(outputs) for f in (by_optax, brute_force)]
        assert_trees_close(*both, 1e-10)
        assert np.abs(both[0][1][4, 0]).max() > 1e-3  # the last frame counts,
        np.testing.assert_array_equal(both[0][1][4, 1], 0)  # unless it is padding

    @pytest.mark.parametrize(
        "rule",
        [
            eprop.EProp(),
            eprop.EProp(eprop.RandomFeedback(jax.random.normal(KEYS[0], (8, N_OUT)))),
            eprop.BPTT(),
        ],
        ids=["symmetric", "random", "bptt"],
    )
    def test_gradients_by_a_rule_too(self, rule):
        model = recogniser(n_out=N_OUT)
        rules = rules_of(model, lambda _: rule)

        def of(task):
            def loss(model):
                return task(model.read(model(FEATURES[:5], FRAMES, rules).drive))

            return jax.jit(jax.value_and_grad(loss))(model)

        found = of(by_optax)
        assert_trees_close(found, of(brute_force), 1e-9)
        for network in found[1].networks[0]:
            assert min(np.abs(x).max() for x in (network.w_in, network.w_rec)) > 1e-5

    def sentence(self, frames, *phonemes):
        return Sentence("s7", np.zeros((frames, 2)), np.zeros(frames, int), np.array(phonemes), 1)

    def test_what_has_no_room_is_refused(self):
        objectives.check_room([self.sentence(4, 1, 1, 2), self.sentence(2, 0, 1)])
        with pytest.raises(ValueError, match=r"s7 has 3 frames, but the 3 phonemes .* need 4"):
            objectives.check_room([self.sentence(9, 1), self.sentence(3, 1, 1, 2)])

    def test_has_no_error_of_its_own(self):
        """What `check_room` is for."""
        found = objectives.ctc(
            jnp.zeros((3, 1, N_OUT)), jnp.array([3]), jnp.array([[1, 1, 0]]), jnp.array([3])
        )
        assert 1e4 < found < 1e6
