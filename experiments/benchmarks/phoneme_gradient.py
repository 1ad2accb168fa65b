"""Phoneme recognition: a gradient by e-prop beside one by BPTT, and what an epoch would take.

The networks, batches and losses are those of experiments.phonemes with the preset that is named;
the sentences are noise of one length, which takes as long. Where the preset has a network see
several frames as one, it does so here. An epoch of TIMIT are 3696 sentences of 306 frames in the
mean (3.1 hours); its time is that of the gradients alone, without padding.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
import tyro

from ..runs import RunFolder
from ..speech import learning, settings
from ..speech.batches import Batch
from . import machine, time_in_turn

RULES: dict[str, dict[str, Any]] = {
    "bptt": {"rule": "bptt"},
    "symmetric": {"feedback": "symmetric"},
    "random": {"feedback": "random"},
}
N_FEATURES, N_PHONEMES, LONGEST = 123, 61, 40
"""TIMIT's features and phonemes, and the length of a transcription."""
SENTENCES, FRAMES = 3696, 306
"""TIMIT's training set, and how long a sentence of it is in the mean."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Of which networks, and how often."""

    preset: Literal["default", "reference"] = "reference"
    """Sizes and settings."""
    task: settings.Task = "framewise"
    """Each frame's phoneme, or the sequence of phonemes."""
    cell: settings.Cell = "lsnn"
    """Spiking neurons, or LSTM units."""
    frames: int = FRAMES
    """Length of a sentence in frames of 10 ms."""
    batch_size: int | None = None
    """Sentences of a batch; the preset's by default."""
    rounds: int = 3
    """Timed gradients by each rule, in turn."""
    results: Path = Path("results/phoneme_gradient")
    """Folder of the results."""
    run: str = "{preset}_{task}_{cell}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(preset=self.preset, task=self.task, cell=self.cell)


def make_batch(n: int, batch_size: int, n_features: int) -> Batch:
    """Noise of `n` frames as the network sees them, and labels at random."""
    rng = np.random.default_rng(0)
    return Batch(
        features=rng.normal(size=(n, batch_size, n_features)).astype(np.float32),
        lengths=np.full(batch_size, n, np.int32),
        labels=rng.integers(0, N_PHONEMES, (n, batch_size), np.int32),
        phonemes=rng.integers(0, N_PHONEMES, (batch_size, LONGEST), np.int32),
        n_phonemes=np.full(batch_size, min(LONGEST, n // 2), np.int32),
    )


def make_gradient(config: settings.Config, batch: Batch):
    """A function that computes one, of weights as they are drawn."""
    recogniser = learning.make_network(config, 0, batch.features.shape[-1], N_PHONEMES)
    rules, loss = learning.make_rules(config, 0, recogniser), learning.make_loss(config)
    key = jax.random.key(0) if config.dropout > 0 else None

    @eqx.filter_jit
    def gradient(recogniser, rules, batch):
        return jax.grad(lambda r: loss(r, rules, batch, key), has_aux=True)(recogniser)

    return lambda: gradient(recogniser, rules, batch)


def measure(config: Config) -> dict[str, Any]:
    """Times by rule."""
    preset = settings.preset(config.preset, config.task, config.cell)
    batch = make_batch(
        config.frames // preset.stack,
        config.batch_size or preset.batch_size,
        N_FEATURES * preset.stack,
    )
    programs = {
        name: make_gradient(dataclasses.replace(preset, **changes), batch)
        for name, changes in RULES.items()
    }
    infos = {name: jax.device_get(program()[1]) for name, program in programs.items()}  # compiles
    rows = time_in_turn(programs, dict.fromkeys(programs, config.rounds), "gradients")
    per_epoch = SENTENCES * (FRAMES // preset.stack) / batch.labels.size
    for name, row in rows.items():
        row["epoch_minutes"] = per_epoch * row["median_seconds"] / 60
        row["of_bptt"] = row["median_seconds"] / rows["bptt"]["median_seconds"]
        row["rate_hz"] = float(infos[name].get("rate_hz", 0.0))
    return {"batch_size": batch.labels.shape[1], "rules": rows}


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.phoneme_gradient",
        description=__doc__,
    )  # fmt: skip
    folder, metrics = RunFolder(config.folder, config), machine()
    with jax.enable_x64(False):
        found = measure(config)
    folder.write_json("metrics", {**metrics, **found})
    print(f"{'':12}{'gradient s':>12}{'of BPTT':>10}{'epoch of TIMIT min':>21}")
    for name, row in found["rules"].items():
        print(
            f"{name:12}{row['median_seconds']:12.2f}{row['of_bptt']:10.2f}"
            f"{row['epoch_minutes']:21.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
