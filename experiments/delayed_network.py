"""A network with synaptic delays: two ways to let spikes wait, one gradient.

Two LIF neurons tell two clusters of points in the plane apart. A point is a constant input current,
each neuron a class; spikes reach the other neuron, and are counted, some steps late. The network is
trained by e-prop and by BPTT on all points at once, and at every epoch its response and gradient
are computed with a rotating and with a concatenated buffer, which must give the same.

After the tutorial of BrainPy on delay variables, there without recurrent synapses and with spikes
that reset the potential to 0. It takes half a minute.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int

import eprop
from eprop.compiled import without_kernels
from eprop.delays import AbstractDelayLine
from eprop.diagnostics import Synapses
from figures.delayed_network import draw

from .runs import RunFolder

LINES = (eprop.RotatingBuffer(), eprop.ConcatenatedBuffer())
RULES: dict[str, eprop.AbstractRule] = {"symmetric": eprop.EProp(), "bptt": eprop.BPTT()}
"""All that the loss asks for is spikes: there is no readout whose feedback could be random."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The tutorial's settings."""

    delay: float = 2.0
    """Synaptic delay of the recurrent spikes, and of those that are counted, in ms."""
    tau_v: float = 10.0
    """Time constant of the membrane in ms."""
    n_steps: int = 20
    """Steps of 1 ms that a point is shown for."""
    n_points: int = 200
    """Points, half of them in each cluster."""
    epochs: int = 10
    """Passes through all points, of one update each."""
    learning_rate: float = 1.0
    """Of Adam."""
    points_seed: int = 0
    """Of the points."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the weights: a training by each rule for each."""

    results: Path = Path("results/delayed_network")
    """Folder of the results."""
    run: str = "default"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run


class Points(NamedTuple):
    """Around (-1, -1) and around (1, 1), with unit variance."""

    position: Float[Array, "n_points 2"]
    label: Int[Array, " n_points"]


def sample_points(config: Config) -> Points:
    """The points to classify."""
    label = jnp.arange(config.n_points) % 2
    noise = jax.random.normal(jax.random.key(config.points_seed), (config.n_points, 2))
    centre = (2 * label - 1).astype(noise.dtype)
    return Points(noise + centre[:, None], label)


def best_accuracy(points: Points) -> float:
    """Of the best rule there is if one does not know the points: x_1 + x_2 > 0."""
    return float(((points.position.sum(1) > 0) == (points.label == 1)).mean())


def as_inputs(config: Config, position: Float[Array, "n_points 2"]) -> Array:
    """A point's coordinates and a constant, whose weight is a bias, at all steps."""
    values = jnp.concatenate([position, jnp.ones_like(position[:, :1])], axis=-1)
    return jnp.broadcast_to(values, (config.n_steps, *values.shape))


def make_network(config: Config, seed: int, line: AbstractDelayLine) -> eprop.Network:
    """Weights are standard normal, as the tutorial's; W_out is not used."""
    cell = eprop.LIF(
        2,
        tau_v=config.tau_v,
        v_th=1.0,
        n_refractory=0,
        scale_current=True,
        surrogate=eprop.Arctan(),
    )
    normal = jax.nn.initializers.normal(1.0)
    return eprop.Network(
        cell,
        n_in=3,
        n_out=1,
        w_in=normal,
        w_rec=normal,
        delay_rec=config.delay,
        delay_line=line,
        key=jax.random.key(seed),
    )


def log_probabilities(config: Config, trajectory: eprop.Trajectory) -> Float[Array, "batch 2"]:
    """Of the classes: each neuron's share of all spikes that arrive in time to be counted."""
    in_time = max(0, len(trajectory.spikes) - round(config.delay))
    counts = trajectory.spikes[:in_time].sum(0)
    shares = counts / jnp.maximum(counts.sum(1, keepdims=True), 1.0)
    return jnp.log(shares + 1e-6)


def cross_entropy(config: Config, trajectory: eprop.Trajectory, label: Array) -> tuple[Array, Any]:
    """The sum over all points, and the fraction of points that are told right."""
    log_p = log_probabilities(config, trajectory)
    right = (log_p.argmax(1) == label) & (log_p[:, 0] != log_p[:, 1])
    return -jnp.take_along_axis(log_p, label[:, None], axis=1).sum(), right.mean()


class Epoch(NamedTuple):
    """What came out at the weights from before an epoch's update."""

    loss: Array
    accuracy: Array
    spikes: Float[Array, "time n_points 2"]
    gradients: Synapses


def train(
    config: Config, rule: eprop.AbstractRule, seed: int, line: AbstractDelayLine
) -> tuple[eprop.Network, Epoch]:
    """The trained network, and all epochs, one more than there are updates."""
    points = sample_points(config)
    inputs = as_inputs(config, points.position)
    network = make_network(config, seed, line)
    trained = jax.tree.map(lambda x: x is network.w_in or x is network.w_rec, network)
    optimizer = optax.adam(config.learning_rate)
    gradient = eprop.value_and_grad(
        functools.partial(cross_entropy, config), rule, has_aux=True, trainable=trained
    )

    @eqx.filter_jit
    def observe(network: eprop.Network) -> tuple[Epoch, eprop.Network]:
        with without_kernels():  # which have a ring of their own for spikes that wait
            (loss, accuracy), gradients = gradient(network, inputs, points.label)
            spikes = network(inputs).spikes
        of_synapses = Synapses(gradients.w_in, gradients.w_rec)
        return Epoch(loss, accuracy, spikes, of_synapses), gradients

    @eqx.filter_jit
    def update(network: eprop.Network, gradients: Any, state: optax.OptState) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, state = optimizer.update(gradients, state)
        return eprop.apply_updates(network, updates, rule)[0], state

    state = optimizer.init(eqx.filter(network, trained))
    epoch, gradients = observe(network)
    epochs = [epoch]
    for _ in range(config.epochs):
        network, state = update(network, gradients, state)
        epoch, gradients = observe(network)
        epochs.append(epoch)
    return network, jax.tree.map(lambda *xs: np.stack(xs), *epochs)


def largest_difference(a: Any, b: Any) -> float:
    """Over all numbers of two trees of arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs)


def run(config: Config) -> dict[str, Any]:
    """Train each seed by each rule with each buffer; returns the summary, as in `summary.json`."""
    folder = RunFolder(config.folder, config)
    best = best_accuracy(sample_points(config))
    summary: dict[str, Any] = {"seeds": list(config.seeds), "best_accuracy": best, "rules": {}}
    for name, rule in RULES.items():
        accuracy, between_lines, size = [], [], []
        for seed in config.seeds:
            (network, rotating), (_, concatenated) = (
                train(config, rule, seed, line) for line in LINES
            )
            accuracy.append(rotating.accuracy.tolist())
            between_lines.append(
                {
                    "spikes": largest_difference(rotating.spikes, concatenated.spikes),
                    "gradients": largest_difference(rotating.gradients, concatenated.gradients),
                }
            )
            size.append(max(float(np.abs(x).max()) for x in jax.tree.leaves(rotating.gradients)))
            if seed == config.seeds[0]:
                folder.write_arrays(name, what_it_learned(config, network))
        summary["rules"][name] = {
            "accuracy": accuracy,
            "difference_of_spikes": max(x["spikes"] for x in between_lines),
            "difference_of_gradients": max(x["gradients"] for x in between_lines),
            "largest_gradient": max(size),
        }
    folder.write_json("summary", summary)
    return summary


def what_it_learned(config: Config, network: eprop.Network) -> dict[str, np.ndarray]:
    """Points, the second class's share of spikes over the plane, and spikes of a point of each."""
    points = sample_points(config)
    axis = jnp.linspace(-4.5, 4.5, 91)
    places = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    p = jnp.exp(log_probabilities(config, network(as_inputs(config, places))))
    of_each = jnp.array([[-1.0, -1.0], [1.0, 1.0]])
    arrays = {
        "position": points.position,
        "label": points.label,
        "axis": axis,
        "share": p[:, 1].reshape(len(axis), len(axis)),
        "spikes": network(as_inputs(config, of_each)).spikes,
    }
    return {name: np.asarray(x) for name, x in arrays.items()}


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.delayed_network", description=__doc__
    )
    summary = run(config)
    print(f"The line between the clusters tells {100 * summary['best_accuracy']:.1f} % right.")
    for name, result in summary["rules"].items():
        accuracy = np.array(result["accuracy"]) * 100
        print(f"{name}: accuracy in % by epoch, mean of {len(accuracy)} seeds")
        print("  " + ", ".join(f"{x:.1f}" for x in accuracy.mean(0)))
        print("  after the last: " + ", ".join(f"{x:.1f}" for x in accuracy[:, -1]))
        print(
            f"  rotating against concatenated buffer: spikes differ by "
            f"{result['difference_of_spikes']:g}, gradients by "
            f"{result['difference_of_gradients']:g} (the largest is "
            f"{result['largest_gradient']:.3g})"
        )
    print(f"Figure: {draw(config.folder)}")


if __name__ == "__main__":
    main()
