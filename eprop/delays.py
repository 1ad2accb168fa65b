"""Synaptic delays: what the synapses see is presynaptic activity of some steps ago.

A sequence is delayed as a whole (`delayed`). Recurrent spikes are not known beforehand, so a
network that runs hands each step's spikes to a delay line and gets those that arrive. There are
two, which give the same numbers: `RotatingBuffer` writes one row of its memory per step,
`ConcatenatedBuffer` moves all of them. (Compiled programs have a line of their own.)
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


class AbstractDelayLine(eqx.Module):
    """Spikes on their way. `delays`, whole steps, are those of each presynaptic neuron."""

    @abstractmethod
    def init(self, past: Float[Array, "d_max batch n"]) -> Any:
        """The line after the spikes of `past`, oldest first."""

    @abstractmethod
    def step(
        self, line: Any, spikes: Float[Array, "batch n"], delays: Int[np.ndarray, " n"]
    ) -> tuple[Any, Float[Array, "batch n"]]:
        """Takes the newest spikes; returns the line after them, and the spikes that arrive."""


class RotatingBuffer(AbstractDelayLine):
    """A ring of d_max + 1 rows: the newest spikes take the place of the oldest."""

    def init(self, past):
        return jnp.concatenate([jnp.zeros_like(past[:1]), past]), jnp.zeros((), jnp.int32)

    def step(self, line, spikes, delays):
        buffer, newest = line
        buffer = buffer.at[newest].set(spikes)
        if (delays == delays[0]).all():
            arriving = buffer[(newest - int(delays[0])) % len(buffer)]
        else:
            rows = (newest - jnp.asarray(delays, jnp.int32)) % len(buffer)
            arriving = buffer[rows, :, np.arange(len(delays))].T
        return (buffer, (newest + 1) % len(buffer)), arriving


class ConcatenatedBuffer(AbstractDelayLine):
    """The last d_max spikes in their order."""

    def init(self, past):
        return past

    def step(self, line, spikes, delays):
        known = jnp.concatenate([line, spikes[None]])
        return known[1:], delayed(known, delays, 1)[0]


def delayed(
    known: Shaped[Array, "known batch n"], delays: Int[np.ndarray, " n"], n_steps: int
) -> Shaped[Array, "{n_steps} batch n"]:
    """The last `n_steps` of `known`, each feature as it was `delays` steps before."""
    first, *others = np.unique(delays)
    begin = len(known) - n_steps

    def before(delay):
        return known[begin - delay :][:n_steps]

    result = before(first)
    for delay in others:
        result = jnp.where(jnp.asarray(delays == delay)[None, None], before(delay), result)
    return result
