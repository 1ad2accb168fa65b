"""Sequences of different lengths as one array, and the mask that says which steps are theirs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import numpy as np

from . import checks


def pad(
    sequences: Sequence[Any], lengths: int | Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of different lengths as one batch, with zeros after the end, and a mask.

        >>> import eprop, numpy as np
        >>> recordings = [np.ones((180, 40), bool), np.ones((230, 40), bool)]  # [time, n_in]
        >>> inputs, mask = eprop.pad(recordings, lengths=(250, 500, 1000))
        >>> inputs.shape, mask.shape, mask.sum(0).tolist()
        ((250, 2, 40), (250, 2), [180, 230])

    A compiled function is compiled anew for each shape that it is given. With a few `lengths` to
    choose from there are no more shapes than these, for batches of one size.

    **Arguments:**

    - `sequences`: arrays `[time, ...]`, alike but for their number of steps: inputs
      `[time, n_in]`, targets `[time, n_out]`, labels of each step `[time]`.
    - `lengths`: the number of steps to pad to, or several, of which the least that is enough for
      the longest of the `sequences` is taken. By default as many steps as that one has.

    Returns an array `[time, batch, ...]` of the sequences' dtype, and the mask, booleans
    `[time, batch]`. A loss of `eprop.losses` takes it; what the network does after a sequence's end
    then makes no difference, to the loss and to the gradient.

    Raises `ValueError` or `TypeError` for sequences that are none, empty, not alike, or longer than
    all `lengths`.
    """
    arrays = _alike(sequences)
    steps = [len(x) for x in arrays]
    n_steps = _enough(max(steps), lengths)
    padded = np.zeros((n_steps, len(arrays), *arrays[0].shape[1:]), arrays[0].dtype)
    for i, x in enumerate(arrays):
        padded[: len(x), i] = x
    return padded, np.arange(n_steps)[:, None] < np.array(steps)


def _alike(sequences: Sequence[Any]) -> list[np.ndarray]:
    """Arrays with a time axis, alike in all else; an error that names the first that isn't."""
    if not isinstance(sequences, list | tuple):
        shape = f" of shape {np.shape(sequences)}" if hasattr(sequences, "shape") else ""
        raise TypeError(
            f"sequences are a {type(sequences).__name__}{shape}, but must be a list of arrays "
            f"[time, ...], one for each example"
        )
    if not sequences:
        raise ValueError("sequences are empty: give one array [time, ...] for each example")
    for i, x in enumerate(sequences):
        if isinstance(x, jax.core.Tracer):
            raise TypeError(
                f"sequences[{i}] is traced: pad outside of jax.jit, which compiles for each shape"
            )
        if not isinstance(x, np.ndarray | jax.Array):
            raise TypeError(f"sequences[{i}] is a {type(x).__name__}: write np.asarray(...) of it")
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"sequences[{i}] has shape {x.shape}: it needs a time axis, of at least one step"
            )
    arrays = [np.asarray(checks.native(x)) for x in sequences]
    first = arrays[0]
    for i, x in enumerate(arrays):
        if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
            raise ValueError(
                f"sequences[{i}] has shape {x.shape} and dtype {x.dtype}, sequences[0] "
                f"{first.shape} and {first.dtype}: they may differ in their number of steps only"
            )
    return arrays


def _enough(longest: int, lengths: int | Sequence[int] | None) -> int:
    """The number of steps to pad to."""
    if lengths is None:
        return longest
    choices = list(lengths) if isinstance(lengths, Sequence) else [lengths]
    choices = [checks.positive_int("lengths", n) for n in choices]
    if longest > max(choices, default=0):
        raise ValueError(
            f"the longest sequence has {longest} steps, more than lengths = {lengths} have room "
            f"for: give a greater one, or cut it"
        )
    return min(n for n in choices if n >= longest)
