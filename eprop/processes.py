"""Several processes that run one program together (`jax.distributed`): what they agree on.

All compute; the first one alone writes files. Alone, a process is the first and agrees with itself.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def told_by_all(value: Any) -> list[Any]:
    """What each process says, anything that JSON can hold. All must call this."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:n].tobytes()) for row, n in zip(texts, lengths, strict=True)]


@contextmanager
def in_all_or_none() -> Iterator[None]:
    """What fails inside in one process is an error in all of them, so that none waits for it."""
    try:
        yield
    except Exception as error:
        told_by_all(f"{type(error).__name__}: {error}")
        raise
    for i, error in enumerate(told_by_all(None)):
        if error is not None:
            raise RuntimeError(f"process {i} has failed: {error}")


def whole(x: Any) -> np.ndarray:
    """The numbers of an array whose parts may be with other processes: then all call this."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def placed(array: np.ndarray, like: jax.Array) -> jax.Array:
    """Numbers as an array on the devices that `like` is on, each with its part of them."""
    return jax.make_array_from_callback(array.shape, like.sharding, lambda part: array[part])
