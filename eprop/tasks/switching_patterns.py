"""Switching patterns: pattern generation that never ends, with another curve from time to time."""

from dataclasses import dataclass, field

import jax
from jaxtyping import Array, Int, PRNGKeyArray

from .pattern_generation import PatternGeneration, Patterns, check_count


@dataclass(frozen=True)
class SwitchingPatterns:
    """The same frozen noise again and again, and after some repetitions another curve to draw.

    For learning online: nothing tells the network of a switch but its error. Every repetition is
    a pure function of the key and its number, so that a stream can go on from any of them.

    Attributes:
        pattern: the noise and the curves.
        repetitions: of the pattern, from one switch to the next.
    """

    pattern: PatternGeneration = field(default_factory=PatternGeneration)
    repetitions: int = 200

    def __post_init__(self):
        check_count("repetitions", self.repetitions)

    @property
    def phase_ms(self) -> float:
        """Time from one switch to the next in ms."""
        return self.repetitions * self.pattern.duration_ms

    def sample(
        self, key: PRNGKeyArray, repetition: int | Int[Array, ""], batch_size: int
    ) -> Patterns:
        """One repetition; lay them end to end from number 0 for the stream.

        Args:
            key: a JAX random key, the same for all repetitions of a stream.
            repetition: its number, from 0.
            batch_size: number of streams: one target, each stream with noise of its own.

        Returns:
            Patterns: inputs, bool [time, batch, n_in]; targets, float [time, batch, n_out].
        """
        phase_key = jax.random.fold_in(key, repetition // self.repetitions)
        inputs = self.pattern.sample(key, batch_size).inputs
        return Patterns(inputs, self.pattern.sample(phase_key, batch_size).targets)
