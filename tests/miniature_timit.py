"""A tree like TIMIT's, with few speakers who say noise."""

import numpy as np
import soundfile

from experiments.speech.timit import Split

SPLIT = Split(
    train={"dr1": 2, "dr2": 1}, development=("fdev0", "mdev1"), test=("mtst0",), sentences=2
)
SPEAKERS = {
    "TRAIN": {"DR1": ("FTRA0", "MTRA1"), "DR2": ("MTRB0",)},
    "TEST": {"DR1": ("FDEV0", "MNOT0"), "DR3": ("MDEV1", "MTST0")},
}
SENTENCES = ("SA1", "SA2", "SX12", "SI345")
MARKS = ((0, 2120, "h#"), (2120, 2725, "q"), (2725, 4321, "ax-h"), (4321, 7000, "kcl"))


def audio(speaker, sentence):
    """[samples], 16 bits."""
    seed = sorted(f"{speaker}{sentence}".lower().encode())
    return np.random.default_rng(seed).integers(-3000, 3000, 7040).astype(np.int16)


def sphere(samples, rate=16000):
    """The bytes of a NIST SPHERE file."""
    lines = (
        *("NIST_1A", "   1024", "database_id -s5 TIMIT", "channel_count -i 1"),
        *(f"sample_count -i {len(samples)}", f"sample_rate -i {rate}", "sample_n_bytes -i 2"),
        *("sample_byte_format -s2 01", "sample_sig_bits -i 16", "end_head", ""),
    )
    return "\n".join(lines).encode().ljust(1024) + samples.astype("<i2").tobytes()


def write(folder, *, lower=False, container="sphere"):
    """The tree in `folder`. `container`: sphere, riff, or both (SPHERE that is damaged then)."""
    for part, regions in SPEAKERS.items():
        for region, speakers in regions.items():
            for speaker in speakers:
                for sentence in SENTENCES:
                    named = "/".join((part, region, speaker, sentence))
                    place = folder / (named.lower() if lower else named)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    wav, phn = (".wav", ".phn") if lower else (".WAV", ".PHN")
                    samples = audio(speaker, sentence)
                    path = place.with_name(place.name + wav)
                    path.write_bytes(b"NIST_1A" if container == "both" else sphere(samples))
                    if container == "riff":
                        soundfile.write(path, samples, 16000, format="WAV")
                    if container == "both":
                        soundfile.write(f"{path}.wav", samples, 16000, format="WAV")
                    place.with_name(place.name + phn).write_text(
                        "".join(f"{start} {end} {phoneme}\n" for start, end, phoneme in MARKS)
                    )
    return folder
