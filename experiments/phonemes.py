"""Phoneme recognition (Bellec et al. 2020, Fig. 2) by spiking networks and LSTMs, by any rule.

Two tasks: the phoneme of each frame of 10 ms, or by connectionist temporal classification (CTC)
the sequence of phonemes, of which nobody says when they come. Learning is watched on development
sentences, and the weights that do best there are kept; the test sentences, of other speakers, are
looked at once, after the last update. Several seeds are trained one after another: other weights,
feedback and batches, the same sentences.

Speech is synthetic, made here by eSpeak NG, or TIMIT, for who has it: --data /path/to/TIMIT.

Presets, named first: "default", minutes on a processor, and "reference", the sizes and settings of
the official code; both depend on --task and --cell.
A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float

import eprop
from eprop import files, losses
from figures.fig2_phonemes import draw

from .learners import make_rule
from .runs import RunFolder, random_key, resumable
from .speech import decoding, objectives
from .speech.batches import Batch, Shapes, batch_of, make_batches, outputs_of, shapes_of
from .speech.corpus import Corpus, Sentence, load
from .speech.features import HOP, Kind
from .speech.recogniser import Recogniser, Rules, make_recogniser
from .speech.recordings import RATE

FRAME_S = HOP / RATE
"""From one frame to the next in s."""
Task = Literal["framewise", "ctc"]
Cell = Literal["lsnn", "lstm"]

key_of = functools.partial(random_key, ("weights", "feedback", "dropout"))


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    task: Task = "framewise"
    """Each frame's phoneme, or the sequence of phonemes."""
    cell: Cell = "lsnn"
    """LIF and adaptive LIF neurons side by side, or LSTM units."""
    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric", "adaptive"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    frozen: bool = False
    """A baseline: only the readout learns, the recurrent networks stay as they were drawn."""
    seeds: tuple[int, ...] = (0,)
    """Of the weights, the feedback and the batches: a training for each."""
    data: str = "synthetic"
    """Speech by eSpeak NG, "synthetic", or the folder of TIMIT."""
    features: Kind = "filterbank"
    """What a network sees of a frame: 123 numbers, or 39."""

    layers: int = 1
    """Layers, all of which the readout sees."""
    bidirectional: bool = True
    """Whether each layer has neurons that hear the sentence backwards, too."""
    through_layers: bool = False
    """E-prop only: whether errors pass from layer to layer as well (by BPTT they do)."""
    n_lif: int = 100
    """Neurons without adaptation, of each layer and direction."""
    n_alif: int = 100
    """Neurons with an adaptive threshold, likewise."""
    n_lstm: int = 100
    """LSTM units, likewise."""
    repeats: int = 5
    """Time steps of 1 ms that each frame is shown for."""
    tau_readout: float | None = 3.0
    """Time constant of the readout in frames; None for no leak."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 200.0
    """Time constant of the threshold adaptation in ms."""
    v_th: float = 0.205
    """Threshold, in units of the membrane potential."""
    beta: float = 0.184
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    n_refractory: int = 2
    """Length of the refractory period in steps, the spike's included."""
    dropout: float = 0.0
    """Fraction of what each layer receives that is dropped."""

    batch_size: int = 32
    """Sentences per iteration."""
    n_lengths: int = 4
    """Lengths that batches are padded to: as many programs are compiled."""
    epochs: int = 12
    """Times that each sentence is learnt from."""
    learning_rate: float = 5e-3
    """Adam's, at the beginning."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate goes on: to zero along a cosine, or times 0.3 again and again."""
    ramp: int = 0
    """Iterations in which it rises to what it is at the beginning."""
    step_every: int | None = None
    """Iterations from one reduction to the next (steps only); None for no reduction."""
    adam_epsilon: float = 1e-5
    """Adam's ε."""
    clip: float | None = None
    """Largest norm of the gradient; None for no clipping."""
    l2: float = 1e-5
    """Weight of half the sum of all squared weights."""
    rate_target_hz: float = 10.0
    """Firing rate that the penalty draws each neuron to, in Hz (lsnn only)."""
    rate_penalty: float = 50.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)²."""
    feedback_decay: float = 1e-2
    """Adaptive feedback: the fraction of B and of W_out lost at each iteration."""
    check_every: int = 1
    """Epochs between looks at the development sentences, and between checkpoints."""
    beam: int = 20
    """Transcriptions that the beam search keeps (ctc only)."""

    results: Path = Path("results/phonemes")
    """Folder of the results."""
    run: str = "{task}_{cell}_{learner}"
    """Name of this run's own folder in it."""

    @property
    def learner(self) -> str:
        """The rule in one word."""
        if self.frozen:
            return "frozen"
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(task=self.task, cell=self.cell, learner=self.learner)


OF_LSTM = {"repeats": 1, "tau_readout": None, "rate_penalty": 0.0, "feedback_decay": 1e-3}
OF_CTC = {"tau_readout": None, "feedback_decay": 1e-4, "clip": 1.0, "l2": 0.0}
REFERENCE_CTC = {
    **OF_CTC,
    "layers": 3,
    "dropout": 0.3,
    "batch_size": 8,
    "epochs": 60,
    "learning_rate": 1e-3,
    "schedule": "steps",
    "step_every": 6930,  # 15 epochs of TIMIT's 3696 sentences
}
PRESETS: dict[str, dict[tuple[Task, Cell], dict[str, Any]]] = {
    "default": {
        ("framewise", "lsnn"): {},
        ("framewise", "lstm"): OF_LSTM,
        ("ctc", "lsnn"): OF_CTC,
        ("ctc", "lstm"): {**OF_LSTM, **OF_CTC},
    },
    "reference": {
        ("framewise", "lsnn"): {
            "n_lif": 300,
            "n_alif": 100,
            "epochs": 80,
            "learning_rate": 1e-2,
            "ramp": 100,
            "schedule": "steps",
        },
        ("framewise", "lstm"): {
            **OF_LSTM,
            "n_lstm": 200,
            "epochs": 30,
            "learning_rate": 1e-2,
            "schedule": "steps",
            "step_every": 500,
        },
        ("ctc", "lsnn"): {
            **REFERENCE_CTC, "n_lif": 80, "n_alif": 720, "tau_a": 500.0, "beta": 0.0737
        },
        ("ctc", "lstm"): {**OF_LSTM, **REFERENCE_CTC, "n_lstm": 250},
    },
}  # fmt: skip
"""What differs from `Config`'s own defaults, by task and cell."""


def preset(name: str, task: Task, cell: Cell) -> Config:
    changes = PRESETS[name][task, cell]
    run = {"run": "reference_{task}_{cell}_{learner}"} if name == "reference" else {}
    return Config(task=task, cell=cell, **changes, **run)


class State(NamedTuple):
    """All that changes during training."""

    recogniser: Recogniser
    rules: Rules
    optimizer: optax.OptState
    iteration: Array


def make_network(config: Config, seed: int, n_features: int, n_phonemes: int) -> Recogniser:
    """With an output for each phoneme, and one for CTC's blank behind them."""
    of_layer: dict[str, Any] = {}
    if config.cell == "lstm":
        glorot = jax.nn.initializers.glorot_uniform()
        of_layer = {"w_in": glorot, "w_rec": glorot, "autapses": True}
        of_layer["bias"] = jax.nn.initializers.zeros
    if config.dropout > 0:
        of_layer["dropout"] = eprop.Dropout(config.dropout)

    def cells() -> eprop.AbstractCell:
        if config.cell == "lstm":
            return eprop.LSTM(config.n_lstm)
        return eprop.ALIF(  # LIF neurons first: adaptive ones with β = 0
            config.n_lif + config.n_alif,
            tau_v=config.tau_v,
            v_th=config.v_th,
            n_refractory=config.n_refractory,
            tau_a=config.tau_a,
            beta=np.repeat([0.0, config.beta], [config.n_lif, config.n_alif]),
            surrogate=eprop.Triangular(config.gamma),
        )

    return make_recogniser(
        cells,
        n_features=n_features,
        n_out=n_phonemes + (config.task == "ctc"),
        n_layers=config.layers,
        bidirectional=config.bidirectional,
        repeats=config.repeats,
        tau_readout=config.tau_readout,
        passes_errors=config.through_layers or config.rule == "bptt",
        key=key_of(seed, "weights"),
        **of_layer,
    )


def make_rules(config: Config, seed: int, recogniser: Recogniser) -> Rules:
    """The same rule for all networks, each with rows of B of its own, of W_out's size at first."""
    learner = "bptt" if config.frozen else config.learner

    def rule(place: int, network: eprop.Network) -> eprop.AbstractRule:
        key = jax.random.fold_in(key_of(seed, "feedback"), place)
        b = jax.random.normal(key, network.w_out.shape) / np.sqrt(network.n_out)
        return make_rule(learner, b, config.feedback_decay)

    return tuple(
        tuple(rule(2 * i + j, network) for j, network in enumerate(layer))
        for i, layer in enumerate(recogniser.networks)
    )


def make_task_loss(config: Config) -> Callable[[Array, Batch], Array]:
    """Of the outputs `[frames, batch, n_out]`."""
    if config.task == "framewise":
        return lambda y, batch: objectives.framewise(y, batch.labels, batch.lengths)
    return lambda y, batch: objectives.ctc(y, batch.lengths, batch.phonemes, batch.n_phonemes)


def make_loss(config: Config):
    """The task's loss and the firing-rate penalty; and what is recorded beside them."""
    task_loss = make_task_loss(config)

    def loss(recogniser: Recogniser, rules: Rules, batch: Batch, key: Array | None):
        response = recogniser(batch.features, batch.lengths, rules, key=key)
        value = task_loss(recogniser.read(response.drive), batch)
        frames = batch.lengths.sum().astype(value.dtype)
        info = {"task_loss": value, "audio_seconds": FRAME_S * frames}
        if config.cell == "lstm":
            return value, info
        n_steps, lengths = len(batch.labels) * config.repeats, batch.lengths * config.repeats
        heard = objectives.mask_of(lengths, n_steps).astype(value.dtype)  # [steps, batch]
        rates = []
        for run in itertools.chain(*response.activity):
            penalty = losses.firing_rate_penalty(run.spikes, config.rate_target_hz, heard, dt=1.0)
            value = value + config.rate_penalty * penalty
            rates.append(1000 * jnp.mean(heard[..., None] * run.spikes) / heard.mean())
        return value, {**info, "rate_hz": sum(rates) / len(rates)}

    return loss


def make_optimizer(config: Config, per_epoch: int) -> optax.GradientTransformation:
    n = config.epochs * per_epoch
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, n)
    elif config.step_every is None:
        rate = optax.constant_schedule(config.learning_rate)
    else:
        rate = optax.exponential_decay(
            config.learning_rate, config.step_every, decay_rate=0.3, staircase=True
        )
    if config.ramp:
        rising = optax.linear_schedule(0.0, config.learning_rate, config.ramp)
        rate = optax.join_schedules([rising, rate], [config.ramp])
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(
        clip, optax.add_decayed_weights(config.l2), optax.adam(rate, eps=config.adam_epsilon)
    )


def trainable(config: Config, recogniser: Recogniser) -> Any:
    """What learns, as booleans: all weights, or the readout's alone."""
    everything = jax.tree.map(eqx.is_inexact_array, recogniser)
    if not config.frozen:
        return everything
    nothing = jax.tree.map(lambda _: False, recogniser)

    def readout(r: Recogniser) -> list[Any]:
        return [r.bias, *(x.readout.weights for x in itertools.chain(*r.networks))]

    return eqx.tree_at(readout, nothing, [True] * len(readout(recogniser)))


def init(config: Config, seed: int, corpus: Corpus, per_epoch: int) -> State:
    n_features = corpus.train[0].features.shape[1]
    recogniser = make_network(config, seed, n_features, len(corpus.phonemes))
    part = eqx.filter(recogniser, trainable(config, recogniser))
    optimizer = make_optimizer(config, per_epoch).init(part)
    rules = make_rules(config, seed, recogniser)
    return State(recogniser, rules, optimizer, jnp.zeros((), jnp.int32))


def make_step(config: Config, seed: int, per_epoch: int):
    """The gradient of the loss by the state's rules, then the update."""
    loss, optimizer = make_loss(config), make_optimizer(config, per_epoch)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        part, fixed = eqx.partition(state.recogniser, trainable(config, state.recogniser))
        key = None
        if config.dropout > 0:
            key = jax.random.fold_in(key_of(seed, "dropout"), state.iteration)

        def of_part(part):
            return loss(eqx.combine(part, fixed), state.rules, batch, key)

        (value, info), gradients = jax.value_and_grad(of_part, has_aux=True)(part)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, part)
            recogniser, rules = state.recogniser.updated(updates, state.rules)
        after = State(recogniser, rules, optimizer_state, state.iteration + 1)
        return after, {"loss": value, **info}

    return step


@eqx.filter_jit
def respond(recogniser: Recogniser, batch: Batch) -> Float[Array, "frames batch n_out"]:
    return recogniser.read(recogniser(batch.features, batch.lengths).drive)


class Judge(NamedTuple):
    """The errors of a recogniser on sentences of a corpus."""

    config: Config
    corpus: Corpus
    shapes: Shapes

    def errors(self, recogniser: Recogniser, sentences: Sequence[Sentence]) -> dict[str, float]:
        """Of `frames`; or of phonemes by `greedy` decoding and by `beam` search."""
        run = functools.partial(respond, recogniser)
        outputs = outputs_of(run, sentences, self.shapes, self.config.batch_size)
        if self.config.task == "framewise":
            return {"frames": decoding.frame_error(outputs, [x.labels for x in sentences])}
        beam = functools.partial(decoding.beam, size=self.config.beam)
        true = [x.phonemes for x in sentences]
        return {
            name: decoding.phoneme_error([decode(x) for x in outputs], true, self.corpus.folded)
            for name, decode in {"greedy": decoding.greedy, "beam": beam}.items()
        }

    def error(self, errors: dict[str, float]) -> float:
        """That which counts."""
        return errors["frames" if self.config.task == "framewise" else "beam"]


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one; then test it.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    corpus = load(config.data, config.features)
    if config.task == "ctc":
        objectives.check_room([*corpus.train, *corpus.development, *corpus.test])
    settings = {**files.as_json(config), "corpus": corpus.settings}
    folder = RunFolder(config.folder, settings)
    everyone = [*corpus.train, *corpus.development, *corpus.test]
    judge = Judge(config, corpus, shapes_of(everyone, config.n_lengths))
    found = [train_seed(config, seed, judge, settings, progress) for seed in config.seeds]
    summary = {
        "learner": config.learner,
        "task": config.task,
        "cell": config.cell,
        "seeds": list(config.seeds),
        "phonemes": list(corpus.phonemes),
        **{name: [of_seed[name] for of_seed, _ in found] for name in found[0][0]},
    }
    trial = record_trial(config, found[0][1], corpus, judge.shapes)
    folder.write_arrays("trial", jax.device_get(trial))
    folder.write_json("summary", summary)
    return summary


def train_seed(
    config: Config, seed: int, judge: Judge, settings: dict[str, Any], progress: bool
) -> tuple[dict[str, Any], State]:
    """The errors of a seed, and its state that was best on the development sentences."""
    corpus = judge.corpus
    batches, per_epoch = make_batches(corpus.train, judge.shapes, config.batch_size, seed)
    every = config.check_every * per_epoch

    def develop(state: State, iteration: int) -> dict[str, float]:
        errors = judge.errors(state.recogniser, corpus.development)
        return {"development_error": judge.error(errors)}

    state, rows = eprop.fit(
        make_step(config, seed, per_epoch),
        init(config, seed, corpus, per_epoch),
        batches,
        iterations=config.epochs * per_epoch,
        evaluate=develop,
        evaluate_every=every,
        keep_best="development_error",
        folder=config.folder / f"seed{seed}",
        config=settings,
        save_every=every,
        progress=progress,
    )
    development = judge.errors(state.recogniser, corpus.development)
    test = judge.errors(state.recogniser, corpus.test)
    return {
        "test_error": judge.error(test),
        "development_error": judge.error(development),
        "errors": {"development": development, "test": test},
        "rate_hz": rows[-1].get("rate_hz", 0.0),
        "seconds": rows[-1]["seconds"],
        "audio_seconds": sum(row["audio_seconds"] for row in rows),
    }, state


def record_trial(config: Config, state: State, corpus: Corpus, shapes: Shapes) -> dict[str, Any]:
    """A development sentence and what is made of it, as the figure shows.

    Of the neurons those of the first layer that run forward in time.
    """
    by_length = sorted(corpus.development, key=lambda sentence: len(sentence.labels))
    sentence = by_length[len(by_length) // 4]
    batch, recogniser = batch_of([sentence], shapes), state.recogniser
    response = eqx.filter_jit(recogniser)(batch.features, batch.lengths)

    def task_loss(drive):
        return make_task_loss(config)(recogniser.read(drive), batch)

    network, rule = recogniser.networks[0][0], state.rules[0][0]
    feedback = getattr(rule, "feedback", eprop.SymmetricFeedback())
    errors = jax.grad(task_loss)(response.drive)  # of each frame, shared by its steps
    signals = errors @ feedback.matrix(network).T / config.repeats
    run, n = response.activity[0][0], len(sentence.labels)
    trial = {
        "features": sentence.features,
        "labels": sentence.labels,
        "phonemes": sentence.phonemes,
        "probabilities": jax.nn.softmax(recogniser.read(response.drive))[:n, 0],
        "activity": run.spikes[: n * config.repeats, 0],
        "learning_signal": signals[:n, 0],
    }
    if config.cell == "lstm":
        return trial
    adapting = np.arange(config.n_lif + config.n_alif)[config.n_lif if config.n_alif else 0 :]
    busy = adapting[np.argsort(-trial["activity"][:, adapting].sum(0))[:3]]
    thresholds = config.v_th + config.beta * run.states.a[: n * config.repeats, 0, busy]
    return {**trial, "neurons": busy, "thresholds": thresholds}


def read_arguments(args: Sequence[str]) -> Config:
    """The configuration: of a preset, by task and cell, and what else is said."""

    @dataclasses.dataclass(frozen=True)
    class Choice:
        task: Task = "framewise"
        cell: Cell = "lsnn"

    args = list(args)
    name = args.pop(0) if args and args[0] in PRESETS else "default"
    program = "python -m experiments.phonemes [default|reference]"
    chosen, _ = tyro.cli(Choice, args=args, return_unknown_args=True, add_help=False)
    return tyro.cli(
        Config,
        default=preset(name, chosen.task, chosen.cell),
        args=args,
        prog=program,
        description=__doc__,
    )


def main(args: Sequence[str] | None = None) -> None:
    config = read_arguments(sys.argv[1:] if args is None else args)
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    what = "frames" if config.task == "framewise" else "phonemes"
    errors = ", ".join(f"{found:.1%}" for found in summary["test_error"])
    seconds, audio = sum(summary["seconds"]), sum(summary["audio_seconds"])
    print(
        f"{what.capitalize()} of test sentences that are wrong, {config.cell} by {config.learner}, "
        f"seeds {', '.join(map(str, config.seeds))}: {errors}\n"
        f"Training took {seconds:.0f} s: {audio / seconds:.0f} s of speech a second.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
