"""Spikes on their way to recurrent synapses with delays."""

from typing import Any, NamedTuple

import numpy as np

from .events import each_event
from .language import BOOL, INDEX, Array, Code, Number


class UnderWay(NamedTuple):
    """What recurrent synapses with delays may still see of the time before the first step.

    These are the arrays of a call, or the same in a program that is being written.
    """

    past: Any
    """`[batch, d_max, n]`: z_{t-1} of the steps before, the oldest first, booleans."""
    delays: Any
    """`[n]`: of each presynaptic neuron, in steps."""


class DelayLine:
    """Where spikes wait, in a program that is being written. Ask for it before any loop.

    It is a ring of d_max + 1 rows: in one are the spikes that arrive at a step, in the next those
    that arrive a step later.
    """

    def __init__(self, code: Code, under_way: UnderWay):
        self.code, (self._past, self._delays) = code, under_way
        _, self._longest, n = under_way.past.shape
        self._length = self._longest + 1
        self._rows = code.scratch(np.bool_, self._length, n)

    def begin(self, b: Number) -> None:
        """Writes: under way is what an example has sent before its first step."""
        with self.code.loop(self._length) as row:
            self._clear(row)
        with self.code.loop(self._longest) as k:
            self._send(k, self._past.part(b, k))

    def step(self, t: Number, z_tm1: Array) -> Array:
        """Writes: these spikes are sent; returns those that arrive in this step."""
        return self._send(self._longest + t, z_tm1)

    def _send(self, k: Number, spikes: Array) -> Array:
        """The same with steps counted from the first of the past."""
        now = k - k / self._length * self._length  # the row
        self._clear((now > 0).choose(now - 1, self._longest))  # they have arrived

        def send(i: Number) -> None:
            row = now + self._delays[i].to(INDEX)
            row = (row < self._length).choose(row, row - self._length)
            self._rows[row, i] = self.code.number(1, BOOL)

        each_event(self.code, spikes, send)
        return self._rows.part(now)

    def _clear(self, row: Number) -> None:
        arriving = self._rows.part(row)
        with self.code.loop(arriving.shape[0]) as i:
            arriving[i] = self.code.number(0, BOOL)
