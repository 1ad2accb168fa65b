"""Speech as recorded: audio, and where in it each phoneme is heard."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from .phonemes import PhonemeSet

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


class Recordings(NamedTuple):
    """Three sets of utterances without a speaker in common."""

    phonemes: PhonemeSet
    train: tuple[Utterance, ...]
    development: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    settings: dict[str, Any]
    """What they are, as a run's configuration records it."""


def sha256(recordings: Recordings) -> str:
    """Of who says what in each set: names, audio and segments."""
    found = hashlib.sha256()
    for part in (recordings.train, recordings.development, recordings.test):
        for utterance in part:
            described = (utterance.name, utterance.speaker, *map(tuple, utterance.segments))
            found.update(repr(described).encode())
            found.update(utterance.audio.tobytes())
        found.update(b"the end of a set")
    return found.hexdigest()


def check_segments(
    segments: Iterable[Segment], n_samples: int, symbols: Iterable[str], source: str
) -> None:
    """Raises `ValueError` unless segments follow each other without gaps, within the audio.

    They may begin after its first sample, and end before its last one.
    """
    known, end = set(symbols), None
    for segment in segments:
        text = f"{source}: {segment.phoneme} from sample {segment.start} to {segment.end}"
        if segment.phoneme not in known:
            raise ValueError(
                f"{text} is no phoneme that is known here: it must be one of {sorted(known)}"
            )
        if segment.start < 0 or segment.end <= segment.start:
            raise ValueError(f"{text} has no length: a segment ends after its start, from 0 on")
        if end is not None and segment.start != end:
            what = "overlaps with" if segment.start < end else "leaves a gap after"
            raise ValueError(
                f"{text} {what} the segment before, which ends at {end}: each must begin where "
                f"the one before ends"
            )
        if segment.end > n_samples:
            raise ValueError(
                f"{text} lies beyond the audio, which has {n_samples} samples: is the audio cut "
                f"off, or are these the segments of another file?"
            )
        end = segment.end
    if end is None:
        raise ValueError(f"{source} has no segments: at least one is needed")
