"""Random spike patterns, classified by neurons with exponential synapses, by e-prop or BPTT.

After Neftci, Mostafa and Zenke (IEEE Signal Processing Magazine 2019) and their tutorial SpyTorch:
256 frozen patterns of random spikes belong to two classes at random, and a network learns which
belongs where. There is nothing to generalise from, so accuracy is that on the patterns themselves.
Several seeds are trained one after another: other weights, patterns and classes.

Presets, named first: "default", a recurrent network, and "tutorial", the network of the
tutorial: four neurons and no recurrent synapses.
A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

import eprop
from eprop import losses
from eprop.tasks.pattern_generation import check_rate
from figures.spike_patterns import draw

from .classification import accuracy, key_of, train
from .learners import make_rule
from .runs import RunFolder, configuration, resumable, without_seeds


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the weights, the feedback and the patterns: a training for each."""

    n_patterns: int = 256
    """Patterns, all of them in each iteration."""
    n_classes: int = 2
    """Classes, and readouts."""
    n_in: int = 100
    """Input neurons."""
    duration_ms: float = 200.0
    """Length of a pattern in ms."""
    rate_hz: float = 5.0
    """Firing rate of the inputs in Hz."""
    dt: float = 1.0
    """Time step in ms."""

    n: int = 50
    """Neurons."""
    recurrent: bool = True
    """Whether the neurons have synapses with each other."""
    tau_i: float = 5.0
    """Time constant of the synaptic current in ms."""
    tau_v: float = 10.0
    """Membrane time constant in ms."""
    tau_out: float = 10.0
    """Time constant of the readout in ms."""
    v_th: float = 1.0
    """Threshold, in units of the membrane potential."""
    weight_scale: float = 0.67
    """Initial weights are normal with this standard deviation, in units of the membrane
    potential, divided by the square root of the number of presynaptic neurons."""
    gamma: float = 1.0
    """Height of the pseudo-derivative (dimensionless)."""
    width: float = 0.1
    """Distance from threshold, in thresholds, at which it has fallen to a quarter."""

    learning_rate: float = 5e-3
    """Adam's, constant."""
    rate_target_hz: float = 20.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 1.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)²."""
    iterations: int = 300
    """Updates."""
    check_every: int = 50
    """Iterations between checkpoints."""

    results: Path = Path("results/spike_patterns")
    """Folder of the results."""
    run: str = "{learner}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        check_rate("rate_hz", self.rate_hz, self.dt)
        if self.n_classes < 2:
            raise ValueError(
                f"n_classes = {self.n_classes}: there is nothing to tell apart, give at least 2"
            )

    @property
    def learner(self) -> str:
        """The rule in one word."""
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(learner=self.learner)


PRESETS = {
    "default": Config(),
    "tutorial": Config(
        n=4,
        recurrent=False,
        width=0.01,
        learning_rate=2e-3,
        rate_penalty=0.0,
        iterations=1000,
        results=Path("results/tutorial"),
    ),
}


def make_data(
    config: Config, seed: int
) -> tuple[Bool[Array, "time batch n_in"], Int[Array, " batch"]]:
    """The frozen patterns, and the class of each."""
    of_spikes, of_classes = jax.random.split(key_of(seed, "patterns"))
    shape = (round(config.duration_ms / config.dt), config.n_patterns, config.n_in)
    inputs = jax.random.bernoulli(of_spikes, config.rate_hz * config.dt / 1000, shape)
    return inputs, jax.random.randint(of_classes, (config.n_patterns,), 0, config.n_classes)


def make_network(config: Config, seed: int) -> eprop.Network:
    weights = jax.nn.initializers.variance_scaling(config.weight_scale**2, "fan_in", "normal")
    cell = eprop.CurrentLIF(
        config.n,
        tau_v=config.tau_v,
        v_th=config.v_th,
        n_refractory=0,
        dt=config.dt,
        tau_i=config.tau_i,
        surrogate=eprop.FastSigmoid(config.gamma, config.width),
    )
    return eprop.Network(
        cell,
        n_in=config.n_in,
        n_out=config.n_classes,
        tau_out=config.tau_out,
        w_in=weights,
        w_rec=weights if config.recurrent else jax.nn.initializers.zeros,
        w_out=weights,
        key=key_of(seed, "weights"),
    )


def trainable(config: Config, network: eprop.Network) -> eprop.Network:
    """The weights; recurrent ones only where there are any."""
    everything = jax.tree.map(eqx.is_inexact_array, network)
    return eqx.tree_at(lambda net: net.w_rec, everything, config.recurrent)


def scores(outputs: Float[Array, "time batch n_out"]) -> Float[Array, "batch n_out"]:
    """The highest output that each readout reaches."""
    return outputs.max(0)


def make_loss(config: Config):
    """Cross-entropy of the scores, and the firing-rate penalty."""

    def loss(trajectory, labels):
        found = scores(trajectory.outputs)
        cross_entropy = losses.softmax_cross_entropy(found[None], labels)
        penalty = losses.firing_rate_penalty(trajectory.spikes, config.rate_target_hz, dt=config.dt)
        info = {
            "cross_entropy": cross_entropy,
            "accuracy": accuracy(found, labels),
            "rate_hz": 1000 * trajectory.spikes.mean() / config.dt,
        }
        return cross_entropy + config.rate_penalty * penalty, info

    return loss


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, networks, last = RunFolder(config.folder, config), [], []
    seeds, config = config.seeds, without_seeds(config)
    loss = make_loss(config)
    judge = eqx.filter_jit(lambda network, inputs, labels: loss(network(inputs), labels)[1])
    for seed in seeds:
        network, data = make_network(config, seed), make_data(config, seed)
        b = jax.random.normal(key_of(seed, "feedback"), (config.n, config.n_classes))
        rule = make_rule(config.learner, b)
        state, rows = train(
            network,
            rule,
            loss,
            make_optimizer(config),
            lambda iteration, data=data: data,
            config=config,
            folder=config.folder / f"seed{seed}",
            trainable=trainable(config, network),
            progress=progress,
        )
        networks.append(state.network)
        last.append(judge(state.network, *data) | {"seconds": rows[-1]["seconds"]})
    summary = {
        "learner": config.learner,
        "seeds": list(seeds),
        **{name: [float(found[name]) for found in last] for name in last[0]},
    }
    trial = record_trial(networks[0], *make_data(config, seeds[0]))
    folder.write_arrays("trial", jax.device_get(trial))
    folder.write_json("summary", summary)
    return summary


@eqx.filter_jit
def record_trial(
    network: eprop.Network, inputs: Bool[Array, "time batch n_in"], labels: Int[Array, " batch"]
) -> dict[str, Array]:
    """The first pattern of each class and what the network makes of it, as the figure shows."""
    chosen = jnp.stack([jnp.argmax(labels == label) for label in range(network.n_out)])
    trajectory = network(inputs[:, chosen])
    return {
        "inputs": inputs[:, chosen],
        "labels": labels[chosen],
        "spikes": trajectory.spikes > 0,
        "outputs": trajectory.outputs,
    }


def main(args: Sequence[str] | None = None) -> None:
    config = configuration(PRESETS, args, experiment="spike_patterns", description=__doc__)
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    accuracies = ", ".join(f"{100 * found:.1f}" for found in summary["accuracy"])
    print(
        f"Accuracy after {config.iterations} iterations, learning by {config.learner}, "
        f"seeds {', '.join(map(str, config.seeds))}: {accuracies} %\n"
        f"Training took {sum(summary['seconds']):.0f} s.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
