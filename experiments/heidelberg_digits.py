"""Spoken digits as the spikes of a cochlea, told by a recurrent network, trained by e-prop or BPTT.

Made-up ones by default, so that it runs anywhere; with --data those of the Spiking Heidelberg
Digits or the Spiking Speech Commands, or the moving digits of N-MNIST. Recordings differ in length:
each batch is read from disk when its turn comes, and padded, with a mask. The mean of the readout
over each recording's own last steps is the answer.

A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Bool, Float, Int

import eprop
from eprop import losses

from .classification import accuracy, key_of, train
from .events import Recordings, open_event_images, open_spoken, read_batch
from .learners import make_rule
from .runs import RunFolder, resumable
from .spoken_digits import made_up


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    data: Path | None = None
    """Folder with the two files *_train.h5 and *_test.h5 of SHD or SSC, or with the folders Train
    and Test of N-MNIST; without it the digits are made up."""
    n_classes: int = 20
    """Of the recordings in HDF5: SHD has 20, SSC 35."""
    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    seed: int = 0
    """Of the weights, the feedback and the batches."""

    dt: float = 4.0
    """Time step in ms."""
    lengths: tuple[int, ...] = (100, 150, 200, 250, 350)
    """Numbers of steps to pad to; what comes after the greatest is cut off."""
    answer_ms: float = 100.0
    """Time at the end of each recording in ms, in which the answer is read."""

    n: int = 128
    """Adaptive neurons."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 200.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 20.0
    """Time constant of the readout in ms."""
    v_th: float = 0.5
    """Threshold, in units of the membrane potential."""
    beta: float = 0.05
    """By how much a spike raises the threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""

    batch_size: int = 50
    """Recordings per iteration."""
    learning_rate: float = 3e-3
    """Adam's, at the beginning; it falls to zero along a cosine."""
    rate_target_hz: float = 15.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 1.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)²."""
    iterations: int = 300
    """Updates."""
    check_every: int = 50
    """Iterations between validations, and between checkpoints."""

    results: Path = Path("results/heidelberg_digits")
    """Folder of the results."""
    run: str = "{source}_{learner}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def learner(self) -> str:
        """The rule in one word."""
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        source = "made_up" if self.data is None else self.data.name
        return self.results / self.run.format(source=source, learner=self.learner, seed=self.seed)


class Split(NamedTuple):
    """The recordings to learn from and those to test on, and which of the former are which."""

    train: Recordings
    test: Recordings
    learned: Int[np.ndarray, " n_learned"]
    validation: Int[np.ndarray, " n_validation"]


def open_data(config: Config) -> Split:
    """A tenth of the recordings to learn from watches learning; the same for every seed."""
    if config.data is None:
        train, test = made_up(2000, seed=0), made_up(500, seed=1)
    elif (config.data / "Train").is_dir():
        train, test = (open_event_images(config.data / part) for part in ("Train", "Test"))
    else:
        train, test = (
            open_spoken(_only(config.data, f"*_{part}.h5"), config.n_classes)
            for part in ("train", "test")
        )
    order = np.random.default_rng(0).permutation(len(train.labels))
    n_validation = len(order) // 10
    if len(order) - n_validation < config.batch_size:
        raise ValueError(
            f"batch_size = {config.batch_size}, but there are {len(order) - n_validation} "
            f"recordings to learn from"
        )
    return Split(train, test, order[n_validation:], order[:n_validation])


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(
            f"one {pattern} is needed in {folder}, but there is {names}: the files of SHD and SSC, "
            f"to be unpacked, are at https://zenkelab.org/datasets"
        )
    return found[0]


def make_network(config: Config, n_in: int, n_out: int) -> eprop.Network:
    cell = eprop.ALIF(
        config.n,
        tau_v=config.tau_v,
        v_th=config.v_th,
        n_refractory=1,
        dt=config.dt,
        tau_a=config.tau_a,
        beta=config.beta,
        surrogate=eprop.Triangular(config.gamma),
    )
    return eprop.Network(
        cell,
        n_in=n_in,
        n_out=n_out,
        tau_out=config.tau_out,
        w_rec=jax.nn.initializers.normal(0.2 / np.sqrt(config.n)),
        w_out=jax.nn.initializers.normal(0.01),  # small, to align with random feedback soon
        key=key_of(config.seed, "weights"),
    )


def make_batches(config: Config, split: Split) -> Callable[[int], Any]:
    """What is read at each iteration; each epoch has an order of its own.

    Recordings of an epoch that fill no batch are left out of it.
    """
    per_epoch = len(split.learned) // config.batch_size

    def batch(iteration: int):
        epoch, place = divmod(iteration - 1, per_epoch)
        order = np.random.default_rng((config.seed, epoch)).permutation(split.learned)
        begin = place * config.batch_size
        chosen = order[begin : begin + config.batch_size]
        inputs, labels, mask = read_batch(split.train, chosen, dt=config.dt, lengths=config.lengths)
        return inputs, (labels, mask)

    return batch


def to_answer(config: Config, mask: Bool[Array, "time batch"]) -> Bool[Array, "time batch"]:
    """The last steps of each recording."""
    left = jnp.cumsum(mask[::-1].astype(jnp.int32), axis=0)[::-1]
    return mask & (left <= round(config.answer_ms / config.dt))


def scores(config: Config, outputs: Array, mask: Array) -> Float[Array, "batch n_out"]:
    """The mean output of each readout in the time to answer."""
    counts = to_answer(config, mask).astype(outputs.dtype)
    return jnp.einsum("tb,tbk->bk", counts / counts.sum(0, keepdims=True), outputs)


def make_loss(config: Config):
    """Cross-entropy of the scores, and the firing-rate penalty."""

    def loss(trajectory, targets):
        labels, mask = targets
        found = scores(config, trajectory.outputs, mask)
        cross_entropy = losses.softmax_cross_entropy(found[None], labels)
        penalty = losses.firing_rate_penalty(
            trajectory.spikes, config.rate_target_hz, mask, dt=config.dt
        )
        counts = mask.astype(found.dtype)
        spikes = jnp.einsum("tb,tbj->", counts, trajectory.spikes) / (counts.sum() * config.n)
        info = {
            "cross_entropy": cross_entropy,
            "accuracy": accuracy(found, labels),
            "rate_hz": 1000 * spikes / config.dt,
        }
        return cross_entropy + config.rate_penalty * penalty, info

    return loss


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.iterations))


def in_batches(chosen: Int[np.ndarray, " n"], size: int) -> Iterator[Int[np.ndarray, " size"]]:
    """All of them in batches of one size, the last one filled with its own first ones."""
    for begin in range(0, len(chosen), size):
        yield np.resize(chosen[begin : begin + size], size)


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one; then test.

    Returns the summary, as in `summary.json`.
    """
    folder, split = RunFolder(config.folder, config), open_data(config)

    @eqx.filter_jit
    def answers(network: eprop.Network, inputs: Array, mask: Array) -> Int[Array, " batch"]:
        return jnp.argmax(scores(config, network(inputs).outputs, mask), axis=-1)

    def correct(network: eprop.Network, recordings: Recordings, chosen: np.ndarray) -> float:
        found, size = [], config.batch_size
        for batch in in_batches(chosen, size):
            inputs, labels, mask = read_batch(
                recordings, batch, dt=config.dt, lengths=config.lengths
            )
            answered = answers(network, jnp.asarray(inputs), jnp.asarray(mask))
            found.append(np.asarray(answered) == labels)
        return float(np.concatenate(found)[: len(chosen)].mean())

    def validate(state: eprop.TrainState, iteration: int) -> dict[str, float]:
        return {"validation_accuracy": correct(state.network, split.train, split.validation)}

    n_out = split.train.n_classes
    b = jax.random.normal(key_of(config.seed, "feedback"), (config.n, n_out))
    state, rows = train(
        make_network(config, split.train.n_features, n_out),
        make_rule(config.learner, b),
        make_loss(config),
        make_optimizer(config),
        make_batches(config, split),
        config=config,
        folder=config.folder / "training",
        evaluate=validate,
        progress=progress,
    )
    summary = {
        "learner": config.learner,
        "test_accuracy": correct(state.network, split.test, np.arange(len(split.test.labels))),
        "test_recordings": len(split.test.labels),
        "rate_hz": rows[-1]["rate_hz"],
        "seconds": rows[-1]["seconds"],
    }
    folder.write_json("summary", summary)
    return summary


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.heidelberg_digits", description=__doc__
    )
    try:
        with resumable():
            summary = run(config)
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from None
    print(
        f"Accuracy on {summary['test_recordings']} test recordings, learning by "
        f"{config.learner}: {100 * summary['test_accuracy']:.1f} %\n"
        f"Training took {summary['seconds']:.0f} s.\n"
        f"Results: {config.folder}"
    )


if __name__ == "__main__":
    main()
