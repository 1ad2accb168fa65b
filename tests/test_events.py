"""Readers of recordings of events, on files that are written here, and what is said of bad ones."""

import builtins
import re

import h5py
import numpy as np
import pytest

from experiments import events, spoken_digits

TIMES = [[0.0, 0.0039, 0.0041, 0.030], [0.001], [], [0.25, 0.125]]
"""In s: of the last recording not in their order, of the last but one there are none."""
UNITS = [[5, 699, 5, 0], [3], [], [1, 2]]
LABELS = [0, 19, 4, 4]


def spoken(path, times=TIMES, units=UNITS, labels=LABELS, type_of_units=np.uint16):
    with h5py.File(path, "w") as file:
        for name, rows, dtype in (("times", times, np.float16), ("units", units, type_of_units)):
            rows_of = file.create_dataset(f"spikes/{name}", len(rows), h5py.vlen_dtype(dtype))
            for i, row in enumerate(rows):
                rows_of[i] = np.array(row, dtype)
        file["labels"] = np.array(labels)
    return path


class TestSpoken:
    def test_what_was_written_is_read(self, tmp_path):
        found = events.open_spoken(spoken(tmp_path / "shd_test.h5"), 20)
        assert found.labels.tolist() == LABELS
        assert (found.n_features, found.n_classes) == (700, 20)
        for i, (times, units) in enumerate(zip(TIMES, UNITS, strict=True)):
            recording = found.read(i)
            np.testing.assert_allclose(recording.times, 1000 * np.array(times), rtol=1e-3)
            assert recording.features.tolist() == units

    def test_a_batch_has_one_length_and_a_mask(self, tmp_path):
        found = events.open_spoken(spoken(tmp_path / "a.h5"), 20)
        inputs, labels, mask = events.read_batch(found, [3, 0, 2], dt=4.0, lengths=(10, 70))
        assert inputs.shape == (70, 3, 700) and inputs.dtype == bool
        assert labels.tolist() == [4, 0, 4] and mask.sum(0).tolist() == [63, 8, 1]
        steps, of_batch, units = np.nonzero(inputs)
        assert sorted(zip(of_batch.tolist(), steps.tolist(), units.tolist(), strict=True)) == [
            (0, 31, 2), (0, 62, 1), (1, 0, 5), (1, 0, 699), (1, 1, 5), (1, 7, 0)
        ]  # fmt: skip

    def test_what_is_longer_is_cut(self, tmp_path):
        found = events.open_spoken(spoken(tmp_path / "a.h5"), 20)
        inputs, _, mask = events.read_batch(found, [3, 0], dt=4.0, lengths=40)
        assert inputs.shape == (40, 2, 700) and mask.sum(0).tolist() == [40, 8]
        assert np.argwhere(inputs[:, 0]).tolist() == [[31, 2]]

    def test_events_are_read_when_they_are_asked_for(self, tmp_path):
        times = [[0.0], [np.nan]]
        found = events.open_spoken(spoken(tmp_path / "a.h5", times, [[0], [0]], [1, 1]), 20)
        assert len(found.read(0).times) == 1
        with pytest.raises(ValueError, match=r"recording 1 of \S+a\.h5 has a time of nan ms"):
            found.read(1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"times": [[-1.0]]}, "a time of -1000.0 ms: it is damaged"),
            ({"units": [[700]]}, "units from 700 to 700, but they go from 0 to 699"),
            ({"type_of_units": np.float32}, "units of dtype float32, which must be integers"),
            ({"units": [[1, 2]]}, r"times of shape \(1,\) and units of \(2,\)"),
        ],
    )
    def test_a_damaged_recording(self, tmp_path, changes, message):
        whole = {"times": [[0.0]], "units": [[0]], "labels": [0]}
        with pytest.raises(ValueError, match=f"recording 0 of .*{message}"):
            events.open_spoken(spoken(tmp_path / "a.h5", **whole | changes), 20).read(0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": LABELS[:3]}, r"spikes/times of 4, spikes/units of 4, labels of 3 record"),
            ({"units": UNITS[:2]}, r"spikes/times of 4, spikes/units of 2, labels of 4 record"),
            ({"labels": [0, 1, 2, 20]}, r"labels from 0 to 20, but n_classes = 20: SHD has 20"),
            ({"labels": [0, 1, 2, -1]}, r"labels from -1 to 2"),
            ({"labels": [0.0, 1.0, 2.0, 3.0]}, r"labels of dtype float64"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            events.open_spoken(spoken(tmp_path / "a.h5", **changes), 20)

    def test_a_file_that_is_cut_off_or_something_else(self, tmp_path):
        path = spoken(tmp_path / "a.h5")
        content = path.read_bytes()
        for n in (0, 100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:n])
            with pytest.raises(ValueError, match=r"a\.h5 is no whole HDF5 file"):
                events.open_spoken(path, 20)
        with h5py.File(path, "w") as file:
            file["labels"] = [1]
        with pytest.raises(ValueError, match=r"no whole HDF5 file with spikes/times"):
            events.open_spoken(path, 20)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no \S+shd\.h5: .*zenkelab"):
            events.open_spoken(tmp_path / "shd.h5", 20)

    def test_says_what_to_install(self, tmp_path, monkeypatch):
        real = builtins.__import__

        def without(name, *rest):
            if name == "h5py":
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(SystemExit, match=r"pip install 'eprop\[events\]'"):
            events.open_spoken(tmp_path / "shd.h5", 20)


def entry(x, y, is_on, microseconds):
    """An event of N-MNIST: 40 bits."""
    return (x << 32 | y << 24 | is_on << 23 | microseconds).to_bytes(5, "big")


def moving(folder, recordings):
    """Files of N-MNIST's by the digit that they show."""
    for digit, entries in recordings:
        of_digit = folder / str(digit)
        of_digit.mkdir(parents=True, exist_ok=True)
        path = of_digit / f"{len(list(of_digit.iterdir())):05}.bin"
        path.write_bytes(b"".join(entries))
    return folder


class TestEventImages:
    def test_what_was_written_is_read(self, tmp_path):
        threes = [entry(33, 2, 1, 999), entry(0, 0, 0, 2**22 + 5000)], []
        recordings = [(3, threes[0]), (0, [entry(1, 1, 1, 7)]), (3, threes[1])]
        found = events.open_event_images(moving(tmp_path, recordings))
        assert found.labels.tolist() == [0, 3, 3] and found.n_features == 34 * 34 * 2
        recording = found.read(1)
        np.testing.assert_allclose(recording.times, [0.999, (2**22 + 5000) / 1000])
        assert recording.features.tolist() == [2 * (34 * 2 + 33) + 1, 0]

    def test_polarities_are_apart_or_merged(self, tmp_path):
        both = [(0, [entry(4, 7, 0, 0), entry(4, 7, 1, 100)])]
        folder = moving(tmp_path, both)
        for polarity, expected in {"apart": [2 * 242, 2 * 242 + 1], "merged": [242]}.items():
            found = events.open_event_images(folder, polarity)
            inputs, _, _ = events.read_batch(found, [0], dt=1.0, lengths=1)
            assert np.flatnonzero(inputs[0, 0]).tolist() == expected

    def test_the_clock_begins_again(self, tmp_path):
        entries = [entry(1, 2, 0, 10), entry(0, 240, 0, 0), entry(1, 2, 0, 10)]
        found = events.open_event_images(moving(tmp_path, [(0, entries)]))
        np.testing.assert_allclose(found.read(0).times, [0.010, 8.202])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (entry(1, 1, 0, 5)[:4], "4 bytes, but an event is five"),
            (entry(34, 1, 0, 5), r"an event at x = 34, y = 1 at most, but the sensor has 34 x 34"),
        ],
    )
    def test_a_damaged_file(self, tmp_path, content, message):
        found = events.open_event_images(moving(tmp_path, [(0, [content])]))
        with pytest.raises(ValueError, match=rf"0/00000\.bin has {message}"):
            found.read(0)

    def test_a_folder_without_them(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no recordings \S+/0/\*\.bin .*n-mnist"):
            events.open_event_images(tmp_path)


@pytest.mark.parametrize("dt", [0.1, 1.0, 3.0])
def test_an_event_at_a_step_s_beginning_is_in_it(dt):
    times = np.arange(50) * dt
    found = events.in_steps(events.Events(times, np.arange(50)), 50, dt, longest=100)
    np.testing.assert_array_equal(found, np.eye(50, dtype=bool))


class TestMadeUp:
    def test_recordings_are_the_same_each_time_and_for_each_seed_others(self):
        first, again, other = (spoken_digits.made_up(20, seed) for seed in (0, 0, 1))
        for i in range(20):
            np.testing.assert_array_equal(first.read(i).times, again.read(i).times)
            assert len(first.read(i).times) > 50
            assert not np.array_equal(first.read(i).times, other.read(i).times)

    def test_digits_are_told_by_the_order_of_their_sounds(self):
        """By the nearest other recording, of counts by channel with and without time."""
        found = spoken_digits.made_up(200, seed=0)

        def right(n_parts):
            def counts_of(i):
                times, channels = found.read(i)
                parts = np.minimum(n_parts - 1, n_parts * times // times.max())
                edges = range(n_parts + 1), range(0, 72, 8)
                counts, _, _ = np.histogram2d(parts, channels, edges)
                return counts.ravel() / counts.sum()

            points = np.array([counts_of(i) for i in range(200)])
            distances = np.linalg.norm(points[:, None] - points, axis=-1)
            np.fill_diagonal(distances, np.inf)
            return np.mean(found.labels[distances.argmin(1)] == found.labels)

        assert right(n_parts=5) > 0.9 and right(n_parts=1) < 0.7


class TestOwnRecordings:
    """By a function of the user's own."""

    def read(self, times, features, labels=(0, 1, 2)):
        def one(_):
            return events.Events(np.array(times), np.array(features))

        recordings = events.Recordings(one, np.array(labels), n_features=12, n_classes=3)
        return events.read_batch(recordings, [0, 2], dt=4.0, lengths=50)

    def test_are_read(self):
        inputs, labels, _ = self.read([9.0, 1.0], [3, 11])
        assert np.argwhere(inputs[:, 0]).tolist() == [[0, 11], [2, 3]]
        assert labels.tolist() == [0, 2]

    def test_may_be_empty(self):
        assert not self.read([], [])[0].any()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (([1.0, 9.0], [-1, 2]), "recording 0 has units from -1 to 2, but they go from 0 to 11"),
            (([1.0], [12]), "units from 12 to 12"),
            (([-9.0], [1]), "a time of -9.0 ms"),
            (([np.nan], [1]), "a time of nan ms"),
            (([1.0, 2.0], [1]), "times of shape (2,) and features of (1,)"),
            (([1.0], [1.5]), "dtype float64, which must be integers"),
            (([1.0], [1], (1, 2, 3)), "labels from 1 to 3, but they go from 0 to 2"),
        ],
    )
    def test_that_cannot_be(self, given, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            self.read(*given)
