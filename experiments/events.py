"""Recordings of events, as spiking data sets are published, read from disk a batch at a time.

    recordings = open_spoken("shd_train.h5", n_classes=20)
    inputs, labels, mask = read_batch(recordings, [0, 1, 2], dt=4.0, lengths=(250, 350))

What is opened is labels, and where to find the rest; events are read when they are asked for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int

import eprop

N_CHANNELS = 700
"""Of the artificial cochlea of SHD and SSC."""

SIDE = 34
"""Pixels of N-MNIST's sensor along each side."""

OVERFLOW = 240
"""N-MNIST's y of an entry that is no event but says that the clock began again ..."""

CLOCK_US = 2**13
"""... after so many µs."""


class Events(NamedTuple):
    """One recording, its events in any order."""

    times: Float[np.ndarray, " n_events"]
    """In ms from the beginning."""
    features: Int[np.ndarray, " n_events"]
    """Which channel, or pixel and polarity, from 0."""


class Recordings(NamedTuple):
    """A set of recordings, none of which has been read yet."""

    read: Callable[[int], Events]
    """The recording of that number; `ValueError` if it is damaged."""
    labels: Int[np.ndarray, " n"]
    """Classes from 0."""
    n_features: int
    """Channels, or pixels and polarities."""
    n_classes: int


def open_spoken(path: Path, n_classes: int) -> Recordings:
    """A file of the Spiking Heidelberg Digits (20 classes) or Spiking Speech Commands (35).

    HDF5: `labels`, and for each recording `spikes/times` in s and `spikes/units`. Source: B.
    Cramer, Y. Stradmann, J. Schemmel, F. Zenke, "The Heidelberg spiking data sets for the
    systematic evaluation of spiking neural networks", IEEE TNNLS 2022.

    The file stays open. Raises `FileNotFoundError` where there is none, `ValueError` for what is
    damaged or doesn't fit.
    """
    try:
        import h5py
    except ImportError:
        raise SystemExit(
            f"{path} is read by h5py, which is not installed: write pip install 'eprop[events]'"
        ) from None
    if not path.exists():
        raise FileNotFoundError(
            f"no {path}: the files of SHD and SSC are at https://zenkelab.org/datasets"
        )
    try:
        file = h5py.File(path, "r")
        names = ("spikes/times", "spikes/units", "labels")
        times, units, labels = (cast(Any, file[name]) for name in names)
        labels = np.asarray(labels[()])
        sizes = {"spikes/times": len(times), "spikes/units": len(units), "labels": len(labels)}
    except (OSError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is no whole HDF5 file with spikes/times, spikes/units and labels ({error})"
        ) from None
    if len(set(sizes.values())) != 1:
        told = ", ".join(f"{name} of {n}" for name, n in sizes.items())
        raise ValueError(f"{path} has {told} recordings: it is damaged, fetch it again")

    def read(i: int) -> Events:
        where = f"recording {i} of {path}"
        try:
            seconds, channels = np.asarray(times[i]), np.asarray(units[i])
        except OSError as error:
            raise ValueError(f"{where} can't be read ({error}): fetch the file again") from None
        if seconds.shape != channels.shape or seconds.ndim != 1:
            raise ValueError(
                f"{where} has times of shape {seconds.shape} and units of {channels.shape}, but "
                f"one of each is needed for each spike"
            )
        return _checked(where, 1000 * seconds.astype(np.float64), channels, N_CHANNELS)

    return Recordings(read, _classes(path, labels, n_classes), N_CHANNELS, n_classes)


def open_event_images(folder: Path, polarity: Literal["apart", "merged"] = "apart") -> Recordings:
    """A part of N-MNIST, `Train` or `Test`: a folder for each digit, a file for each recording.

    An event is 40 bits, the highest first: x (8), y (8), polarity (1), time in µs (23). Source:
    G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor, "Converting static image datasets to spiking
    neuromorphic datasets using saccades", Frontiers in Neuroscience 2015.

    **Arguments:** `polarity`: whether brighter and darker are features "apart", or "merged".
    Features are numbered as a `Convolution` does: by rows, columns, channels.

    Raises `FileNotFoundError` where there are no recordings.
    """
    classes = sorted(path for path in folder.glob("[0-9]") if path.is_dir())
    files = [path for of_class in classes for path in sorted(of_class.glob("*.bin"))]
    if not files:
        raise FileNotFoundError(
            f"no recordings {folder}/0/*.bin to {folder}/9/*.bin: N-MNIST's Train.zip and "
            f"Test.zip, to be unpacked, are at https://www.garrickorchard.com/datasets/n-mnist"
        )
    channels = 2 if polarity == "apart" else 1

    def read(i: int) -> Events:
        where, content = str(files[i]), np.frombuffer(files[i].read_bytes(), np.uint8)
        if len(content) % 5:
            raise ValueError(
                f"{where} has {len(content)} bytes, but an event is five: it is cut off or damaged"
            )
        x, y, high, middle, low = content.reshape(-1, 5).T.astype(np.int64)
        microseconds = ((high & 127) << 16) + (middle << 8) + low
        is_event = y != OVERFLOW
        microseconds = (microseconds + CLOCK_US * np.cumsum(~is_event))[is_event]
        x, y, is_on = x[is_event], y[is_event], high[is_event] >> 7
        if len(x) and max(x.max(), y.max()) >= SIDE:
            raise ValueError(
                f"{where} has an event at x = {x.max()}, y = {y.max()} at most, but the sensor has "
                f"{SIDE} x {SIDE} pixels: it is damaged"
            )
        pixels = channels * (SIDE * y + x)
        features = pixels + is_on if polarity == "apart" else pixels
        return _checked(where, microseconds / 1000, features, channels * SIDE**2)

    labels = np.array([int(path.parent.name) for path in files], np.int32)
    return Recordings(read, labels, channels * SIDE**2, 10)


def read_batch(
    recordings: Recordings,
    chosen: Sequence[int] | Int[np.ndarray, " batch"],
    *,
    dt: float,
    lengths: int | Sequence[int],
) -> tuple[Bool[np.ndarray, "time batch n_features"], Int[np.ndarray, " batch"], np.ndarray]:
    """Spikes, labels and the mask `[time, batch]` of the recordings' own steps; see `eprop.pad`.

    A step of `dt` ms has a spike where there was at least one event. What comes after the greatest
    of the `lengths`, in steps, is cut off.

    Raises `ValueError` for events or labels that can't be, naming the recording.
    """
    longest = lengths if isinstance(lengths, int) else max(lengths)
    n_features, spikes = recordings.n_features, []
    for i in chosen:
        times, features = map(np.asarray, recordings.read(int(i)))
        events = _checked(f"recording {i}", times, features, n_features)
        spikes.append(in_steps(events, n_features, dt, longest))
    inputs, mask = eprop.pad(spikes, lengths)
    labels = np.asarray(recordings.labels)[np.asarray(chosen)]
    if not ((labels >= 0) & (labels < recordings.n_classes)).all():
        raise ValueError(
            f"recordings {list(chosen)} have labels from {labels.min()} to {labels.max()}, but "
            f"they go from 0 to {recordings.n_classes - 1}"
        )
    return inputs, labels, mask


def in_steps(
    events: Events, n_features: int, dt: float, longest: int
) -> Bool[np.ndarray, "time n_features"]:
    """The events in steps of `dt` ms, up to the last one's, of at most `longest`."""
    # A time that is a multiple of dt but for rounding belongs to the step that begins there.
    steps = np.floor(events.times / dt + 1e-6).astype(int)
    is_kept = steps < longest
    spikes = np.zeros((min(longest, 1 + steps.max(initial=0)), n_features), bool)
    spikes[steps[is_kept], events.features[is_kept]] = True
    return spikes


def _checked(where: str, times: np.ndarray, features: np.ndarray, n_features: int) -> Events:
    if times.ndim != 1 or times.shape != features.shape:
        raise ValueError(
            f"{where} has times of shape {times.shape} and features of {features.shape}, but one "
            f"of each is needed for each event"
        )
    if len(times) and not (np.isfinite(times).all() and times.min() >= 0):
        raise ValueError(f"{where} has a time of {times.min()} ms: it is damaged")
    if len(features) and features.dtype.kind not in "iu":
        raise ValueError(f"{where} has units of dtype {features.dtype}, which must be integers")
    if len(features) and not 0 <= features.min() <= features.max() < n_features:
        raise ValueError(
            f"{where} has units from {features.min()} to {features.max()}, but they go from 0 to "
            f"{n_features - 1}"
        )
    return Events(times, features.astype(np.int64))


def _classes(path: Path, labels: Any, n_classes: int) -> Int[np.ndarray, " n"]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(f"{path} has labels of dtype {labels.dtype} and shape {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(
            f"{path} has labels from {labels.min()} to {labels.max()}, but n_classes = "
            f"{n_classes}: SHD has 20 classes, SSC 35"
        )
    return labels.astype(np.int32)
