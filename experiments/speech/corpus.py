"""Speech as networks see it: features, the phoneme at each frame, and the transcription."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from eprop import checks

from . import timit
from .espeak import CACHE, Synthetic, synthesize
from .features import Kind, extract, labels, n_frames, normalisation
from .recordings import Recordings, Utterance, sha256


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
    """What is learnt: 61 of TIMIT, 44 of synthetic speech."""
    scored: tuple[str, ...]
    """What errors are counted in: 39 of TIMIT; of synthetic speech the same as `phonemes`."""
    folded: Int32[np.ndarray, " n_phonemes"]
    """The index into `scored` of each phoneme; -1: left out (TIMIT's q)."""
    train: tuple[Sentence, ...]
    development: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    settings: dict[str, Any]
    """What a run's configuration records of the data: which, its features, its SHA-256."""


def load(
    data: str | Path | Synthetic = "synthetic",
    features: Kind = "filterbank",
    stack: int = 1,
    cache: Path = CACHE,
) -> Corpus:
    """The corpus that is learnt from.

    Args:
        data: "synthetic", or `Synthetic(...)` for other settings: speech by eSpeak NG. Else the
            folder of TIMIT.
        features: "filterbank", 123 of them, or "mfcc", 39 (see `features.extract`).
        stack: Frames of 10 ms, one after the other, that are seen as one (see `stacked`).
        cache: Where synthetic audio is kept; a second run finds it there.
    """
    if data == "synthetic":
        data = Synthetic()
    if isinstance(data, Synthetic):
        return prepare(synthesize(data, cache), features, stack)
    return prepare(timit.read(Path(data)), features, stack)


def prepare(recordings: Recordings, features: Kind, stack: int = 1) -> Corpus:
    """Recordings as networks see them.

    Raises `ValueError` for an utterance that has no frame with a phoneme at its centre.
    """
    sets = (recordings.train, recordings.development, recordings.test)
    phonemes, scored, folded = recordings.phonemes
    for utterance in itertools.chain(*sets):
        frames = n_frames(len(utterance.audio))
        if len(labels(utterance.segments, phonemes, frames)[1]) == 0:
            raise ValueError(
                f"{utterance.name} is too short: none of the {frames} frames of its "
                f"{len(utterance.audio)} samples has a phoneme at its centre"
            )
    extracted = [[extract(utterance.audio, features) for utterance in part] for part in sets]
    normalise = normalisation(extracted[0])
    sentences = [
        tuple(
            stacked(_sentence(utterance, normalise(values), phonemes), stack)
            for utterance, values in zip(part, of_part, strict=True)
        )
        for part, of_part in zip(sets, extracted, strict=True)
    ]
    settings = recordings.settings | {
        "features": features,
        "stack": stack,
        "sha256": sha256(recordings),
    }
    return Corpus(phonemes, scored, folded, *sentences, settings=settings)


def stacked(sentence: Sentence, n: int) -> Sentence:
    """Each `n` frames side by side as one, with the label of that in the middle.

    Frames at the end that fill none are left out. Raises `ValueError` where there are fewer than
    `n`.
    """
    frames, n_features = sentence.features.shape
    whole = frames // checks.positive_int("stack", n)
    if whole == 0:
        raise ValueError(
            f"{sentence.name} has {frames} frames, fewer than the {n} that are to be seen as one: "
            f"write a smaller stack"
        )
    features = sentence.features[: whole * n].reshape(whole, n * n_features)
    return sentence._replace(features=features, labels=sentence.labels[n // 2 : whole * n : n])


def _sentence(utterance: Utterance, values: np.ndarray, phonemes: tuple[str, ...]) -> Sentence:
    inside, heard = labels(utterance.segments, phonemes, len(values))
    transcription = [phonemes.index(segment.phoneme) for segment in utterance.segments]
    return Sentence(
        utterance.name,
        values[inside],
        heard,
        np.array(transcription, np.int32),
        len(utterance.audio),
    )
