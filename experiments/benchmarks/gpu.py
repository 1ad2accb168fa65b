"""What does a gradient cost on a GPU? Time and memory, by XLA alone and on eprop's GPU programs.

The workloads of `gradient_cost`, and one of 4096 neurons ("dense": 100 inputs, 200 steps, batch
128), on whatever device JAX has: the forward pass of a plain `lax.scan`, that of the package,
e-prop and BPTT, as there. All products are of float32, as a processor's are; "TF32" is the plain
scan as JAX has it on a GPU by default. With `--kernels` the package's are measured once more
inside of `eprop.compiled.gpu_kernels()`; `--interpret` runs these programs without a GPU, to see
whether everything works.

Before, with weights that no rounding spares: how far the package's input currents are from float64
ones, how far those of a plain product by default, and at which step the spikes of either first
differ from those of the package on the host's processor.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import eprop
from eprop.compiled import gpu_kernels, programs, without_kernels
from eprop.precision import exact_products

from ..runs import RunFolder
from . import machine, relative_difference
from .gradient_cost import (
    WORKLOADS,
    Workload,
    compare,
    draw_network,
    draw_workload,
    make_programs,
    plain_scan,
)

Name = Literal["w1", "w2", "w3", "dense", "tiny"]
SIZES = {**WORKLOADS, "dense": Workload(n_in=100, n=4096, n_steps=200, batch=128)}
OURS = ("forward, eprop", "e-prop, window=")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    workloads: tuple[Name, ...] = ("w1", "w2", "w3", "dense")
    """Networks and sequences to measure on."""
    windows: tuple[int, ...] = (256,)
    """Windows of e-prop in steps, beside the whole sequence; those no shorter are left out."""
    kernels: bool = False
    """Whether to measure the GPU programs, too."""
    interpret: bool = False
    """Whether these are interpreted: on a device that is no GPU."""
    rounds: int = 5
    """Timed calls of each program."""
    seed: int = 0
    """Of the weights and the inputs."""
    results: Path = Path("results/gpu")
    """Folder of the results."""
    run: str = "{workloads}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(workloads="_".join(self.workloads), seed=self.seed)


def measure(name: Name, config: Config) -> dict[str, Any]:
    """Compile, compare and time all programs on one workload."""
    workload = SIZES[name]
    windows = [None, *(window for window in config.windows if window < workload.n_steps)]
    functions: dict[str, Callable[..., Any]] = dict(make_programs(workload, windows))
    by_default = functions["forward, plain scan"]
    functions = {label: exact_products(function) for label, function in functions.items()}
    functions["forward, plain, TF32"] = by_default
    if config.kernels:
        functions |= {
            f"{label}, kernels": in_kernels(function, config.interpret)
            for label, function in functions.items()
            if label.startswith(OURS)
        }
    arguments = draw(name, config.seed)
    found = compare(functions, arguments, config.rounds, name) | {"workload": workload._asdict()}
    if config.kernels:
        with gpu_kernels(interpret=config.interpret):
            found["kernels"] = str(programs(arguments[0].layers[0]))
        forward = functions["forward, eprop, kernels"]
        found["check"]["spikes_that_differ"] += spikes_that_differ(
            functions["forward, eprop"], forward, arguments
        )
        found["check"]["passed"] &= found["check"]["spikes_that_differ"] == 0
    return found


def draw(name: Name, seed: int) -> tuple[eprop.Network, jax.Array, Any]:
    """Network, inputs and targets."""
    if name == "dense":
        return draw_network(SIZES[name], seed)
    return draw_workload(name, seed)


def in_kernels(function: Callable, interpret: bool) -> Callable:
    """The function, traced for the GPU programs."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with gpu_kernels(interpret=interpret):
            return function(*args)

    return call


def spikes_that_differ(one: Callable, other: Callable, arguments: tuple[Any, ...]) -> int:
    spikes = [jax.jit(function)(*arguments)[1] for function in (one, other)]
    return int(jnp.sum(spikes[0] != spikes[1]))


def precision(name: Name, config: Config) -> dict[str, Any]:
    """The errors of products, and the first step whose spikes differ from the host's."""
    network, inputs, _ = draw(name, config.seed)
    network = jax.tree.map(lambda w: w * 1.0003, network)  # off the grid, where no sum is exact

    def own(network, inputs):
        with without_kernels():
            run = network(inputs)
        return run.states.v[0], run.spikes > 0  # from rest, v is the current

    def plain(network, inputs):
        current = inputs[0].astype(jnp.float32) @ network.w_in
        return current, plain_scan(network, inputs, SIZES[name].hoist)[1]

    on_host = jax.device_put((network, inputs), jax.devices("cpu")[0])
    expected = np.asarray(jax.jit(own)(*on_host)[1])
    exact = np.asarray(inputs[0], np.float64) @ np.asarray(network.w_in, np.float64)
    found: dict[str, Any] = {"spikes": int(expected.sum())}
    for label, function in {"eprop": own, "plain": plain}.items():
        current, spikes = jax.tree.map(np.asarray, jax.jit(function)(network, inputs))
        differ = (spikes != expected).any((1, 2))
        found[f"{label}, error of a current"] = relative_difference(current, exact)
        found[f"{label}, first step that differs"] = int(differ.argmax()) if differ.any() else None
        found[f"{label}, spikes that differ"] = int((spikes != expected).sum())
    return found


def table(name: str, found: dict[str, Any]) -> str:
    """One workload's measurements, to be read."""
    w, verdict, of_precision = found["workload"], found["check"], found["precision"]
    lines = [
        f"{name}: {w['n_in']} inputs, {w['n']} neurons at {verdict['rate_hz']:.0f} Hz, "
        f"{w['n_steps']} steps, batch {w['batch']}",
        f"{'':30}{'median ms':>10}{'× forward':>10}{'MiB':>9}{'compile s':>11}{'difference':>12}",
    ]
    differences = verdict["differences"] | {"BPTT, jax.grad": verdict["bptt_difference"]}
    for label, row in found["programs"].items():
        lines.append(
            f"  {label:28}{1e3 * row['median_seconds']:10.2f}{row['time_ratio']:10.2f}"
            f"{row['memory_bytes'] / 2**20:9.1f}{row['compile_seconds']:11.2f}"
            + (f"{differences[label]:12.0e}" if label in differences else "")
        )
    lines += [f"  {label}: {x}" for label, x in of_precision.items()]
    if "kernels" in found:
        lines.append(f"  inside of gpu_kernels(): {found['kernels']}")
    passed = "passed" if verdict["passed"] else "FAILED"
    return "\n".join([*lines, f"  Check {passed}: {verdict['spikes_that_differ']} spikes differ."])


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if a gradient was not what it should be."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.gpu", description=__doc__
    )
    folder, metrics = RunFolder(config.folder, config), {**machine(), "workloads": {}}
    print(f"{metrics['device']}, JAX {metrics['jax']}")
    passed = True
    for name in config.workloads:
        with jax.enable_x64(False):
            found = {"precision": precision(name, config), **measure(name, config)}
        metrics["workloads"][name] = found
        folder.write_json("metrics", metrics)
        passed &= found["check"]["passed"]
        print(table(name, found) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
