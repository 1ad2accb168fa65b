"""How do time and memory of a gradient grow with time steps, neurons and batch?

The programs of `gradient_cost` (the plain forward pass, e-prop over the whole sequence and by
windows, e-prop by autodiff, BPTT by `jax.grad` of the plain scan), on random input spikes; one size
varies at a time, the others are the base's. All programs of a point run in turn, and their results
are compared as there.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from figures.scaling import draw

from ..runs import RunFolder
from . import machine
from .gradient_cost import Workload, compare, draw_network, make_programs


@dataclasses.dataclass(frozen=True)
class Config:
    """The base, and the sizes to vary."""

    n_in: int = 40
    """Inputs, of 20 Hz."""
    n: int = 100
    """Neurons of the base, half of them ALIF."""
    n_steps: int = 1000
    """Steps of 1 ms of the base."""
    batch: int = 16
    """Examples of the base."""
    vary_n: tuple[int, ...] = (50, 100, 200, 400, 800)
    """Numbers of neurons."""
    vary_n_steps: tuple[int, ...] = (500, 1000, 2000, 4000, 8000)
    """Numbers of steps."""
    vary_batch: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of examples."""
    window: int = 256
    """Steps of e-prop's window."""
    rounds: int = 7
    """Timed calls of each program."""
    seed: int = 0
    """Of the weights and the inputs."""
    results: Path = Path("results/scaling")
    """Folder of the results."""
    run: str = "n{n}_steps{n_steps}_batch{batch}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(**dataclasses.asdict(self))


def workloads(config: Config) -> Iterator[tuple[str, int, Workload]]:
    """What varies, its value, and the workload."""
    base = Workload(config.n_in, config.n, config.n_steps, config.batch, hoist=True)
    for size in ("n_steps", "n", "batch"):
        for value in getattr(config, f"vary_{size}"):
            yield size, value, base._replace(**{size: value})


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, writes and draws; returns 1 if a gradient was not what it should be."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.scaling", description=__doc__
    )
    folder, points = RunFolder(config.folder, config), []
    metrics: dict[str, Any] = {**machine(), "points": points}
    for size, value, workload in workloads(config):
        with jax.enable_x64(False):
            windows = (None, *(x for x in [config.window] if x < workload.n_steps))
            programs = make_programs(workload, windows)
            arguments = draw_network(workload, config.seed)
            found = compare(programs, arguments, config.rounds, f"{size}={value}")
        points.append({"size": size, "value": value, "workload": workload._asdict(), **found})
        folder.write_json("metrics", metrics)
        times = ", ".join(
            f"{label} {1e3 * row['median_seconds']:.1f} ms"
            for label, row in found["programs"].items()
        )
        verdict = "" if found["check"]["passed"] else "   CHECK FAILED"
        print(f"{size} = {value}: {times}{verdict}")
    print(f"Figure: {draw(config.folder)}")
    return 0 if all(point["check"]["passed"] for point in points) else 1


if __name__ == "__main__":
    sys.exit(main())
