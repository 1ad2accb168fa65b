"""The benchmarks run, and measure what they say; how fast anything is, is not tested."""

import json

import jax
import numpy as np
import pytest
from comparison import assert_trees_close
from test_experiments import assert_drawn, assert_options, help_of

import eprop
from eprop import losses
from experiments.benchmarks import gradient_cost

PROGRAMS = [
    "forward, plain scan",
    "forward, eprop",
    "e-prop, window=None",
    "e-prop, window=16",
    "e-prop, window=1",
    "e-prop, autodiff",
    "BPTT, jax.grad",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    options = ["--workloads", "tiny", "--windows", "16", "256", "--rounds", "3", "--run", "a"]
    assert gradient_cost.main([*options, "--results", str(results)]) == 0
    return results / "a"


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


class TestGradientCost:
    def test_measures_everything(self, metrics):
        """The window of 256 steps is longer than the sequence, so left out."""
        programs = metrics["workloads"]["tiny"]["programs"]
        assert list(programs) == PROGRAMS
        for row in programs.values():
            assert len(row["seconds"]) == 3 and min(row["seconds"]) > 0
            assert row["median_seconds"] == np.median(row["seconds"])
            assert row["compile_seconds"] > 0 and row["memory_bytes"] > 0
            assert row["time_ratio"] > 0 and row["memory_ratio"] > 0
        assert programs["forward, plain scan"]["time_ratio"] == 1

    def test_compares_the_gradients(self, metrics):
        check = metrics["workloads"]["tiny"]["check"]
        assert check["passed"] and check["rate_hz"] > 1 and check["spikes_that_differ"] == 0
        assert list(check["differences"]) == PROGRAMS[2:5]
        assert 0 < max(check["differences"].values()) < 1e-4 < 1e-2 < check["bptt_difference"]

    def test_writes_the_run(self, folder, metrics):
        assert {path.name for path in folder.iterdir()} == {
            "config.json",
            "figure.png",
            "metrics.json",
        }
        assert json.loads((folder / "config.json").read_text())["windows"] == [16, 256]
        assert metrics["jax"] == jax.__version__ and metrics["processor"] is not None
        assert metrics["cores"] >= metrics["cores_usable"] >= 1
        assert set(metrics) >= {"date", "device", "threads", "load_before"}
        assert_drawn(folder / "figure.png")

    @pytest.mark.parametrize("hoist", [False, True])
    def test_plain_scan_is_the_network(self, hoist):
        """Its autodiff is BPTT, and e-prop where the spikes' gradient is stopped."""
        workload = gradient_cost.WORKLOADS["tiny"]._replace(hoist=hoist)

        def loss(trajectory, targets):
            return losses.softmax_cross_entropy(
                trajectory.outputs, *targets, n_steps=workload.n_recall
            )

        with jax.enable_x64(False):
            arguments = gradient_cost.draw_workload("tiny", seed=1)
            programs = gradient_cost.make_programs(workload, windows=())
            for label, stop in (("BPTT, jax.grad", False), ("e-prop, autodiff", True)):
                rule = eprop.BPTT(stop_z_gradients=stop)
                expected = jax.jit(eprop.value_and_grad(loss, rule))(*arguments)
                assert_trees_close(jax.jit(programs[label])(*arguments), expected, 1e-5, label)

    @pytest.mark.parametrize(
        ("label", "change"),
        [
            ("e-prop, window=16", lambda x: x * np.float32(1.001)),
            ("e-prop, window=16", lambda x: x * np.float32(np.nan)),
            ("forward, eprop", np.logical_not),
            ("forward, plain scan", np.zeros_like),
            ("BPTT, jax.grad", None),
        ],
    )
    def test_check_fails(self, label, change):
        """If a gradient is wrong, spikes are different or missing, or BPTT is e-prop."""
        with jax.enable_x64(False):
            arguments = gradient_cost.draw_workload("tiny", seed=0)
            programs = gradient_cost.make_programs(gradient_cost.WORKLOADS["tiny"], ())
            forward = np.asarray(programs["forward, plain scan"](*arguments)[1])
            gradients = {
                label: jax.tree.map(np.asarray, jax.jit(programs[label])(*arguments)[1])
                for label in ("e-prop, autodiff", "BPTT, jax.grad")
            }
        results = gradients | {
            "forward, plain scan": forward,
            "forward, eprop": forward,
            "e-prop, window=16": gradients["e-prop, autodiff"],
        }
        assert gradient_cost.check(results)["passed"]
        if change is None:
            results[label] = gradients["e-prop, autodiff"]
        else:
            results[label] = jax.tree.map(change, results[label])
        assert not gradient_cost.check(results)["passed"]

    def test_help(self):
        text = help_of("benchmarks.gradient_cost")
        assert "XLA's own account" in text and "in steps" in text
        assert_options(text, gradient_cost.Config)
