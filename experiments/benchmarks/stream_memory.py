"""Does memory grow with time? Peak memory of the process that finds the gradient of a long stream.

A stream of random input spikes and labels, drawn a chunk at a time, goes through
`eprop.stream_value_and_grad`. Each length has a process of its own, whose peak is the operating
system's account of all that is in it (Python, JAX, the program, its data), from when the program is
compiled: the compiler's own needs differ from run to run. The peak must be the same for all lengths
within a bound. For comparison, `window=None`, which keeps the whole sequence; and the gradient of
the shortest by both ways, which must be the same but for rounding.
"""

import contextlib
import ctypes
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import eprop
from eprop import losses
from figures.stream_memory import draw

from ..runs import RunFolder
from . import machine, relative_difference
from .gradient_cost import DT, draw_workload

BOUND = 0.05
"""The largest relative difference of two peaks that still is the same memory."""
ROUNDING = 1e-4
"""The largest relative difference of two gradients that is still rounding of float32."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, and how."""

    steps: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    """Lengths of the stream in steps of 1 ms."""
    whole: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    """Lengths to run with window=None too, all of the sequence in memory."""
    window: int = 256
    """Steps evaluated at a time."""
    chunk: int = 10_000
    """Steps drawn at a time."""
    seed: int = 0
    """Of the weights and the stream."""
    results: Path = Path("results/stream_memory")
    """Folder of the results."""
    run: str = "window{window}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(window=self.window, seed=self.seed)


def stream(n_steps: int, chunk: int, seed: int, n_in: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Chunks of input spikes at 20 Hz, and a label for each step that changes every 500 ms."""
    for i, begin in enumerate(range(0, n_steps, chunk)):
        rng = np.random.default_rng((seed, i))
        length = min(chunk, n_steps - begin)
        inputs = rng.random((chunk, 1, n_in)) < 20.0 * DT / 1000
        labels = np.repeat(rng.integers(0, 2, chunk // 500 + 1, np.int32), 500)[:chunk, None]
        yield inputs[:length], labels[:length]


def measure(n_steps: int, window: int | None, config: Config) -> dict[str, Any]:
    """Gradient, time and peak memory, in this process."""
    network, _, _ = draw_workload("w3", config.seed)

    def loss(trajectory, labels):
        return losses.softmax_cross_entropy(trajectory.outputs, labels, n_steps=n_steps)

    def chunks(n_steps: int) -> Iterator[tuple[np.ndarray, Any]]:
        return stream(n_steps, config.chunk, config.seed, network.n_in)

    def whole_sequence() -> list[Any]:
        return [np.concatenate(x) for x in zip(*chunks(n_steps), strict=True)]

    if window is None:
        program = jax.jit(eprop.value_and_grad(loss, eprop.EProp()))
        program = program.lower(network, *whole_sequence()).compile()
    else:
        program = eprop.stream_value_and_grad(loss, eprop.EProp(window=window))
        jax.block_until_ready(program(network, chunks(2 * window + 1)))  # all that is compiled

    forget_peak()
    begun = time.perf_counter()
    given = whole_sequence() if window is None else [chunks(n_steps)]
    value, gradients = jax.block_until_ready(program(network, *given))
    return {
        "n_steps": n_steps,
        "window": window,
        "loss": float(value),
        "seconds": time.perf_counter() - begun,
        "peak_bytes": peak_bytes(),
        "gradients": {name: getattr(gradients, name).tolist() for name in ("w_in", "w_rec")},
    }


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Let the peak begin anew at what is used now, where the operating system can (Linux).

    What the compiler has freed, and the C library kept, is given back before.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")


def peak_bytes() -> int:
    """The most memory that the process had since `forget_peak`."""
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(fields["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


def in_own_process(n_steps: int, window: int | None, config: Config) -> dict[str, Any]:
    """`measure` in a new process."""
    arguments = json.dumps([n_steps, window, config.chunk, config.seed])
    code = (
        "import json, sys; from experiments.benchmarks import stream_memory as s; "
        "n, window, chunk, seed = json.loads(sys.argv[1]); "
        "print(json.dumps(s.measure(n, window, s.Config(chunk=chunk, seed=seed))))"
    )
    command = [sys.executable, "-c", code, arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check(rows: list[dict[str, Any]], gradients: dict[Any, Any]) -> dict[str, Any]:
    """Whether memory stayed, and whether it was the gradient that was found in it."""
    peaks = [row["peak_bytes"] for row in rows if row["window"] is not None]
    growth = max(peaks) / min(peaks) - 1
    n_steps = min(row["n_steps"] for row in rows)
    windows = {row["window"] for row in rows if row["n_steps"] == n_steps}
    pair = [gradients[n_steps, window] for window in windows]
    difference = relative_difference(*pair) if len(pair) == 2 else float("nan")
    alive = all(np.abs(x).max() > 0 for x in pair[0].values())
    return {
        "growth": growth,
        "compared_steps": n_steps,
        "difference": difference,
        "passed": growth <= BOUND and difference <= ROUNDING and alive,
    }


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, writes and draws; returns 1 if memory grew or the gradient is wrong."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.stream_memory",
        description=__doc__,
    )  # fmt: skip
    folder, rows, gradients = RunFolder(config.folder, config), [], {}
    print(f"{'steps':>10} {'window':>7} {'peak MiB':>9} {'seconds':>8} {'µs/step':>8}")
    for window, lengths in ((config.window, config.steps), (None, config.whole)):
        for n_steps in lengths:
            row = in_own_process(n_steps, window, config)
            found = row.pop("gradients")
            gradients[n_steps, window] = {name: np.array(x) for name, x in found.items()}
            rows.append(row)
            print(
                f"{n_steps:10,} {window!s:>7} {row['peak_bytes'] / 2**20:9.0f} "
                f"{row['seconds']:8.1f} {1e6 * row['seconds'] / n_steps:8.2f}"
            )
    verdict = check(rows, gradients)
    folder.write_json("metrics", {**machine(), "rows": rows, "check": verdict})
    print(
        f"Check {'passed' if verdict['passed'] else 'FAILED'}: peak memory differs by "
        f"{verdict['growth']:.1%} at most (bound {BOUND:.0%}); at {verdict['compared_steps']:,} "
        f"steps the gradient differs from that of the whole sequence by "
        f"{verdict['difference']:.0e} (bound {ROUNDING:.0e}).\nFigure: {draw(config.folder)}"
    )
    return 0 if verdict["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
