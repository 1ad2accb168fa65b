"""A stream that never ends and changes under its learner: curves to draw, switched without notice.

A network of adaptive LIF neurons hears the same noise again and again and has to draw a curve with
its readout; every so often the curve is another one. It learns by e-prop from one step to the
next: its weights change many times within each repetition, and its neurons and traces are never
reset. Beside it runs a copy whose learning is frozen at the first switch.

Errors are mean squared errors over the variance of the curve: 1 is what the best constant gives.
A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array

import eprop
from eprop.tasks import SwitchingPatterns
from eprop.trajectory import NetworkState
from figures.online_stream import draw

from .learners import make_rule
from .runs import RunFolder, random_key, resumable

key_of = functools.partial(random_key, ("weights", "feedback", "stream"))


@dataclasses.dataclass(frozen=True)
class Config:
    """What is to be learned, and how."""

    feedback: Literal["random", "symmetric"] = "random"
    """How the readout's error reaches the neurons."""
    seed: int = 0
    """Of the weights, the feedback and the stream."""

    n: int = 100
    """Neurons, all with an adaptive threshold."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 2000.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 20.0
    """Time constant of the readout in ms."""
    v_th: float = 0.1
    """Threshold, in units of the membrane potential."""
    task: SwitchingPatterns = dataclasses.field(
        default_factory=lambda: SwitchingPatterns(repetitions=100)
    )
    """The noise, the curves, and how often they switch."""
    phases: int = 6
    """Curves to learn, one after the other."""

    update_every: int = 10
    """Steps from one weight update to the next."""
    learning_rate: float = 1e-3
    """Of plain gradient descent, for ½ (y - y*)² summed over the steps of an update."""
    rate_target_hz: float = 20.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 30.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)², at each step."""
    tau_rate: float = 1000.0
    """Time constant of the running average of firing rates in ms."""

    save_every: int = 50
    """Repetitions between checkpoints."""
    required_factor: float = 5.0
    """By how much the error must fall in each phase, from its first repetition to its last ten."""
    results: Path = Path("results/online_stream")
    """Folder of the results."""
    run: str = "{feedback}_seed{seed}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if self.phases < 2:
            raise ValueError(f"phases = {self.phases} has no switch: give at least 2")

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(feedback=self.feedback, seed=self.seed)

    @property
    def shown(self) -> tuple[int, int, int]:
        """The repetitions to show: the last before the first switch, the first and last after."""
        return self.task.repetitions - 1, self.task.repetitions, 2 * self.task.repetitions - 1


class State(NamedTuple):
    """All that changes; what is drawn at random comes from the seed and the repetition."""

    learning: eprop.LearnerState
    frozen: eprop.Network
    """As the learner was at the first switch; until then, as it is."""
    neurons: NetworkState
    """Of the frozen network."""
    outputs: Array
    """Of the repetitions to show: `[shown, learning or frozen, time, n_out]`."""


class Batch(NamedTuple):
    """One repetition of the stream."""

    inputs: Array
    targets: Array
    repetition: Array


def make_learner(config: Config) -> eprop.OnlineLearner:
    pattern = config.task.pattern
    cell = eprop.ALIF(
        config.n, tau_v=config.tau_v, v_th=config.v_th, tau_a=config.tau_a, dt=pattern.dt
    )
    network = eprop.Network(
        cell,
        n_in=pattern.n_in,
        n_out=pattern.n_out,
        tau_out=config.tau_out,
        scale_readout=True,
        key=key_of(config.seed, "weights"),
    )
    b = jax.random.normal(key_of(config.seed, "feedback"), (config.n, pattern.n_out))
    rule = make_rule(config.feedback, b)
    assert isinstance(rule, eprop.EProp)
    return eprop.OnlineLearner(
        network,
        squared_error,
        rule,
        optax.sgd(config.learning_rate),
        update_every=config.update_every,
        rate_penalty=eprop.RatePenalty(config.rate_target_hz, config.rate_penalty),
        tau_rate=config.tau_rate,
    )


def squared_error(trajectory: eprop.Trajectory, targets: Array) -> Array:
    """½ Σ (y - y*)²."""
    return 0.5 * jnp.sum(jnp.square(trajectory.outputs - targets))


def relative_error(outputs: Array, targets: Array) -> Array:
    """Mean squared error over the variance of the curve."""
    return jnp.mean(jnp.square(outputs - targets)) / jnp.var(targets)


def init(config: Config) -> State:
    learning = make_learner(config).init(batch=1)
    pattern = config.task.pattern
    shape = (len(config.shown), 2, pattern.n_steps, pattern.n_out)
    return State(learning, learning.network, learning.progress.network, jnp.zeros(shape))


def make_batches(config: Config) -> Callable[[int], Batch]:
    """One repetition of the stream for each iteration."""
    key = key_of(config.seed, "stream")

    @jax.jit
    def batch(iteration):
        repetition = jnp.asarray(iteration - 1)
        return Batch(*config.task.sample(key, repetition, batch_size=1), repetition)

    return batch


def make_step(config: Config) -> Callable[[State, Batch], tuple[State, dict[str, Array]]]:
    """Learning through one repetition, and the frozen copy beside it."""
    learner = make_learner(config)
    shown = jnp.asarray(config.shown)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        inputs, targets, repetition = batch
        learning, info = learner.run(state.learning, (inputs, targets))
        neurons, frozen_run = state.frozen.run(state.neurons, inputs)

        def until_the_switch(theirs, mine):
            first_phase = repetition < config.task.repetitions
            return jax.tree.map(lambda x, y: jnp.where(first_phase, x, y), theirs, mine)

        outputs = jnp.stack([info.outputs[:, 0], frozen_run.outputs[:, 0]])
        is_shown = (shown == repetition)[:, None, None, None]
        state = State(
            learning=learning,
            frozen=until_the_switch(learning.network, state.frozen),
            neurons=until_the_switch(learning.progress.network, neurons),
            outputs=jnp.where(is_shown, outputs[None], state.outputs),
        )
        return state, {
            "error": relative_error(info.outputs, targets),
            "frozen_error": relative_error(frozen_run.outputs, targets),
            "rate_hz": info.rates.mean(),
        }

    return step


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Learn from the last checkpoint, if there is one, to the end of the last phase.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder = RunFolder(config.folder, config)
    state, metrics = eprop.fit(
        make_step(config),
        init(config),
        make_batches(config),
        iterations=config.phases * config.task.repetitions,
        folder=folder.path,
        config=config,
        save_every=config.save_every,
        progress=progress,
    )
    summary = summarise(config, metrics)
    batches = make_batches(config)
    folder.write_arrays(
        "shown",
        {
            "outputs": np.asarray(state.outputs),
            "targets": np.stack([np.asarray(batches(i + 1).targets[:, 0]) for i in config.shown]),
        },
    )
    folder.write_json("summary", summary)
    return summary


def summarise(config: Config, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The error of each phase where it begins, recovers and ends."""
    phases = []
    for begin in range(0, len(metrics), config.task.repetitions):
        rows = metrics[begin : begin + config.task.repetitions]
        errors = np.array([row["error"] for row in rows])
        below = np.flatnonzero(errors < errors[0] / config.required_factor)
        phases.append(
            {
                "first_error": float(errors[0]),
                "last_error": float(errors[-10:].mean()),
                # before the first switch nothing is frozen
                "frozen_error": np.mean([row["frozen_error"] for row in rows]).item()
                if begin
                else None,
                "recovery_ms": float(below[0] + 1) * config.task.pattern.duration_ms
                if below.size
                else None,
            }
        )
    factors = [x["first_error"] / x["last_error"] for x in phases]
    n_steps = len(metrics) * config.task.pattern.n_steps
    return {
        "phases": phases,
        "smallest_factor": min(factors),
        "passed": min(factors) >= config.required_factor,
        "steps": n_steps,
        "updates": n_steps // config.update_every,
        "seconds": metrics[-1]["seconds"],
    }


def table(summary: dict[str, Any]) -> str:
    """The phases, to be read."""
    lines = [f"{'phase':>5}{'first':>9}{'last':>9}{'frozen':>9}{'recovered after':>18}"]
    for i, phase in enumerate(summary["phases"], start=1):
        frozen, recovery = phase["frozen_error"], phase["recovery_ms"]
        lines.append(
            f"{i:5}{phase['first_error']:9.3f}{phase['last_error']:9.4f}"
            + (f"{'-':>9}" if frozen is None else f"{frozen:9.3f}")
            + (f"{'never':>18}" if recovery is None else f"{recovery / 1000:16.0f} s")
        )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.online_stream", description=__doc__
    )
    with resumable():
        summary = run(config)
    print(
        f"{table(summary)}\n"
        f"{'Learned' if summary['passed'] else 'NOT learned'}: in each phase the error falls by "
        f"{summary['smallest_factor']:.1f} times or more.\n"
        f"{summary['steps']:,} steps, {summary['updates']:,} weight updates, "
        f"{summary['seconds']:.0f} s.\n"
        f"Figure: {draw(config.folder)}"
    )
    return 0 if summary["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
