"""Sequences of a length that matters: every window, in one piece and in chunks, is one gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop import losses
from eprop.pieces import is_sum_over_time
from tests.cases import Options, make_case, slow_but
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error
from tests.errors import assert_raises

N_STEPS = 130
WINDOWS = [1, 7, 64, N_STEPS - 1, N_STEPS, N_STEPS + 3]
AUTODIFF = eprop.BPTT(stop_z_gradients=True)


@functools.cache
def long_case(cell, batch=3, terms=("outputs", "spikes", "voltage")):
    options = Options(n_steps=N_STEPS, batch=batch, n_refractory=2, readout_bias=True, terms=terms)
    case = make_case(cell, options)
    value, gradients = case.value_and_grad(AUTODIFF)
    assert_alive(case.network, case.inputs, gradients)
    return case, value, gradients


def in_chunks(case, lengths):
    """Pieces of the case's sequence, of these lengths in turn."""
    begin = 0
    for length in (lengths * N_STEPS)[:N_STEPS]:
        end = min(begin + length, N_STEPS)
        if begin < end:
            yield case.inputs[begin:end], {k: x[begin:end] for k, x in case.targets.items()}
        begin = end


def streamed(case, window, lengths, **changes):
    evaluate = eprop.stream_value_and_grad(case.loss, eprop.EProp(window=window, **changes))
    return evaluate(case.network, in_chunks(case, lengths))


def assert_one_gradient(actual, expected, tolerance, name):
    assert_close(actual[0], expected[0], tolerance, f"loss, {name}")
    assert_trees_close(actual[1], expected[1], tolerance, name)


class TestAgreement:
    @pytest.mark.parametrize("window", slow_but([1, 7, N_STEPS], WINDOWS))
    def test_every_window(self, window):
        case, *expected = long_case("ALIF")
        whole = case.value_and_grad(eprop.EProp(window=window))
        assert_one_gradient(whole, expected, 1e-10, "in one piece")
        chunked = streamed(case, window, [50, 1, 30])
        assert_one_gradient(chunked, expected, 1e-10, "in chunks")

    @pytest.mark.parametrize("window", slow_but([7], [7, 64]))
    @pytest.mark.parametrize(
        ("cell", "batch"),
        slow_but([("own cell", 2)], [("LIF", 1), ("own cell", 2), ("ALIF", 1)]),
    )
    def test_every_cell(self, cell, batch, window):
        case, *expected = long_case(cell, batch)
        whole = case.value_and_grad(eprop.EProp(window=window))
        assert_one_gradient(whole, expected, 1e-10, "in one piece")
        assert_one_gradient(streamed(case, window, [64]), expected, 1e-10, "in chunks")

    @pytest.mark.parametrize("window", slow_but([7], [1, 7, 64, N_STEPS - 1, None]))
    @pytest.mark.parametrize("cell", slow_but(["ALIF"], ["ALIF", "own cell"]))
    def test_float32(self, cell, window):
        """Multiples of 1/64 as weights, whose sums are exact: no rounding flips a spike."""
        case, *_ = long_case(cell)  # cached, so made in float64
        with jax.enable_x64(False):
            network = jax.tree.map(
                lambda w: jnp.asarray(np.round(np.asarray(w) * 64) / 64, jnp.float32), case.network
            )
            targets = {k: np.asarray(x, np.float32) for k, x in case.targets.items()}
            case = case._replace(network=network, targets=targets)
            expected = case.value_and_grad(AUTODIFF)
            assert_alive(case.network, case.inputs, expected[1])
            actual = case.value_and_grad(eprop.EProp(window=window))
            assert actual[1].w_rec.dtype == np.float32
            assert_one_gradient(actual, expected, 1e-4, f"window={window}")

    def test_random_feedback(self):
        case, _, symmetric = long_case("ALIF", terms=("outputs",))
        feedback = eprop.RandomFeedback(case.b)
        expected = case.value_and_grad(eprop.EProp(feedback))
        actual = streamed(case, 16, [40], feedback=feedback)
        assert_one_gradient(actual, expected, 1e-10, "random feedback")
        assert relative_error(actual[1].w_rec, symmetric.w_rec) > 0.01

    def test_chunks_in_another_order_are_another_sequence(self):
        case, _, expected = long_case("ALIF")
        chunks = list(in_chunks(case, [65]))
        evaluate = eprop.stream_value_and_grad(case.loss, eprop.EProp(window=32))
        _, gradients = evaluate(case.network, chunks[::-1])
        assert relative_error(gradients.w_rec, expected.w_rec) > 0.01


class TestStreams:
    def test_memory_mapped_file(self, tmp_path):
        case, *expected = long_case("ALIF")
        np.save(tmp_path / "inputs.npy", case.inputs)
        inputs = np.load(tmp_path / "inputs.npy", mmap_mode="r")
        evaluate = eprop.stream_value_and_grad(case.loss, eprop.EProp(window=32))
        actual = evaluate(case.network, [(inputs, case.targets)])
        assert_one_gradient(actual, expected, 1e-10, "memory-mapped")

    def test_aux_has_an_axis_of_windows(self):
        case, *_ = long_case("ALIF")

        def loss(trajectory, targets):
            return case.loss(trajectory, targets), trajectory.spikes.sum((0, 1))

        evaluate = eprop.stream_value_and_grad(loss, eprop.EProp(window=60), has_aux=True)
        (_, n_spikes), _ = evaluate(case.network, in_chunks(case, [45]))
        spikes = np.asarray(case.network(case.inputs).spikes).sum(1)
        expected = [spikes[i : i + 60].sum(0) for i in (0, 60, 120)]
        np.testing.assert_array_equal(n_spikes, expected)

    @pytest.mark.parametrize("n_steps", [7, 8, 11])
    def test_loss_of_a_wider_type(self, n_steps):
        """Less than a window, one, and one and a part: its value stays what it is."""
        network = eprop.Network(eprop.LIF(6, v_th=1.0), n_in=3, n_out=1, key=jax.random.key(0))
        network = jax.tree.map(lambda w: w.astype(jnp.float32), network)
        inputs, targets = jnp.ones((n_steps, 2, 3), jnp.float32), np.full((n_steps, 2, 1), 0.1)

        def loss(trajectory, targets):
            return jnp.sum((trajectory.outputs.astype(jnp.float64) - targets) ** 2)

        evaluate = eprop.stream_value_and_grad(loss, eprop.EProp(window=8))
        value, gradients = evaluate(network, [(inputs, targets)])
        expected = eprop.value_and_grad(loss, eprop.EProp())(network, inputs, targets)
        assert value.dtype == jnp.float64 and gradients.w_rec.dtype == jnp.float32
        assert_alive(network, inputs, gradients)
        assert_one_gradient((value, gradients), expected, 1e-5, "of float64")

    def test_trainable(self):
        case, _, expected = long_case("ALIF")
        only_w_rec = jax.tree.map(lambda x: x is case.network.w_rec, case.network)
        rule = eprop.EProp(window=64)
        evaluate = eprop.stream_value_and_grad(case.loss, rule, trainable=only_w_rec)
        _, gradients = evaluate(case.network, in_chunks(case, [64]))
        assert gradients.w_in is None and gradients.w_out is None
        assert_close(gradients.w_rec, expected.w_rec, 1e-10, "w_rec")

    def test_compiled_once_for_any_length(self):
        case, *_ = long_case("ALIF")
        calls = []

        def loss(trajectory, targets):
            calls.append(len(trajectory.outputs))
            return case.loss(trajectory, targets)

        evaluate = eprop.stream_value_and_grad(loss, eprop.EProp(window=16))
        everything = (case.inputs, case.targets)

        def first(n_steps):
            return jax.tree.map(lambda x: x[:n_steps], everything)

        evaluate(case.network, [first(40)])
        seen = list(calls)
        assert set(seen) == {1, 7, 8, 16}  # parts of a window: whether it is a sum over time
        for n_steps in (16, 50, 113, 7):
            evaluate(case.network, [first(n_steps)])
        doubled = jax.tree.map(lambda w: 2 * w, case.network)
        evaluate(doubled, in_chunks(case, [3, 20]))
        assert calls == seen


class TestErrors:
    @pytest.mark.parametrize("window", [5, 8])
    def test_aux_with_an_axis_of_time(self, window):
        """Before anything is computed, for the last steps may fill no window."""
        case, *_ = long_case("ALIF")
        rule = eprop.EProp(window=window)
        evaluate = eprop.stream_value_and_grad(
            lambda *args: (case.loss(*args), args[0].outputs), rule, has_aux=True
        )
        with pytest.raises(ValueError, match=r"aux of one step is .*but of a window"):
            evaluate(case.network, in_chunks(case, [50]))

    def test_aux_of_text(self):
        case, *_ = long_case("ALIF")
        evaluate = eprop.stream_value_and_grad(
            lambda *args: (case.loss(*args), "good"), eprop.EProp(window=5), has_aux=True
        )
        with pytest.raises(TypeError, match="aux = 'good' is no array"):
            evaluate(case.network, in_chunks(case, [50]))

    def evaluate(self, *chunks):
        case, *_ = long_case("ALIF")
        evaluate = eprop.stream_value_and_grad(case.loss, eprop.EProp(window=16))
        return lambda: evaluate(case.network, list(chunks))

    def piece(self, n_steps=20):
        case, *_ = long_case("ALIF")
        return jax.tree.map(lambda x: x[:n_steps], (case.inputs, case.targets))

    @pytest.mark.parametrize("rule", [eprop.EProp(), eprop.BPTT()])
    def test_rule(self, rule):
        case, *_ = long_case("ALIF")
        assert_raises(
            lambda: eprop.stream_value_and_grad(case.loss, rule), TypeError, ["EProp(window=256)"]
        )

    def test_nothing(self):
        assert_raises(self.evaluate(), ValueError, ["no chunks"])

    def test_no_pair(self):
        inputs, _ = self.piece()
        assert_raises(self.evaluate(inputs), TypeError, ["chunk 0", "(inputs, targets)"])

    def test_targets_of_another_length(self):
        inputs, targets = self.piece()
        assert_raises(self.evaluate((inputs[:9], targets)), ValueError, ["targets", "axis of 9"])

    @pytest.mark.parametrize(
        ("targets", "parts"),
        [
            (np.zeros((21, 3)), ["targets has shape (21, 3)"]),
            (np.zeros(3, int), ["targets has shape (3,)", "broadcast_to(label, (20, *label"]),
            ((np.zeros((20, 3)), 1.0), ["targets[1]", "()"]),
            ({"outputs": np.zeros((3, 20, 2))}, ["targets['outputs'] has shape (3, 20, 2)"]),
        ],
    )
    def test_targets_without_a_time_axis(self, targets, parts):
        inputs, _ = self.piece()
        parts = [*parts, "leading time axis of 20", "value_and_grad(loss, EProp())"]
        assert_raises(self.evaluate((inputs, targets)), ValueError, parts)

    def test_another_width(self):
        inputs, targets = self.piece()
        wrong = (inputs[..., :2], targets)
        assert_raises(self.evaluate(wrong), ValueError, ["2 features", "takes 3"])
        assert_raises(self.evaluate(self.piece(), wrong), ValueError, ["chunk 1", "(3, 2)"])

    def test_nan_in_a_later_chunk(self):
        inputs, targets = self.piece()
        bad = np.where(inputs, np.nan, 0.0)
        good = inputs.astype(float)
        chunks = (good, targets), (bad, targets)
        assert_raises(self.evaluate(*chunks), ValueError, ["inputs", "NaN or infinity"])

    def test_nan_in_a_weight(self):
        case, *_ = long_case("ALIF")
        network = jax.tree.map(lambda w: w.at[0].set(jnp.nan), case.network)
        evaluate = eprop.stream_value_and_grad(case.loss, eprop.EProp(window=16))
        assert_raises(
            lambda: evaluate(network, [self.piece()]), ValueError, ["network.w_in", "NaN"]
        )


NO_SUMS = {
    "mean": lambda y, z, t: losses.mean_squared_error(y, t),
    "mean of labels": lambda y, z, t: losses.softmax_cross_entropy(y, jnp.argmax(t, axis=-1)),
    "rates": lambda y, z, t: losses.firing_rate_penalty(z, 100.0, dt=1.0),
    "square of a sum": lambda y, z, t: jnp.sum(y) ** 2,
    "last step": lambda y, z, t: jnp.square(y[-1]).sum(),
    "sum and mean": lambda y, z, t: jnp.sum(y**2) + losses.mean_squared_error(y, t),
}
SUMS = {
    "sum": lambda y, z, t: jnp.sum((y - t) ** 2),
    "mean of so many": lambda y, z, t: losses.mean_squared_error(y, t, n_steps=N_STEPS),
    "mean of the batch": lambda y, z, t: jnp.mean((y - t) ** 2, axis=(1, 2)).sum(),
    "zero": lambda y, z, t: 0 * jnp.sum(y),
    "of both signs": lambda y, z, t: jnp.sum(y * t) - jnp.sum(z),
}


class TestLossesThatAreNoSum:
    """What they are on pieces does not add up: refused, and not another number."""

    @staticmethod
    def of(of_parts):
        def loss(trajectory, targets):
            return of_parts(trajectory.outputs, trajectory.spikes, targets["outputs"])

        return loss

    @pytest.mark.parametrize(
        ("n_steps", "dtype"),
        slow_but(
            [(2, np.float64), (3, np.float32), (N_STEPS, np.float32)],
            itertools.product([2, 3, N_STEPS], [np.float32, np.float64]),
        ),
    )
    def test_are_found(self, n_steps, dtype):
        rng = np.random.default_rng(0)
        outputs, targets = rng.normal(size=(2, n_steps, 3, 2)).astype(dtype)
        spikes = (rng.random((n_steps, 3, 6)) < 0.3).astype(dtype)
        outputs, targets, spikes = (jnp.asarray(x) for x in (outputs, targets, spikes))
        trajectory = eprop.Trajectory(outputs, (eprop.LayerTrajectory(spikes, None),))
        for table, expected in ((NO_SUMS, False), (SUMS, True)):
            found = {
                name: bool(is_sum_over_time(self.of(loss), trajectory, {"outputs": targets}))
                for name, loss in table.items()
            }
            assert found == dict.fromkeys(table, expected)

    @pytest.mark.parametrize(("window", "n_steps"), [(16, 40), (16, 11), (1, 3)])
    def test_are_refused(self, window, n_steps):
        case, *_ = long_case("ALIF")
        chunk = jax.tree.map(lambda x: x[:n_steps], (case.inputs, case.targets))
        loss = self.of(NO_SUMS["mean"])
        evaluate = eprop.stream_value_and_grad(loss, eprop.EProp(window=window))
        parts = ["no sum over time", f"on {max(2, window)} steps", "jnp.sum", "n_steps"]
        assert_raises(lambda: evaluate(case.network, [chunk]), ValueError, parts)

    def test_with_aux_too(self):
        case, *_ = long_case("ALIF")

        def loss(trajectory, targets):
            return jnp.mean(trajectory.outputs), trajectory.outputs.shape

        evaluate = eprop.stream_value_and_grad(loss, eprop.EProp(window=16), has_aux=True)
        chunks = list(in_chunks(case, [20]))
        assert_raises(lambda: evaluate(case.network, chunks), ValueError, ["no sum over time"])
