"""Several devices and processes: the numbers of one, and nothing travels but what must.

Here are the numbers of one device; `sharded.py` finds the others, in processes of their own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eprop import checkpoints, files
from tests import sharded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ENDS_WITHIN = 60
"""Seconds from a process's death to the other's end, where a heartbeat is missed after 10 s."""


def start(*arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false"
    command = [sys.executable, str(ROOT / "tests" / "sharded.py"), *map(str, arguments)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(arguments[1] / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def start_two(folder, *runs):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start("process", folder, port, i, *runs) for i in range(2)]


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    finish(start("devices", folder, devices=4))
    return folder


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    finish(*start_two(folder, "gradients", "whole", "errors"))
    return folder


@pytest.fixture(scope="module")
def on_one():
    """The numbers of one device, by case; and how active neurons are."""
    found, activity = {}, {}
    inputs, targets = sharded.data()
    for name, (sparse, rule) in sharded.CASES.items():
        network = sharded.make_network(sparse=sparse)
        found[name] = sharded.numbers(sharded.gradient(rule)(network, inputs, targets))
        activity[name] = float(network(inputs).spikes.mean())
    learner = sharded.learner(sharded.make_network(sparse=False))
    state, _ = learner.run(learner.init(sharded.BATCH), (inputs, targets))
    again, _ = learner.run(state, (inputs, targets))
    return found, activity, sharded.numbers(state), sharded.numbers(again)


def difference(found, expected):
    """The largest, relative to the largest number of its array."""
    assert set(found) == set(expected)
    return max(
        np.abs(x - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-30)
        for name, x in found.items()
        if x.size
    )


def of_file(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", sharded.CASES)
def test_gradients_are_those_of_one_device(name, on_one, on_devices, in_processes):
    expected, activity, *_ = on_one
    assert 0.02 < activity[name] < 0.5
    assert all(np.abs(x).max() > 1e-5 for x in expected[name].values())
    places = [(on_devices, place) for place, (*_, cases) in sharded.MESHES.items() if name in cases]
    for place, (*_, cases) in sharded.OF_PROCESSES.items():
        places += [(in_processes, f"{place}, {i}") for i in range(2) if name in cases]
    assert places
    for folder, place in places:
        assert difference(of_file(folder / f"{name}, {place}.npz"), expected[name]) < 1e-12, place


def test_a_share_is_not_the_whole(on_one):
    """The control: what a device would find that the others' gradients were not added to."""
    network, (inputs, targets) = sharded.make_network(sparse=True), sharded.data()
    gradient = sharded.gradient("bptt")
    half = sharded.numbers(gradient(network, inputs[:, :4], targets[:, :4]))
    assert difference(half, on_one[0]["sparse, bptt"]) > 0.01


def test_an_online_learner_is_that_of_one_device(on_one, on_devices, in_processes):
    *_, once, again = on_one
    weights = next(name for name in once if "recurrent" in name)
    assert np.abs(once[weights] - sharded.make_network(sparse=False).w_rec).max() > 1e-4
    assert difference(again, once) > 0.01
    for place in sharded.ONLINE:
        assert difference(of_file(on_devices / f"online, {place}.npz"), again) < 1e-12, place
    for i in (0, 1):
        assert difference(of_file(in_processes / f"online, process {i}.npz"), again) < 1e-12


@pytest.fixture(scope="module")
def counts(on_devices):
    """What travels in each program: kind, dtype and size of arrays; of single numbers few."""
    found = json.loads((on_devices / "counts.json").read_text())
    arrays = {
        name: [x for x in of_program if x[-1] > 1]
        for name, of_program in found.items()
        if "traces" not in name
    }
    assert all(len(found[name]) - len(of_program) <= 20 for name, of_program in arrays.items())
    return arrays | {name: x for name, x in found.items() if "traces" in name}


def test_of_shares_the_gradient_travels(counts):
    """Whatever the length of the run."""
    readout = sharded.N * sharded.N_OUT
    dense = (sharded.N_IN + sharded.N) * sharded.N + readout
    sparse = (sharded.N_IN + 4) * sharded.N + readout
    for place in ("2 shares", "4 shares"):
        for name in sharded.MESHES[place][-1]:
            kinds, _, sizes = zip(*counts[f"{name}, {place}"], strict=True)
            assert set(kinds) == {"all-reduce"}, name
            assert sum(sizes) == (sparse if "sparse" in name else dense), name
    # In a window the firing rates of its steps too, for the averages and for the penalty.
    kinds, _, sizes = zip(*counts["online, 2 shares"], strict=True)
    assert set(kinds) == {"all-reduce"}
    assert sum(sizes) == dense + 2 * sharded.WINDOW * sharded.N
    assert "all-gather" in {kind for kind, *_ in counts["windows, left to XLA"]}  # the control


def test_of_parts_spikes_travel_as_bits(counts):
    """And the outputs, which are sums over all neurons; what is in a loop counts once."""
    step, n_bytes = sharded.BATCH * sharded.N // 8, "u8"
    outputs = sharded.BATCH * sharded.N_OUT
    expected = [
        ["all-gather", n_bytes, step],  # forward, in each step
        ["all-gather", n_bytes, sharded.N_STEPS * step],  # in reverse, of all steps
        ["all-reduce", "f64", sharded.N_STEPS * outputs],
    ]
    for place in ("2 parts", "4 parts"):
        assert sorted(counts[f"dense, reverse, {place}"]) == sorted(expected)
    of_window = sharded.WINDOW * step
    expected = [
        ["all-gather", n_bytes, step],
        ["all-gather", n_bytes, of_window],  # in reverse, ...
        ["all-gather", n_bytes, of_window],  # ... and to lead the traces on
        ["all-reduce", "f64", sharded.WINDOW * outputs],
    ]
    assert sorted(counts["dense, windows, 2 parts"]) == sorted(expected)
    assert ["all-gather", "f64", 8 * step] in counts["sparse, bptt, 2 parts"]  # the control


def test_traces_are_where_their_neurons_and_examples_are(counts):
    n_pre = sharded.N_IN + sharded.N
    assert counts["traces, 2 shares"] == [sharded.BATCH // 2, n_pre, sharded.N]
    assert counts["traces, 2 shares, 2 parts"] == [sharded.BATCH // 2, n_pre, sharded.N // 2]


def test_training_on_some_devices_goes_on_on_one(on_devices, in_processes, tmp_path):
    whole, rows = sharded.train(None, sharded.data)
    assert rows[-1]["loss"] < rows[0]["loss"]
    control, _ = sharded.train(None, lambda i: sharded.data(i % 4))
    assert difference(sharded.numbers(control), sharded.numbers(whole)) > 1e-3  # other batches
    state, _ = sharded.train(on_devices / "fit", sharded.data)
    assert difference(sharded.numbers(state), sharded.numbers(whole)) < 1e-11
    state, _ = checkpoints.load(in_processes / "whole" / "checkpoint.eprop", like=whole)
    assert difference(sharded.numbers(state), sharded.numbers(whole)) < 1e-11
    learner = sharded.learner(sharded.make_network(sparse=False))
    state, _ = checkpoints.load(in_processes / "online.eprop", like=learner.init(sharded.BATCH))
    assert int(state.n_steps) == sharded.N_STEPS


def test_one_process_writes(in_processes):
    names = ["checkpoint.eprop", "metrics.jsonl"]
    assert sorted(path.name for path in (in_processes / "whole").iterdir()) == names
    first, second = (json.loads((in_processes / f"whole {i}.json").read_text()) for i in range(2))
    written = files.read_rows(in_processes / "whole" / "metrics.jsonl")
    assert timeless(first) == timeless(second) == timeless(written)
    assert written == first and len(written) == sharded.ITERATIONS


def timeless(rows):
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def test_a_killed_process_is_an_error_in_the_other_and_the_run_goes_on(in_processes):
    first, second = start_two(in_processes, "killed")
    second.communicate(timeout=300)
    begun = time.monotonic()
    assert second.returncode == -signal.SIGKILL
    _, errors = first.communicate(timeout=300)
    assert first.returncode not in (0, None) and time.monotonic() - begun < ENDS_WITHIN
    assert "at iteration 6 of fit; the checkpoint of iteration 4 in" in errors
    folders = [in_processes / name for name in ("whole", "torn")]
    assert sorted(path.name for path in folders[1].iterdir()) == [
        "checkpoint.eprop",
        "metrics.jsonl",
    ]
    header = checkpoints.read_header(folders[1] / "checkpoint.eprop")
    assert header["metadata"]["iteration"] == 4

    finish(*start_two(in_processes, "rerun"))
    whole, torn = ((folder / "checkpoint.eprop").read_bytes() for folder in folders)
    assert torn == whole
    whole, torn = (files.read_rows(folder / "metrics.jsonl") for folder in folders)
    assert timeless(torn) == timeless(whole)


def test_errors(on_devices, in_processes):
    said = json.loads((on_devices / "errors.json").read_text())
    for name in ("gradient", "online", "run"):
        assert said[name].startswith(
            "ValueError: a batch of 6 examples can't be divided over the 4"
        )
    assert "the spikes of 20 neurons can't be divided into bytes on the 4 devices" in said["bytes"]
    assert "32 neurons can't be divided over the 3 devices" in said["parts"]
    assert "axis_types=(jax.sharding.AxisType.Auto,)" in said["explicit"]
    first, second = (json.loads((in_processes / f"errors {i}.json").read_text()) for i in range(2))
    for name, path in {
        "seed": "layers.0.recurrent",
        "rate": "config.rate",
        "share": "batch.0",
    }.items():
        assert first[name] == second[name]
        assert "process 1 (here) is given something else than process 0 (there)" in first[name]
        assert path in first[name]
        assert not (in_processes / name / "checkpoint.eprop").exists()
    assert first["fails"] == "RuntimeError: process 1 has failed: ValueError: the data are gone"
    assert second["fails"] == "ValueError: the data are gone"
    assert all("iteration 1 gave NaN or infinity" in x["not finite"] for x in (first, second))
