"""From a network's outputs to a transcription, and how many of its phonemes are wrong.

In connectionist temporal classification (CTC; Graves et al. 2006) a network says at each frame a
phoneme or a blank, the last of its classes. A transcription is what is left of such a path when
repeats are merged and then blanks removed: "a a - a b" is "a a b".
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Transcription = Int[np.ndarray, " n_phonemes"]

FIRST = 0x4E00
"""In the beam search each class is a character of its own, from this one on."""


def greedy(outputs: Float[np.ndarray, "frames n_classes"]) -> Transcription:
    """What the most likely path says."""
    path, blank = outputs.argmax(-1), outputs.shape[-1] - 1
    merged = merge_repeats(path)
    return merged[merged != blank]


def beam(outputs: Float[np.ndarray, "frames n_classes"], size: int = 20) -> Transcription:
    """The most likely transcription, over all of its paths, among the `size` kept at each frame.

    The search is fast-ctc-decode's (MIT licence), without a language model.
    """
    shifted = np.exp(outputs - outputs.max(-1, keepdims=True), dtype=np.float32)
    # It wants probabilities, and the blank first.
    probabilities = np.roll(shifted / shifted.sum(-1, keepdims=True), 1, axis=-1)
    alphabet = [chr(FIRST + i) for i in range(probabilities.shape[-1])]
    search = _installed("fast_ctc_decode", "Beam search is fast-ctc-decode's").beam_search
    found, _ = search(probabilities, alphabet, beam_size=size)
    return np.array([ord(x) - FIRST - 1 for x in found], np.int64)


def merge_repeats(path: Int[np.ndarray, " frames"]) -> Int[np.ndarray, " _"]:
    """One of each run of the same number."""
    return path[np.insert(path[1:] != path[:-1], 0, True)] if len(path) else path


def fold(transcription: Transcription, folded: Int[np.ndarray, " n_learned"]) -> Transcription:
    """The transcription in phonemes that are scored: some count as one, others not at all.

    `folded` is the number of the scored phoneme for each one that is learnt, -1 for none. What has
    become a repeat by folding is merged; what stands on both sides of one left out is not.
    """
    scored = merge_repeats(folded[transcription])
    return scored[scored >= 0]


def phoneme_error(
    found: Sequence[Transcription],
    true: Sequence[Transcription],
    folded: Int[np.ndarray, " n_learned"],
) -> float:
    """Σ edit distances / Σ lengths of the true transcriptions, all of them folded.

    An edit is a phoneme that is too many, missing, or another. More than 1 can come out.
    """
    pairs = [(fold(x, folded), fold(y, folded)) for x, y in zip(found, true, strict=True)]
    length = sum(len(y) for _, y in pairs)
    if length == 0:
        raise ValueError(
            f"no phoneme to be found in {len(pairs)} transcriptions: there is no error to speak of"
        )
    distance = _installed(
        "rapidfuzz.distance.Levenshtein", "The distance of transcriptions is RapidFuzz's"
    ).distance
    return sum(distance(x.tolist(), y.tolist()) for x, y in pairs) / length


def frame_error(
    outputs: Sequence[Float[np.ndarray, "frames n_classes"]],
    labels: Sequence[Int[np.ndarray, " frames"]],
) -> float:
    """The fraction of all frames whose most likely phoneme is another than theirs."""
    wrong = [x.argmax(-1) != y for x, y in zip(outputs, labels, strict=True)]
    return float(np.concatenate(wrong).mean())


def _installed(module: str, what: str) -> Any:
    """The module; the end of the program where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SystemExit(
            f"{what}, which is not installed: write pip install 'eprop[speech]'"
        ) from None
