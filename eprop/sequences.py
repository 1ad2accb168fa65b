"""Sequences, time first: cut into blocks, one step before, filtered."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


def preceding(
    start: Float[Array, "batch n"], spikes: Float[Array, "time batch n"]
) -> Float[Array, "time batch n"]:
    """z_{t-1} of each step, where `start` is z before the first."""
    return jnp.concatenate([start[None], spikes[:-1]])


def in_blocks(
    x: Shaped[Array, "time *shape"], length: int
) -> Shaped[Array, "blocks {length} *shape"]:
    """The sequence cut into blocks of `length` steps, with zeros at the end to fill the last."""
    missing = -len(x) % length
    if missing:
        x = jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)])
    return x.reshape(-1, length, *x.shape[1:])


def leaky_filter(
    drive: Float[Array, "time *shape"],
    decay: float,
    start: Float[Array, "*shape"],
    *,
    reverse: bool = False,
) -> Float[Array, "time *shape"]:
    """f_t = decay f_{t-1} + drive_t from f_0 = `start`; from the last step back if `reverse`.

    A block of steps is one product with the filter's response: a loop over single steps of so
    little work would take longer than the network itself.
    """
    if reverse:
        return leaky_filter(drive[::-1], decay, start)[::-1]
    n_steps = len(drive)
    length = min(n_steps, 64)
    ages = np.arange(length)[:, None] - np.arange(length)
    response = jnp.asarray(np.where(ages < 0, 0, decay ** np.maximum(ages, 0)), drive.dtype)
    fading = jnp.asarray(decay ** np.arange(1, length + 1), drive.dtype)

    def block(f_tm1, drive):
        f = jnp.tensordot(response, drive, 1) + jnp.multiply.outer(fading, f_tm1)
        return f[-1], f

    _, f = jax.lax.scan(block, start, in_blocks(drive, length))
    return f.reshape(-1, *drive.shape[1:])[:n_steps]
