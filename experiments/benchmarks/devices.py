"""What do several devices give? Batches and neurons divided over a mesh, against one device.

The devices are forced ones of the host's processor, whose cores they share: on few cores what is
seen is mostly what dividing costs. For each workload of `gradient_cost` the gradient by e-prop over
the whole sequence and by windows, in turn on one device and on the mesh, on the same numbers.

Beside the times: how many numbers travel between the devices, counted in the compiled program,
where a loop over windows counts once, and as documented: the gradient, in each window. They may not
differ, nor the gradients but for rounding.

Then the neurons of a wide, sparse layer that learns online, in one and in more parts: bytes of each
device, XLA's account of its program, and bits that come to it at a step. These are not timed.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eprop
from eprop import stepping

from ..runs import RunFolder
from . import machine, relative_difference, sparse_layer, time_in_turn, travelling
from .gradient_cost import BOUND, WORKLOADS, Name, draw_workload, make_programs


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    devices: int = 2
    """Devices of the mesh."""
    workloads: tuple[Name, ...] = ("w1", "w2")
    """Networks and sequences to measure on; the devices must divide their batch."""
    window: int = 256
    """Steps of e-prop's window, where it is shorter than the sequence."""
    wide: int = 8192
    """Neurons of the wide layer, a multiple of 8 times the devices."""
    fan_in: int = 100
    """Recurrent synapses of each of them."""
    rounds: int = 7
    """Timed calls of each program."""
    seed: int = 0
    """Of the weights and the inputs."""
    results: Path = Path("results/devices")
    """Folder of the results."""
    run: str = "{workloads}_on{devices}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        workloads = "_".join(self.workloads)
        return self.results / self.run.format(
            workloads=workloads, devices=self.devices, seed=self.seed
        )


def measure(name: Name, config: Config) -> dict[str, Any]:
    """Seconds on one device and on all, what travels, and whether the gradients are the same."""
    workload, arguments = WORKLOADS[name], draw_workload(name, config.seed)
    windows = [None, *(x for x in [config.window] if x < workload.n_steps)]
    functions = make_programs(workload, windows)
    mesh = jax.make_mesh((config.devices,), ("batch",), axis_types=(AxisType.Auto,))
    network, inputs, (labels, mask) = arguments
    whole, shares = (NamedSharding(mesh, PartitionSpec(*x)) for x in ((), (None, "batch")))
    divided = jax.device_put((network, inputs, (labels, mask)), (whole, shares, (shares, whole)))
    calls, found, rows = {}, {}, {}
    for window in windows:
        label = f"e-prop, window={window}"
        one = jax.jit(functions[label]).lower(*arguments).compile()
        with jax.set_mesh(mesh):
            several = jax.jit(functions[label]).lower(*divided).compile()
        for where, program, given in ((1, one, arguments), (config.devices, several, divided)):
            calls[f"{label}, {where}"] = functools.partial(program, *given)
            found[where] = jax.tree.map(jnp.asarray, program(*given)[1])
        pair = [jax.device_get(found[where]) for where in (config.devices, 1)]
        rows[label] = {
            "difference": relative_difference(*pair),
            "travelling": sum(size for *_, size in travelling(several) if size > 1),
            "as_documented": documented(network, workload.n_steps, window),
        }
    timed = time_in_turn(calls, dict.fromkeys(calls, config.rounds), name)
    for label, row in rows.items():
        for where in (1, config.devices):
            row[f"seconds_on_{where}"] = timed[f"{label}, {where}"]["median_seconds"]
        row["throughput_ratio"] = row["seconds_on_1"] / row[f"seconds_on_{config.devices}"]
    passed = all(
        row["difference"] < BOUND and row["travelling"] == row["as_documented"]
        for row in rows.values()
    )
    return {"programs": rows, "workload": workload._asdict(), "passed": passed}


def measure_parts(config: Config) -> list[dict[str, Any]]:
    """Bytes of each device, and what travels, by the number of parts that a layer is in."""
    network, inputs, targets = sparse_layer.make(
        sparse_layer.Config(n=config.wide, fan_in=config.fan_in, n_steps=8)
    )

    def loss(trajectory, targets):
        return jnp.sum((trajectory.outputs - targets) ** 2)

    learner = eprop.OnlineLearner(network, loss, eprop.EProp(), optax.sgd(1e-3), update_every=1)
    state, rows = learner.init(batch=1), []
    for n in sorted({1, 2, config.devices}):
        mesh = jax.make_mesh(
            (n,), ("neurons",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n]
        )
        with jax.set_mesh(mesh):
            # The first call is given the state whole, the second as the first has left it.
            divided, _ = learner.run(state, (inputs, targets))
            run = jax.jit(functools.partial(stepping.run, learner))
            compiled = run.lower(divided, (inputs, targets, None)).compile()
        memory: Any = compiled.memory_analysis()
        bits = sum(8 * size for kind, dtype, size in travelling(compiled) if dtype == "u8")
        rows.append(
            {
                "parts": n,
                "held_bytes": memory.argument_size_in_bytes,
                "temporary_bytes": memory.temp_size_in_bytes,
                "bits": bits,
                "spiking": float(divided.rates.rates.mean()),
            }
        )
    return rows


def documented(network: eprop.Network, n_steps: int, window: int | None) -> int:
    """How many numbers should travel in a program, where a loop over windows counts once."""
    gradient = (network.n_in + network.n + network.n_out) * network.n
    has_shorter_last = window is not None and n_steps % window > 0  # which is by itself
    return gradient * (2 if has_shorter_last else 1)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if anything was not what it should be."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.devices", description=__doc__
    )
    jax.config.update("jax_num_cpu_devices", config.devices)
    folder, metrics = RunFolder(config.folder, config), {**machine(), "workloads": {}}
    for name in config.workloads:
        with jax.enable_x64(False):
            found = metrics["workloads"][name] = measure(name, config)
        folder.write_json("metrics", metrics)
        print(f"{name}: batch {found['workload']['batch']} on {config.devices} devices and on one")
        for label, row in found["programs"].items():
            several = row[f"seconds_on_{config.devices}"]
            print(
                f"  {label:22}{1e3 * row['seconds_on_1']:9.1f} ms on one{1e3 * several:9.1f} ms, "
                f"{row['throughput_ratio']:.2f} × its throughput; {row['travelling']} numbers "
                f"travel (documented: {row['as_documented']}); difference {row['difference']:.0e}"
            )
    with jax.enable_x64(False):
        metrics["parts"] = measure_parts(config)
    folder.write_json("metrics", metrics)
    print(f"{config.wide} neurons, fan-in {config.fan_in}, online, an update at each step")
    for row in metrics["parts"]:
        print(
            f"  {row['parts']} parts: {row['held_bytes'] / 2**20:.1f} MiB held and "
            f"{row['temporary_bytes'] / 2**20:.1f} MiB for a while by each device; "
            f"{row['bits']} bits a step come to it; rate {row['spiking']:.1f} Hz"
        )
    return 0 if all(x["passed"] for x in metrics["workloads"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
