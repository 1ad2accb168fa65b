"""How fast is learning online, and does anything grow or drift in a million steps?

The learner of `experiments.online_stream`, with fewer inputs. Three ways to take the same steps are
timed in turn: a chunk by `OnlineLearner.run`, a loop of Python over `OnlineLearner.step`, and a
loop of Python over the plain step, compiled: gradient, sum and update by the functions of the
engine, with no checks and nothing to look at. All must come to the same weights.

Then one learner runs on and on; the process's memory is read at each mark (from the operating
system, Linux only), and compilations are counted. Last, beside the eligibility traces in float32
others are led in float64, from the same Jacobians and presynaptic activity: the difference is what
rounding does to the recursion, and must stay within what a trace can remember of it.
"""

import ctypes
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array
from tqdm import tqdm

import eprop
from eprop.cells import Jacobians
from eprop.common_vectors import common_traces
from eprop.evaluation import as_network, zero_gradients
from eprop.layer import LayerState
from eprop.pieces import evaluate_piece, init_progress
from eprop.tasks import PatternGeneration, SwitchingPatterns
from eprop.traces import PortTraces, step_traces

from .. import online_stream
from ..runs import RunFolder
from . import machine, relative_difference, time_in_turn

RUN, STEP, PLAIN = "run", "loop over step", "loop over the plain step"
BOUNDS = {"growth": 0.01, "speed-up": 5.0, "weights": 1e-9}
"""Of memory, relative; of `run` over the plain loop; of weights in float64, relative."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How much, and how long."""

    n: int = 100
    """Neurons, all with an adaptive threshold."""
    n_in: int = 40
    """Inputs."""
    update_every: tuple[int, ...] = (1, 10, 100)
    """Steps from one weight update to the next, to be timed."""
    chunk: int = 2000
    """Steps of a chunk; what `run` has to show of it, grows with it."""
    loop_steps: int = 500
    """Steps of a loop of Python."""
    rounds: int = 5
    """Timed calls of each program."""
    marks: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    """Steps after which to look at memory and traces, multiples of the chunk."""
    seed: int = 0
    """Of the weights and the stream."""
    results: Path = Path("results/online_steps")
    """Folder of the results."""
    run: str = "n{n}_seed{seed}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        odd = [x for x in (self.chunk, *self.marks) if x % 1000 or x % self.chunk]
        if odd:
            raise ValueError(
                f"steps of {odd} are no multiples of the pattern's 1000 steps and the chunk's "
                f"{self.chunk}"
            )

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(n=self.n, seed=self.seed)


Traces = dict[str, PortTraces]
"""Of each kind of synapses."""


class Stream(NamedTuple):
    """A learner, its loss's compilations so far, and a chunk of its stream."""

    learner: eprop.OnlineLearner
    compilations: list[int]
    chunk: tuple[Array, Array]


def make_stream(config: Config, update_every: int) -> Stream:
    pattern = PatternGeneration(n_in=config.n_in)
    experiment = online_stream.Config(
        n=config.n, seed=config.seed, task=SwitchingPatterns(pattern), update_every=update_every
    )
    like, compilations = online_stream.make_learner(experiment), []

    def counted(trajectory, targets):
        compilations.append(len(trajectory.outputs))
        return online_stream.squared_error(trajectory, targets)

    learner = eprop.OnlineLearner(
        like.network, counted, like.rule, like.optimizer, update_every=update_every
    )
    one = online_stream.make_batches(experiment)(1)
    repeated = [jnp.tile(x, (config.chunk // 1000, 1, 1)) for x in (one.inputs, one.targets)]
    return Stream(learner, compilations, (repeated[0], repeated[1]))


def plain_loop(
    learner: eprop.OnlineLearner, inputs: np.ndarray, targets: np.ndarray
) -> Callable[[], eprop.Network]:
    """A loop over a compiled step and a compiled update, from the learner's beginning."""
    loss, rule, optimizer = learner.loss, learner.rule, learner.optimizer

    @jax.jit
    def step(network, progress, total, x_t, target_t):
        progress, piece = evaluate_piece(
            loss, rule, network, progress, x_t[None], target_t[None], total, has_aux=False
        )
        return progress, piece.gradients

    @jax.jit
    def update(network, total, state):
        gradients: Any = as_network(network, total)
        updates, state = optimizer.update(gradients, state)
        return eprop.apply_updates(network, updates, rule)[0], state, zero_gradients(network)

    def run() -> eprop.Network:
        network = learner.network
        progress = init_progress(network, inputs.shape[1])
        total, state = zero_gradients(network), optimizer.init(network)  # pyright: ignore[reportArgumentType]
        for i, (x_t, target_t) in enumerate(zip(inputs, targets, strict=True), start=1):
            progress, total = step(network, progress, total, x_t, target_t)
            if i % learner.update_every == 0:
                network, state, total = update(network, total, state)
        return network

    return run


class Ways(NamedTuple):
    """One learner's steps in three ways, each giving the network after them."""

    start: eprop.Network
    short: tuple[np.ndarray, np.ndarray]
    """The data of the loops."""
    chunk: Callable[[Any], eprop.Network]
    """`run` on any data."""
    loops: dict[str, Callable[[], eprop.Network]]


def three_ways(config: Config, update_every: int) -> Ways:
    learner, _, chunk = make_stream(config, update_every)
    start = learner.init()
    n_steps = config.loop_steps // update_every * update_every
    inputs, targets = (np.asarray(x[:n_steps]) for x in chunk)  # a row of NumPy's is had for little
    targets = targets.astype(learner.network.dtype)

    def loop() -> eprop.Network:
        state = start
        for x_t, target_t in zip(inputs, targets, strict=True):
            state, _ = learner.step(state, x_t, target_t)
        return state.network

    return Ways(
        learner.network,
        (inputs, targets),
        lambda data: learner.run(start, data)[0].network,
        {STEP: loop, PLAIN: plain_loop(learner, inputs, targets)},
    )


def time_steps(config: Config, update_every: int) -> dict[str, Any]:
    """Steps per second of the three ways, and how far apart their weights are in float64.

    In float32 Adam makes as much of a gradient that is rounding alone as of any other.
    """
    _, _, chunk = make_stream(config, update_every)
    ways = three_ways(config, update_every)
    programs = {RUN: lambda: ways.chunk(chunk), **ways.loops}
    for program in programs.values():
        jax.block_until_ready(program())  # compiled
    rounds = dict.fromkeys(programs, config.rounds)
    rows = time_in_turn(programs, rounds, f"update_every={update_every}")
    for label, row in rows.items():
        steps = config.chunk if label == RUN else len(ways.short[0])
        row["steps_per_second"] = steps / row["median_seconds"]
    with jax.enable_x64(True):
        ways = three_ways(config, update_every)
        networks = [ways.chunk(ways.short), *(loop() for loop in ways.loops.values())]
        weights = [jax.tree.leaves(network) for network in networks]
        difference = max(relative_difference(x, weights[0]) for x in weights[1:])
        moved = relative_difference(weights[0], jax.tree.leaves(ways.start))
    return {
        "update_every": update_every,
        "programs": rows,
        "speed_up": rows[RUN]["steps_per_second"] / rows[PLAIN]["steps_per_second"],
        "difference": difference,
        "moved": moved,
    }


def memory_bytes() -> dict[str, int]:
    """Of this process: what it has now, and the most that it has had."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        name: 1024 * int(fields[key].split()[0])
        for name, key in {"now": "VmRSS", "peak": "VmHWM"}.items()
    }


def run_on(config: Config) -> Iterator[dict[str, Any]]:
    """Memory and compilations of one learner at each mark."""
    learner, compilations, chunk = make_stream(config, config.update_every[0])
    state, begun = learner.init(), time.perf_counter()
    for i in range(1, max(config.marks) // config.chunk + 1):
        state = jax.block_until_ready(learner.run(state, chunk)[0])
        if i * config.chunk in config.marks:
            yield {
                "n_steps": i * config.chunk,
                "compilations": len(compilations),
                "seconds": time.perf_counter() - begun,
                **memory_bytes(),
            }


def drift(config: Config) -> Iterator[dict[str, Any]]:
    """The largest relative difference of the traces in float32 from those in float64, at each mark.

    Of the network as it is before learning: its traces do not depend on what is learned.
    """
    learner, _, (inputs, _) = make_stream(config, 1)
    network = learner.network
    (layer,), (port,) = network.layers, network.layers[0].neurons.ports
    (common,) = common_traces(network.cell)  # the same numbers for both, those of float32

    def lead(traces: Traces, jacobians: Jacobians, pre: dict[str, Array]) -> Traces:
        constants = network.kappa, network.readout_gain
        return {
            kind: step_traces(
                synapses, port, common, traces[kind], jacobians, pre[kind], *constants
            )[0]
            for kind, synapses in layer.synapses.items()
        }

    def step(
        state: tuple[LayerState, Traces, Traces], x_t: Array
    ) -> tuple[tuple[LayerState, Traces, Traces], None]:
        start, single, double = state
        run = layer.unroll(start, x_t[None], layer.effective(), stop_z_gradients=True)
        assert run.currents is not None
        pre = layer.presynaptic(start, x_t[None], run.spikes)
        pre = {kind: x[0] for kind, x in pre.items()}
        (neurons,) = start.neurons
        jacobians = network.cell.jacobians(neurons, run.currents[0], start.spikes)
        single = lead(single, jacobians, pre)
        double = lead(double, *in_float64((jacobians, pre)))
        return (run.end, single, double), None

    (start,) = network.init(batch=1).layers
    (traces,) = learner.init().progress.traces.layers
    single = {kind: of_port for kind, (of_port,) in traces.synapses.items()}
    with jax.enable_x64(True):
        state = (start, single, in_float64(single))
        through = jax.jit(lambda state: jax.lax.scan(step, state, inputs)[0])
        for i in tqdm(range(1, max(config.marks) // config.chunk + 1), desc="drift"):
            state = through(state)
            if i * config.chunk in config.marks:
                _, single, double = jax.tree.map(np.asarray, state)
                yield {
                    "n_steps": i * config.chunk,
                    "difference": relative_difference(single, double),
                    "dtypes": sorted({str(x.dtype) for x in jax.tree.leaves((single, double))}),
                }


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


def rounding_bound(network: eprop.Network) -> float:
    """Half a unit in the last place of float32 at each step that the slowest trace remembers."""
    cell = network.cell
    assert isinstance(cell, eprop.ALIF)
    times = (cell.tau_v.value, cell.tau_a.value, network.readout.tau or 0.0)
    slowest = max(np.max(time) for time in times)
    return float(np.finfo(np.float32).eps / 2 * slowest / cell.dt)


def check(
    speeds: list[dict[str, Any]],
    memory: list[dict[str, Any]],
    drifts: list[dict[str, Any]],
    rounding: float,
) -> dict[str, Any]:
    """Whether all stayed as it must, from the first mark on."""
    growth = max(row["now"] for row in memory) / memory[0]["now"] - 1
    compiled_again = memory[-1]["compilations"] - memory[0]["compilations"]
    speed_up = min(row["speed_up"] for row in speeds)
    drifted, weights = (
        np.max([row["difference"] for row in rows]).item() for rows in (drifts, speeds)
    )
    return {
        "growth": growth,
        "compiled_again": compiled_again,
        "drift": drifted,
        "rounding": rounding,
        "speed_up": speed_up,
        "weights": weights,
        "passed": growth <= BOUNDS["growth"]
        and compiled_again == 0 < memory[0]["compilations"]
        and all(0 < row["difference"] <= rounding for row in drifts)
        and speed_up >= BOUNDS["speed-up"]
        and weights <= BOUNDS["weights"] < min(row["moved"] for row in speeds),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if anything grew, drifted, differed or was slow."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.online_steps",
        description=__doc__,
    )  # fmt: skip
    folder, metrics = RunFolder(config.folder, config), machine()
    with jax.enable_x64(False):
        rounding = rounding_bound(make_stream(config, 1).learner.network)
        metrics["memory"] = list(run_on(config))
        metrics["speeds"] = [time_steps(config, k) for k in config.update_every]
        metrics["drift"] = list(drift(config))
    verdict = check(metrics["speeds"], metrics["memory"], metrics["drift"], rounding)
    folder.write_json("metrics", {**metrics, "check": verdict})
    print(f"{'steps per second':>24}" + "".join(f"{k:>26}" for k in (RUN, STEP, PLAIN)))
    for row in metrics["speeds"]:
        speeds = [row["programs"][k]["steps_per_second"] for k in (RUN, STEP, PLAIN)]
        print(f"{'update_every = ' + str(row['update_every']):>24}" + "".join(
            f"{x:26,.0f}" for x in speeds
        ))  # fmt: skip
    print(f"{'after steps':>12} {'MiB':>8} {'peak':>8} {'compiled':>9} {'traces differ':>14}")
    for row, drifted in zip(metrics["memory"], metrics["drift"], strict=True):
        print(
            f"{row['n_steps']:12,} {row['now'] / 2**20:8.1f} {row['peak'] / 2**20:8.1f} "
            f"{row['compilations']:9} {drifted['difference']:14.1e}"
        )
    print(
        f"Check {'passed' if verdict['passed'] else 'FAILED'}: `run` is {verdict['speed_up']:.1f} "
        f"times as fast as the plain loop or more (bound {BOUNDS['speed-up']:g}); memory grew by "
        f"{verdict['growth']:.2%} (bound {BOUNDS['growth']:.0%}); compiled again "
        f"{verdict['compiled_again']} times; traces differ by {verdict['drift']:.0e} at most "
        f"(bound {rounding:.0e})."
    )
    return 0 if verdict["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
