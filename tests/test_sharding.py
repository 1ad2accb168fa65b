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

ROOT = Path(__file__).parents[1]
N_WEIGHTS = {False: (sharded.N_IN + sharded.N) * sharded.N, True: (sharded.N_IN + 4) * sharded.N}
OF_READOUT = sharded.N * sharded.N_OUT
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
    once, _ = learner.step(state, inputs[0], targets[0])
    again, _ = learner.run(state, (inputs, targets))
    return found, activity, sharded.numbers(once), sharded.numbers(again)


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
    for folder, place in [(on_devices, 2), (on_devices, 4)] + [
        (in_processes, f"process {i}") for i in range(2)
    ]:
        found = of_file(folder / f"{name}, {place}.npz")
        assert difference(found, expected[name]) < 1e-12


def test_a_share_is_not_the_whole(on_one):
    """The control: what a device would find that the others' gradients were not added to."""
    network, (inputs, targets) = sharded.make_network(sparse=True), sharded.data()
    gradient = sharded.gradient("bptt")
    half = sharded.numbers(gradient(network, inputs[:, :4], targets[:, :4]))
    assert difference(half, on_one[0]["bptt"]) > 0.01


def test_an_online_learner_is_that_of_one_device(on_one, on_devices, in_processes):
    *_, once, again = on_one
    weights = next(name for name in once if "recurrent" in name)
    assert np.abs(once[weights] - sharded.make_network(sparse=False).w_rec).max() > 1e-4
    assert difference(again, once) > 0.01
    for n in (2, 4):
        assert difference(of_file(on_devices / f"online, {n}.npz"), once) < 1e-12
    for i in (0, 1):
        assert difference(of_file(in_processes / f"online, process {i}.npz"), again) < 1e-12


@pytest.mark.parametrize("n", [2, 4])
def test_what_travels_is_the_gradient(n, on_devices):
    """Counted in the compiled programs, whatever the length of the run."""
    counts = json.loads((on_devices / "counts.json").read_text())

    def arrays(name):
        kinds, sizes = zip(*counts[f"{name}, {n}"], strict=True)
        assert set(kinds) == {"all-reduce"}
        assert sum(size == 1 for size in sizes) <= 6
        return sum(size for size in sizes if size > 1)

    for name, (sparse, _) in sharded.CASES.items():
        # The readout's weights once more: they hold the check that all is finite.
        assert arrays(name) == N_WEIGHTS[sparse] + 2 * OF_READOUT, name
    # In a window the firing rates of its steps too, for the averages and for the penalty.
    rates = 2 * sharded.WINDOW * sharded.N
    assert arrays("online") == N_WEIGHTS[False] + 2 * OF_READOUT + rates
    assert "all-gather" in {kind for kind, _ in counts["windows, left to XLA"]}


def test_training_on_some_devices_goes_on_on_one(on_devices, in_processes, tmp_path):
    whole, rows = sharded.train(None, sharded.data)
    assert rows[-1]["loss"] < rows[0]["loss"]
    control, _ = sharded.train(None, lambda i: sharded.data(i % 4))
    assert difference(sharded.numbers(control), sharded.numbers(whole)) > 1e-3  # other batches
    for n in (2, 4):
        state, _ = sharded.train(on_devices / f"fit-{n}", sharded.data)
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
