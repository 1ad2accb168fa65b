"""What does a gradient cost? Time and memory of e-prop, beside the forward pass and BPTT.

The same gradient is found by e-prop over the whole sequence, by windows and by the recursion, as
streams have it, and by `jax.grad` of a plain `lax.scan` written here, without the package; BPTT is
`jax.grad` of that scan with no gradient stopped. All programs run in one process in turn (A B C ...
A B C ...).

Times are medians, ratios are to the plain forward pass. Memory is XLA's own account of the compiled
program, temporary buffers at their peak and outputs: without the inputs and all else that the
process holds, and the same in every run. The results of a first call, not timed, are compared: all
spikes must be the same, e-prop's gradients equal but for rounding, and BPTT's another.

Workloads: w1, evidence accumulation (40 inputs, 50 LIF and 50 ALIF neurons, 2250 steps, batch 64);
w2, wide (100 inputs, 1000 neurons, 500 steps, batch 32); w3, long (40 inputs, 100 neurons,
20,000 steps, batch 1); and tiny, to see whether everything works.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import eprop
from eprop import losses
from eprop.evaluation import as_network, zero_gradients
from eprop.pieces import evaluate_piece, init_progress
from eprop.sequences import cut, scan_blocks
from eprop.tasks import EvidenceAccumulation
from figures.gradient_cost import draw

from ..runs import RunFolder
from . import machine, time_in_turn

BOUND = 1e-4
"""The largest relative difference of two gradients that is still rounding of float32."""
CONTROL = 1e-2
"""The smallest relative difference of BPTT from e-prop that lets the comparison mean anything."""

Name = Literal["w1", "w2", "w3", "tiny"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    workloads: tuple[Name, ...] = ("w1", "w2", "w3")
    """Networks and sequences to measure on."""
    windows: tuple[int, ...] = (256,)
    """Windows of e-prop in steps, beside the whole sequence; those no shorter are left out."""
    recursion: tuple[Name, ...] = ("w1", "w3", "tiny")
    """Workloads to run the recursion (window=1) on. On w2 it takes half a minute a gradient."""
    rounds: int = 11
    """Timed calls of each program."""
    seed: int = 0
    """Of the weights and the inputs."""
    results: Path = Path("results/gradient_cost")
    """Folder of the results."""
    run: str = "{workloads}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(workloads="_".join(self.workloads), seed=self.seed)


class Workload(NamedTuple):
    n_in: int
    n: int
    """Neurons, the second half of them ALIF."""
    n_steps: int
    batch: int
    n_recall: int = 150
    """The last steps, which the loss is a mean over."""
    rate_hz: float = 20.0
    """Of the inputs; those of w1 are its task's."""
    hoist: bool = False
    """Whether the plain scan has its input currents computed before the loop: what is faster."""


TASK = EvidenceAccumulation()
WORKLOADS: dict[str, Workload] = {
    "w1": Workload(n_in=TASK.n_in, n=100, n_steps=TASK.n_steps, batch=64),
    "w2": Workload(n_in=100, n=1000, n_steps=500, batch=32),
    "w3": Workload(n_in=40, n=100, n_steps=20_000, batch=1, hoist=True),
    "tiny": Workload(n_in=10, n=12, n_steps=75, batch=3, n_recall=30, rate_hz=60.0),
}
TAU_V, TAU_A, TAU_OUT, DT = 20.0, 2000.0, 20.0, 1.0  # ms
V_TH, BETA, GAMMA, N_REFRACTORY = 0.6, 0.0174, 0.3, 5


def plain_scan(
    network: eprop.Network, inputs: jax.Array, hoist: bool, stop_z_gradients: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Outputs and boolean spikes of the network, as one would write it without the package."""
    n, (_, batch, _) = network.cell.n, inputs.shape
    alpha, rho, kappa = (float(np.exp(-DT / tau)) for tau in (TAU_V, TAU_A, TAU_OUT))
    beta = jnp.asarray(_beta(n), jnp.float32)[None]
    w_rec = jnp.where(jnp.eye(n, dtype=bool), 0.0, network.w_rec)

    def input_current(x):
        return x.astype(jnp.float32) @ network.w_in

    def step(carry, now):
        v, a, refractory, z, y = carry
        z_tm1 = jax.lax.stop_gradient(z) if stop_z_gradients else z
        current = (now if hoist else input_current(now)) + z_tm1 @ w_rec
        v = alpha * v + current - V_TH * z_tm1
        a = rho * a + z
        refractory = jnp.where(z > 0, N_REFRACTORY - 1, jnp.maximum(refractory - 1, 0))
        z = spike((v - V_TH - beta * a) / V_TH, refractory > 0)
        y = kappa * y + z @ network.w_out
        return (v, a, refractory, z, y), (y, z > 0)

    nothing = jnp.zeros((batch, n))
    counters = jnp.zeros((batch, n), jnp.int32)
    start = (nothing, nothing, counters, nothing, jnp.zeros((batch, network.n_out)))
    return jax.lax.scan(step, start, input_current(inputs) if hoist else inputs)[1]


@jax.custom_jvp
def spike(x: jax.Array, silent: jax.Array) -> jax.Array:
    return ((x > 0) & ~silent).astype(x.dtype)


@spike.defjvp
def _spike_jvp(primals, tangents):
    x, silent = primals
    slope = jnp.where(silent, 0.0, GAMMA * jnp.maximum(0.0, 1.0 - jnp.abs(x)))
    return spike(x, silent), slope * tangents[0]


def make_programs(
    workload: Workload, windows: Sequence[int | None]
) -> dict[str, Callable[[eprop.Network, jax.Array, Any], tuple[jax.Array, Any]]]:
    """By label: functions that return the loss, and the spikes (forward) or the gradients."""

    def loss(outputs, targets):
        return losses.softmax_cross_entropy(outputs, *targets, n_steps=workload.n_recall)

    def plain_forward(network, inputs, targets, stop_z_gradients=False):
        outputs, spikes = plain_scan(network, inputs, workload.hoist, stop_z_gradients)
        return loss(outputs, targets), spikes

    def forward(network, inputs, targets):
        trajectory = network(inputs)
        return loss(trajectory.outputs, targets), trajectory.spikes > 0

    def of_run(run, targets):
        return loss(run.outputs, targets)

    def own_gradient(window):
        if window is None:
            return eprop.value_and_grad(of_run, eprop.EProp())
        return functools.partial(in_windows, of_run, window)

    def plain_gradient(stop_z_gradients):
        def value(network, inputs, targets):
            return plain_forward(network, inputs, targets, stop_z_gradients)[0]

        return jax.value_and_grad(value)

    return {
        "forward, plain scan": plain_forward,
        "forward, eprop": forward,
        **{f"e-prop, window={window}": own_gradient(window) for window in windows},
        "e-prop, autodiff": plain_gradient(stop_z_gradients=True),
        "BPTT, jax.grad": plain_gradient(stop_z_gradients=False),
    }


def in_windows(
    loss: Callable, window: int, network: eprop.Network, inputs: jax.Array, targets: Any
) -> tuple[jax.Array, eprop.Network]:
    """The loss and its gradient as a stream has them: a window at a time, traces in between."""
    rule = eprop.EProp(window=window)

    def of_window(so_far, now):
        progress, total = so_far
        progress, piece = evaluate_piece(
            loss, rule, network, progress, *now, so_far=total, has_aux=False
        )
        return (progress, piece.gradients), piece.value

    so_far = (init_progress(network, inputs.shape[1]), zero_gradients(network))
    blocks = cut((inputs, targets), window)
    (_, total), values = scan_blocks(of_window, so_far, blocks)
    value = jnp.sum(jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(values)]))
    return value, as_network(network, total)


def draw_workload(name: Name, seed: int) -> tuple[eprop.Network, jax.Array, Any]:
    """Network, boolean inputs and targets (labels for each step, and which steps count)."""
    workload = WORKLOADS[name]
    network, inputs, (labels, mask) = draw_network(workload, seed)
    if name == "w1":
        trials = TASK.sample(jax.random.key(seed), workload.batch)
        inputs, labels = trials.inputs, jnp.broadcast_to(trials.labels[None], labels.shape)
    return network, inputs, (labels, mask)


def draw_network(workload: Workload, seed: int) -> tuple[eprop.Network, jax.Array, Any]:
    """The same with random inputs and labels.

    Weights are multiples of 1/1024: sums of them are exact in any order, so that no rounding
    makes one program's spikes differ from another's.
    """
    key_network, key_inputs, key_labels = jax.random.split(jax.random.key(seed), 3)
    cell = eprop.ALIF(
        workload.n, tau_v=TAU_V, v_th=V_TH, n_refractory=N_REFRACTORY, dt=DT, tau_a=TAU_A,
        beta=_beta(workload.n), surrogate=eprop.Triangular(GAMMA),
    )  # fmt: skip
    network = eprop.Network(cell, n_in=workload.n_in, n_out=2, tau_out=TAU_OUT, key=key_network)
    network = jax.tree.map(lambda w: jnp.round(w * 1024) / 1024, network)
    shape = (workload.n_steps, workload.batch, workload.n_in)
    inputs = jax.random.bernoulli(key_inputs, workload.rate_hz * DT / 1000, shape)
    labels = jax.random.randint(key_labels, shape[1:2], 0, 2)
    mask = jnp.arange(workload.n_steps) >= workload.n_steps - workload.n_recall
    return network, inputs, (jnp.broadcast_to(labels[None], shape[:2]), mask)


def measure(name: Name, config: Config) -> dict[str, Any]:
    """Compile, compare and time all programs on one workload."""
    workload = WORKLOADS[name]
    windows = [None, *(window for window in config.windows if window < workload.n_steps)]
    if name in config.recursion and 1 not in windows:
        windows.append(1)
    programs = make_programs(workload, windows)
    return compare(programs, draw_workload(name, config.seed), config.rounds, name) | {
        "workload": workload._asdict()
    }


def compare(
    programs: Mapping[str, Callable], arguments: tuple[Any, ...], rounds: int, title: str
) -> dict[str, Any]:
    """Each program's time and memory, and whether they computed what their labels say."""
    rows, compiled, results = {}, {}, {}
    for label, function in tqdm(programs.items(), desc=f"{title}, compiling"):
        begun = time.perf_counter()
        compiled[label] = jax.jit(function).lower(*arguments).compile()
        memory = compiled[label].memory_analysis()
        rows[label] = {
            "compile_seconds": time.perf_counter() - begun,
            "memory_bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
        }
        results[label] = jax.tree.map(np.array, compiled[label](*arguments)[1])
    calls = {label: functools.partial(program, *arguments) for label, program in compiled.items()}
    timed = time_in_turn(calls, dict.fromkeys(calls, rounds), title)
    rows = {label: row | timed[label] for label, row in rows.items()}
    forward = rows["forward, plain scan"]
    for row in rows.values():
        row["time_ratio"] = row["median_seconds"] / forward["median_seconds"]
        row["memory_ratio"] = row["memory_bytes"] / forward["memory_bytes"]
    return {"programs": rows, "check": check(results)}


def check(results: dict[str, Any]) -> dict[str, Any]:
    """Whether the programs computed what their labels say; NaN passes nowhere."""
    spikes, reference = results["forward, plain scan"], results["e-prop, autodiff"]

    def difference(label: str, weights: Sequence[str] = ("w_in", "w_rec", "w_out")) -> float:
        """Largest difference from autodiff e-prop / its largest entry."""
        pairs = [(getattr(results[label], w), getattr(reference, w)) for w in weights]
        return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))

    of_eprop = {x: difference(x) for x in results if x.startswith("e-prop, window")}
    of_bptt = difference("BPTT, jax.grad", ("w_in", "w_rec"))
    rate_hz = float(1000 / DT * spikes.mean())
    n_different = int(np.sum(spikes != results["forward, eprop"]))
    alive, rounding = 1 < rate_hz < 200, all(x <= BOUND for x in of_eprop.values())
    return {
        "rate_hz": rate_hz,
        "spikes_that_differ": n_different,
        "differences": of_eprop,
        "bptt_difference": of_bptt,
        "passed": alive and n_different == 0 and rounding and of_bptt >= CONTROL,
    }


def table(name: str, found: dict[str, Any]) -> str:
    """One workload's measurements, to be read."""
    w, verdict = found["workload"], found["check"]
    lines = [
        f"{name}: {w['n_in']} inputs, {w['n']} neurons at {verdict['rate_hz']:.0f} Hz, "
        f"{w['n_steps']} steps, batch {w['batch']}",
        f"{'':24}{'median ms':>10}{'× forward':>10}{'MiB':>9}{'compile s':>11}{'difference':>12}",
    ]
    differences = verdict["differences"] | {"BPTT, jax.grad": verdict["bptt_difference"]}
    for label, row in found["programs"].items():
        lines.append(
            f"  {label:22}{1e3 * row['median_seconds']:10.2f}{row['time_ratio']:10.2f}"
            f"{row['memory_bytes'] / 2**20:9.2f}{row['compile_seconds']:11.2f}"
            + (f"{differences[label]:12.0e}" if label in differences else "")
        )
    lines.append(
        f"  Check {'passed' if verdict['passed'] else 'FAILED'}: {verdict['spikes_that_differ']} "
        f"spikes differ; from autodiff, e-prop may differ by {BOUND:.0e} and BPTT must by "
        f"{CONTROL:.0e}."
    )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, writes and draws; returns 1 if a gradient was not what it should be."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.gradient_cost",
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


def _beta(n: int) -> np.ndarray:
    return np.where(np.arange(n) < n // 2, 0.0, BETA)


if __name__ == "__main__":
    sys.exit(main())
