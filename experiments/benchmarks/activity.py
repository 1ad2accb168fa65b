"""What does a spike cost? Time of a forward pass and of a gradient against the activity.

Compiled programs add a row of weights for each spike; products, as XLA has them, take all neurons,
whether they spike or not. On the networks and lengths of `gradient_cost`, with inputs that spike in
a given fraction of steps and a threshold found so that the neurons do so too, both are timed in
turn in one process, e-prop's gradient over the whole sequence and by windows. What they find must
be the same: all spikes, up to the first that rounding decides, and gradients.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import eprop
from eprop import losses
from eprop.compiled import without_kernels
from figures.activity import draw

from ..runs import RunFolder
from . import machine, relative_difference, time_in_turn
from .gradient_cost import WORKLOADS, Name, Workload

ROUNDING = 0.02
"""The largest fraction of spikes that may differ: each begins where rounding decides one."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    workloads: tuple[Name, ...] = ("w1", "w2", "w3")
    """Sizes of networks and sequences, as in `gradient_cost`."""
    activity: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    """Fractions of neurons and inputs that spike in a step."""
    window: int = 256
    """Of e-prop in steps, beside the whole sequence."""
    rounds: int = 5
    """Timed calls of each program."""
    seed: int = 0
    """Of weights, inputs and targets."""
    results: Path = Path("results/activity")
    """Folder of the results."""
    run: str = "{workloads}_seed{seed}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if not all(0 < x < 0.5 for x in self.activity):
            raise ValueError(f"activity = {self.activity} must be fractions between 0 and 0.5")

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(workloads="_".join(self.workloads), seed=self.seed)


Problem = tuple[eprop.Network, jax.Array, jax.Array]


def make(workload: Workload, activity: float, seed: int) -> tuple[Problem, float]:
    """A network of ALIF neurons, boolean inputs and targets; and the activity that came of it."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (workload.n_steps, workload.batch)
    inputs = jax.random.bernoulli(keys[0], activity, (*shape, workload.n_in))
    targets = jax.random.normal(keys[1], (*shape, 1))
    share = np.where(np.arange(workload.n) < workload.n // 2, 0, 0.03)  # of v_th, β

    def network(v_th: Any, share: Any = share) -> eprop.Network:
        cell = eprop.ALIF(workload.n, v_th=v_th, beta=share * v_th, n_refractory=1)
        return eprop.Network(cell, n_in=workload.n_in, n_out=1, key=keys[2])

    @jax.jit
    def spiking(v_th: jax.Array) -> jax.Array:
        return network(v_th, jnp.asarray(share))(inputs[:5000, :8]).spikes.mean()

    low, high = 1e-2, 1e2
    for _ in range(14):
        middle = float(np.sqrt(low * high))
        is_low = spiking(jnp.asarray(middle)) > activity
        low, high = (middle, high) if is_low else (low, middle)
    found = network(float(np.sqrt(low * high)))
    return (found, inputs, targets), float(found(inputs).spikes.mean())


def measure(name: Name, activity: float, config: Config) -> dict[str, Any]:
    """Seconds of the programs by label, and how far apart their results are."""
    problem, found = make(WORKLOADS[name], activity, config.seed)

    def loss(trajectory, targets):
        return losses.mean_squared_error(trajectory.outputs, targets)

    def programs() -> dict[str, Callable]:
        """Each time other functions: JAX knows again what it has traced."""

        def forward(network, inputs, targets):
            trajectory = network(inputs)
            return trajectory.outputs, trajectory.spikes.astype(bool)

        rules = {"gradient": eprop.EProp(), "windows": eprop.EProp(window=config.window)}
        gradients = {label: eprop.value_and_grad(loss, rule) for label, rule in rules.items()}
        return {label: jax.jit(f) for label, f in {"forward": forward, **gradients}.items()}

    def run(function: Callable) -> Callable[[], Any]:
        return lambda: function(*problem)

    timed, results = {}, {}
    for way in ("compiled", "XLA"):
        for label, function in programs().items():
            timed[f"{label}, {way}"] = run(function)
            if way == "compiled":
                results[label, way] = jax.block_until_ready(function(*problem))
            else:
                with without_kernels():  # while it is traced
                    results[label, way] = jax.block_until_ready(function(*problem))
    rows = time_in_turn(timed, dict.fromkeys(timed, config.rounds), f"{name}, {activity:.0%}")
    spikes = [np.asarray(results["forward", way][1]) for way in ("compiled", "XLA")]
    seconds = {label: row["median_seconds"] for label, row in rows.items()}
    return {
        "workload": name,
        "activity": activity,
        "spiking": found,
        "spikes_differ": float((spikes[0] != spikes[1]).sum() / spikes[1].sum()),
        "gradients_differ": relative_difference(
            results["windows", "compiled"][1], results["gradient", "compiled"][1]
        ),
        "seconds": seconds,
    }


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, writes and draws; returns 1 if results differ."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.activity", description=__doc__
    )
    folder, points = RunFolder(config.folder, config), []
    labels = ("forward", "gradient", "windows")
    print("compiled / XLA".rjust(44))
    print(f"{'':9} {'activity':>9}" + "".join(f"{label:>12}" for label in labels))
    with jax.enable_x64(False):
        for name in config.workloads:
            for activity in config.activity:
                points.append(measure(name, activity, config))
                seconds = points[-1]["seconds"]
                ratios = [seconds[f"{x}, compiled"] / seconds[f"{x}, XLA"] for x in labels]
                print(
                    f"{name:9} {points[-1]['spiking']:9.1%}" + "".join(f"{x:12.2f}" for x in ratios)
                )
    passed = all(
        x["spikes_differ"] <= ROUNDING and x["gradients_differ"] < 1e-3 and x["spiking"] > 0
        for x in points
    )
    verdict = {"passed": passed, "bound": ROUNDING}
    folder.write_json("metrics", {**machine(), "points": points, "check": verdict})
    print(
        f"Check {'passed' if passed else 'FAILED'}: at most "
        f"{max(x['spikes_differ'] for x in points):.1e} of the spikes differ, gradients by windows "
        f"by {max(x['gradients_differ'] for x in points):.0e}.\nFigure: {draw(config.folder)}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
