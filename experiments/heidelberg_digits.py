"""Spoken digits as the spikes of a cochlea, told by a recurrent network, trained by e-prop or BPTT.

Made-up ones by default, so that it runs anywhere; with --data those of the Spiking Heidelberg
Digits or the Spiking Speech Commands, or the moving digits of N-MNIST. Recordings differ in length:
each batch is read from disk when its turn comes, and padded, with a mask. The mean of the readout
over each recording's own last steps is the answer. Several seeds are trained one after another:
other weights, feedback and batches, the same recordings.

Beside it are linear classifiers of what each channel's spikes are counted to: in all of a
recording, and in each tenth of it.

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
from figures.heidelberg_digits import draw

from .classification import accuracy, check_steps, key_of, linear_accuracy, train
from .events import Recordings, open_event_images, open_spoken, read_batch
from .learners import make_rule, only_readout
from .runs import RunFolder, resumable, without_seeds
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
    frozen: bool = False
    """A baseline: only the readout learns, the recurrent network stays as it was drawn."""
    seeds: tuple[int, ...] = (0,)
    """Of the weights, the feedback and the batches: a training for each."""

    dt: float = 4.0
    """Time step in ms."""
    lengths: tuple[int, ...] = (100, 150, 200, 250, 350)
    """Numbers of steps to pad to; what comes after the greatest is cut off."""
    answer_ms: float = 200.0
    """Time at the end of each recording in ms, in which the answer is read."""

    n: int = 128
    """Adaptive neurons."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 500.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 60.0
    """Time constant of the readout in ms."""
    v_th: float = 0.5
    """Threshold, in units of the membrane potential."""
    beta: float = 0.1
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
    iterations: int = 600
    """Updates."""
    check_every: int = 50
    """Iterations between validations, and between checkpoints."""

    results: Path = Path("results/heidelberg_digits")
    """Folder of the results."""
    run: str = "{source}_{learner}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        check_steps(self, "answer_ms")

    @property
    def learner(self) -> str:
        """The rule in one word."""
        if self.frozen:
            return "frozen"
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        source = "made_up" if self.data is None else self.data.name
        return self.results / self.run.format(source=source, learner=self.learner)


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


def make_network(config: Config, seed: int, n_in: int, n_out: int) -> eprop.Network:
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
        key=key_of(seed, "weights"),
    )


def make_learner(config: Config, seed: int, n_out: int) -> eprop.AbstractRule:
    """The rule; where only the readout learns, whichever one finds its gradient."""
    b = jax.random.normal(key_of(seed, "feedback"), (config.n, n_out))
    return make_rule("symmetric" if config.frozen else config.learner, b)


def make_batches(config: Config, seed: int, split: Split) -> Callable[[int], Any]:
    """What is read at each iteration; each epoch has an order of its own.

    Recordings of an epoch that fill no batch are left out of it.
    """
    per_epoch = len(split.learned) // config.batch_size

    def batch(iteration: int):
        epoch, place = divmod(iteration - 1, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(split.learned)
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


class Batch(NamedTuple):
    """Recordings as spikes; `n` of them, and some once more to fill a batch of one size."""

    inputs: Bool[Array, "time batch n_in"]
    labels: Int[Array, " batch"]
    mask: Bool[Array, "time batch"]
    n: int


def read_all(config: Config, recordings: Recordings, chosen: np.ndarray) -> Iterator[Batch]:
    """The chosen ones, in their order."""
    for begin in range(0, len(chosen), config.batch_size):
        now = chosen[begin : begin + config.batch_size]
        filled = np.resize(now, config.batch_size)
        arrays = read_batch(recordings, filled, dt=config.dt, lengths=config.lengths)
        yield Batch(*map(jnp.asarray, arrays), n=len(now))


def count_spikes(
    config: Config, recordings: Recordings, chosen: np.ndarray, n_parts: int
) -> tuple[Float[np.ndarray, "n parts_times_n_in"], Int[np.ndarray, " n"]]:
    """Of each channel, in each of as many equal parts of a recording; and the labels."""
    counts, labels = [], []
    for batch in read_all(config, recordings, chosen):
        mask = np.asarray(batch.mask, np.float32)
        part = np.cumsum(mask, axis=0) * n_parts / mask.sum(axis=0)  # of which steps are the ends
        in_part = np.ceil(part)[None] == np.arange(1, n_parts + 1)[:, None, None]
        is_counted = (in_part & (mask > 0)).astype(np.float32)
        found = np.einsum("ptb,tbi->bpi", is_counted, np.asarray(batch.inputs, np.float32))
        counts.append(found.reshape(len(found), -1)[: batch.n])
        labels.append(np.asarray(batch.labels)[: batch.n])
    return np.concatenate(counts), np.concatenate(labels)


def counts_alone(config: Config, split: Split, n_parts: int) -> float:
    """The accuracy of a linear classifier of the numbers of spikes, each of variance 1."""
    everything = np.arange(len(split.test.labels))
    counts, labels = count_spikes(config, split.train, split.learned, n_parts)
    test, truth = count_spikes(config, split.test, everything, n_parts)
    mean, scale = counts.mean(axis=0), counts.std(axis=0) + 1e-3
    learned = jnp.asarray((counts - mean) / scale), jnp.asarray(labels)
    tested = jnp.asarray((test - mean) / scale), jnp.asarray(truth)
    n_classes = split.train.n_classes
    return linear_accuracy(learned, tested, n_classes=n_classes, batch_size=config.batch_size)


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one; then test it.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, split = RunFolder(config.folder, config), open_data(config)
    seeds, config = config.seeds, without_seeds(config)
    n_in, n_out = split.train.n_features, split.train.n_classes
    states, last = [], []

    @eqx.filter_jit
    def are_correct(network: eprop.Network, inputs: Array, labels: Array, mask: Array) -> Array:
        answers = jnp.argmax(scores(config, network(inputs).outputs, mask), axis=-1)
        return answers.astype(labels.dtype) == labels

    def correct(network: eprop.Network, recordings: Recordings, chosen: np.ndarray) -> float:
        batches = read_all(config, recordings, chosen)
        found = [np.asarray(are_correct(network, *batch[:3]))[: batch.n] for batch in batches]
        return float(np.concatenate(found).mean())

    def validate(state: eprop.TrainState, iteration: int) -> dict[str, float]:
        return {"validation_accuracy": correct(state.network, split.train, split.validation)}

    for seed in seeds:
        network = make_network(config, seed, n_in, n_out)
        state, rows = train(
            network,
            make_learner(config, seed, n_out),
            make_loss(config),
            make_optimizer(config),
            make_batches(config, seed, split),
            config=config,
            folder=config.folder / f"seed{seed}",
            trainable=only_readout(network) if config.frozen else eqx.is_inexact_array,
            evaluate=validate,
            progress=progress,
        )
        states.append(state)
        last.append(rows[-1])
    everything = np.arange(len(split.test.labels))
    summary = {
        "learner": config.learner,
        "seeds": list(seeds),
        "test_accuracy": [correct(state.network, split.test, everything) for state in states],
        "test_recordings": len(everything),
        "linear_accuracy": {n: counts_alone(config, split, n) for n in (1, 10)},
        "rate_hz": [row["rate_hz"] for row in last],
        "seconds": [row["seconds"] for row in last],
    }
    trial = record_trial(config, states[0].network, split)
    folder.write_arrays("trial", jax.device_get(trial))
    folder.write_json("summary", summary)
    return summary


def record_trial(config: Config, network: eprop.Network, split: Split) -> dict[str, Any]:
    """The first recording of those that watch learning, and what the network makes of it."""
    batch = next(read_all(config, split.train, split.validation[:1]))
    trajectory = eqx.filter_jit(network)(batch.inputs)
    n_steps = int(batch.mask[:, 0].sum())
    return {
        "label": batch.labels[0],
        "inputs": batch.inputs[:n_steps, 0],
        "spikes": trajectory.spikes[:n_steps, 0] > 0,
        "outputs": trajectory.outputs[:n_steps, 0],
    }


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.heidelberg_digits", description=__doc__
    )
    try:
        with resumable():
            summary = run(config)
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from None
    figure = draw([config.folder], config.folder / "figure.png")
    accuracies = ", ".join(f"{100 * found:.1f}" for found in summary["test_accuracy"])
    of_counts, of_tenths = (100 * x for x in summary["linear_accuracy"].values())
    print(
        f"Accuracy on {summary['test_recordings']} test recordings, learning by {config.learner}, "
        f"seeds {', '.join(map(str, config.seeds))}: {accuracies} %\n"
        f"Linear classifiers: {of_counts:.1f} % of spike counts, {of_tenths:.1f} % of those in "
        f"tenths of a recording\n"
        f"Training took {sum(summary['seconds']):.0f} s.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
