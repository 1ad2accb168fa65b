"""Fashion-MNIST by a stack of convolutional spiking layers, trained by e-prop or BPTT.

The topmost layer is recurrent, those below it are convolutions, and depth says how many there are
in all. Images come in as constant currents, or by latency: each pixel spikes once, brighter ones
earlier. The readout's mean over the last steps is the answer. Learning is watched on images of its
own; accuracy is that on the test images, which are looked at once, after the last update.

Presets, named first: "default"; "quick", a minute's look; and "plain", why deep stacks are hard to
train: BPTT through layers that begin with the usual weights, however seldom their neurons spike,
and a readout of the last layer alone.
A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped, UInt8

import eprop
from eprop import losses
from figures.fashion_mnist import draw

from .classification import accuracy, check_steps, key_of, linear_accuracy, train
from .images import FASHION_MNIST, Images, load
from .learners import make_rule
from .runs import RunFolder, configuration, resumable, without_seeds

N_CLASSES = 10
SIDE = 28
"""Pixels of an image along each side."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    data: Path = FASHION_MNIST
    """Folder of the four IDX files, `.gz` or not; those of MNIST do, too."""
    encoding: Literal["current", "latency"] = "current"
    """How an image is read."""
    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric", "adaptive"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    seeds: tuple[int, ...] = (0,)
    """Of the weights, the feedback and the batches: a training for each."""

    depth: Literal[1, 2, 3, 4] = 3
    """Layers: convolutions, and a recurrent one on top."""
    channels: tuple[int, int, int] = (12, 24, 24)
    """Of the convolutions, from the first on."""
    n: int = 100
    """Neurons of the recurrent layer."""
    start: Literal["scaled", "plain"] = "scaled"
    """Initial weights: N(0, 1) over the square root of the number of presynaptic neurons, "plain";
    or "scaled" such that each layer fires at `rate_target_hz`, from the first one upward."""
    readout: Literal["all", "last"] = "all"
    """Which layers the readout sees."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_out: float = 20.0
    """Time constant of the readout in ms."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    refractory_ms: float = 2.0
    """Length of the refractory period in ms, the spike's step included."""

    image_ms: float = 10.0
    """Time from the brightest pixel's spike to the darkest one's in ms; so long, and for the time
    to answer, the current flows."""
    answer_ms: float = 6.0
    """Time after that in ms, in which the answer is read."""
    dt: float = 1.0
    """Time step in ms."""

    images: int = 55000
    """To learn from."""
    validation: int = 5000
    """Others, to watch learning by."""
    batch_size: int = 50
    """Images per iteration; it divides `images`."""
    learning_rate: float = 3e-3
    """Adam's, at the beginning; it falls to zero along a cosine."""
    feedback_decay: float = 1e-3
    """Fraction of B and W_out that adaptive feedback loses at each update."""
    rate_target_hz: float = 50.0
    """Firing rate that the penalty draws each neuron to, and at which "scaled" layers begin."""
    rate_penalty: float = 0.01
    """Weight of the firing-rate penalty, of each layer's mean of ((f - f*) / f*)²."""
    iterations: int = 1100
    """Updates; all images have been seen once after `images` / `batch_size`."""
    check_every: int = 220
    """Iterations between validations, and between checkpoints."""

    results: Path = Path("results/fashion_mnist")
    """Folder of the results."""
    run: str = "{encoding}_{learner}_{start}_depth{depth}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        check_steps(self, "image_ms", "answer_ms")

    @property
    def learner(self) -> str:
        """The rule in one word."""
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def steps(self) -> tuple[int, int]:
        """Of the image, and of the answer."""
        return round(self.image_ms / self.dt), round(self.answer_ms / self.dt)

    @property
    def folder(self) -> Path:
        names = {x: getattr(self, x) for x in ("encoding", "learner", "start", "depth")}
        return self.results / self.run.format(**names)


PRESETS = {
    "default": Config(),
    "quick": Config(
        images=10000,
        validation=1000,
        iterations=200,
        check_every=100,
        results=Path("results/fashion_mnist_quick"),
    ),
    "plain": Config(rule="bptt", start="plain", readout="last", rate_penalty=0.0),
}


class Split(NamedTuple):
    """Three sets without an image in common; the same for every seed."""

    train: Images
    validation: Images
    test: Images


def split(config: Config) -> Split:
    """The last of the training images watch learning by the first."""
    images, labels = load(config.data, "train")
    of_all, test = Images(images, labels), load(config.data, "test")
    for found in (of_all, test):
        if found.images.shape[1:] != (SIDE, SIDE) or found.labels.max() >= N_CLASSES:
            raise ValueError(
                f"{config.data} has images of shape {found.images.shape[1:]} and labels up to "
                f"{found.labels.max()}, but {(SIDE, SIDE)} and 0 to {N_CLASSES - 1} are needed"
            )
    at_most = len(images) - config.validation
    if config.images > at_most or config.images % config.batch_size:
        raise ValueError(
            f"images = {config.images} must be at most {at_most}, for {config.validation} of the "
            f"{len(images)} are for validation, and divisible by batch_size = {config.batch_size}"
        )
    first, last = (
        Images(images[part], labels[part]) for part in (slice(config.images), slice(at_most, None))
    )
    return Split(first, last, test)


def encode(config: Config, pixels: UInt8[Array, "batch n_in"]) -> Shaped[Array, "time batch n_in"]:
    """Images as currents or spikes, of their brightness from 0 to 255."""
    image, answer = config.steps
    bright = brightness(pixels)
    if config.encoding == "current":
        return jnp.broadcast_to(bright[None], (image + answer, *pixels.shape))
    times = jnp.round((1 - bright) * (image - 1)).astype(jnp.int32)
    now = jnp.arange(image + answer, dtype=jnp.int32)[:, None, None]
    return (now == times[None]) & (pixels > 0)[None]


def brightness(pixels: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """From 0 to 1."""
    return pixels.astype(float) / 255


def make_network(config: Config, seed: int) -> eprop.Network:
    """With "plain" weights. 28 x 28 pixels become 12 x 12 positions, then 6 x 6, then as many."""
    keys = jax.random.split(key_of(seed, "weights"), 5)
    convolutions = [
        {"kernel": 5, "stride": 2, "padding": "VALID"},
        {"kernel": 3, "pool": 2},
        {"kernel": 3},
    ]
    layers, shape = [], (SIDE, SIDE, 1)
    for i, of_layer in enumerate(convolutions[: config.depth - 1]):
        synapses = convolution(keys[i], shape, config.channels[i], **of_layer)
        layers.append(eprop.Layer(make_cell(config, synapses.n_post), w_in=synapses, w_rec=None))
        shape = synapses.shape_out
    pool = 2 if config.depth > 1 else 1
    whole = convolution(
        keys[3], shape, config.n, kernel=shape[0] // pool, pool=pool, padding="VALID"
    )
    recurrent = jax.nn.initializers.normal(0.1 / math.sqrt(config.n))
    layers.append(
        eprop.Layer(make_cell(config, config.n), w_in=whole, w_rec=recurrent, key=keys[3])
    )
    return eprop.Network(
        layers,
        n_out=N_CLASSES,
        tau_out=config.tau_out,
        w_out=jax.nn.initializers.normal(0.01),  # small, to align with random feedback soon
        readout_of=config.readout,
        key=keys[4],
    )


def convolution(
    key: Array, shape: tuple[int, int, int], channels: int, *, kernel: int, **changes: Any
) -> eprop.Convolution:
    """With weights N(0, 1) over the square root of the fan-in."""
    height, width, channels_in = shape
    weights = jax.random.normal(key, (kernel, kernel, channels_in, channels))
    weights = weights / math.sqrt(kernel**2 * channels_in)
    return eprop.Convolution(weights, (height, width), **changes)


def make_cell(config: Config, n: int) -> eprop.LIF:
    return eprop.LIF(
        n,
        tau_v=config.tau_v,
        v_th=1.0,
        n_refractory=round(config.refractory_ms / config.dt),
        dt=config.dt,
        surrogate=eprop.Triangular(config.gamma),
    )


def layer_rates(network: eprop.Network, inputs: Array) -> Float[Array, " depth"]:
    """The mean firing rate of each layer in Hz."""
    trajectory = network(inputs)
    return jnp.stack([1000 * layer.spikes.mean() / network.dt for layer in trajectory.layers])


def scaled(network: eprop.Network, inputs: Array, rate_hz: float) -> eprop.Network:
    """The network with weights from below such that each layer fires at `rate_hz` under `inputs`.

    A factor for each layer, found by bisection from the first layer upward.
    """

    def with_factors(factors):
        return eqx.tree_at(
            lambda net: [layer.below.weights for layer in net.layers],
            network,
            [f * layer.below.weights for f, layer in zip(factors, network.layers, strict=True)],
        )

    rates = eqx.filter_jit(lambda factors: layer_rates(with_factors(factors), inputs))
    factors = np.ones(len(network.layers), np.float32)
    for i in range(len(factors)):
        low, high = 0.01, 1000.0
        for _ in range(16):
            factors[i] = math.sqrt(low * high)
            if rates(jnp.asarray(factors, network.dtype))[i] < rate_hz:
                low = factors[i]
            else:
                high = factors[i]
    return with_factors(jnp.asarray(factors, network.dtype))


def make_batches(config: Config, seed: int, images: Images) -> Callable[[int], Any]:
    """The inputs and labels of each iteration; each epoch has an order of its own."""
    pixels, labels = as_arrays(images)
    per_epoch = len(labels) // config.batch_size

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Int[Array, "batch n"]:
        key = jax.random.fold_in(key_of(seed, "batches"), epoch)
        return jax.random.permutation(key, len(labels)).reshape(per_epoch, -1)

    @jax.jit
    def batch(pixels, labels, chosen):
        return encode(config, pixels[chosen]), labels[chosen]

    def at(iteration: int) -> Any:
        epoch, place = divmod(iteration - 1, per_epoch)
        return batch(pixels, labels, order(epoch)[place])

    return at


def as_arrays(images: Images) -> tuple[UInt8[Array, "n n_in"], Int[Array, " n"]]:
    return jnp.asarray(images.images.reshape(len(images.images), -1)), jnp.asarray(images.labels)


def scores(config: Config, outputs: Float[Array, "time batch n_out"]) -> Array:
    """The mean output of each readout in the time to answer, `[batch, n_out]`."""
    return outputs[-config.steps[1] :].mean(0)


def make_loss(config: Config):
    """Cross-entropy of the scores, and the firing-rate penalty."""

    def loss(trajectory, labels):
        found = scores(config, trajectory.outputs)
        cross_entropy = losses.softmax_cross_entropy(found[None], labels)
        penalty = sum(
            losses.firing_rate_penalty(layer.spikes, config.rate_target_hz, dt=config.dt)
            * ((1000 / config.rate_target_hz) ** 2 / layer.spikes.shape[-1])
            for layer in trajectory.layers
        )
        rates = [1000 * layer.spikes.mean() / config.dt for layer in trajectory.layers]
        info = {
            "cross_entropy": cross_entropy,
            "accuracy": accuracy(found, labels),
            "rates_hz": jnp.stack(rates),
        }
        return cross_entropy + config.rate_penalty * penalty, info

    return loss


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.iterations))


def make_learner(config: Config, seed: int, network: eprop.Network) -> eprop.AbstractRule:
    b = 0.1 * jax.random.normal(key_of(seed, "feedback"), (network.n, N_CLASSES))
    return make_rule(config.learner, b, config.feedback_decay)


def gradient_norms(
    config: Config, network: eprop.Network, rule: eprop.AbstractRule, batch: Any
) -> Float[Array, " depth"]:
    """Of each layer |dE/dW| |W|, with E the cross-entropy alone and W the weights from below.

    That is the change of E, at most, if W changed by its own size: no matter how it is scaled.
    """

    def cross_entropy(trajectory, labels):
        return losses.softmax_cross_entropy(scores(config, trajectory.outputs)[None], labels)

    _, gradients = eqx.filter_jit(eprop.value_and_grad(cross_entropy, rule))(network, *batch)
    pairs = zip(network.layers, gradients.layers, strict=True)
    norm = jnp.linalg.norm
    return jnp.stack(
        [norm(x.below.weights.ravel()) * norm(g.below.weights.ravel()) for x, g in pairs]
    )


def pixels_alone(images: Split, **how: int) -> float:
    """The accuracy of a linear classifier of the pixels: what needs no hidden layer."""
    (pixels, labels), (test, truth) = as_arrays(images.train), as_arrays(images.test)
    learned, tested = (brightness(pixels), labels), (brightness(test), truth)
    return linear_accuracy(learned, tested, n_classes=N_CLASSES, **how)


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one; then test it.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, images = RunFolder(config.folder, config), split(config)
    seeds, config = config.seeds, without_seeds(config)
    found: dict[str, list[Any]] = {
        name: [] for name in ("test_accuracy", "rates_hz", "gradient_norms", "seconds")
    }

    @eqx.filter_jit
    def n_correct(network: eprop.Network, pixels: Array, labels: Array) -> Array:
        answers = scores(config, network(encode(config, pixels)).outputs)
        return accuracy(answers, labels) * len(labels)

    def correct(network: eprop.Network, images: Images) -> float:
        pixels, labels = as_arrays(images)
        parts = range(0, len(labels), 500)
        counts = [n_correct(network, pixels[i : i + 500], labels[i : i + 500]) for i in parts]
        return float(sum(map(float, counts)) / len(labels))

    def validate(state: eprop.TrainState, iteration: int) -> dict[str, float]:
        return {"validation_accuracy": correct(state.network, images.validation)}

    pixels, labels = (x[:200] for x in as_arrays(images.validation))
    looked_at = (encode(config, pixels), labels)
    rates = eqx.filter_jit(layer_rates)

    for seed in seeds:
        network = make_network(config, seed)
        if config.start == "scaled":
            sample = as_arrays(images.train)[0][:200]
            network = scaled(network, encode(config, sample), config.rate_target_hz)
        rule = make_learner(config, seed, network)
        state, rows = train(
            network,
            rule,
            make_loss(config),
            make_optimizer(config),
            make_batches(config, seed, images.train),
            config=config,
            folder=config.folder / f"seed{seed}",
            evaluate=validate,
            progress=progress,
        )
        both = ((network, rule), (state.network, state.rule))
        found["test_accuracy"].append(correct(state.network, images.test))
        found["rates_hz"].append([rates(net, looked_at[0]).tolist() for net, _ in both])
        found["gradient_norms"].append(
            [gradient_norms(config, net, of_net, looked_at).tolist() for net, of_net in both]
        )
        found["seconds"].append(rows[-1]["seconds"])
    summary = {
        "learner": config.learner,
        "seeds": list(seeds),
        "layers": [layer.n for layer in make_network(config, 0).layers],
        "test_images": len(images.test.labels),
        "linear_accuracy": pixels_alone(images),
        **found,
        "images_per_second": config.iterations
        * config.batch_size
        / float(np.mean(found["seconds"])),
    }
    folder.write_json("summary", summary)
    return summary


def main(args: Sequence[str] | None = None) -> None:
    config = configuration(PRESETS, args, experiment="fashion_mnist", description=__doc__)
    try:
        with resumable():
            summary = run(config)
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from None
    figure = draw([config.folder], config.folder / "figure.png")
    accuracies = ", ".join(f"{100 * found:.1f}" for found in summary["test_accuracy"])
    print(
        f"Accuracy on {summary['test_images']} test images, {config.depth} layers, learning by "
        f"{config.learner}, seeds {', '.join(map(str, config.seeds))}: {accuracies} % "
        f"(a linear classifier: {100 * summary['linear_accuracy']:.1f} %)\n"
        f"Training took {sum(summary['seconds']):.0f} s: {summary['images_per_second']:.0f} images "
        f"a second.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
