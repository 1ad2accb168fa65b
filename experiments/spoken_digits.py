"""Made-up spoken digits: what channels of a cochlea might send, for those without recordings.

Every digit is three sounds, one after another, of the five that there are: each digit has the
sounds of another one, in another order. In each sound two formants glide along the channels; a
voiced one comes in glottal pulses, another as noise. Speakers differ in the length of their vocal
tract, which shifts all formants, in pitch and in speed. It is a likeness, not a model of speech.
"""

import numpy as np
from jaxtyping import Float

from .events import Events, Recordings

DIGITS = (
    *((0, 1, 2), (2, 1, 0), (0, 3, 4), (4, 3, 0), (1, 4, 2)),
    *((2, 4, 1), (3, 1, 0), (0, 1, 3), (4, 2, 3), (3, 2, 4)),
)
"""The sounds of each."""
N_CHANNELS = 64
"""From low to high frequencies, evenly spaced in octaves."""
WIDTH = 0.04
"""Of a formant, as a fraction of all channels."""
PEAK_HZ = 80.0
"""Rate of the channel of a formant of a loud sound."""
BACKGROUND_HZ = 4.0
"""Rate of every channel in silence."""


def made_up(n: int, seed: int) -> Recordings:
    """`n` recordings; of another `seed` none is the same, but the digits sound alike."""
    labels = np.arange(n, dtype=np.int32) % len(DIGITS)

    def read(i: int) -> Events:
        rng = np.random.default_rng((seed, i))
        rates = _rates(int(labels[i]), rng)
        steps, channels = np.nonzero(rng.random(rates.shape) < rates / 1000)
        return Events(steps + rng.random(len(steps)), channels)

    return Recordings(read, labels, N_CHANNELS, len(DIGITS))


def _rates(digit: int, rng: np.random.Generator) -> Float[np.ndarray, "ms n_channels"]:
    """In Hz, for each ms of somebody's saying that digit."""
    tract, speed = rng.normal(0, 0.05), rng.uniform(0.7, 1.4)
    period_ms = rng.uniform(5, 9)
    channels = np.linspace(0, 1, N_CHANNELS)
    parts = []
    for sound in DIGITS[digit]:
        sounds = np.random.default_rng(sound)  # how it is made by all
        low, high = sounds.uniform(0.1, 0.45, 2), sounds.uniform(0.5, 0.9, 2)
        loud, is_voiced = sounds.uniform(0.4, 1.0), sounds.random() < 0.7
        n_steps = round(sounds.uniform(80, 160) / speed)
        time = np.linspace(0, 1, n_steps)[:, None]
        envelope = loud * np.sin(np.pi * time) ** 0.5
        if is_voiced:
            pulses = np.cos(2 * np.pi * np.arange(n_steps) / period_ms)
            envelope = envelope * 2 * np.maximum(0, pulses)[:, None]
        formants = [(1 - time) * begin + time * end + tract for begin, end in (low, high)]
        bumps = sum(np.exp(-0.5 * ((channels - f) / WIDTH) ** 2) for f in formants)
        parts.append(PEAK_HZ * envelope * bumps + BACKGROUND_HZ)
    return np.concatenate(parts)
