"""The benchmarks run, and measure what they say; how fast anything is, is not tested."""

import importlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop import losses
from experiments import benchmarks
from experiments.benchmarks import (
    activity,
    devices,
    gpu,
    gradient_cost,
    neuron_step,
    peers,
    scaling,
    sparse_layer,
    spike_storage,
)
from tests.comparison import assert_trees_close
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

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


def test_gpu(tmp_path, monkeypatch):
    """Its programs, interpreted."""
    monkeypatch.setattr("eprop.kernels.tiles.AHEAD", 1)
    options = ["--workloads", "tiny", "--windows", "256", "--rounds", "1", "--run", "a"]
    assert gpu.main([*options, "--kernels", "--interpret", "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())["workloads"]["tiny"]
    assert {"forward, eprop, kernels", "e-prop, window=None, kernels"} < set(found["programs"])
    assert "for 12 neurons" in found["kernels"]
    assert found["precision"]["spikes"] > 50
    assert found["precision"]["eprop, spikes that differ"] == 0
    assert found["precision"]["eprop, error of a current"] < 1e-6


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


@pytest.fixture
def without_peers(monkeypatch):
    """As if nothing to compare with were installed."""
    import_module = importlib.import_module

    def refuse(name, *rest):
        if name.split(".")[0] in ("torch", "braintrace", "brainstate", "spikingjelly", "nest"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)
    benchmarks.peer.cache_clear()
    yield
    benchmarks.peer.cache_clear()


def metrics_of(benchmark, tmp_path, *options):
    """Exit status and metrics of a run, whose figure and configuration are there too."""
    status = benchmark.main([*options, "--results", str(tmp_path), "--run", "a"])
    assert_drawn(tmp_path / "a" / "figure.png")
    assert (tmp_path / "a" / "config.json").exists()
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["jax"] == jax.__version__
    return status, metrics


class TestTools:
    def test_a_peer_that_is_there(self):
        assert benchmarks.peer("json") is json

    def test_a_peer_that_is_not_there_says_how_to_install_it(self, without_peers, capsys):
        assert benchmarks.peer("torch") is None
        assert benchmarks.peer("torch") is None
        said = capsys.readouterr().out
        assert said.count("pip install -e '.[peers]'") == 1 and "torch" in said

    def test_versions(self):
        versions = benchmarks.peer_versions(("jax", "eprop_no_such_package"))
        assert versions == {"jax": jax.__version__, "eprop_no_such_package": None}

    def test_times_in_turn(self):
        calls = []
        programs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
        rows = benchmarks.time_in_turn(programs, {"a": 3, "b": 1}, "")
        assert calls == ["a", "b", "a", "a"]
        assert [len(row["seconds"]) for row in rows.values()] == [3, 1]
        assert rows["a"]["median_seconds"] == np.median(rows["a"]["seconds"]) > 0

    def test_warms_up(self):
        calls = []
        rows = benchmarks.time_in_turn({"a": lambda: calls.append("a")}, {"a": 2}, "", warm_up=3)
        assert len(calls) == 8 and len(rows["a"]["seconds"]) == 2

    def test_relative_difference(self):
        a, b = (np.ones(2), np.array([4.0, 8.0])), (np.ones(2), np.array([4.0, 10.0]))
        assert benchmarks.relative_difference(a, a) == 0
        assert benchmarks.relative_difference(a, b) == pytest.approx(0.2)
        assert np.isnan(benchmarks.relative_difference(a, (b[0], b[1] * np.nan)))


@pytest.fixture(scope="module")
def neurons():
    """Spikes and gradients by label, without PyTorch."""
    inputs = 2 * np.random.default_rng(1).random((20, 30), dtype=np.float32)
    with jax.enable_x64(False):
        programs = {"eprop, LIF": neuron_step.own_program(inputs)} | {
            f"JAX, {name}": neuron_step.jax_program(step, inputs)
            for name, step in neuron_step.EQUATIONS.items()
        }
        return {label: tuple(map(np.asarray, run())) for label, run in programs.items()}


class TestNeuronStep:
    def test_runs_without_peers(self, without_peers, tmp_path, capsys):
        status, metrics = metrics_of(neuron_step, tmp_path, "--rounds", "2", "--n-steps", "20")
        found = metrics["workloads"]["neuron_step"]
        assert status == 0 and found["check"]["passed"]
        labels = ["eprop, LIF", *(f"JAX, {name}" for name in neuron_step.EQUATIONS)]
        assert list(found["programs"]) == labels
        assert found["programs"]["eprop, LIF"]["time_ratio"] == 1
        assert "pip install" in capsys.readouterr().out

    def test_three_neurons(self):
        """Hard and soft reset and FuseLIF, by hand, for inputs of one neuron."""
        x = np.array([[1.5], [0.75], [0.5]], np.float32)
        with jax.enable_x64(False):
            spikes = {
                name: np.asarray(neuron_step.jax_program(step, x)()[0])[:, 0].tolist()
                for name, step in neuron_step.EQUATIONS.items()
            }
        # v of the hard reset: 1.5, 0.75, 0.875; the soft one: 1.5, 0.5, 0.75; fused: 1.5, 1.5, 1.25
        assert spikes["LISNN"] == spikes["LIF in three phases"] == [1, 0, 0]
        assert spikes["soft reset"] == [1, 0, 0]
        assert spikes["FuseLIF"] == [1, 1, 1]

    def test_surrogate(self):
        surrogate = neuron_step.Rectangular(0.25)
        x = jnp.array([-0.3, -0.2, 0.0, 0.2, 0.3])
        slope = jax.vmap(jax.grad(surrogate.spike))(x)
        np.testing.assert_array_equal(slope, [0, 2, 2, 2, 0])
        np.testing.assert_array_equal(surrogate.spike(x), [0, 0, 0, 1, 1])

    @pytest.mark.parametrize(
        ("label", "change"),
        [
            ("eprop, LIF", lambda z, g: (z, g * np.float32(1.001))),
            ("eprop, LIF", lambda z, g: (z, g * np.float32(np.nan))),
            ("eprop, LIF", lambda z, g: (1 - z, g)),
            ("JAX, FuseLIF", lambda z, g: (np.zeros_like(z), g)),
            ("JAX, FuseLIF", None),
        ],
    )
    def test_check_fails(self, neurons, label, change):
        """If a gradient is wrong, spikes are different or missing, or all neurons are one."""
        assert neuron_step.check(neurons)["passed"]
        changed = change(*neurons[label]) if change else neurons["JAX, LISNN"]
        assert not neuron_step.check(neurons | {label: changed})["passed"]

    def test_help(self):
        text = help_of("benchmarks.neuron_step")
        assert "LISNN" in text and "in steps" in text
        assert_options(text, neuron_step.Config)


class TestSpikeStorage:
    def test_runs(self, tmp_path):
        status, metrics = metrics_of(
            spike_storage, tmp_path, "--workloads", "tiny", "--rounds", "2"
        )
        found = metrics["workloads"]["tiny"]
        assert status == 0 and found["check"]["passed"]
        labels = [f"kept as {kind}" for kind in spike_storage.STORAGES]
        assert list(found["programs"]) == [*labels, "e-prop, float32", "e-prop, booleans"]
        n_bytes = 75 * 3 * np.array([4 * 12, 12, 2])  # 12 neurons: 2 bytes of bits
        assert list(found["kept_bytes"].values()) == n_bytes.tolist()
        for row in found["programs"].values():
            assert len(row["seconds"]) == 2 and row["memory_bytes"] > 0

    @pytest.mark.parametrize("kind", spike_storage.STORAGES)
    @pytest.mark.parametrize("n", [8, 13])
    def test_what_is_written_is_read(self, kind, n):
        storage = spike_storage.STORAGES[kind]
        spikes = np.random.default_rng(0).random((5, 3, n)) < 0.3
        kept = storage.write(jnp.asarray(spikes, jnp.float32))
        np.testing.assert_array_equal(storage.read(kept, n), spikes)
        assert kept.nbytes == 15 * {"float32": 4 * n, "booleans": n, "bits": -(-n // 8)}[kind]

    def test_filter(self):
        """The spikes are those of the rates, and the last one counts most."""
        storage = spike_storage.STORAGES["bits"]
        with jax.enable_x64(False):
            start = jnp.full((1, 2), 0.9)  # at 5 and 20 Hz it is above 1 after 20 and 5 steps
            filtered, kept = spike_storage.write_and_read(storage, start, n_steps=24, block=8)
            spikes = np.asarray(storage.read(kept, 2)).reshape(24, 2)
        assert np.argmax(spikes, axis=0) == pytest.approx([20, 5], abs=1)
        assert spikes.sum() == 2
        ages = np.argmax(spikes, axis=0)  # read from the last step to the first
        np.testing.assert_allclose(filtered[0], spike_storage.DECAY**ages, rtol=1e-5)

    def test_only_the_storage_of_the_cell_differs(self):
        with jax.enable_x64(False):
            network, _, _ = gradient_cost.draw_workload("tiny", seed=0)
        other = spike_storage.float_cells(network)
        assert network.cell.spiking and not other.cell.spiking
        assert vars(network.cell) == vars(other.cell)

    @pytest.mark.parametrize(
        ("label", "change"),
        [
            ("kept as bits", lambda x: np.nextafter(x, np.float32(9))),
            ("e-prop, booleans", lambda x: np.nextafter(x, np.float32(9))),
            ("e-prop, booleans", lambda x: x * np.float32(np.nan)),
        ],
    )
    def test_check_fails(self, label, change):
        """If a result differs by one bit."""
        names = [f"kept as {kind}" for kind in spike_storage.STORAGES]
        names += ["e-prop, float32", "e-prop, booleans"]
        results = {name: [np.ones(3, np.float32)] for name in names}
        sizes = {"float32": 96, "booleans": 24, "bits": 3}
        assert spike_storage.check(results, sizes)["passed"]
        changed = results | {label: [change(results[label][0])]}
        assert not spike_storage.check(changed, sizes)["passed"]

    def test_check_fails_for_large_or_no_spikes(self):
        results = {"kept as float32": [np.ones(3, np.float32)]}
        assert spike_storage.check(results, {"float32": 96, "bits": 12})["passed"]
        assert not spike_storage.check(results, {"float32": 96, "bits": 13})["passed"]
        silent = {"kept as float32": [np.zeros(3, np.float32)]}
        assert not spike_storage.check(silent, {"float32": 96, "bits": 12})["passed"]

    def test_help(self):
        text = help_of("benchmarks.spike_storage")
        assert "booleans" in text
        assert_options(text, spike_storage.Config)


class TestScaling:
    def test_runs(self, tmp_path):
        options = "--n-in 10 --n 12 --n-steps 150 --batch 2 --window 64 --rounds 1 --vary-n 12"
        sizes = ["--vary-n-steps", "150", "200", "--vary-batch", "2"]
        _, metrics = metrics_of(scaling, tmp_path, *options.split(), *sizes)
        points = metrics["points"]
        found = [(point["size"], point["value"]) for point in points]
        assert found == [("n_steps", 150), ("n_steps", 200), ("n", 12), ("batch", 2)]
        for point in points:
            assert point["workload"][point["size"]] == point["value"]
            assert {"e-prop, window=None", "e-prop, window=64"} <= set(point["programs"])
            assert max(point["check"]["differences"].values()) < 1e-4

    def test_help(self):
        text = help_of("benchmarks.scaling")
        assert "in turn" in text
        assert_options(text, scaling.Config)


class TestSparseLayer:
    @staticmethod
    def run(tmp_path, n_steps):
        options = ["--n", "60", "--fan-in", "10", "--n-in", "20", "--rounds", "1", "--run", "a"]
        options += ["--n-steps", str(n_steps), "--results", str(tmp_path)]
        status = sparse_layer.main(options)
        return status, json.loads((tmp_path / "a" / "metrics.json").read_text())

    def test_runs(self, tmp_path, capsys):
        status, metrics = self.run(tmp_path, n_steps=100)
        assert status == 0 and metrics["jax"] == jax.__version__
        assert list(metrics["programs"]) == ["forward", "gradient", "forward, XLA", "gradient, XLA"]
        for row in metrics["programs"].values():
            assert row["median_seconds"] > 0 and row["memory_bytes"] > 0
        assert 0 < metrics["gradients_differ"] < 1e-3  # they were two programs
        assert metrics["weights_bytes"] == 4 * 60 * (10 + 10)
        assert metrics["dense_weights_bytes"] == 4 * 60 * (60 + 20)
        assert metrics["peak_bytes"] > 2**26
        said = capsys.readouterr().out
        assert "60 neurons, fan-in 10, 100 steps" in said and "gradient / forward" in said

    def test_fails_without_a_gradient(self, tmp_path):
        """In one step no recurrent spike arrives."""
        status, metrics = self.run(tmp_path, n_steps=1)
        assert status == 1 and metrics["gradient_nonzero"] == 0 < metrics["spiking"]

    def test_a_folder_of_another_run_is_refused_before_measuring(self, tmp_path, monkeypatch):
        (tmp_path / "a").mkdir()
        for name in ("config", "metrics"):
            (tmp_path / "a" / f"{name}.json").write_text("{}")
        monkeypatch.setattr(sparse_layer, "measure", lambda _: pytest.fail("measured"))
        with pytest.raises(SystemExit, match="another configuration"):
            self.run(tmp_path, n_steps=1)

    def test_network_is_sparse(self):
        network, inputs, _ = sparse_layer.make(sparse_layer.Config(n=60, fan_in=10, n_in=20))
        assert network.w_rec.shape == network.w_in.shape == (60, 10)
        assert inputs.shape == (1000, 1, 20) and 0.01 < inputs.mean() < 0.03

    def test_help(self):
        text = help_of("benchmarks.sparse_layer")
        assert "20 Hz" in text
        assert_options(text, sparse_layer.Config)


class TestDevices:
    def test_runs(self, tmp_path):
        """In a process of its own: how many devices there are is settled when JAX begins."""
        options = (
            "--workloads tiny --window 25 --devices 3 --wide 240 --fan-in 10 --rounds 1 --run a"
        )
        command = [sys.executable, "-m", "experiments.benchmarks.devices", *options.split()]
        result = subprocess.run(
            [*command, "--results", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
        found = metrics["workloads"]["tiny"]
        for row in found["programs"].values():
            assert row["travelling"] == row["as_documented"] == (10 + 12 + 2) * 12
            assert row["difference"] < 1e-5 and row["throughput_ratio"] > 0
        one, two, three = metrics["parts"]
        assert one["bits"] == 0 and two["bits"] == three["bits"] == 2 * 240
        assert one["held_bytes"] > 1.7 * two["held_bytes"] > 2 * three["held_bytes"]
        assert one["spiking"] == pytest.approx(three["spiking"], rel=1e-3) and one["spiking"] > 1
        assert "documented" in result.stdout and "bits a step" in result.stdout

    def test_help(self):
        text = help_of("benchmarks.devices")
        assert "not timed" in text
        assert_options(text, devices.Config)


class TestActivity:
    def test_runs(self, tmp_path):
        """The more spikes are asked for, the more there are; both ways find the same."""
        options = ["--workloads", "tiny", "--rounds", "1", "--window", "16"]
        status, metrics = metrics_of(activity, tmp_path, *options, "--activity", "0.05", "0.3")
        assert status == 0 and metrics["check"]["passed"]
        few, many = metrics["points"]
        assert 0.02 < few["spiking"] < 0.1 < many["spiking"] < 0.4
        for point in (few, many):
            assert point["spikes_differ"] < activity.ROUNDING
            assert 0 < point["gradients_differ"] < 1e-3
            ways = {label.split(", ")[1] for label in point["seconds"]}
            assert len(point["seconds"]) == 6 and ways == {"compiled", "XLA"}

    def test_both_ways_are_taken(self):
        """What is called compiled has programs in its text, what is called XLA has not."""
        (network, inputs, _), _ = activity.make(gradient_cost.WORKLOADS["tiny"], 0.1, 0)
        texts = [jax.jit(lambda x: network(x).outputs).lower(inputs).as_text()]
        with activity.without_kernels():
            texts.append(jax.jit(lambda x: network(x).outputs).lower(inputs).as_text())
        assert ["eprop_run" in text for text in texts] == [True, False]

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
            activity.Config(activity=(0.7,))

    def test_help(self):
        assert_options(help_of("benchmarks.activity"), activity.Config)


class TestPeers:
    def test_runs_without_peers(self, without_peers, tmp_path, capsys):
        options = ["--workloads", "tiny", "--windows", "16", "--rounds", "2"]
        status, metrics = metrics_of(peers, tmp_path, *options)
        found = metrics["workloads"]["tiny"]
        assert status == 0 and found["check"]["passed"]
        assert list(found["programs"]) == [peers.OWN, "e-prop, window=16", peers.BPTT]
        said = capsys.readouterr().out
        assert all(name in said for name in ("braintrace", "torch", "pip install -e '.[peers]'"))

    @pytest.mark.parametrize(
        ("label", "value", "factor"),
        [
            ("BrainTrace, D_RTRL", 1.0, 1.001),
            ("BrainTrace, D_RTRL", 1.0, np.nan),
            ("PyTorch, BPTT", 1.0, 1.001),
            ("BrainTrace, pp_prop", 1.001, 1.0),
            (peers.BPTT, 1.0, 0.5),
            (peers.NEST, np.nan, 1.001),
        ],
    )
    def test_check_fails(self, label, value, factor):
        """If an exact gradient or a loss is another, or BPTT is e-prop."""
        own = tuple(np.arange(1.0, 1 + n) for n in (4, 9, 3))
        bptt = tuple(2 * x for x in own)
        results = {
            label: (1.0, bptt if "BPTT" in label else own)
            for label in (peers.OWN, peers.BPTT, "BrainTrace, D_RTRL", "PyTorch, BPTT")
        }
        results["BrainTrace, pp_prop"] = (1.0, tuple(x[::-1] for x in own))
        double = tuple(3 * x for x in own)
        results[peers.NEST] = (np.nan, double)
        verdict = peers.check(results, double)
        assert verdict["passed"]
        assert verdict["cosines"]["BrainTrace, pp_prop"] < 0.9 < verdict["cosines"][peers.BPTT]
        results[label] = (value, tuple(factor * x for x in results[label][1]))
        assert not peers.check(results, double)["passed"]

    def test_in_double(self):
        """What NEST is held against has float64's digits, and the gradient in float32 its own."""
        with jax.enable_x64(False):
            arguments = peers.draw_inputs("tiny", 0)
            single = peers.jax_programs("tiny", [], *arguments)[peers.OWN]()[1]
            double = peers.in_double("tiny", *arguments)
        assert all(w.dtype == np.float64 for w in double)
        assert 1e-9 < benchmarks.relative_difference(jax.device_get(single), double) < 1e-5

    def test_nest(self):
        """Its gradient is the same, where it is installed."""
        pytest.importorskip("nest")
        arguments = peers.draw_inputs("tiny", 0)
        program = peers.nest_program(peers.peer("nest"), "tiny", 1, *arguments)
        double = peers.in_double("tiny", *arguments)
        assert benchmarks.relative_difference(program()[1], double) < 1e-12

    def test_help(self):
        text = help_of("benchmarks.peers")
        assert "BrainTrace" in text and "in steps" in text
        assert_options(text, peers.Config)
