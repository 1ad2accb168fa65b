"""Sequences, time first: in blocks of steps, shifted by one step, filtered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


class Blocks(NamedTuple):
    """Something for each block of a sequence: blocks of one length, and a shorter last one.

    Both are pytrees; the leaves of `whole` have a leading axis of blocks. `rest` is `None` where
    the blocks divide the sequence.
    """

    whole: Any
    rest: Any


def cut(sequence: Any, length: int) -> Blocks:
    """A pytree of sequences `[time, ...]` as `Blocks` of `length` steps."""
    n_steps = len(jax.tree.leaves(sequence)[0])
    n_whole = n_steps // length * length
    whole = jax.tree.map(lambda x: x[:n_whole].reshape(-1, length, *x.shape[1:]), sequence)
    rest = jax.tree.map(lambda x: x[n_whole:], sequence) if n_whole < n_steps else None
    return Blocks(whole, rest)


def join(blocks: Blocks) -> Any:
    """The pytree of sequences whose `Blocks` these are."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks.whole)
    if blocks.rest is None:
        return flat
    return jax.tree.map(lambda x, last: jnp.concatenate([x, last]), flat, blocks.rest)


def scan_blocks(
    function: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    blocks: Blocks,
    *,
    reverse: bool = False,
) -> tuple[Any, Blocks]:
    """`jax.lax.scan` of `function` over `Blocks`, from the last back if `reverse`."""
    whole, rest = None, None
    if reverse and blocks.rest is not None:
        carry, rest = function(carry, blocks.rest)
    n_whole = len(jax.tree.leaves(blocks.whole)[0])
    if n_whole == 1:  # a loop of one iteration would only copy what it is given
        carry, whole = function(carry, jax.tree.map(lambda x: x[0], blocks.whole))
        whole = jax.tree.map(lambda x: x[None], whole)
    else:
        carry, whole = jax.lax.scan(function, carry, blocks.whole, reverse=reverse)
    if not reverse and blocks.rest is not None:
        carry, rest = function(carry, blocks.rest)
    return carry, Blocks(whole, rest)


def preceding(
    start: Shaped[Array, "batch n"], spikes: Shaped[Array, "time batch n"]
) -> Shaped[Array, "time batch n"]:
    """z_{t-1} of each step, where `start` is z before the first."""
    return jnp.concatenate([start[None], spikes[:-1]])


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
    length = min(len(drive), 64)
    ages = np.arange(length)[:, None] - np.arange(length)
    response = jnp.asarray(np.where(ages < 0, 0, decay ** np.maximum(ages, 0)), drive.dtype)
    fading = jnp.asarray(decay ** np.arange(1, length + 1), drive.dtype)

    def block(f_tm1, drive):
        n = len(drive)
        f = jnp.tensordot(response[:n, :n], drive, 1) + jnp.multiply.outer(fading[:n], f_tm1)
        return f[-1], f

    return join(scan_blocks(block, start, cut(drive, length))[1])


def block_length(n_steps: int, fitting: int) -> int:
    """A length of blocks close to `fitting`: if possible one that divides `n_steps`."""
    fitting = max(1, min(fitting, n_steps))
    divisors = (length for length in range(fitting, 0, -1) if n_steps % length == 0)
    longest = next(divisors)
    return longest if 2 * longest > fitting else fitting
