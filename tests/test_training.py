"""`fit`: what it records, when it stops, what it leaves, and that a run goes on as if never cut."""

import errno
import itertools
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import checkpoints, files
from eprop.checkpoints import CheckpointError
from tests.cases import make_case
from tests.comparison import assert_alive
from tests.errors import assert_raises, check

NETWORK, INPUTS, TARGETS, LOSS, B = make_case("ALIF")
OPTIMIZER = optax.adam(1e-2)


class Walk(NamedTuple):
    """A state of a few numbers: quick to compile, and each step depends on all before it."""

    key: jax.Array
    at: jax.Array
    best: jax.Array


START = Walk(jax.random.key(0), jnp.asarray([0.0, 1.0]), jnp.asarray(jnp.inf))


def walk(state, batch):
    key, now = jax.random.split(state.key)
    at = jnp.cos(3 * state.at) + batch + 0.1 * jax.random.normal(now, (2,))
    return Walk(key, at, jnp.minimum(state.best, at.sum())), {"x": at[0], "high": at[1] > 0}


def batch_of(iteration):
    return jnp.full(2, 1 / iteration)


def fit(folder=None, step=walk, state=START, batches=batch_of, iterations=10, **options):
    return eprop.fit(
        step, state, batches, iterations=iterations, folder=folder, progress=False, **options
    )


def timeless(rows):
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def plain(state):
    return [np.asarray(x).tobytes() for x in (jax.random.key_data(state[0]), *state[1:])]


class TestLoop:
    def test_is_the_loop_written_out(self):
        state, rows = fit()
        expected, step = START, jax.jit(walk)
        for iteration, row in enumerate(rows, start=1):
            expected, info = step(expected, batch_of(iteration))
            assert timeless([row]) == [
                {"iteration": iteration, "x": float(info["x"]), "high": bool(info["high"])}
            ]
        assert plain(state) == plain(expected) and len(rows) == 10
        assert len({row["x"] for row in rows}) == 10

    def test_compiles_once(self):
        traced = []

        def step(state, batch):
            traced.append(state.weak_type)
            return jnp.where(batch[0] > 0.5, 1.0, 2.0), {}  # weakly typed

        state, _ = fit(step=step, state=jnp.asarray(1.0))
        assert traced == [False] and not state.weak_type and jnp.asarray(1.0).weak_type

    @pytest.mark.parametrize("batches", [batch_of, [batch_of(i) for i in range(1, 11)]])
    def test_batches(self, batches):
        assert timeless(fit(batches=batches)[1]) == timeless(fit()[1])

    def test_rows(self):
        class Info(NamedTuple):
            loss: Any
            more: Any
            vector: Any
            key: Any

        def step(state, batch):
            more = {"int": jnp.asarray(3), "float": 0.5, "note": "text"}
            info = Info(state, more, jnp.ones(2), jax.random.key(0))
            return state + 1, info

        def evaluate(state, iteration):
            return {"error": state * 10, "at": iteration}

        with pytest.warns(UserWarning, match=r"not recorded: more.note, key of shape \(\)\. A row"):
            _, rows = fit(step=step, state=jnp.zeros(()), evaluate=evaluate, evaluate_every=4)
        always = {"more.float": 0.5, "more.int": 3, "vector": [1, 1]}
        assert timeless(rows[3:5]) == [
            {"iteration": 4, "loss": 3, **always, "error": 40, "at": 4},
            {"iteration": 5, "loss": 4, **always},
        ]
        seconds = [row["seconds"] for row in rows]
        assert seconds == sorted(seconds) and seconds[0] > 0
        json.dumps(rows)

    def test_stops_where_it_is_judged(self):
        asked = []

        def stop(row):
            asked.append(row["iteration"])
            return row["iteration"] > 5

        _, rows = fit(stop=stop, evaluate_every=4)
        assert asked == [4, 8] and len(rows) == 8

    def test_callbacks(self):
        seen = []
        _, rows = fit(callbacks=[lambda i, state, row: seen.append((i, float(state.at[0]), row))])
        assert seen == [(row["iteration"], row["x"], row) for row in rows]

    def test_progress(self, capsys):
        eprop.fit(walk, START, batch_of, iterations=3)
        assert "3/3" in capsys.readouterr().err
        fit()
        assert capsys.readouterr().err == ""


class TestSteps:
    @pytest.mark.parametrize(
        "rule",
        [eprop.BPTT(), eprop.EProp(), eprop.EProp(eprop.AdaptiveFeedback(B, 0.1))],
        ids=["BPTT", "symmetric", "adaptive"],
    )
    def test_is_the_usual_loop(self, rule):
        step = eprop.training_step(LOSS, OPTIMIZER)
        start = eprop.init_training(NETWORK, rule, OPTIMIZER)
        state, rows = fit(step=step, state=start, batches=[(INPUTS, TARGETS)] * 3, iterations=3)
        network, optimizer, losses = NETWORK, OPTIMIZER.init(eqx.filter(NETWORK, eqx.is_array)), []
        assert_alive(NETWORK, INPUTS, jax.jit(eprop.grad(LOSS, rule))(NETWORK, INPUTS, TARGETS))
        for _ in range(3):
            value, gradients = eqx.filter_jit(eprop.value_and_grad(LOSS, rule))(
                network, INPUTS, TARGETS
            )
            with jax.numpy_dtype_promotion("standard"):
                updates, optimizer = OPTIMIZER.update(gradients, optimizer)
            network, rule = eprop.apply_updates(network, updates, rule)
            losses.append(float(value))
        assert int(state.iteration) == 3
        np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-10)
        for ours, theirs in zip(
            jax.tree.leaves((state.network, state.rule)),
            jax.tree.leaves((network, rule)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8)
        assert losses[2] < losses[0]

    def test_trains_what_it_is_told_to(self):
        trainable = eqx.tree_at(
            lambda net: net.w_in, jax.tree.map(lambda _: False, NETWORK), replace=True
        )
        step = eprop.training_step(LOSS, optax.adamw(1e-2), trainable=trainable)
        start = eprop.init_training(NETWORK, eprop.EProp(), optax.adamw(1e-2), trainable)
        after = step(start, (INPUTS, TARGETS))[0].network
        np.testing.assert_array_equal(after.w_rec, NETWORK.w_rec)
        assert not np.array_equal(after.w_in, NETWORK.w_in)

    @pytest.mark.parametrize("kind", ["optimizer", "trainable"])
    def test_a_state_of_another_is_refused(self, kind):
        """By optax alone SGD would take Adam's state, and train."""
        only_inputs = eqx.tree_at(
            lambda net: net.w_in, jax.tree.map(lambda _: False, NETWORK), replace=True
        )
        given = {"optimizer": optax.sgd(0.1)} if kind == "optimizer" else {"trainable": only_inputs}
        step = eprop.training_step(LOSS, **({"optimizer": optax.adam(0.1)} | given))
        start = eprop.init_training(NETWORK, eprop.EProp(), optax.adam(0.1))
        parts = ["another optimiser", "the same optimizer, and the same trainable"]
        assert_raises(lambda: step(start, (INPUTS, TARGETS)), ValueError, parts)

    @check(
        {
            "accuracy": (
                lambda trajectory, _: jnp.sign(trajectory.outputs).mean(),
                ValueError,
                ["lets no gradient back", "an accuracy beside it"],
            ),
            "constant": (lambda *_: jnp.ones(()), ValueError, ["lets no gradient back"]),
        }
    )
    def test_a_loss_that_teaches_nothing(self, given, error, parts):
        start = eprop.init_training(NETWORK, eprop.EProp(), OPTIMIZER)
        step = eprop.training_step(given, OPTIMIZER)
        assert_raises(lambda: step(start, (INPUTS, TARGETS)), error, parts)

    def test_a_list_of_targets_is_refused(self):
        """A program would be compiled for each."""
        step = eprop.training_step(LOSS, OPTIMIZER)
        start = eprop.init_training(NETWORK, eprop.EProp(), OPTIMIZER)
        parts = ["targets is a list of numbers", "np.asarray"]
        assert_raises(lambda: step(start, (INPUTS, [1, 0])), TypeError, parts)

    @pytest.mark.parametrize("trainable", [eqx.is_array, True])
    def test_indices_are_not_trained(self, trainable):
        sparse = eprop.Sparse(np.ones((6, 2)), np.tile([0, 1], (6, 1)), n_pre=NETWORK.n_in)
        network = eprop.Network(
            eprop.LIF(6), n_in=NETWORK.n_in, n_out=2, w_in=sparse, key=jax.random.key(0)
        )
        for begin in (
            lambda: eprop.init_training(network, eprop.EProp(), OPTIMIZER, trainable),
            lambda: eprop.OnlineLearner(
                network, LOSS, eprop.EProp(), OPTIMIZER, update_every=1, trainable=trainable
            ),
            lambda: eprop.grad(LOSS, eprop.EProp(), trainable=trainable)(network, INPUTS, TARGETS),
        ):
            assert_raises(
                begin, TypeError, ["trainable picks network", "indices", "is_inexact_array"]
            )

    @check(
        {
            "vector": (lambda y: (y.sum(), y), TypeError, ["aux is a", "a dictionary"]),
            "loss twice": (
                lambda y: (y.sum(), {"loss": 1}),
                ValueError,
                ["loss would be", "twice"],
            ),
        }
    )
    def test_auxiliary_output(self, given, error, parts):
        step = eprop.training_step(lambda y, _: given(y.outputs), OPTIMIZER, has_aux=True)
        start = eprop.init_training(NETWORK, eprop.EProp(), OPTIMIZER)
        assert_raises(lambda: step(start, (INPUTS, TARGETS)), error, parts)


class TestGoingOn:
    @pytest.mark.parametrize("batches", [batch_of, [batch_of(i) for i in range(1, 11)]])
    @pytest.mark.parametrize("cut", [1, 3, 4, 7])
    def test_ends_as_if_never_cut(self, tmp_path, cut, batches):
        def interrupt(iteration, *_):
            if iteration == cut:
                raise KeyboardInterrupt

        options = {"evaluate": lambda s, i: {"y": s.at[1]}, "evaluate_every": 2, "save_every": 3}
        whole, rows = fit(tmp_path / "whole", batches=batches, **options)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "cut", batches=batches, callbacks=[interrupt], **options)
        assert len(files.read_rows(tmp_path / "cut/metrics.jsonl")) == cut
        seen = []
        state, again = fit(
            tmp_path / "cut", batches=batches, callbacks=[lambda i, *_: seen.append(i)], **options
        )
        assert seen == list(range(cut, 11))
        assert plain(state) == plain(whole) and timeless(again) == timeless(rows)
        assert files.read_rows(tmp_path / "cut/metrics.jsonl") == again
        written = [(tmp_path / name / "checkpoint.eprop").read_bytes() for name in ("whole", "cut")]
        assert written[0] == written[1]
        assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(again))

    def test_an_iterator_drawn_from_is_refused(self, tmp_path):
        def begun():
            return (batch_of(i) for i in itertools.count(1))

        batches = begun()
        fit(tmp_path, batches=batches, iterations=4)
        with pytest.raises(ValueError, match=r"iterator that fit has drawn from.* iteration 5 "):
            fit(tmp_path, batches=batches, iterations=6)
        fit(tmp_path, batches=batches, iterations=4)  # finished
        state, _ = fit(tmp_path, batches=begun(), iterations=6)
        assert plain(state) == plain(fit(iterations=6)[0])

    def test_a_finished_run_is_left_alone(self, tmp_path, capsys):
        options = {"stop": lambda row: True, "evaluate_every": 4}
        state, rows = fit(tmp_path, **options)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

        def never(iteration):
            raise AssertionError

        again, same = eprop.fit(walk, START, never, iterations=10, folder=tmp_path, **options)
        assert plain(again) == plain(state) and same == rows and len(rows) == 4
        assert f"Finished before, at iteration 4 in {tmp_path}" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before

    def test_a_row_half_written_is_dropped(self, tmp_path):
        fit(tmp_path, iterations=4)
        with open(tmp_path / "metrics.jsonl", "ab") as file:
            file.write(b'{"iteration": 5, "x": 0.')
        fit(tmp_path)
        assert timeless(files.read_rows(tmp_path / "metrics.jsonl")) == timeless(fit()[1])

    def test_the_header_has_the_configuration(self, tmp_path):
        fit(tmp_path, config={"seed": 1}, iterations=4)
        header = checkpoints.read_header(tmp_path / "checkpoint.eprop")
        assert header["metadata"]["iteration"] == 4
        assert header["metadata"]["config"] == {"seed": 1}


@pytest.fixture
def begun(tmp_path):
    """A folder with a checkpoint of iteration 4; a test must leave it, and its rows, as good."""
    state, rows = fit(tmp_path, iterations=4, config={"seed": 1})
    yield tmp_path
    loaded, _ = checkpoints.load(tmp_path / "checkpoint.eprop", START)
    assert plain(loaded) == plain(state)
    assert files.read_rows(tmp_path / "metrics.jsonl")[:4] == rows
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def breaking(at, name, value):
    """A walk, a leaf of whose state becomes another at one iteration."""

    def step(state, batch):
        after, info = walk(state, batch)
        now = batch[0] == 1 / at
        broken = jnp.where(now, jnp.full_like(getattr(after, name), value), getattr(after, name))
        return after._replace(**{name: broken}), info

    return step


class TestNotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_state(self, begun, value):
        def run():
            fit(begun, breaking(7, "at", value), config={"seed": 1}, save_every=1, iterations=6)
            fit(begun, breaking(7, "at", value), config={"seed": 1}, save_every=3)

        parts = ["iteration 7", "at (2 of 2 entries)", f"iteration 6 in {begun} is kept"]
        # Six good iterations move the checkpoint: keep the old one for the fixture.
        old = {p: p.read_bytes() for p in begun.iterdir()}
        assert_raises(run, FloatingPointError, parts)
        checkpoints.load(begun / "checkpoint.eprop", START)
        assert len(files.read_rows(begun / "metrics.jsonl")) == 6
        for path, content in old.items():
            path.write_bytes(content)

    def test_infinity_that_was_there_may_stay(self):
        state, _ = fit(step=lambda s, b: (s._replace(at=s.at + b), {}))
        assert np.isinf(state.best)

    def test_infinity_may_not_become_nan(self):
        with pytest.raises(FloatingPointError, match=r"iteration 1 .* best \(1 of 1"):
            fit(step=lambda s, b: (s._replace(best=s.best - s.best), {}))

    def test_info(self, begun):
        def step(state, batch):
            return walk(state, batch)[0], {"loss": jnp.log(batch[0] - 1 / 5)}

        parts = ["iteration 5", "loss = -inf", f"the checkpoint of iteration 4 in {begun} is kept"]
        assert_raises(lambda: fit(begun, step, config={"seed": 1}), FloatingPointError, parts)

    def test_evaluation(self, begun):
        def run():
            fit(begun, config={"seed": 1}, evaluate=lambda *_: {"e": np.nan}, evaluate_every=6)

        assert_raises(run, FloatingPointError, ["iteration 6", "e = nan", "4 in"])

    def test_batch(self, begun):
        def batches(iteration):
            return batch_of(iteration).at[1].set(jnp.nan if iteration == 6 else 0)

        parts = ["iteration 6", "at (1 of 2 entries)", "it went in by batch"]
        run = lambda: fit(begun, batches=batches, config={"seed": 1})  # noqa: E731
        assert_raises(run, FloatingPointError, parts)

    @pytest.mark.parametrize("label", [-1, 3])
    def test_a_label_that_is_no_class(self, label):
        def step(outputs, labels):
            return outputs, {"loss": eprop.losses.softmax_cross_entropy(outputs, labels)}

        def run(label):
            labels = lambda _: np.array([0, label])  # noqa: E731
            return eprop.fit(step, jnp.zeros((5, 2, 3)), labels, iterations=1, progress=False)

        parts = ["loss = nan; nothing of the batch is", "a label outside of 0, ..., n_classes - 1"]
        assert_raises(lambda: run(label), FloatingPointError, parts)
        assert np.isfinite(run(2)[1][0]["loss"])

    def test_gradient_of_one_leaf(self):
        """The loss itself is finite: the square root of 0, of weights that begin there."""
        network = eqx.tree_at(lambda net: net.w_out, NETWORK, jnp.zeros_like(NETWORK.w_out))

        def loss(trajectory, targets):
            return jnp.sqrt(jnp.sum(trajectory.outputs**2))

        step = eprop.training_step(loss, OPTIMIZER)
        start = eprop.init_training(network, eprop.EProp(), OPTIMIZER)
        with pytest.raises(
            FloatingPointError, match=r"iteration 1 .*network.readout.weights .*no folder"
        ):
            fit(step=step, state=start, batches=lambda _: (INPUTS, TARGETS))

    @pytest.mark.parametrize("given", ["inputs", "targets"])
    def test_batch_of_a_network(self, given):
        batch = {"inputs": INPUTS.astype(float), "targets": dict(TARGETS)}
        batch[given] = jax.tree.map(lambda x: jnp.asarray(x).at[3].set(jnp.nan), batch[given])
        step = eprop.training_step(LOSS, OPTIMIZER)
        start = eprop.init_training(NETWORK, eprop.EProp(), OPTIMIZER)
        with pytest.raises((FloatingPointError, ValueError)) as caught:
            fit(step=step, state=start, batches=lambda _: (batch["inputs"], batch["targets"]))
        text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        assert "iteration 1" in text
        assert {"inputs": "inputs of shape", "targets": "batch.1.outputs"}[given] in text


class TestBadInput:
    @check(
        {
            "another configuration": (
                {"config": {"seed": 2}},
                ValueError,
                ["seed = 1 there, 2 here", "folder of its own"],
            ),
            "another state": (
                {"config": {"seed": 1}, "state": START._replace(at=jnp.zeros(3))},
                CheckpointError,
                ["checkpoint.eprop", "at of shape (2,)", "at of shape (3,)"],
            ),
        }
    )
    def test_a_folder_of_another_run(self, begun, given, error, parts):
        assert_raises(lambda: fit(begun, **given), error, parts)

    def test_a_damaged_checkpoint(self, begun):
        path = begun / "checkpoint.eprop"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(CheckpointError, match=r"checkpoint\.eprop .* is damaged"):
            fit(begun, config={"seed": 1})
        assert path.read_bytes() == whole[:-1]
        path.write_bytes(whole)

    def test_metrics_cut_short(self, begun):
        path = begun / "metrics.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=r"metrics.jsonl has 3 whole rows, but 4 are needed"):
            fit(begun, config={"seed": 1})
        path.write_bytes(whole)

    def test_a_full_disk(self, begun, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left") as caught:
            fit(begun, config={"seed": 1}, save_every=3)
        notes = " ".join(caught.value.__notes__)
        assert "checkpoint.eprop could not be written" in notes
        assert f"at iteration 6 of fit; the checkpoint of iteration 4 in {begun} is kept" in notes

    @check(
        {
            "no iterations": ({"iterations": 0}, ValueError, ["iterations = 0", "at least 1"]),
            "save_every": ({"save_every": 0}, ValueError, ["save_every = 0"]),
            "evaluate_every": ({"evaluate_every": 0.5}, ValueError, ["evaluate_every = 0.5"]),
            "no batches": ({"batches": 3}, TypeError, ["batches = 3", "iterable, or a function"]),
            "few batches": (
                {"batches": [batch_of(1)] * 3},
                ValueError,
                ["ended before iteration 4 of 10", "itertools.cycle"],
            ),
            "no info": (
                {"step": lambda s, b: s._replace(at=s.at)},
                TypeError,
                ["(state, info)", "Walk"],
            ),
            "another shape": (
                {"step": lambda s, b: (s._replace(at=s.at[:1]), {})},
                TypeError,
                ["at of shape (2,)", "at of shape (1,)"],
            ),
            "a leaf less": (
                {"step": lambda s, b: (s._replace(best=None), {})},
                TypeError,
                ["best of shape ()", "no leaf"],
            ),
            "a name of its own": (
                {"step": lambda s, b: (s, {"iteration": 1})},
                ValueError,
                ["iteration would be recorded twice"],
            ),
            "a name twice": (
                {"evaluate": lambda *_: {"x": 1}, "evaluate_every": 1},
                ValueError,
                ["x would be recorded twice"],
            ),
        }
    )
    @pytest.mark.usefixtures("as_a_user_has_it")
    def test_arguments(self, given, error, parts):
        assert_raises(lambda: fit(**given), error, parts)

    def test_errors_of_callbacks_say_when(self, begun):
        def fail(iteration, *_):
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine") as caught:
            fit(begun, config={"seed": 1}, callbacks=[fail])
        assert f"iteration 5 of fit; the checkpoint of iteration 4 in {begun}" in str(
            caught.value.__notes__
        )


LIMITED = """
import sys, resource, numpy as np, jax.numpy as jnp
from eprop import checkpoints
path, size, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
checkpoints.save(path, np.zeros(3), "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
checkpoints.save(path, np.ones(size), "new")
"""


@pytest.mark.parametrize(("limit", "kept"), [(50_000, "old"), (500_000, "new")])
def test_the_system_refuses_a_large_file(tmp_path, limit, kept):
    """By itself in the middle of a write, as a full disk does."""
    path = tmp_path / "a"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), "30000", str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (kept == "new")
    assert (
        ("File too large" in done.stderr) == (f"{path} could not" in done.stderr) == (kept == "old")
    )
    assert checkpoints.read_header(path)["metadata"] == kept
    assert list(tmp_path.iterdir()) == [path]
