"""Do booleans save memory? Spikes kept as float32, as booleans or as bits, in bytes and in time.

A reverse pass needs the spikes of its window. They are 0 or 1, so that a boolean, one byte, will do
in place of float32's four, and a bit, packed along the neurons, in place of a byte. JAX has no
derivative with respect to a boolean, but needs none: the gradient comes from a function that takes
the spikes as given (see `eprop/reverse.py`). Two measurements on each workload:

- `kept as ...`: storage alone. Neurons without synapses spike at 5 to 20 Hz, their spikes are kept
  a block at a time, and a scan from the last step to the first filters them.
- `e-prop, ...`: the whole gradient, by neurons that declare themselves `spiking` (booleans; all of
  the package's do) and by the same ones that do not (float32).

All programs run in one process in turn. Times are medians. Memory is XLA's account of the compiled
program: temporary buffers and outputs. Results must be the same, bit for bit, whatever keeps the
spikes, and the spikes kept no larger than their share of float32: 1/4 and 1/8 (packed it is 1/32,
but for what fills the last byte).

Workloads: as in `gradient_cost`.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import eprop
from eprop.compiled import without_kernels
from eprop.record import block_steps
from figures.costs import draw

from ..runs import RunFolder
from . import machine, time_in_turn
from .gradient_cost import WORKLOADS, Name, Workload, draw_workload, make_programs

SHARE = {"float32": 1, "booleans": 1 / 4, "bits": 1 / 8}
"""How large the spikes may be at most, in units of float32's."""
DECAY = 0.95
"""Of the filter that reads the spikes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    workloads: tuple[Name, ...] = ("w1", "w2", "w3")
    """Networks and sequences to measure on."""
    rounds: int = 11
    """Timed calls of each program."""
    seed: int = 0
    """Of the weights and the inputs."""
    results: Path = Path("results/spike_storage")
    """Folder of the results."""
    run: str = "{workloads}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(workloads="_".join(self.workloads), seed=self.seed)


class Storage(NamedTuple):
    """How spikes `[time, batch, n]` are kept."""

    write: Callable[[jax.Array], jax.Array]
    """From float32."""
    read: Callable[[jax.Array, int], jax.Array]
    """Back to float32, of n neurons."""


STORAGES = {
    "float32": Storage(lambda z: z, lambda kept, n: kept),
    "booleans": Storage(lambda z: z > 0, lambda kept, n: kept.astype(jnp.float32)),
    "bits": Storage(
        lambda z: jnp.packbits(z > 0, axis=-1),
        lambda kept, n: jnp.unpackbits(kept, axis=-1, count=n).astype(jnp.float32),
    ),
}


class FloatALIF(eprop.ALIF):
    """`ALIF` that doesn't say that its output is 0 or 1, so that float32 is kept of it."""

    spiking: ClassVar[bool] = False


def write_and_read(
    storage: Storage, start: jax.Array, n_steps: int, block: int
) -> tuple[jax.Array, jax.Array]:
    """The spikes of `n_steps` from potentials `start` `[batch, n]`, filtered, and as kept.

    `block`: how many steps are written or read at a time, a divisor of `n_steps`.
    """
    n = start.shape[-1]
    rates_hz = jnp.linspace(5.0, 20.0, n)[None]

    def step(v, _):
        v = v + rates_hz / 1000
        z = (v > 1).astype(v.dtype)
        return v - z, z

    def forward(v, _):
        v, spikes = jax.lax.scan(step, v, None, length=block)
        return v, storage.write(spikes)

    def reverse(filtered, kept):
        def step(filtered, z):
            return DECAY * filtered + z, None

        return jax.lax.scan(step, filtered, storage.read(kept, n), reverse=True)

    _, kept = jax.lax.scan(forward, start, None, length=n_steps // block)
    filtered, _ = jax.lax.scan(reverse, jnp.zeros_like(start), kept, reverse=True)
    return filtered, kept


def float_cells(network: eprop.Network) -> eprop.Network:
    """The network with its spikes kept as float32."""
    cell = network.cell
    assert isinstance(cell, eprop.ALIF)
    fields = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
    return eqx.tree_at(lambda net: net.cell, network, FloatALIF(fields.pop("n"), **fields))


def measure(name: Name, config: Config) -> dict[str, Any]:
    """Compile, compare and time all programs on one workload."""
    workload = WORKLOADS[name]
    network, inputs, targets = draw_workload(name, config.seed)
    block = block_steps(network.layers, workload.n_steps, workload.batch)
    start = jax.random.uniform(jax.random.key(config.seed), (workload.batch, workload.n))
    gradient = make_programs(workload, windows=[None])["e-prop, window=None"]

    functions: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {}
    for kind, storage in STORAGES.items():
        functions[f"kept as {kind}"] = (_filter(storage, workload, block), [start])
    functions["e-prop, float32"] = (gradient, [float_cells(network), inputs, targets])
    functions["e-prop, booleans"] = (gradient, [network, inputs, targets])

    calls, results, memory = {}, {}, {}
    for label, (function, arguments) in functions.items():
        with without_kernels():  # what is compared is XLA's
            program: Any = jax.jit(function).lower(*arguments).compile()
        analysis = program.memory_analysis()
        memory[label] = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        calls[label] = lambda program=program, arguments=arguments: program(*arguments)
        results[label] = [np.asarray(x) for x in jax.tree.leaves(calls[label]())]
    rows = time_in_turn(calls, dict.fromkeys(calls, config.rounds), name)
    for label, row in rows.items():
        row["memory_bytes"] = memory[label]
        row["time_ratio"] = row["median_seconds"] / rows[_with_floats(label)]["median_seconds"]
    kept_bytes = {
        kind: _kept_bytes(storage, workload, block, start) for kind, storage in STORAGES.items()
    }
    title = f"{workload.n} neurons, {workload.n_steps:,} steps, batch {workload.batch}"
    return {
        "title": title,
        "workload": workload._asdict(),
        "programs": rows,
        "kept_bytes": kept_bytes,
        "check": check(results, kept_bytes),
    }


def check(results: dict[str, list[np.ndarray]], kept_bytes: dict[str, int]) -> dict[str, Any]:
    """Whether all storages give one result, bit for bit, and are as small as they should be."""
    identical = {
        label: all(map(np.array_equal, result, results[_with_floats(label)]))
        for label, result in results.items()
    }
    largest = {label: float(np.max([abs(x).max() for x in results[label]])) for label in results}
    share = {kind: kept_bytes[kind] / kept_bytes["float32"] for kind in kept_bytes}
    return {
        "identical": identical,
        "largest_entry": largest,
        "share": share,
        "passed": all(identical.values())
        and all(0 < x < math.inf for x in largest.values())
        and all(share[kind] <= SHARE[kind] for kind in share),
    }


def table(name: str, found: dict[str, Any]) -> str:
    """One workload's measurements, to be read."""
    verdict, rows = found["check"], found["programs"]
    lines = [
        f"{name}: {found['title']}",
        f"{'':24}{'median ms':>10}{'× float32':>11}{'MiB':>9}{'spikes MiB':>12}{'share':>8}",
    ]
    for label, row in rows.items():
        kind = label.split()[-1]
        lines.append(
            f"  {label:22}{1e3 * row['median_seconds']:10.2f}{row['time_ratio']:11.2f}"
            f"{row['memory_bytes'] / 2**20:9.2f}{found['kept_bytes'][kind] / 2**20:12.2f}"
            f"{'1/' + format(1 / verdict['share'][kind], '.3g'):>8}"
        )
    lines.append(
        f"  Check {'passed' if verdict['passed'] else 'FAILED'}: results "
        f"{'are identical' if all(verdict['identical'].values()) else 'DIFFER'}, bit for bit."
    )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, writes and draws; returns 1 if the spikes were not kept as they should."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.spike_storage",
        description=__doc__,
    )  # fmt: skip
    folder, metrics = RunFolder(config.folder, config), {**machine(), "workloads": {}}
    for name in config.workloads:
        with jax.enable_x64(False):
            found = metrics["workloads"][name] = measure(name, config)
        folder.write_json("metrics", metrics)
        print(table(name, found) + "\n")
    print(f"Figure: {draw(config.folder)}")
    return 0 if all(x["check"]["passed"] for x in metrics["workloads"].values()) else 1


def _with_floats(label: str) -> str:
    """The same program where float32 is kept."""
    return label.rsplit(" ", 1)[0] + " float32"


def _filter(storage: Storage, workload: Workload, block: int) -> Callable[[jax.Array], jax.Array]:
    return lambda start: write_and_read(storage, start, workload.n_steps, block)[0]


def _kept_bytes(storage: Storage, workload: Workload, block: int, start: jax.Array) -> int:
    kept = jax.eval_shape(lambda v: write_and_read(storage, v, workload.n_steps, block)[1], start)
    return kept.size * kept.dtype.itemsize


if __name__ == "__main__":
    sys.exit(main())
