"""Sentences of different lengths as batches of a few shapes, so that little is compiled."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

import eprop

from .corpus import Sentence


class Batch(NamedTuple):
    """Sentences side by side, with zeros behind the end of each.

    Arrays of NumPy where they are made, of JAX where they are learnt from.
    """

    features: Float[Any, "frames batch n_features"]
    lengths: Int[Any, " batch"]
    """Frames of each sentence."""
    labels: Int[Any, "frames batch"]
    phonemes: Int[Any, "batch longest"]
    """The transcriptions."""
    n_phonemes: Int[Any, " batch"]


class Shapes(NamedTuple):
    """What batches of a corpus are padded to."""

    frames: tuple[int, ...]
    """The numbers of frames to choose from."""
    phonemes: int
    """Length of the longest transcription."""


def shapes_of(sentences: Sequence[Sentence], n_lengths: int) -> Shapes:
    """Quantiles of the lengths of the `sentences`, up to the longest: `n_lengths` at most."""
    frames = [len(sentence.labels) for sentence in sentences]
    chosen = np.quantile(frames, np.arange(1, n_lengths + 1) / n_lengths, method="higher")
    longest = max(len(sentence.phonemes) for sentence in sentences)
    return Shapes(tuple(int(n) for n in np.unique(chosen)), longest)


def batch_of(sentences: Sequence[Sentence], shapes: Shapes) -> Batch:
    features, mask = eprop.pad([x.features for x in sentences], shapes.frames)
    labels, _ = eprop.pad([x.labels for x in sentences], shapes.frames)
    phonemes, is_phoneme = eprop.pad([x.phonemes for x in sentences], shapes.phonemes)
    lengths, n_phonemes = (x.sum(0).astype(np.int32) for x in (mask, is_phoneme))
    return Batch(features, lengths, labels, phonemes.T, n_phonemes)


def make_batches(
    sentences: Sequence[Sentence], shapes: Shapes, batch_size: int, seed: int
) -> tuple[Callable[[int], Batch], int]:
    """The batch of each iteration, from the first on, and how many there are in an epoch.

    In an epoch each sentence comes once, and a few twice to fill the last batch. Sentences of like
    lengths come together, with others in each epoch.
    """
    if not 0 < batch_size <= len(sentences):
        raise ValueError(
            f"batch_size = {batch_size} must be from 1 to {len(sentences)}, the number of "
            f"sentences to learn from"
        )
    frames = np.array([len(sentence.labels) for sentence in sentences])
    per_epoch = -(-len(sentences) // batch_size)

    @functools.lru_cache(maxsize=1)
    def groups(epoch: int) -> np.ndarray:
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(sentences))
        order = np.concatenate([order, order[: per_epoch * batch_size - len(order)]])
        # Ordered by length, but not strictly.
        order = order[np.argsort(frames[order] * rng.uniform(0.9, 1.1, len(order)))]
        return rng.permutation(order.reshape(per_epoch, batch_size))

    def batch(iteration: int) -> Batch:
        epoch, place = divmod(iteration - 1, per_epoch)
        return batch_of([sentences[i] for i in groups(epoch)[place]], shapes)

    return batch, per_epoch


def outputs_of(
    run: Callable[[Batch], Float[Array, "frames batch n_out"]],
    sentences: Sequence[Sentence],
    shapes: Shapes,
    batch_size: int,
) -> list[Float[np.ndarray, "frames n_out"]]:
    """What `run` gives for each of the sentences, in their order, padding taken off."""
    order = np.argsort([len(sentence.labels) for sentence in sentences])
    found = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        filled = np.resize(chosen, batch_size).tolist()  # by repeating it: one size is one program
        outputs = np.asarray(run(batch_of([sentences[i] for i in filled], shapes)))
        for j, i in enumerate(chosen.tolist()):
            found[i] = outputs[: len(sentences[i].labels), j]
    return [found[i] for i in range(len(sentences))]
