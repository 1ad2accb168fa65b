"""What networks that recognise phonemes are trained on: each frame's phoneme, or the sequence."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from eprop import losses

from .corpus import Sentence


def mask_of(lengths: Int[Array, " batch"], n: int) -> Bool[Array, "{n} batch"]:
    """Which of `n` places are within sequences of such lengths."""
    return jnp.arange(n, dtype=lengths.dtype)[:, None] < lengths[None]


def framewise(
    outputs: Float[Array, "frames batch n_out"],
    labels: Int[Array, "frames batch"],
    lengths: Int[Array, " batch"],
) -> Float[Array, ""]:
    """The mean over all frames of -log p(phoneme)."""
    return losses.softmax_cross_entropy(outputs, labels, mask_of(lengths, len(outputs)))


def ctc(
    outputs: Float[Array, "frames batch n_out"],
    lengths: Int[Array, " batch"],
    phonemes: Int[Array, "batch longest"],
    n_phonemes: Int[Array, " batch"],
) -> Float[Array, ""]:
    """The mean over utterances of -log p(transcription), over all ways to align it.

    The last class is the blank. Source: Graves et al. 2006. A transcription that has no room in
    its frames gives a large number and no error: see `check_room`.
    """
    beyond = 1 - mask_of(lengths, len(outputs)).T.astype(outputs.dtype)
    beyond_phonemes = 1 - mask_of(n_phonemes, phonemes.shape[1]).T.astype(outputs.dtype)
    by_utterance, blank = outputs.swapaxes(0, 1), outputs.shape[-1] - 1
    with jax.numpy_dtype_promotion("standard"):
        of_each = optax.ctc_loss(by_utterance, beyond, phonemes, beyond_phonemes, blank_id=blank)
    return of_each.mean()


def check_room(sentences: Sequence[Sentence]) -> None:
    """`ValueError` for a sentence whose transcription does not fit into its frames.

    Each phoneme needs a frame, and so does the blank between two that are alike.
    """
    for sentence in sentences:
        phonemes, frames = sentence.phonemes, len(sentence.labels)
        needed = len(phonemes) + int(np.sum(phonemes[1:] == phonemes[:-1]))
        if frames < needed:
            raise ValueError(
                f"sentence {sentence.name} has {frames} frames, but the {len(phonemes)} phonemes "
                f"of its transcription need {needed}: CTC can't align them. Leave it out, or use "
                f"more frames a second"
            )
