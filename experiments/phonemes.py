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
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import tyro

import eprop
from eprop import files
from figures.fig2_phonemes import draw

from .runs import RunFolder, configuration, resumable, without_seeds
from .speech import decoding, objectives
from .speech.batches import Shapes, batch_of, make_batches, outputs_of, shapes_of
from .speech.corpus import Corpus, Sentence, load
from .speech.learning import State, init, make_step, make_task_loss, respond
from .speech.recogniser import Recogniser
from .speech.settings import PRESETS, Cell, Config, Task, preset


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
    corpus = load(config.data, config.features, config.stack)
    if config.task == "ctc":
        objectives.check_room([*corpus.train, *corpus.development, *corpus.test])
    of_corpus = {"corpus": corpus.settings}
    folder = RunFolder(config.folder, files.as_json(config) | of_corpus)
    seeds, config = config.seeds, without_seeds(config)
    settings = files.as_json(config) | of_corpus
    everyone = [*corpus.train, *corpus.development, *corpus.test]
    judge = Judge(config, corpus, shapes_of(everyone, config.n_lengths))
    found = [train_seed(config, seed, judge, settings, progress) for seed in seeds]
    summary = {
        "learner": config.learner,
        "task": config.task,
        "cell": config.cell,
        "seeds": list(seeds),
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
    if config.cell == "lstm" or config.n_alif == 0:
        return trial
    adapting = config.n_lif + np.arange(config.n_alif)
    busy = adapting[np.argsort(-trial["activity"][:, adapting].sum(0))[:3]]
    thresholds = config.v_th + config.beta * run.states.a[: n * config.repeats, 0, busy]
    return {**trial, "neurons": busy, "thresholds": thresholds}


def read_arguments(args: Sequence[str]) -> Config:
    """The configuration: of a preset, by task and cell, and what else is said."""

    @dataclasses.dataclass(frozen=True)
    class Choice:
        task: Task = "framewise"
        cell: Cell = "lsnn"

    chosen, _ = tyro.cli(Choice, args=list(args), return_unknown_args=True, add_help=False)
    presets = {name: preset(name, chosen.task, chosen.cell) for name in PRESETS}
    return configuration(presets, args, experiment="phonemes", description=__doc__)


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
