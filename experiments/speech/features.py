"""What networks hear: a vector of features each 10 ms, and the phoneme at its centre.

The features are Kaldi's, by kaldi-native-fbank: windows of 25 ms (400 samples) every 10 ms (160
samples), of which frame t covers the samples from 160 t to before 160 t + 400. They are followed
by their differences Δ[t] = v[t+1] - v[t-1] and by the differences of those.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32

from .recordings import RATE, Segment

WINDOW = 400
"""Samples that a frame covers: 25 ms."""
HOP = 160
"""Samples from one frame to the next: 10 ms."""

Kind = Literal["filterbank", "mfcc"]


def n_frames(n_samples: int) -> int:
    """Frames of that many samples: windows that have no part beyond the audio."""
    return max(0, 1 + (n_samples - WINDOW) // HOP)


def extract(
    audio: Float32[np.ndarray, " samples"], kind: Kind
) -> Float32[np.ndarray, "frames n_features"]:
    """Features of audio at 16 kHz, with their differences Δ and ΔΔ.

    Args:
        audio: In [-1, 1].
        kind: "filterbank": 40 log mel energies after the frame's log energy, 123 in all; "mfcc":
            12 mel-frequency cepstral coefficients after the log energy, 39 in all.

    Raises `ValueError` where the audio is shorter than a frame.
    """
    if len(audio) < WINDOW:
        raise ValueError(
            f"the audio has {len(audio)} samples, fewer than the {WINDOW} of a frame: leave such "
            f"utterances out"
        )
    kaldi = _kaldi()
    if kind == "filterbank":
        options, extractor = kaldi.FbankOptions(), kaldi.OnlineFbank
        options.mel_opts.num_bins = 40
        options.use_energy = True
    elif kind == "mfcc":
        options, extractor = kaldi.MfccOptions(), kaldi.OnlineMfcc  # energy and 12 coefficients
    else:
        raise ValueError(f"features = {kind!r} is unknown: write 'filterbank' or 'mfcc'")
    options.frame_opts.samp_freq = RATE
    options.frame_opts.dither = 0.0  # the same audio has the same features
    options.energy_floor = 1.0  # of digital silence, whose logarithm would be -inf
    extracted = extractor(options)
    extracted.accept_waveform(RATE, 32768 * audio)  # Kaldi's scale, that of 16-bit samples
    extracted.input_finished()
    frames = range(extracted.num_frames_ready)
    static = np.stack([extracted.get_frame(frame) for frame in frames])  # [frames, 41 or 13]
    delta = differences(static)
    return np.concatenate([static, delta, differences(delta)], axis=1)


def differences(
    values: Float32[np.ndarray, "frames n"],
) -> Float32[np.ndarray, "frames n"]:
    """Δ[t] = v[t+1] - v[t-1]; the first and last frame count as repeated beyond the ends."""
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    return padded[2:] - padded[:-2]


def labels(
    segments: tuple[Segment, ...], phonemes: tuple[str, ...], frames: int
) -> tuple[slice, Int32[np.ndarray, " labelled"]]:
    """The phoneme at the sample in the centre of each frame, an index into `phonemes`.

    Frames whose centre lies before the first segment, or after the last, have none: the slice
    leaves them out.
    """
    centres = HOP * np.arange(frames) + WINDOW // 2
    starts = np.array([segment.start for segment in segments])
    first, end = np.searchsorted(centres, (segments[0].start, segments[-1].end))
    inside = slice(int(first), int(end))
    index = {phoneme: i for i, phoneme in enumerate(phonemes)}
    heard = np.array([index[segment.phoneme] for segment in segments], np.int32)
    return inside, heard[np.searchsorted(starts, centres[inside], side="right") - 1]


class Normalisation(NamedTuple):
    """Mean and standard deviation of each feature in the training set."""

    mean: Float64[np.ndarray, " n_features"]
    deviation: Float64[np.ndarray, " n_features"]

    def __call__(
        self, features: Float32[np.ndarray, "frames n_features"]
    ) -> Float32[np.ndarray, "frames n_features"]:
        return ((features - self.mean) / self.deviation).astype(np.float32)


def normalisation(features: list[Float32[np.ndarray, "frames n_features"]]) -> Normalisation:
    """By all frames of the training set's sentences.

    Raises `ValueError` for a feature that is the same in all of them.
    """
    frames = np.concatenate(features, dtype=np.float64)
    mean, deviation = frames.mean(0), frames.std(0)
    (constant,) = np.nonzero(~(deviation > 0))
    if len(constant):
        raise ValueError(
            f"features {constant.tolist()} are the same in all {len(frames)} frames of the "
            f"training set, or not finite: is its audio silent?"
        )
    return Normalisation(mean, deviation)


def _kaldi() -> Any:
    try:
        import kaldi_native_fbank
    except ImportError:
        raise SystemExit(
            "The features of speech come from kaldi-native-fbank, which is not installed: "
            "write pip install 'eprop[speech]'"
        ) from None
    return kaldi_native_fbank
