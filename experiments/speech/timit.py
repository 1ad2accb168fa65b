"""TIMIT (LDC93S1), as delivered: the standard training, development and core test sets.

Garofolo et al., "DARPA TIMIT acoustic-phonetic continuous speech corpus" (1993). The sentences SA1
and SA2, which every speaker says, are left out.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from .phonemes import TIMIT
from .recordings import RATE, Recordings, Segment, Utterance, check_segments


class Split(NamedTuple):
    """Who is in which set."""

    train: dict[str, int]
    """Speakers under TRAIN, of each dialect region: all of them are in the training set."""
    development: tuple[str, ...]
    """Speakers under TEST that are in the development set."""
    test: tuple[str, ...]
    """Speakers under TEST that are in the test set."""
    sentences: int
    """Of each speaker, SA1 and SA2 not counted."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STANDARD = Split(
    train={
        **{"dr1": 38, "dr2": 76, "dr3": 76, "dr4": 68},
        **{"dr5": 70, "dr6": 35, "dr7": 77, "dr8": 22},
    },
    development=_names(
        """
        faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0
        fedw0 mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0
        mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0 fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0
        mteb0 mjfc0 mrjr0 fmml0 mrws1
        """
    ),
    test=_names(
        """
        mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0
        mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0
        """
    ),
    sentences=8,
)
"""3696, 400 and 192 utterances: the core test set of TIMIT's documentation, and the development
set of Halberstadt's thesis (MIT, 1998), which Kaldi and most others use."""


def read(folder: Path, split: Split = STANDARD) -> Recordings:
    """TIMIT in `folder`, which has TRAIN and TEST, or TIMIT or DATA that has them.

    Names may be in any case. Audio may be NIST SPHERE or RIFF; of `ID.WAV` and `ID.WAV.wav` the
    latter is read.

    Raises `ValueError` where speakers or sentences are missing or there are others than `split`
    says, and where a file is damaged; it says which.
    """
    root = _root(folder)
    train, under_test = _speakers(root, "train"), _speakers(root, "test")
    problems = _wrong_speakers(train, under_test, split)
    sets = [
        {speaker: _sentences(places[speaker]) for speaker in speakers if speaker in places}
        for places, speakers in (
            (train, train),
            (under_test, split.development),
            (under_test, split.test),
        )
    ]
    for speakers in sets:
        problems += _wrong_sentences(speakers, split.sentences)
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{root} is not the whole of TIMIT: {'; '.join(problems[:10])}{more}. Copy it again "
            f"from the original"
        )
    utterances = (
        tuple(
            _utterance(speaker, sentence, files)
            for speaker, sentences in speakers.items()
            for sentence, files in sentences.items()
        )
        for speakers in sets
    )
    return Recordings(TIMIT, *utterances, settings={"data": "TIMIT"})


def read_audio(path: Path) -> Float32[np.ndarray, " samples"]:
    """Audio of a file, in [-1, 1].

    Raises `ValueError` for a file that is damaged, cut off, or not of one channel at 16 kHz.
    """
    try:
        import soundfile
    except ImportError:
        raise SystemExit(
            "The audio of TIMIT is read by soundfile, which is not installed: "
            "write pip install 'eprop[speech]'"
        ) from None
    try:
        info = soundfile.info(path)
        audio, _ = soundfile.read(path, dtype="float32", always_2d=True)  # [samples, channels]
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"{path} can't be read as audio ({error}): copy it again from the original"
        ) from None
    if info.samplerate != RATE:
        raise ValueError(
            f"{path} has {info.samplerate} samples per second in place of {RATE}: use TIMIT as "
            f"delivered, or resample it"
        )
    if info.channels != 1:
        raise ValueError(f"{path} has {info.channels} channels in place of one")
    if _is_cut_off(path, len(audio), info.extra_info):
        raise ValueError(
            f"{path} is cut off: after {len(audio)} samples it ends before its header says. Copy "
            f"it again from the original"
        )
    return audio[:, 0]


def read_segments(path: Path) -> tuple[Segment, ...]:
    """The segments of a .PHN file: lines of a start, an end and a phoneme.

    Raises `ValueError` for a line that is none.
    """
    segments = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise ValueError(
                f"line {number} of {path} is {line[:60]!r}: it must be the start and the end of a "
                f"segment in samples, and a phoneme, such as '0 2120 h#'"
            )
        segments.append(Segment(int(fields[0]), int(fields[1]), fields[2].lower()))
    return tuple(segments)


def _utterance(speaker: str, sentence: str, files: dict[str, Path]) -> Utterance:
    audio, segments = read_audio(files["wav"]), read_segments(files["phn"])
    check_segments(segments, len(audio), TIMIT.phonemes, str(files["phn"]))
    return Utterance(f"{speaker}_{sentence}", speaker, audio, segments)


def _root(folder: Path) -> Path:
    """Where TRAIN and TEST are."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: write the one with TIMIT's TRAIN and TEST in it")
    place: Path | None = folder
    while place is not None:
        below = _folders(place)
        if {"train", "test"} <= below.keys():
            return place
        place = below.get("timit", below.get("data"))
    raise ValueError(
        f"{folder} is not TIMIT: there is no TRAIN and TEST in it, nor in a TIMIT or DATA below "
        f"it, but {sorted(path.name for path in folder.iterdir())[:10]}"
    )


def _speakers(root: Path, part: str) -> dict[str, Path]:
    """The folder of each speaker, by region and name."""
    return {
        speaker: place
        for region, regional in sorted(_folders(_folders(root)[part]).items())
        if re.fullmatch(r"dr\d", region)
        for speaker, place in sorted(_folders(regional).items())
    }


def _wrong_speakers(train: dict[str, Path], under_test: dict[str, Path], split: Split) -> list[str]:
    """What is wrong with the speakers, in words."""
    problems = []
    regions = Counter(place.parent.name.lower() for place in train.values())
    for region in sorted(split.train.keys() | regions):
        if regions[region] != split.train.get(region, 0):
            problems.append(
                f"TRAIN/{region.upper()} has {regions[region]} speakers in place of "
                f"{split.train.get(region, 0)}"
            )
    for name, speakers in (("development", split.development), ("core test", split.test)):
        missing = [speaker for speaker in speakers if speaker not in under_test]
        if missing:
            problems.append(
                f"{len(missing)} speakers of the {name} set are not under TEST: "
                f"{', '.join(missing)}"
            )
    return problems


def _wrong_sentences(speakers: dict[str, dict[str, dict[str, Path]]], count: int) -> list[str]:
    """What is wrong with the sentences of a set, in words."""
    problems = []
    for speaker, sentences in speakers.items():
        if len(sentences) != count:
            problems.append(
                f"{speaker} has {len(sentences)} sentences in place of {count}: "
                f"{', '.join(sentences) or 'none'}"
            )
        for sentence, found in sentences.items():
            problems += [
                f"{speaker} has no {sentence}.{kind}"
                for kind in ("wav", "phn")
                if kind not in found
            ]
    return problems


def _sentences(place: Path) -> dict[str, dict[str, Path]]:
    """The audio (`"wav"`) and segments (`"phn"`) of each sentence in a speaker's folder."""
    found: dict[str, dict[str, Path]] = {}
    names = {path.name.lower(): path for path in sorted(place.iterdir())}
    for name, path in names.items():
        match = re.fullmatch(r"((?!sa)\w+)\.(wav|phn|wav\.wav)", name)
        if match and not (match[2] == "wav" and f"{name}.wav" in names):
            found.setdefault(match[1], {})[match[2].removesuffix(".wav")] = path
    return dict(sorted(found.items()))


def _folders(place: Path) -> dict[str, Path]:
    return {path.name.lower(): path for path in sorted(place.iterdir()) if path.is_dir()}


def _is_cut_off(path: Path, n_samples: int, found: str) -> bool:
    """Whether the header of a file says that there is more."""
    with open(path, "rb") as file:
        head = file.read(1024)
    count = re.search(rb"sample_count -i (\d+)", head)
    if head.startswith(b"NIST_1A") and count:
        return n_samples < int(count[1])
    return re.search(r"^data : \d+ \(should be", found, re.MULTILINE) is not None
