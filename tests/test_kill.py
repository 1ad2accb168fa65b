"""A training killed at any moment goes on, and ends bit-identical to one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eprop import checkpoints, files
from tests import killed

pytestmark = pytest.mark.slow

KILLS = 20
ROOT = Path(__file__).parents[1]


def start(folder, *arguments, cache, program="killed.py"):
    """The training as a process of its own; programs are compiled once for all."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / program), str(folder)]
    command += arguments
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def wait_until(happened):
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def leftovers(folder):
    return [path for path in folder.iterdir() if path.suffix == ".part"]


def checkpointed(folder):
    """The iteration of the checkpoint, which must be whole; 0 if there is none."""
    path = folder / "checkpoint.eprop"
    return checkpoints.read_header(path)["metadata"]["iteration"] if path.exists() else 0


def count_rows(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def timeless(folder):
    rows = files.read_rows(folder / "metrics.jsonl")
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def test_killed_again_and_again(tmp_path):
    rng = random.Random(0)
    whole, torn, cache = tmp_path / "whole", tmp_path / "torn", tmp_path / "cache"
    finish(start(whole, "fast", cache=cache))
    torn.mkdir()
    reached, within_write = [], 0
    for kill in range(KILLS):
        # Twice before training has begun; else some iterations later than the last checkpoint,
        # every other time as soon as the next one is seen to be written, or shortly after that.
        writing = kill % 2 == 0
        old, rows = set(leftovers(torn)), checkpointed(torn) + rng.randint(3, 12)
        speed = "slow" if writing else rng.choice(["slow", "fast"])
        process = start(torn, speed, cache=cache)
        if kill in (5, 11):
            time.sleep(rng.uniform(0, 1))
        else:
            wait_until(lambda rows=rows: count_rows(torn) >= rows)
            if writing:
                wait_until(lambda old=old: set(leftovers(torn)) - old)
            time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        within_write += bool(set(leftovers(torn)) - old)
        assert len(leftovers(torn)) <= 1
        reached.append(checkpointed(torn))
        assert reached[-1] <= len(timeless(torn))
    assert reached == sorted(reached) and len(set(reached)) > 15, reached
    assert within_write > 3
    finish(start(torn, "fast", cache=cache))

    assert timeless(torn) == timeless(whole) and len(timeless(whole)) == killed.ITERATIONS
    assert timeless(whole)[0]["rate"] > 0.02
    assert timeless(whole)[2]["size"] != timeless(whole)[-1]["size"]
    names = ["checkpoint.eprop", "metrics.jsonl"]
    for folder in (whole, torn):
        assert sorted(path.name for path in folder.iterdir()) == names
    assert (torn / names[0]).read_bytes() == (whole / names[0]).read_bytes()
