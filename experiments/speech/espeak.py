"""Synthetic speech: eSpeak NG says sentences in many voices, and where each phoneme begins.

Anyone can make it in a minute. Voices and phrases of the test set are heard nowhere else, those
of the development set neither, and there is noise in all of them.

eSpeak runs in one process of its own, sentences in a fixed order: what it says depends on what it
said before, but is the same in every fresh process. It marks where phonemes begin in its audio,
with two peculiarities:

- The closure of a stop, and other short pauses that belong to the phoneme which follows, come
  before its mark. What is silent before a phoneme is counted to it here.
- A vowel is made in one piece with a nasal or liquid beside it. Its mark comes after the transition
  into it, some 20 ms into what can be heard as the vowel, and the mark of an l after it when most
  of the l is over. eSpeak marks no other place, so these are left as they are.
"""

import hashlib
import importlib.util
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int16, Int64
from scipy import signal

from eprop import files

from .phonemes import SILENCE, SYNTHETIC
from .phrases import DEVELOPMENT, TEST, TRAIN, compose
from .recordings import RATE, Recordings, Segment, Utterance, check_segments

CACHE = Path("results/speech")
"""Where the audio is kept."""
FORMAT = 2
"""Of a file there; another one whenever the same settings and sentences give other audio."""


class Synthetic(NamedTuple):
    """What is said; other settings are other speech."""

    train: int = 400
    """Sentences of the training set."""
    development: int = 100
    """Sentences of the development set."""
    test: int = 150
    """Sentences of the test set."""
    noise_db: float = 15.0
    """Mean power of a sentence's speech over that of white noise in decibels."""
    seed: int = 0
    """Of phrases, ways of speaking, silences and noise."""


VOICES = {
    "train": (
        *("m1", "f1", "m3", "Annie", "m5", "belinda", "m7", "shelby", "Alex", "aunty", "Gene"),
        *("Mario", "steph", "antonio", "max", "robert", "adam", "edward", "Jacky", "marcelo"),
    ),
    "development": ("m4", "grandma", "john", "gustave", "quincy", "benjamin"),
    "test": ("m6", "Andrea", "m8", "anika", "victor", "paul", "ed", "david", "Mike", "iven"),
}
"""Variants of eSpeak's voice for British English, without echo, which would fill the pauses."""

SYMBOLS = {
    **{"a#": "@", "@2": "@", "@5": "@", "3": "@", "@L": "l", "I2": "I", "i": "i:", "aa": "a"},
    **{"A@": "A:", "O@": "O:", "o@": "O:", "i@3": "i@", "U@": "U", "aI@": "aI"},
    **{"r-": "r", ";": "j", "_": SILENCE, "_:": SILENCE},
}
"""eSpeak's mnemonics that are counted as another phoneme: variants of one sound by its own
phonetic notation, and three that are rare, U@ ("sure"), aI@ ("fire") and ; (a glide), with the
sound they begin with."""


def reduced(mnemonic: str) -> str:
    """The phoneme of an eSpeak mnemonic: without marks of stress, variants of one sound as one."""
    plain = mnemonic.lstrip("',%=")
    return SYMBOLS.get(plain, plain)


def synthesize(settings: Synthetic, cache: Path = CACHE) -> Recordings:
    """The recordings, from `cache` where it has them.

    Raises `ValueError` where a file of the cache is damaged, and `SystemExit` where eSpeak is not
    installed.
    """
    path = cached(settings, cache)
    if not path.exists():
        said = _record(script(settings), settings)
        files.write_atomically(path, lambda file: np.savez(file, **said))
    return _recordings(script(settings), settings, path)


def cached(settings: Synthetic, cache: Path) -> Path:
    """The file of the cache: another one for other settings, sentences or voices."""
    text = json.dumps([FORMAT, settings, script(settings)])
    return cache / f"synthetic_{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


class Line(NamedTuple):
    """A sentence of the script, and how it is said."""

    part: str
    voice: str
    text: str
    rate: int
    """Words per minute."""
    pitch: int
    """0 to 99, 50 is the voice's own."""
    range: int
    """How far pitch varies, 0 to 99."""


def script(settings: Synthetic) -> list[Line]:
    """What is said, in this order. Each set is drawn by itself, so its size is its own affair."""
    if not math.isfinite(settings.noise_db):
        raise ValueError(f"noise_db = {settings.noise_db} dB: write a finite number, such as 15")
    lines = []
    for i, (part, phrases) in enumerate(
        {"train": TRAIN, "development": DEVELOPMENT, "test": TEST}.items()
    ):
        random = np.random.default_rng((settings.seed, i))
        count, voices = getattr(settings, part), VOICES[part]
        if count < 1:
            raise ValueError(f"{part} = {count} sentences: at least one is needed")
        for n, text in enumerate(compose(phrases, count, random)):
            rate, pitch, range_ = random.integers((140, 35, 30), (190, 66, 71)).tolist()
            lines.append(Line(part, voices[n % len(voices)], text, rate, pitch, range_))
    return lines


def _record(lines: Sequence[Line], settings: Synthetic) -> dict[str, Any]:
    """What the cache keeps: 16-bit audio at 16 kHz and segments of all, one after the other."""
    said, audio, segments = say(lines), [], []
    rate = int(said["rate"])
    ends_of_audio, ends_of_events = np.cumsum(said["samples"]), np.cumsum(said["events"])
    for n, (line, end, last) in enumerate(zip(lines, ends_of_audio, ends_of_events, strict=True)):
        samples = said["audio"][end - said["samples"][n] : end]
        events = slice(last - said["events"][n], last)
        marks = said["positions"][events].tolist()
        phonemes = [reduced(str(mnemonic)) for mnemonic in said["mnemonics"][events]]
        random = np.random.default_rng((settings.seed, 3, n))
        recorded, before = as_recorded(samples, rate, settings.noise_db, random)
        begins = [*starts(samples, marks), len(samples)]
        begins = before + np.round(np.multiply(begins, RATE / rate)).astype(int)
        found = as_segments(begins.tolist(), [*phonemes, SILENCE], len(recorded))
        check_segments(found, len(recorded), SYNTHETIC.phonemes, f"eSpeak's {line.text!r}")
        audio.append(recorded)
        segments.append(found)
    index = {phoneme: i for i, phoneme in enumerate(SYNTHETIC.phonemes)}
    kept = {
        "audio": np.concatenate(audio),
        "samples": np.array([len(of) for of in audio]),
        "segments": np.array(
            [(s.start, s.end, index[s.phoneme]) for of in segments for s in of], np.int32
        ),
        "counts": np.array([len(of) for of in segments]),
        "espeak": said["version"],
    }
    return kept | {"sha256": _sha256_of(kept)}


def _recordings(lines: Sequence[Line], settings: Synthetic, path: Path) -> Recordings:
    """What a file of the cache holds."""
    kept = _load(path)
    sets: dict[str, list[Utterance]] = {part: [] for part in VOICES}
    audio = np.split(kept["audio"], np.cumsum(kept["samples"])[:-1])
    rows = np.split(kept["segments"], np.cumsum(kept["counts"])[:-1])
    for n, (line, samples, marks) in enumerate(zip(lines, audio, rows, strict=True)):
        segments = tuple(Segment(a, b, SYNTHETIC.phonemes[i]) for a, b, i in marks.tolist())
        scaled = samples.astype(np.float32) / 32768
        sets[line.part].append(Utterance(f"{line.part}_{n}", line.voice, scaled, segments))
    described = {"data": "synthetic", **settings._asdict(), "espeak": str(kept["espeak"])}
    return Recordings(SYNTHETIC, *map(tuple, sets.values()), settings=described)


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of the cache, if they are those that were kept."""
    with open(path, "rb") as file:
        try:
            with np.load(file) as arrays:
                kept = dict(arrays)
            promised = str(kept.pop("sha256"))
        except Exception:  # a damaged archive fails in many ways
            kept, promised = {}, None
    if _sha256_of(kept) != promised:
        raise ValueError(f"{path} is damaged: remove it, and the speech is synthesised again")
    return kept


def say(lines: Sequence[Line]) -> dict[str, np.ndarray]:
    """What `espeak_process` writes: the audio and phoneme events of all lines."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise SystemExit(
            "Synthetic speech is eSpeak NG's, which is not installed: "
            "write pip install 'eprop[speech]'"
        )
    requests = [
        {"voice": f"gmw/en+{line.voice}", **{k: getattr(line, k) for k in Line._fields[2:]}}
        for line in lines
    ]
    process = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("espeak_process.py")],
        input=json.dumps(requests).encode(),
        capture_output=True,
        check=False,
    )
    if process.returncode != 0:
        raise RuntimeError(
            f"eSpeak ended with {process.returncode}: {process.stderr.decode(errors='replace')}"
        )
    with np.load(io.BytesIO(process.stdout)) as file:
        return dict(file)


def starts(
    samples: Int16[np.ndarray, " samples"], marks: Sequence[int]
) -> Int64[np.ndarray, " n_marks"]:
    """Where phonemes begin that eSpeak marks: before what is silent before the mark."""
    found, before = [], 0
    for mark in marks:
        (heard,) = np.nonzero(samples[before:mark])
        found.append(before + heard[-1] + 1 if len(heard) else mark)
        before = mark
    return np.array(found, np.int64)


def as_segments(begins: Sequence[int], phonemes: Sequence[str], end: int) -> tuple[Segment, ...]:
    """Each phoneme to the beginning of the next, the last to `end`; silence before the first.

    Those without length are left out, and silences that follow each other are one.
    """
    found: list[Segment] = []
    pairs = itertools.pairwise((0, *begins, end))
    for (start, stop), phoneme in zip(pairs, (SILENCE, *phonemes), strict=True):
        if stop <= start:
            continue
        if found and phoneme == found[-1].phoneme == SILENCE:
            start = found.pop().start
        found.append(Segment(int(start), int(stop), phoneme))
    return tuple(found)


def as_recorded(
    samples: Int16[np.ndarray, " samples"],
    rate: int,
    noise_db: float,
    random: np.random.Generator,
) -> tuple[Int16[np.ndarray, " recorded"], int]:
    """Audio at 16 kHz with silence around it and noise in it; and the length of the silence before.

    The silences are 0.1 to 0.3 s. The speech is at half its level, which leaves room for noise.
    """
    common = math.gcd(RATE, rate)
    speech = signal.resample_poly(samples / 65536, RATE // common, rate // common)
    before, after = random.integers(RATE // 10, 3 * RATE // 10, 2).tolist()
    noise = np.sqrt(np.mean(speech**2) / 10 ** (noise_db / 10))
    audio = np.pad(speech, (before, after))
    audio += noise * random.standard_normal(len(audio))
    return np.clip(np.round(32768 * audio), -32768, 32767).astype(np.int16), before


def _sha256_of(kept: dict[str, Any]) -> str:
    """Of all arrays, by name."""
    found = hashlib.sha256()
    for name in sorted(kept):
        array = np.asarray(kept[name])
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
