"""Speech as networks see it: features, the phoneme at each frame, and the transcription."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

RATE = 16_000
"""Samples of audio per second."""


class Segment(NamedTuple):
    """A phoneme, where it is heard: from the sample `start` to before the sample `end`."""

    start: int
    end: int
    phoneme: str


class Utterance(NamedTuple):
    """What somebody says, as recorded."""

    name: str
    speaker: str
    audio: Float32[np.ndarray, " samples"]
    """In [-1, 1], at 16 kHz."""
    segments: tuple[Segment, ...]


class Sentence(NamedTuple):
    """An utterance as a network sees it."""

    name: str
    features: Float32[np.ndarray, "frames n_features"]
    """Normalised by the training set's mean and standard deviation."""
    labels: Int32[np.ndarray, " frames"]
    """The phoneme at each frame's centre, an index into `Corpus.phonemes`."""
    phonemes: Int32[np.ndarray, " n_phonemes"]
    """The transcription: the phonemes of the segments, one after the other."""
    samples: int
    """Length of the audio."""


class Corpus(NamedTuple):
    """Three sets of sentences without a speaker in common, and their phonemes."""

    phonemes: tuple[str, ...]
    """What is learnt: 61 of TIMIT, about 42 of synthetic speech."""
    scored: tuple[str, ...]
    """What errors are counted in: 39 of TIMIT; of synthetic speech the same as `phonemes`."""
    folded: Int32[np.ndarray, " n_phonemes"]
    """The index into `scored` of each phoneme; -1: left out (TIMIT's q)."""
    train: tuple[Sentence, ...]
    development: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    settings: dict[str, Any]
    """What a run's configuration records of the data: kind, features, sizes, hash of the audio."""


def load(
    data: str | Path = "synthetic", features: Literal["filterbank", "mfcc"] = "filterbank"
) -> Corpus:
    """The corpus: `"synthetic"`, or TIMIT in the folder `data`."""
    raise NotImplementedError
