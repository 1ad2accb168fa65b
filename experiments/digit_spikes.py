"""Handwritten digits as spikes: scikit-learn's 1797 images of 8 x 8 pixels, in two encodings."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

N_PIXELS = 8
"""Rows of an image, and columns."""


class Digits(NamedTuple):
    """Images and what they show."""

    images: Float[np.ndarray, "n 8 8"]
    """Brightness from 0 to 1, in steps of 1/16."""
    labels: Int[np.ndarray, " n"]
    """The digit."""


class Split(NamedTuple):
    """Three sets without an image in common; the same for every seed."""

    train: Digits
    validation: Digits
    test: Digits


def load() -> Split:
    """1300 images to learn from, 137 to watch learning by, and 360 for the test at the end.

    Each digit has the same share of every set.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise SystemExit(
            "The digits come with scikit-learn, which is not installed: "
            "write pip install 'eprop[digits]'"
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, N_PIXELS, N_PIXELS)
    labels = labels.astype(np.int32)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
    )
    train, validation = train_test_split(rest, test_size=137, random_state=0, stratify=labels[rest])
    return Split(*(Digits(images[chosen], labels[chosen]) for chosen in (train, validation, test)))


def by_rows(
    images: Float[np.ndarray, "n 8 8"], row_steps: int, answer_steps: int
) -> Bool[Array, "time n 8"]:
    """One row after the other from the top, an input for each column; then silence.

    A pixel of brightness b spikes in that fraction of its row's `row_steps`, evenly spaced.
    """
    edges = np.floor(np.multiply.outer(np.arange(row_steps + 1), images) + 1e-6)
    spikes = np.diff(edges, axis=0) > 0  # [step of a row, n, row, column]
    in_turn = spikes.transpose(2, 0, 1, 3).reshape(-1, len(images), N_PIXELS)
    return _then_silence(in_turn, answer_steps)


def by_latency(
    images: Float[np.ndarray, "n 8 8"], image_steps: int, answer_steps: int
) -> Bool[Array, "time n 64"]:
    """All at once, an input for each pixel, which spikes once; then silence.

    The brightest spike in the first of `image_steps`, darker pixels later, black ones never.
    """
    pixels = images.reshape(len(images), -1)
    times = np.round((1 - pixels) * (image_steps - 1))
    spikes = (np.arange(image_steps)[:, None, None] == times) & (pixels > 0)
    return _then_silence(spikes, answer_steps)


def _then_silence(spikes: np.ndarray, n_steps: int) -> Array:
    return jnp.asarray(np.concatenate([spikes, np.zeros((n_steps, *spikes.shape[1:]), bool)]))
