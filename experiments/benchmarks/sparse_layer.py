"""What does a sparse layer cost? Time and memory of a run and of its e-prop gradient.

A recurrent layer of ALIF neurons with a fixed number of synapses each, on spikes at 20 Hz, on the
programs that follow the spikes and on XLA alone, in turn in one process. Memory goes with the
synapses: that of a dense matrix of weights alone is printed beside it.
"""

import dataclasses
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import eprop
from eprop import losses
from eprop.compiled import without_kernels

from ..runs import RunFolder
from . import machine, relative_difference, time_in_turn

ROUNDING = 1e-3
"""By how much gradients of the two may differ in float32, of the largest entry."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    n: int = 20_000
    """Neurons."""
    fan_in: int = 100
    """Recurrent synapses of each."""
    n_in: int = 100
    """Inputs, of which each neuron hears 10."""
    n_steps: int = 1000
    """Steps of 1 ms."""
    v_th: float = 0.6
    """Threshold of the neurons: the lower, the more of them spike."""
    rounds: int = 3
    """Timed calls of each program."""
    seed: int = 0
    """Of weights and inputs."""
    results: Path = Path("results/sparse_layer")
    """Folder of the results."""
    run: str = "n{n}_fan_in{fan_in}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(n=self.n, fan_in=self.fan_in)


def make(config: Config) -> tuple[eprop.Network, jax.Array, jax.Array]:
    """The network, its inputs and targets."""
    keys = jax.random.split(jax.random.key(config.seed), 4)
    network = eprop.Network(
        eprop.ALIF(config.n, v_th=config.v_th),
        n_in=config.n_in,
        n_out=1,
        w_in=eprop.Sparse.random(config.n_in, config.n, min(10, config.n_in), key=keys[0]),
        w_rec=eprop.Sparse.random(config.n, config.n, config.fan_in, key=keys[1], autapses=False),
        key=keys[2],
    )
    inputs = jax.random.bernoulli(keys[3], 0.02, (config.n_steps, 1, config.n_in))
    return network, inputs, jnp.zeros((config.n_steps, 1, 1))


def measure(config: Config) -> dict[str, Any]:
    """Seconds and bytes of the run and of the gradient, and whether anything happened."""
    arguments = make(config)

    def loss(trajectory, targets):
        return losses.mean_squared_error(trajectory.outputs, targets)

    def programs() -> dict[str, Any]:
        """Each time other functions: JAX knows again what it has traced."""

        def forward(network, inputs, targets):
            trajectory = network(inputs)
            return loss(trajectory, targets), trajectory.spikes.mean()

        functions = {"forward": forward, "gradient": eprop.value_and_grad(loss, eprop.EProp())}
        return {x: jax.jit(f).lower(*arguments).compile() for x, f in functions.items()}

    compiled = programs()
    with without_kernels():  # while it is traced
        compiled |= {f"{label}, XLA": program for label, program in programs().items()}
    results = {label: jax.block_until_ready(f(*arguments)) for label, f in compiled.items()}

    def run(program: Any) -> Callable[[], Any]:
        return lambda: program(*arguments)

    timed = {label: run(program) for label, program in compiled.items()}
    rows = time_in_turn(timed, dict.fromkeys(timed, config.rounds), f"{config.n} neurons")
    for label, row in rows.items():
        memory: Any = compiled[label].memory_analysis()
        row["memory_bytes"] = memory.temp_size_in_bytes + memory.output_size_in_bytes
    n_synapses = config.n * (config.fan_in + min(10, config.n_in))
    gradient = results["gradient"][1].w_rec
    return {
        "programs": rows,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "weights_bytes": 4 * n_synapses,
        "dense_weights_bytes": 4 * config.n * (config.n + config.n_in),
        "spiking": float(results["forward"][1]),
        "gradient_nonzero": float((gradient != 0).mean()),
        "gradients_differ": relative_difference(gradient, results["gradient, XLA"][1].w_rec),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if nothing spiked, or gradients differ or are zero."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.sparse_layer",
        description=__doc__,
    )  # fmt: skip
    folder, metrics = RunFolder(config.folder, config), machine()
    with jax.enable_x64(False):
        found = measure(config)
    folder.write_json("metrics", metrics | found)
    mib = 2**20
    print(
        f"{config.n} neurons, fan-in {config.fan_in}, {config.n_steps} steps, "
        f"{found['spiking']:.1%} of neurons spiking in a step"
    )
    for label, row in found["programs"].items():
        print(f"  {label:14}{row['median_seconds']:8.3f} s {row['memory_bytes'] / mib:8.0f} MiB")
    seconds = {label: row["median_seconds"] for label, row in found["programs"].items()}
    print(
        f"  gradient / forward {seconds['gradient'] / seconds['forward']:.2f}\n"
        f"  times as fast as XLA: forward {seconds['forward, XLA'] / seconds['forward']:.1f}, "
        f"gradient {seconds['gradient, XLA'] / seconds['gradient']:.1f}\n"
        f"  gradients of the two differ by {found['gradients_differ']:.0e}\n"
        f"  peak of the process {found['peak_bytes'] / mib:.0f} MiB\n"
        f"  weights {found['weights_bytes'] / mib:.0f} MiB, as dense matrices "
        f"{found['dense_weights_bytes'] / mib:.0f} MiB"
    )
    is_alive = found["spiking"] > 0.001 and found["gradient_nonzero"] > 0.1
    return 0 if is_alive and found["gradients_differ"] < ROUNDING else 1


if __name__ == "__main__":
    sys.exit(main())
