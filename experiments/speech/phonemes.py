"""The phonemes: TIMIT's 61, the 39 that errors are counted in, and those of synthetic speech."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32


class PhonemeSet(NamedTuple):
    """Phonemes to learn, and what becomes of them when errors are counted."""

    phonemes: tuple[str, ...]
    """What is learnt."""
    scored: tuple[str, ...]
    """What errors are counted in."""
    folded: Int32[np.ndarray, " n_phonemes"]
    """The index into `scored` of each phoneme; -1: left out."""


SILENCE = "sil"

_CLOSURES = ("bcl", "dcl", "gcl", "pcl", "tcl", "kcl")
TIMIT_SYMBOLS = (
    *("b", "d", "g", "p", "t", "k", "dx", "q", *_CLOSURES, "jh", "ch"),
    *("s", "sh", "z", "zh", "f", "th", "v", "dh"),
    *("m", "n", "ng", "em", "en", "eng", "nx"),
    *("l", "r", "w", "y", "hh", "hv", "el"),
    *("iy", "ih", "eh", "ey", "ae", "aa", "aw", "ay", "ah", "ao"),
    *("oy", "ow", "uh", "uw", "ux", "er", "ax", "ix", "axr", "ax-h"),
    *("pau", "epi", "h#"),
)
"""As in its documentation: stops, affricates, fricatives, nasals, semivowels and glides, vowels,
others."""

TIMIT_FOLDING: dict[str, str | None] = {
    "ao": "aa",
    "ax": "ah",
    "ax-h": "ah",
    "axr": "er",
    "hv": "hh",
    "ix": "ih",
    "el": "l",
    "em": "m",
    "en": "n",
    "nx": "n",
    "eng": "ng",
    "zh": "sh",
    "ux": "uw",
    **dict.fromkeys((*_CLOSURES, "h#", "pau", "epi"), SILENCE),
    "q": None,
}
"""The 61 symbols to 39, by Lee and Hon (IEEE Transactions on Acoustics, Speech, and Signal
Processing 1989); those that aren't here stay as they are. The glottal stop q is left out."""

_CONSONANTS = (
    *("p", "b", "t", "d", "k", "g", "tS", "dZ"),
    *("f", "v", "T", "D", "s", "z", "S", "Z", "h"),
    *("m", "n", "N", "l", "r", "w", "j"),
)
_VOWELS = (
    *("@", "I", "i:", "E", "a", "A:", "0", "O:", "V", "U", "u:", "3:"),
    *("eI", "aI", "OI", "oU", "aU", "i@", "e@"),
)
SYNTHETIC_SYMBOLS = (*_CONSONANTS, *_VOWELS, SILENCE)
"""eSpeak's mnemonics for British English, reduced by `espeak.reduced`."""


def _phoneme_set(symbols: tuple[str, ...], folding: dict[str, str | None]) -> PhonemeSet:
    becomes = [folding.get(symbol, symbol) for symbol in symbols]
    scored = tuple(symbol for symbol in symbols if symbol in becomes)
    if SILENCE in becomes and SILENCE not in scored:
        scored += (SILENCE,)
    folded = [-1 if symbol is None else scored.index(symbol) for symbol in becomes]
    return PhonemeSet(symbols, scored, np.array(folded, np.int32))


TIMIT = _phoneme_set(TIMIT_SYMBOLS, TIMIT_FOLDING)
SYNTHETIC = _phoneme_set(SYNTHETIC_SYMBOLS, {})
