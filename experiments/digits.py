"""Handwritten digits, read as spikes by a recurrent network, trained by e-prop or BPTT.

Two ways to read scikit-learn's 8 x 8 images: row by row, where the network has to remember what
it saw above, and by latency, where each pixel spikes once, brighter ones earlier. The readout's
mean over the last steps is the answer. Learning is watched on images of its own; accuracy is that
on test images, which are looked at once, after the last update.
Several seeds are trained one after another: other weights, feedback and batches, the same images.

A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Bool, Float, Int

import eprop
from eprop import losses
from figures.digits import draw

from .classification import accuracy, check_steps, key_of, train
from .digit_spikes import N_PIXELS, Digits, by_latency, by_rows, load
from .learners import make_rule
from .runs import RunFolder, resumable, without_seeds

N_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    encoding: Literal["rows", "latency"] = "rows"
    """How an image is read."""
    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the weights, the feedback and the batches: a training for each."""

    row_ms: float = 8.0
    """Time for each row in ms (rows only)."""
    image_ms: float = 16.0
    """Time from the brightest pixel's spike to the darkest one's in ms (latency only)."""
    answer_ms: float = 16.0
    """Time after the image in ms, in which the answer is read."""
    dt: float = 1.0
    """Time step in ms."""

    n: int = 100
    """Adaptive neurons."""
    recurrence: float = 0.3
    """Initial recurrent weights are normal with this standard deviation, in units of the membrane
    potential, divided by the square root of `n`."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 100.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 20.0
    """Time constant of the readout in ms."""
    v_th: float = 0.3
    """Threshold, in units of the membrane potential."""
    beta: float = 0.03
    """By how much a spike raises the threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    refractory_ms: float = 2.0
    """Length of the refractory period in ms, the spike's step included."""

    batch_size: int = 65
    """Images per iteration; it divides 1300, the number of images to learn from."""
    learning_rate: float = 3e-3
    """Adam's, at the beginning; it falls to zero along a cosine."""
    rate_target_hz: float = 20.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 1.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)²."""
    iterations: int = 500
    """Updates; all images have been seen once after 1300 / `batch_size`."""
    check_every: int = 20
    """Iterations between validations, and between checkpoints."""

    results: Path = Path("results/digits")
    """Folder of the results."""
    run: str = "{encoding}_{learner}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        check_steps(self, "row_ms", "image_ms", "answer_ms")

    @property
    def learner(self) -> str:
        """The rule in one word."""
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(encoding=self.encoding, learner=self.learner)


def encode(config: Config, digits: Digits) -> tuple[Bool[Array, "time n n_in"], Int[Array, " n"]]:
    """The images as spikes, and their labels."""
    answer = round(config.answer_ms / config.dt)
    if config.encoding == "rows":
        spikes = by_rows(digits.images, round(config.row_ms / config.dt), answer)
    else:
        spikes = by_latency(digits.images, round(config.image_ms / config.dt), answer)
    return spikes, jnp.asarray(digits.labels)


def make_network(config: Config, seed: int) -> eprop.Network:
    cell = eprop.ALIF(
        config.n,
        tau_v=config.tau_v,
        v_th=config.v_th,
        n_refractory=round(config.refractory_ms / config.dt),
        dt=config.dt,
        tau_a=config.tau_a,
        beta=config.beta,
        surrogate=eprop.Triangular(config.gamma),
    )
    n_in = N_PIXELS if config.encoding == "rows" else N_PIXELS**2
    return eprop.Network(
        cell,
        n_in=n_in,
        n_out=N_CLASSES,
        tau_out=config.tau_out,
        w_rec=jax.nn.initializers.normal(config.recurrence / np.sqrt(config.n)),
        w_out=jax.nn.initializers.normal(0.01),  # small, to align with random feedback soon
        key=key_of(seed, "weights"),
    )


def make_batches(config: Config, seed: int, digits: Digits) -> Callable[[int], Any]:
    """The spikes and labels of each iteration; each epoch has an order of its own."""
    spikes, labels = encode(config, digits)
    per_epoch, left_over = divmod(len(labels), config.batch_size)
    if left_over:
        raise ValueError(
            f"batch_size = {config.batch_size} does not divide the {len(labels)} images to learn "
            f"from: write one that does, such as 65"
        )

    @jax.jit
    def batch(epoch, place):
        key = jax.random.fold_in(key_of(seed, "batches"), epoch)
        order = jax.random.permutation(key, len(labels)).reshape(per_epoch, -1)
        return spikes[:, order[place]], labels[order[place]]

    return lambda iteration: batch(*divmod(iteration - 1, per_epoch))


def scores(config: Config, outputs: Float[Array, "time batch n_out"]) -> Array:
    """The mean output of each readout in the time to answer, `[batch, n_out]`."""
    return outputs[-round(config.answer_ms / config.dt) :].mean(0)


def make_loss(config: Config):
    """Cross-entropy of the scores, and the firing-rate penalty."""

    def loss(trajectory, labels):
        found = scores(config, trajectory.outputs)
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
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.iterations))


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one; then test it.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, digits, states, last = RunFolder(config.folder, config), load(), [], []
    seeds, config = config.seeds, without_seeds(config)
    validation, test = encode(config, digits.validation), encode(config, digits.test)

    @eqx.filter_jit
    def correct(network: eprop.Network, inputs: Array, labels: Array) -> Array:
        return accuracy(scores(config, network(inputs).outputs), labels)

    def validate(state: eprop.TrainState, iteration: int) -> dict[str, Array]:
        return {"validation_accuracy": correct(state.network, *validation)}

    for seed in seeds:
        b = jax.random.normal(key_of(seed, "feedback"), (config.n, N_CLASSES))
        rule = make_rule(config.learner, b)
        state, rows = train(
            make_network(config, seed),
            rule,
            make_loss(config),
            make_optimizer(config),
            make_batches(config, seed, digits.train),
            config=config,
            folder=config.folder / f"seed{seed}",
            evaluate=validate,
            progress=progress,
        )
        states.append(state)
        last.append(rows[-1])
    summary = {
        "learner": config.learner,
        "encoding": config.encoding,
        "seeds": list(seeds),
        "test_accuracy": [float(correct(state.network, *test)) for state in states],
        "test_images": len(digits.test.labels),
        "rate_hz": [row["rate_hz"] for row in last],
        "seconds": [row["seconds"] for row in last],
    }
    trial = record_trial(config, states[0].network, digits.validation)
    folder.write_arrays("trial", jax.device_get(trial))
    folder.write_json("summary", summary)
    return summary


def record_trial(config: Config, network: eprop.Network, digits: Digits) -> dict[str, Any]:
    """An image and what the network makes of it, as the figure shows."""
    chosen = np.flatnonzero(digits.labels == 3)[:1]
    inputs, labels = encode(config, Digits(digits.images[chosen], digits.labels[chosen]))
    trajectory = eqx.filter_jit(network)(inputs)
    return {
        "image": digits.images[chosen[0]],
        "label": labels[0],
        "inputs": inputs[:, 0],
        "spikes": trajectory.spikes[:, 0] > 0,
        "outputs": trajectory.outputs[:, 0],
    }


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config,
        default=Config(),
        args=args,
        prog="python -m experiments.digits",
        description=__doc__,
    )
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    accuracies = ", ".join(f"{100 * found:.1f}" for found in summary["test_accuracy"])
    print(
        f"Accuracy on {summary['test_images']} test images, digits by {config.encoding}, learning "
        f"by {config.learner}, seeds {', '.join(map(str, config.seeds))}: {accuracies} %\n"
        f"Training took {sum(summary['seconds']):.0f} s.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
