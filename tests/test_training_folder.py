"""`fit` and its folder: whose it is, what it is of, what is recorded and kept, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import checkpoints, files
from eprop.checkpoints import CheckpointError
from tests.errors import assert_raises, check

START = {"w": jnp.asarray([1.0, 2.0]), "n": jnp.zeros((), jnp.int32)}


def make_step(rate=0.1):
    def step(state, batch):
        w = state["w"] - rate * (state["w"] - batch.mean().astype(state["w"].dtype))
        return {"w": w, "n": state["n"] + 1}, {"loss": jnp.sum(w**2)}

    return step


STEP = make_step()


def batch_of(iteration):
    return np.full(3, 1 / iteration)


def fit(folder=None, step=STEP, state=START, batches=batch_of, iterations=6, **options):
    return eprop.fit(
        step, state, batches, iterations=iterations, folder=folder, progress=False, **options
    )


def cut(folder, at, **options):
    """A run that ends with an error after so many iterations."""

    def fail(iteration, *_):
        if iteration == at:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(folder, callbacks=[fail], **({"save_every": at - 1} | options))


def timeless(rows):
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestWithoutConfiguration:
    """A run that goes on is refused where it can be told that it would be another."""

    @pytest.fixture
    def begun(self, tmp_path):
        cut(tmp_path, 4)
        return tmp_path

    def test_the_same_goes_on(self, begun):
        state, rows = fit(begun, step=make_step())
        assert timeless(rows) == timeless(fit()[1]) and state["n"] == 6

    @check(
        {
            "closed over": (
                {"step": make_step(0.2)},
                ValueError,
                ["another step (step.rate = 0.1 there, 0.2 here)", "folder of its own"],
            ),
            "step": (
                {"step": lambda state, batch: (state, {})},
                ValueError,
                ["another step (step = ", "make_step.<locals>.step there", "<lambda> here"],
            ),
            "size of the batch": (
                {"batches": lambda i: np.full(4, 1 / i)},
                ValueError,
                ["batch of iteration 3 was", "(3,)", "(4,) and dtype float64 now"],
            ),
            "of a list": (
                {"batches": [np.full(4, 1 / i) for i in range(1, 9)]},
                ValueError,
                ["batch of iteration 3 was", "(3,)", "(4,)"],
            ),
            "dtype of the batch": (
                {"batches": lambda i: np.full(3, 1 / i, np.float32)},
                ValueError,
                ["dtype float64", "dtype float32 now"],
            ),
            "a configuration": (
                {"config": {"seed": 1}},
                ValueError,
                ["another configuration (None there, {'seed': 1} here)"],
            ),
        }
    )
    def test_another_is_refused(self, begun, given, error, parts):
        before = {path: path.read_bytes() for path in begun.iterdir()}
        assert_raises(lambda: fit(begun, **given), error, parts)
        assert {path: path.read_bytes() for path in begun.iterdir()} == before

    def test_batches_that_vary_are_compared_one_by_one(self, tmp_path):
        batches = [np.full(2 + i % 3, 1 / i) for i in range(1, 9)]
        cut(tmp_path, 4, batches=batches)
        assert timeless(fit(tmp_path, batches=batches)[1]) == timeless(fit(batches=batches)[1])

    def test_with_a_configuration_that_is_what_counts(self, tmp_path):
        cut(tmp_path, 4, config={"seed": 1})
        _, rows = fit(tmp_path, step=make_step(0.2), config={"seed": 1})
        assert len(rows) == 6

    def test_other_numbers_in_the_batch_are_warned_of(self, begun):
        with pytest.warns(UserWarning, match=f"batch of iteration 3.* other numbers .*{begun}"):
            _, rows = fit(begun, batches=lambda i: np.full(3, 2 / i))
        assert len(rows) == 6
        fit(begun, iterations=7, batches=lambda i: np.full(3, 2 / i))  # those are its own now

    def test_another_beginning_is_warned_of(self, begun):
        """It would be dropped in silence: the checkpoint has its own."""
        other = START | {"w": -START["w"]}
        with pytest.warns(UserWarning, match=rf"^w has other numbers .*{begun} was begun with"):
            _, rows = fit(begun, state=other)
        assert timeless(rows) == timeless(fit()[1])
        fit(begun, iterations=7)  # it was begun with START still,
        fit(begun, iterations=8, state=fit(begun, iterations=7)[0])  # and came to this

    def test_hyperparameters_in_the_state(self, tmp_path):
        """The checkpoint's would be used in place of a changed one."""

        def run(rate=0.1, state=None, folder="run", **options):
            rates = optax.exponential_decay(0.5, 1, 0.5)
            optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=rates)

            def step(state, batch):
                updates, opt = optimizer.update({"w": state["w"]}, state["opt"])
                return {"w": state["w"] + updates["w"], "opt": opt}, {}

            begin = {"w": jnp.ones(2), "opt": optimizer.init({"w": jnp.ones(2)})}
            given = begin if state is None else state
            with jax.numpy_dtype_promotion("standard"):
                return fit(tmp_path / folder, step, given, **({"config": 1} | options))[0]

        run(iterations=3)
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        parts = [
            "begun with opt.hyperparams.learning_rate = 0.1, not 0.2",
            "so 0.1 would be used",
            "folder of its own",
        ]
        assert_raises(lambda: run(0.2), ValueError, parts)
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
        run(iterations=4)  # the schedule's momentum is another by now
        after = run(iterations=5)
        run(state=after)  # what it returned is no other run either
        assert float(after["opt"].hyperparams["momentum"]) < 0.1
        run(0.2, folder="another")

    def test_an_optimizer(self, tmp_path):
        network = eprop.Network(eprop.LIF(2), n_in=1, n_out=1, key=jax.random.key(0))

        def run(optimizer, v_th=None):
            step = eprop.training_step(lambda y, t: jnp.sum((y.outputs - t) ** 2), optimizer)
            net = (
                network
                if v_th is None
                else eprop.Network(eprop.LIF(2, v_th=v_th), n_in=1, n_out=1, key=jax.random.key(0))
            )
            state = eprop.init_training(net, eprop.BPTT(), optimizer)
            batch = (np.ones((2, 1, 1)), np.ones((2, 1, 1)))
            return fit(tmp_path, step, state, lambda _: batch, iterations=2)

        run(optax.sgd(0.1))
        run(optax.sgd(0.1))
        with pytest.raises(ValueError, match=r"another step \(step\.\S*optimizer.* -0.1 there, -0"):
            run(optax.sgd(0.2))
        with pytest.raises(ValueError, match=r"another step \(step.*optimizer"):
            run(optax.adam(0.1))
        with pytest.raises(CheckpointError, match=r"cells.0.v_th.number = 0.6 there, 5 here"):
            run(optax.sgd(0.1), v_th=5.0)


class TestRecorded:
    def run(self, info, **options):
        return fit(step=lambda s, b: (s, info(s)), iterations=2, **options)[1][0]

    def test_arrays(self, tmp_path):
        rates = jnp.arange(6.0).reshape(2, 3)
        info = {"rates": rates, "half": jnp.ones(2, jnp.bfloat16), "on": rates > 2, "n": np.int8(1)}
        row = self.run(lambda _: info, folder=tmp_path)
        assert row["rates"] == rates.tolist() and row["on"] == (rates > 2).tolist()
        assert row["half"] == [1, 1] and row["n"] == 1
        assert files.read_rows(tmp_path / "metrics.jsonl")[0] == row

    @pytest.mark.parametrize("by", ["step", "evaluate"])
    def test_what_is_not_is_said_once(self, by):
        info = {"spikes": jnp.zeros((11, 100)), "key": jax.random.key(0), "z": jnp.asarray(1j)}
        options = {"evaluate": lambda *_: info, "evaluate_every": 1} if by == "evaluate" else {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            row = self.run(lambda _: info if by == "step" else {}, **options)
        text = str(caught[0].message)
        assert len(caught) == 1
        assert "spikes of shape (11, 100)" in text and "up to 1000" in text
        assert "key of shape ()" in text and "z of shape ()" in text
        assert set(row) == {"iteration", "seconds"}

    def test_nan_in_an_array(self):
        with pytest.raises(FloatingPointError, match=r"rates \(2 of 4 entries\)"):
            self.run(lambda s: {"rates": jnp.log(jnp.asarray([0.0, 1, -1, 2])) * s["w"].max()})

    def test_a_vmapped_step(self):
        start = jax.tree.map(lambda x: jnp.stack([x, x + 1]), START)
        step = jax.vmap(STEP, in_axes=(0, None))
        _, rows = fit(step=step, state=start)
        alone = fit()[1], fit(state=jax.tree.map(lambda x: x + 1, START))[1]
        np.testing.assert_allclose(
            [row["loss"] for row in rows],
            np.transpose([[row["loss"] for row in one] for one in alone]),
            rtol=1e-12,
        )

    def test_the_bar_shows_numbers(self, capsys):
        eprop.fit(lambda s, b: (s, {"a": s["w"], "b": 2}), START, batch_of, iterations=1)
        assert "b=2" in (text := capsys.readouterr().err) and "a=" not in text


def error_of(state, iteration):
    """Lowest after iteration 4."""
    return {"validation_error": abs(iteration - 4) + 0.5}


class TestKeepBest:
    options = {"evaluate": error_of, "evaluate_every": 2, "keep_best": "validation_error"}  # noqa: RUF012

    def test_is_what_is_returned(self, tmp_path):
        state, rows = fit(tmp_path, **self.options)
        expected, _ = fit(iterations=4)
        assert state["n"] == 4 and len(rows) == 6
        np.testing.assert_array_equal(state["w"], expected["w"])
        best, metadata = checkpoints.load(tmp_path / "best.eprop", START)
        assert best["n"] == 4 and metadata == {"iteration": 4, "value": 0.5}
        last, _ = checkpoints.load(tmp_path / "checkpoint.eprop", START)
        assert last["n"] == 6
        assert names(tmp_path) == ["best.eprop", "checkpoint.eprop", "metrics.jsonl"]

    def test_without_a_folder(self):
        assert fit(**self.options)[0]["n"] == 4

    def test_the_first_of_equals(self):
        options = self.options | {"evaluate": lambda *_: {"validation_error": 1}}
        assert fit(**options)[0]["n"] == 2

    @pytest.mark.parametrize("at", [2, 4, 5, 6])
    @pytest.mark.parametrize("save_every", [1, 2, 3])
    def test_goes_on(self, tmp_path, at, save_every):
        cut(tmp_path, at, save_every=save_every, **self.options)
        for _ in range(2):  # the second time it is finished
            state, _ = fit(tmp_path, save_every=save_every, **self.options)
            assert state["n"] == 4
            assert checkpoints.load(tmp_path / "best.eprop", START)[0]["n"] == 4
            assert names(tmp_path) == ["best.eprop", "checkpoint.eprop", "metrics.jsonl"]

    @pytest.mark.parametrize("write", range(1, 7))
    def test_killed_between_two_writes(self, tmp_path, monkeypatch, write):
        """The best state and the checkpoint, each at its moment, whichever is the last to come."""
        done, replace = [], os.replace

        def dies(*paths):
            done.append(paths)
            if len(done) == write:
                raise SystemExit
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            with pytest.raises(SystemExit):
                fit(tmp_path, save_every=2, **self.options)
        state, _ = fit(tmp_path, save_every=2, **self.options)
        assert state["n"] == 4
        assert checkpoints.load(tmp_path / "best.eprop", START)[0]["n"] == 4

    @check(
        {
            "no such metric": (
                {"keep_best": "error"},
                ValueError,
                ["keep_best = 'error' is not recorded", "iteration, loss, validation_error"],
            ),
            "array": (
                {"evaluate": lambda s, _: {"validation_error": s["w"]}},
                ValueError,
                ["'validation_error' is an array", "loss"],
            ),
            "no name": ({"keep_best": 1}, TypeError, ["keep_best = 1", "validation_error"]),
            "never looked at": (
                {"evaluate_every": 7},
                ValueError,
                ["evaluate_every = 7", "there are only 6"],
            ),
        }
    )
    @pytest.mark.usefixtures("as_a_user_has_it")
    def test_bad_input(self, given, error, parts):
        assert_raises(lambda: fit(**(self.options | given)), error, parts)

    def test_not_kept_from_the_beginning(self, tmp_path):
        cut(tmp_path, 4, evaluate=error_of, evaluate_every=2)
        parts = ["begun with keep_best = None, not 'validation_error'", "folder of its own"]
        assert_raises(lambda: fit(tmp_path, **self.options), ValueError, parts)

    def test_lost(self, tmp_path):
        fit(tmp_path, **self.options)
        (tmp_path / "best.eprop").unlink()
        parts = ["best.eprop is not the state of iteration 4"]
        assert_raises(lambda: fit(tmp_path, **self.options), CheckpointError, parts)


class TestFinished:
    @check(
        {
            "fewer iterations": ({"iterations": 3}, UserWarning, ["iterations = 6 there, 3 here"]),
            "evaluations": (
                {"evaluate": error_of},
                UserWarning,
                ["evaluate = None there", "error_of here", "nothing is trained"],
            ),
            "how often": (
                {"evaluate_every": 3},
                UserWarning,
                ["evaluate_every = 100 there, 3 here"],
            ),
        }
    )
    def test_other_settings_are_said(self, tmp_path, given, error, parts):
        fit(tmp_path)
        assert_raises(lambda: fit(tmp_path, **given), error, parts)
        fit(tmp_path)  # with the same ones, nothing

    def test_more_iterations_go_on(self, tmp_path):
        fit(tmp_path, iterations=4)
        assert timeless(fit(tmp_path)[1]) == timeless(fit()[1])


class TestDtypes:
    @pytest.mark.parametrize("x64", [False, True])
    def test_numpy_state_goes_on(self, tmp_path, x64):
        """Which JAX may turn into 32 bits."""
        start = {"w": np.ones(2), "n": np.int64(0)}
        with jax.enable_x64(x64):
            cut(tmp_path, 4, state=start)
            state, rows = fit(tmp_path, state=start)
            assert timeless(rows) == timeless(fit(state=start)[1])
        assert state["w"].dtype == (np.float64 if x64 else np.float32) and state["n"] == 6

    @pytest.mark.parametrize("dtype", [">f8", ">f4", ">i4"])
    def test_another_order_of_bytes(self, dtype):
        def batches(order):
            return lambda i: np.full(3, 100 * i).astype(
                dtype if i % 2 else dtype.replace(">", order)
            )

        assert np.zeros(1, dtype).dtype.isnative is False
        expected = fit(batches=lambda i: np.full(3, 100 * i).astype(dtype.replace(">", "=")))[1]
        assert timeless(fit(batches=batches("="))[1]) == timeless(expected)
        assert timeless(fit(batches=batches(">"))[1]) == timeless(expected)
        start = {"w": np.asarray(START["w"]).astype(">f8"), "n": START["n"]}
        assert timeless(fit(state=start)[1]) == timeless(fit()[1])


class TestFolder:
    def test_is_one_runs_at_a_time(self, tmp_path):
        def again(*_):
            fit(tmp_path)

        with pytest.raises(RuntimeError, match=f"{tmp_path} is in use by this process"):
            fit(tmp_path, callbacks=[again])
        fit(tmp_path)  # an error leaves it free
        assert names(tmp_path) == ["checkpoint.eprop", "metrics.jsonl"]

    def damaged(self, folder, change):
        fit(folder, iterations=4)
        path = folder / "metrics.jsonl"
        rows = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(change(rows)))
        return path.read_bytes()

    @check(
        {
            "reversed": (lambda x: x[::-1], ValueError, ["row 1 of", "not of iteration 1"]),
            "two runs": (
                lambda x: [x[0], *x],
                ValueError,
                ["row 2 of", "metrics.jsonl is not of iteration 2", "two runs"],
            ),
            "of something else": (
                lambda x: [b'{"a": 1}\n'] * 4,
                ValueError,
                ["row 1 of", "{'a': 1}", "folder of its own"],
            ),
            "no time": (
                lambda x: [x[0], b'{"iteration": 2}\n', *x[2:]],
                ValueError,
                ["row 2 of"],
            ),
            "damaged": (
                lambda x: [x[0], x[1][:9] + b"\n", *x[2:]],
                ValueError,
                ["line 2 of", "is no row of JSON"],
            ),
            "too few": (lambda x: x[:3], ValueError, ["3 whole rows, but 4 are needed"]),
        }
    )
    def test_rows_that_are_not_its_own(self, tmp_path, given, error, parts):
        content = self.damaged(tmp_path, given)
        assert_raises(lambda: fit(tmp_path), error, parts)
        assert (tmp_path / "metrics.jsonl").read_bytes() == content

    def test_anothers_file_is_not_overwritten(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        for content in (b'{"epoch": 1}\n', b"epoch 1\n"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"metrics.jsonl"):
                fit(tmp_path)
            assert path.read_bytes() == content

    @pytest.mark.parametrize("metadata", [None, {"iteration": 3}, [1], "text"])
    def test_a_foreign_checkpoint(self, tmp_path, metadata):
        checkpoints.save(tmp_path / "checkpoint.eprop", START, metadata)
        parts = ["checkpoint.eprop is a checkpoint, but none of fit", "folder of its own"]
        assert_raises(lambda: fit(tmp_path), CheckpointError, parts)


INTERRUPTED = """
import signal, sys, time
import jax.numpy as jnp, numpy as np
import eprop

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it

def step(state, batch):
    return jnp.cos(3 * state) + batch, {"x": state}

def wait(iteration, *_):
    print(iteration, flush=True)
    time.sleep(0.02)

state, rows = eprop.fit(
    step, jnp.zeros(()), lambda i: np.float32(1 / i), iterations=int(sys.argv[2]),
    folder=sys.argv[1], callbacks=[wait], progress=False, save_every=100_000,
)
print(float(state), len(rows))
"""


def start(folder, iterations):
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(folder), str(iterations)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestInterrupted:
    @pytest.mark.slow
    def test_a_script(self, tmp_path):
        """By Ctrl-C: the last whole iteration is saved, one line says so, and all goes on."""
        process = start(tmp_path, 100_000)
        for _ in range(5):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT
        saved = checkpoints.read_header(tmp_path / "checkpoint.eprop")["metadata"]["iteration"]
        shown = 5 + output.count("\n")
        assert shown - 1 <= saved <= shown
        assert errors == (
            f"Interrupted: iteration {saved} is saved in {tmp_path}, and the same call goes on "
            f"from there.\n"
        )
        output, errors = start(tmp_path, saved + 5).communicate(timeout=60)
        assert errors == "" and output.startswith(f"{saved + 1}\n")
        whole, errors = start(tmp_path / "whole", saved + 5).communicate(timeout=60)
        assert errors == "" and whole.splitlines()[-1] == output.splitlines()[-1]
        assert names(tmp_path) == ["checkpoint.eprop", "metrics.jsonl", "whole"]

    def interrupt(self, at):
        def callback(iteration, *_):
            if iteration == at:
                raise KeyboardInterrupt

        return callback

    @pytest.mark.parametrize("at", [1, 2, 4])
    def test_what_is_said(self, tmp_path, monkeypatch, at):
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(tmp_path, callbacks=[self.interrupt(at)])
        assert caught.value.__suppress_context__
        if at == 1:
            assert f"after 0 iterations: there is no checkpoint in {tmp_path}" in str(caught.value)
            assert names(tmp_path) == ["metrics.jsonl"]
        else:
            assert f"iteration {at - 1} is saved in {tmp_path}" in str(caught.value)
        assert caught.value._render_traceback_() == [str(caught.value)]
        assert timeless(fit(tmp_path)[1]) == timeless(fit()[1])

    def test_without_a_folder(self, monkeypatch):
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(KeyboardInterrupt, match="after 2 iterations: nothing is kept, since"):
            fit(callbacks=[self.interrupt(3)])

    def test_while_it_saves(self, tmp_path, monkeypatch):
        """Or in between: what counts is what is whole."""
        replace, done = os.replace, []

        def interrupted(*paths):
            done.append(paths)
            if len(done) == 2:
                raise KeyboardInterrupt
            replace(*paths)

        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt, match="iteration 4 is saved"):
                fit(tmp_path, save_every=2)
        assert timeless(fit(tmp_path)[1]) == timeless(fit()[1])

    def test_another_hook_is_left_alone(self, tmp_path, monkeypatch):
        def mine(*_):
            raise AssertionError

        monkeypatch.setattr(sys, "excepthook", mine)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, callbacks=[self.interrupt(2)])
        assert sys.excepthook is mine


class TestBatches:
    """Of a `training_step`."""

    INPUTS, TARGETS = np.ones((2, 1, 1)), np.ones((2, 1, 1))

    @check(
        {
            "dict": ({"inputs": INPUTS, "targets": TARGETS}, TypeError, ["a dict of 2"]),
            "three": ((INPUTS, TARGETS, TARGETS), TypeError, ["a tuple of 3"]),
            "inputs alone": (INPUTS, TypeError, ["an array of shape (2, 1, 1)"]),
        }
    )
    @pytest.mark.usefixtures("as_a_user_has_it")
    def test_of_another_kind(self, given, error, parts):
        network = eprop.Network(eprop.LIF(2), n_in=1, n_out=1, key=jax.random.key(0))
        step = eprop.training_step(lambda y, t: jnp.sum(y.outputs), optax.sgd(0.1))
        state = eprop.init_training(network, eprop.BPTT(), optax.sgd(0.1))
        parts = [*parts, "takes (inputs, targets)"]
        assert_raises(lambda: step(state, given), error, parts)


def test_a_row_is_a_line_of_json(tmp_path):
    fit(tmp_path, step=lambda s, b: (s, {"w": s["w"], "ok": s["w"] > 1}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["ok"] == [False, True] and len(lines) == 6
    assert time.perf_counter() > json.loads(lines[-1])["seconds"]
