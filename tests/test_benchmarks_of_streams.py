"""The benchmarks of streams, of learning online, and of recordings of different lengths."""

import json
from typing import ClassVar

import jax
import numpy as np
import optax
import pytest

import eprop
from experiments.benchmarks import online_steps, stream_memory, variable_lengths, wide_online
from tests.test_benchmarks import metrics_of
from tests.test_experiments import assert_options, help_of

pytestmark = pytest.mark.experiment


class TestStreamMemory:
    def test_runs(self, tmp_path, monkeypatch):
        """In processes of its own; how much memory such short ones use says nothing."""
        monkeypatch.setattr(stream_memory, "BOUND", 1.0)
        options = ["--steps", "300", "--whole", "300", "--window", "64", "--chunk", "100"]
        status, metrics = metrics_of(stream_memory, tmp_path, *options)
        assert status == 0 and 0 < metrics["check"]["difference"] < 1e-4
        assert [row["window"] for row in metrics["rows"]] == [64, None]
        assert all(row["peak_bytes"] > 2**26 and row["loss"] > 0 for row in metrics["rows"])

    def test_stream_is_the_same_however_long(self):
        """And its chunks are not all alike."""
        short, long = (
            [np.concatenate(x) for x in zip(*stream_memory.stream(n, 100, 0, 40), strict=True)]
            for n in (250, 400)
        )
        assert long[0].shape == (400, 1, 40) and long[1].shape == (400, 1)
        np.testing.assert_array_equal(short[0], long[0][:250])
        assert 0.01 < long[0].mean() < 0.03 and (long[0][:100] != long[0][100:200]).any()

    def test_peak(self):
        stream_memory.forget_peak()
        before = stream_memory.peak_bytes()
        assert np.ones(2**24).sum() == 2**24
        assert stream_memory.peak_bytes() > before + 2**26

    @pytest.mark.parametrize(
        ("peak", "gradient", "passed"),
        [(104, 1.0, True), (106, 1.0, False), (104, 1.001, False), (104, np.nan, False)],
    )
    def test_check(self, peak, gradient, passed):
        rows = [
            {"n_steps": 10, "window": 5, "peak_bytes": 100},
            {"n_steps": 99, "window": 5, "peak_bytes": peak},
            {"n_steps": 10, "window": None, "peak_bytes": 500},
        ]
        gradients = {(10, 5): {"w": np.array([gradient])}, (10, None): {"w": np.ones(1)}}
        assert stream_memory.check(rows, gradients)["passed"] == passed

    def test_help(self):
        text = help_of("benchmarks.stream_memory")
        assert "process" in text
        assert_options(text, stream_memory.Config)


class TestOnlineSteps:
    def test_runs(self, tmp_path, monkeypatch):
        """How fast and in how much memory, says nothing here; that three ways agree, does."""
        monkeypatch.setitem(online_steps.BOUNDS, "growth", 1.0)
        monkeypatch.setitem(online_steps.BOUNDS, "speed-up", 0.0)
        sizes = "--n 10 --n-in 20 --update-every 1 10 --chunk 1000 --marks 1000 2000"
        few = ["--loop-steps", "200", "--rounds", "1", "--run", "a"]
        assert online_steps.main([*sizes.split(), *few, "--results", str(tmp_path)]) == 0
        metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
        assert metrics["jax"] == jax.__version__ and metrics["check"]["passed"]
        labels = [online_steps.RUN, online_steps.STEP, online_steps.PLAIN]
        for row in metrics["speeds"]:
            assert (
                list(row["programs"]) == labels and row["difference"] < 1e-9 < 1e-4 < row["moved"]
            )
            assert all(x["steps_per_second"] > 1 for x in row["programs"].values())
        for rows in (metrics["memory"], metrics["drift"]):
            assert [row["n_steps"] for row in rows] == [1000, 2000]
        assert all(2**26 < row["now"] <= row["peak"] for row in metrics["memory"])
        for row in metrics["drift"]:
            assert row["dtypes"] == ["float32", "float64"] and 0 < row["difference"] < 1e-4

    def test_bound_of_rounding(self):
        """2000 ms of adaptation at 1 ms, each step rounded to 24 bits."""
        network = eprop.Network(eprop.ALIF(3), n_in=2, n_out=1, key=jax.random.key(0))
        assert online_steps.rounding_bound(network) == 2000 * 2**-24

    GOOD: ClassVar = {
        "growth": 1.005,
        "compilations": 2,
        "drift": 1e-6,
        "speed_up": 6.0,
        "difference": 1e-11,
        "moved": 1.0,
    }

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("growth", 1.02),
            ("compilations", 3),
            ("drift", 2e-4),
            ("drift", 0.0),
            ("drift", np.nan),
            ("speed_up", 4.0),
            ("difference", 1e-8),
            ("moved", 0.0),
        ],
    )
    def test_check(self, name, value):
        def verdict(found):
            speeds = [{key: found[key] for key in ("speed_up", "difference", "moved")}]
            memory = [
                {"now": 1000, "compilations": 2},
                {"now": 1000 * found["growth"], "compilations": found["compilations"]},
            ]
            drifts = [{"difference": 1e-7}, {"difference": found["drift"]}]
            return online_steps.check(speeds, memory, drifts, rounding=1e-4)["passed"]

        assert verdict(self.GOOD) and not verdict(self.GOOD | {name: value})

    def test_marks_are_whole_chunks(self):
        with pytest.raises(ValueError, match=r"\[5000\].*chunk's 2000"):
            online_steps.Config(marks=(4000, 5000))

    def test_help(self):
        text = help_of("benchmarks.online_steps")
        assert "float64" in text
        assert_options(text, online_steps.Config)


class TestVariableLengths:
    OPTIONS = "--recordings 8 --batch 2 --shortest 5 --longest 20 --lengths 10 20 --n 20 --rounds 1"

    def test_runs(self, tmp_path):
        status = variable_lengths.main(
            [*self.OPTIONS.split(), "--results", str(tmp_path), "--run", "a"]
        )
        metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
        assert status == 0 and metrics["passed"] and metrics["jax"] == jax.__version__
        programs = {name: row["programs"] for name, row in metrics["ways"].items()}
        assert programs["each by itself"] == len(set(metrics["steps"]))
        assert programs["the longest of all"] == 1 < programs["a few lengths"] == 2
        steps = {name: row["steps_run"] for name, row in metrics["ways"].items()}
        assert steps["each by itself"] == 1 < steps["a few lengths"] < steps["the longest of all"]

    def test_check_fails(self, tmp_path, monkeypatch):
        """If padding counts."""
        pad = eprop.pad

        def all_counts(sequences, lengths):
            padded, mask = pad(sequences, lengths)
            return padded, np.ones_like(mask)

        monkeypatch.setattr(eprop, "pad", all_counts)
        status = variable_lengths.main([*self.OPTIONS.split(), "--results", str(tmp_path)])
        assert status == 1

    def test_help(self):
        text = help_of("benchmarks.variable_lengths")
        assert "each by itself" in text
        assert_options(text, variable_lengths.Config)


class TestWideOnline:
    @staticmethod
    def run(tmp_path, n_steps, chunk):
        options = ["--n", "60", "--fan-in", "10", "--n-compared", "40", "--run", "a"]
        options += ["--n-steps", str(n_steps), "--chunk", str(chunk), "--results", str(tmp_path)]
        status = wide_online.main(options)
        return status, json.loads((tmp_path / "a" / "metrics.json").read_text())

    def test_runs(self, tmp_path, capsys):
        status, metrics = self.run(tmp_path, n_steps=40, chunk=20)
        assert status == 0 and metrics["difference"] < 1e-12
        assert metrics["synapses"] == 60 * (10 + 10) and metrics["firing_rate_hz"] > 1
        assert metrics["state_bytes"] > 16 * metrics["synapses"]
        assert metrics["steps_per_second"] > 0 and metrics["events_per_second"] > 0
        assert "60 neurons, fan-in 10" in capsys.readouterr().out

    def test_fails_where_nothing_is_learned(self, tmp_path, monkeypatch):
        monkeypatch.setattr(optax, "sgd", lambda _: optax.set_to_zero())
        status, metrics = self.run(tmp_path, n_steps=40, chunk=20)
        assert status == 1 and metrics["largest_change"] == 0 and metrics["difference"] < 1e-12

    @pytest.mark.parametrize(("n_steps", "chunk"), [(50, 100), (100, 100), (250, 100), (50, 0)])
    def test_steps_that_cannot_be_timed_are_refused(self, n_steps, chunk):
        with pytest.raises(ValueError, match=f"chunk = {chunk} must .* n_steps = {n_steps}"):
            wide_online.Config(n_steps=n_steps, chunk=chunk)

    def test_a_folder_of_another_run_is_refused_before_measuring(self, tmp_path, monkeypatch):
        (tmp_path / "a").mkdir()
        for name in ("config", "metrics"):
            (tmp_path / "a" / f"{name}.json").write_text("{}")
        for name in ("difference_from_dense", "measure"):
            monkeypatch.setattr(wide_online, name, lambda _: pytest.fail("measured"))
        with pytest.raises(SystemExit, match="another configuration"):
            self.run(tmp_path, n_steps=40, chunk=20)

    def test_help(self):
        text = help_of("benchmarks.wide_online")
        assert "update at each step" in text
        assert_options(text, wide_online.Config)
