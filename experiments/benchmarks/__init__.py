"""What gradients cost: `python -m experiments.benchmarks.<name> --help` lists the options."""

import datetime
import functools
import importlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm


def machine() -> dict[str, Any]:
    """What a benchmark's figures hold for: date, versions, processor, threads, and the load."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "cores_usable": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": {x: os.environ.get(x) for x in ("XLA_FLAGS", "OMP_NUM_THREADS", "NPROC")},
        "load_before": os.getloadavg()[0],
    }


@functools.cache
def peer(name: str) -> Any:
    """Another library to compare with, imported; `None`, with how to install it, if it is not."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(
            f"{name} is left out, since it can't be imported ({error}). "
            f"Install what there is to compare with: pip install -e '.[peers]'"
        )
        return None


def peer_versions(distributions: Sequence[str]) -> dict[str, str | None]:
    """What is installed of other libraries; `None` for what is not."""
    versions: dict[str, str | None] = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def time_in_turn(
    programs: Mapping[str, Callable[[], Any]],
    rounds: Mapping[str, int],
    title: str,
    warm_up: int = 0,
) -> dict[str, dict[str, Any]]:
    """By label: `rounds` timed calls of each program, in seconds, in turn: A B C ... A B C ...

    Before each there are `warm_up` calls of the same program without timing, for programs so
    short that the caches as the one before has left them would be most of their time.
    """
    rows: dict[str, dict[str, Any]] = {label: {"seconds": []} for label in programs}
    bar = tqdm(total=sum(rounds.values()), desc=title)
    for i in range(max(rounds.values())):
        for label in (label for label in programs if i < rounds[label]):
            bar.set_postfix_str(label)
            for _ in range(warm_up):
                jax.block_until_ready(programs[label]())
            begun = time.perf_counter()
            jax.block_until_ready(programs[label]())
            rows[label]["seconds"].append(time.perf_counter() - begun)
            bar.update()
    bar.close()
    for row in rows.values():
        row["median_seconds"] = float(np.median(row["seconds"]))
    return rows


def travelling(program: jax.stages.Compiled) -> list[tuple[str, str, int]]:
    """The collective operations of a compiled program: of each array kind, dtype and size.

    What is in a loop counts once.
    """
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = []
    for line in (program.as_text() or "").splitlines():
        if operation := re.search(rf"= (.*?) ({kinds})(-start)?\(", line):
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", operation[1]):
                size = int(np.prod([int(n) for n in shape.split(",") if n]))
                found.append((operation[2], dtype, size))
    return found


def relative_difference(a: Any, b: Any) -> float:
    """Largest difference of any two arrays of `a` and `b` / the largest entry of `b`'s.

    NaN where both are zero: nothing was compared.
    """
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    with np.errstate(invalid="ignore"):
        return float(np.max([np.abs(x - y).max() / np.abs(y).max() for x, y in pairs]))
