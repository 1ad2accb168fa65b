"""Recordings of different lengths: what do padding, and compiling for each length, cost?

Half a hundred recordings, most of them short and a few long, are gone through in batches, one
gradient for each. Four ways, all with the same sum of gradients over all recordings:

    each by itself         batches of one, as long as it is
    the longest of all     all padded to one length, batches at random
    the longest of each    sorted by length, each batch padded to its longest
    a few lengths          sorted, each batch padded to the least of a few lengths that is enough

For each: how many programs were compiled, how long the first pass through all recordings took,
which compiles them, and a later one (the median), and how many steps were run for each recorded.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import eprop
from eprop import losses

from ..runs import RunFolder
from . import machine, relative_difference

BOUND = 1e-3
"""The largest relative difference of two sums of gradients that is still rounding of float32."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is recorded, and how it is gone through."""

    recordings: int = 64
    """How many there are."""
    shortest: int = 50
    """Of the recordings' lengths, in steps; they are spread evenly on a logarithmic scale ..."""
    longest: int = 1000
    """... up to this one."""
    lengths: tuple[int, ...] = (100, 200, 400, 1000)
    """The few lengths to pad to."""
    batch: int = 8
    """Recordings of a batch."""
    n: int = 100
    """Neurons, all with an adaptive threshold."""
    n_in: int = 40
    """Inputs."""
    rounds: int = 5
    """Timed passes through all recordings, after the first."""
    seed: int = 0
    """Of recordings and weights."""
    results: Path = Path("results/variable_lengths")
    """Folder of the results."""
    run: str = "n{n}_batch{batch}_seed{seed}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if self.recordings % self.batch:
            raise ValueError(
                f"{self.recordings} recordings can't be cut into batches of {self.batch}"
            )

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(n=self.n, batch=self.batch, seed=self.seed)


Ways = dict[str, tuple[list[np.ndarray], Any]]
"""The recordings of each batch, and the lengths to pad to."""


def make_ways(config: Config, steps: np.ndarray) -> Ways:
    def batches(order):
        return list(order.reshape(-1, config.batch))

    by_length = batches(np.argsort(steps))
    at_random = np.random.default_rng(config.seed).permutation(config.recordings)
    return {
        "each by itself": ([np.array([i]) for i in range(config.recordings)], None),
        "the longest of all": (batches(at_random), int(steps.max())),
        "the longest of each": (by_length, None),
        "a few lengths": (by_length, config.lengths),
    }


def make_pass(
    config: Config, way: tuple[list[np.ndarray], Any], recordings: list[np.ndarray]
) -> tuple[Callable[[], Any], list[int]]:
    """A pass through all recordings, which sums up gradients; and the lengths compiled for."""
    (batches, lengths), compiled = way, []
    network = eprop.Network(
        eprop.ALIF(config.n, v_th=0.3), n_in=config.n_in, n_out=2, key=jax.random.key(config.seed)
    )
    labels = np.arange(config.recordings) % 2

    def loss(trajectory, targets):
        compiled.append(len(trajectory.outputs))
        of_batch = len(targets[0])
        return of_batch * losses.softmax_cross_entropy(trajectory.outputs, *targets, n_steps=1)

    @jax.jit
    def add(total, network, inputs, targets):
        gradients = eprop.grad(loss, eprop.EProp())(network, inputs, targets)
        return jax.tree.map(lambda x, y: x + y, total, gradients)

    def go_through():
        total = jax.tree.map(np.zeros_like, network)
        for chosen in batches:
            inputs, mask = eprop.pad([recordings[i] for i in chosen], lengths)
            total = add(total, network, inputs, (labels[chosen], mask))
        return jax.block_until_ready(total)

    return go_through, compiled


def measure(config: Config) -> dict[str, Any]:
    """Times, programs and steps by way, and by how much their gradients differ."""
    rng = np.random.default_rng(config.seed)
    steps = np.geomspace(config.shortest, config.longest, config.recordings).astype(int)
    recordings = [rng.random((n, config.n_in)) < 0.03 for n in steps]
    rows, totals = {}, {}
    for name, way in make_ways(config, steps).items():
        go_through, compiled = make_pass(config, way, recordings)
        seconds = []
        for _ in range(1 + config.rounds):
            begun = time.perf_counter()
            totals[name] = go_through()
            seconds.append(time.perf_counter() - begun)
        run = sum(len(x) * len(eprop.pad([recordings[i] for i in x], way[1])[0]) for x in way[0])
        rows[name] = {
            "programs": len(compiled),
            "first_seconds": seconds[0],
            "seconds": seconds[1:],
            "median_seconds": float(np.median(seconds[1:])),
            "steps_run": run / int(steps.sum()),
        }
    alone = jax.tree.leaves(totals["each by itself"])
    differences = {
        name: relative_difference(jax.tree.leaves(x), alone) for name, x in totals.items()
    }
    return {
        "steps": steps.tolist(),
        "ways": rows,
        "differences": differences,
        "passed": all(x <= BOUND for x in differences.values())
        and all(np.any(x) for x in alone)
        and rows["a few lengths"]["programs"] <= len(config.lengths),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if gradients differ, or more was compiled."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.variable_lengths",
        description=__doc__,
    )  # fmt: skip
    folder, metrics = RunFolder(config.folder, config), machine()
    with jax.enable_x64(False):
        found = measure(config)
    folder.write_json("metrics", {**metrics, **found})
    print(f"{'':24}{'programs':>10}{'first pass s':>14}{'later s':>10}{'steps run':>11}")
    for name, row in found["ways"].items():
        print(
            f"{name:24}{row['programs']:10}{row['first_seconds']:14.2f}"
            f"{row['median_seconds']:10.3f}{row['steps_run']:9.2f} ×"
        )
    print(
        f"Check {'passed' if found['passed'] else 'FAILED'}: gradients differ by "
        f"{max(found['differences'].values()):.0e} at most (bound {BOUND:.0e})."
    )
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
