"""Phonemes, features, labels, and TIMIT, on a miniature of it."""

import builtins
import shutil

import numpy as np
import pytest
import soundfile

from experiments.speech import corpus, features, phonemes, recordings, timit
from experiments.speech.recordings import Segment
from tests import miniature_timit
from tests.miniature_timit import MARKS, SPLIT


class TestPhonemes:
    def test_timit_has_61_of_which_39_are_scored(self):
        symbols, scored, folded = phonemes.TIMIT
        assert len(symbols) == len(set(symbols)) == len(folded) == 61
        assert sorted(scored) == sorted(
            """
            aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh sil t th
            uh uw v w y z
            """.split()  # noqa: SIM905
        )
        assert len(scored) == 39 and set(folded.tolist()) == set(range(-1, 39))

    @pytest.mark.parametrize(
        ("symbol", "becomes"),
        [
            *(("ao", "aa"), ("ax", "ah"), ("ax-h", "ah"), ("axr", "er"), ("hv", "hh")),
            *(("ix", "ih"), ("el", "l"), ("em", "m"), ("en", "n"), ("nx", "n"), ("eng", "ng")),
            *(("zh", "sh"), ("ux", "uw"), ("bcl", "sil"), ("dcl", "sil"), ("gcl", "sil")),
            *(("pcl", "sil"), ("tcl", "sil"), ("kcl", "sil"), ("h#", "sil"), ("pau", "sil")),
            *(("epi", "sil"), ("aa", "aa"), ("t", "t")),
        ],
    )
    def test_folding(self, symbol, becomes):
        symbols, scored, folded = phonemes.TIMIT
        assert scored[folded[symbols.index(symbol)]] == becomes

    def test_only_the_glottal_stop_is_left_out(self):
        symbols, _, folded = phonemes.TIMIT
        assert [symbols[i] for i in np.flatnonzero(folded < 0)] == ["q"]

    def test_synthetic_ones_are_scored_as_they_are(self):
        symbols, scored, folded = phonemes.SYNTHETIC
        assert scored == symbols and len(set(symbols)) == 44
        np.testing.assert_array_equal(folded, np.arange(44))


def noise(n_samples, seed=0):
    """[samples], loud at first and then soft, so that frames differ."""
    random = np.random.default_rng(seed)
    envelope = np.linspace(0.3, 0.01, n_samples)
    return (envelope * random.uniform(-1, 1, n_samples) + 0.02).astype(np.float32)


def by_numpy(audio, n_mels):
    """Kaldi's log energies of frames, and of mel filters, from their definition: [frames, ...]."""
    count = 1 + (len(audio) - 400) // 160
    samples = 32768 * audio.astype(np.float64)
    frames = np.stack([samples[160 * t : 160 * t + 400] for t in range(count)])
    frames -= frames.mean(1, keepdims=True)
    energy = np.log(np.sum(frames**2, axis=1))
    emphasised = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(emphasised * window, 512)) ** 2  # [frames, 257]

    def mel(hertz):
        return 1127 * np.log1p(hertz / 700)

    edges = np.linspace(mel(20), mel(8000), n_mels + 2)
    at = mel(np.arange(256) * 16000 / 512)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (at - left) / (centre - left), (right - at) / (right - centre)
    weights = np.maximum(0, np.minimum(rising, falling))  # [mels, 256]
    return energy, np.log(power[:, :256] @ weights.T)


def differences_by_loops(values):
    last = len(values) - 1
    return np.stack([values[min(t + 1, last)] - values[max(t - 1, 0)] for t in range(last + 1)])


class TestFeatures:
    AUDIO = noise(8000)

    @pytest.mark.parametrize(
        ("samples", "frames"), [(400, 1), (559, 1), (560, 2), (719, 2), (720, 3), (16000, 98)]
    )
    def test_frames(self, samples, frames):
        assert features.n_frames(samples) == frames
        assert features.extract(noise(samples), "filterbank").shape == (frames, 123)
        assert features.extract(noise(samples), "mfcc").shape == (frames, 39)

    def test_filterbank_is_that_of_its_definition(self):
        found = features.extract(self.AUDIO, "filterbank")
        energy, mels = by_numpy(self.AUDIO, 40)
        assert found.dtype == np.float32 and np.ptp(energy) > 3 and np.ptp(mels, axis=0).min() > 3
        np.testing.assert_allclose(found[:, 0], energy, atol=1e-5)
        np.testing.assert_allclose(found[:, 1:41], mels, atol=1e-4)

    def test_mfcc_are_those_of_their_definition(self):
        found = features.extract(self.AUDIO, "mfcc")
        energy, mels = by_numpy(self.AUDIO, 23)
        n, k = np.arange(1, 13)[:, None], np.arange(23)
        cosines = np.sqrt(2 / 23) * np.cos(np.pi * n * (k + 0.5) / 23)
        lifter = 1 + 11 * np.sin(np.pi * n / 22)
        np.testing.assert_allclose(found[:, 0], energy, atol=1e-5)
        np.testing.assert_allclose(found[:, 1:13], mels @ (lifter * cosines).T, atol=3e-4)
        assert np.abs(found[:, 1:13]).max() > 10

    @pytest.mark.parametrize(("kind", "n"), [("filterbank", 41), ("mfcc", 13)])
    def test_differences_follow(self, kind, n):
        found = features.extract(self.AUDIO, kind)
        static, delta, second = found[:, :n], found[:, n : 2 * n], found[:, 2 * n :]
        np.testing.assert_array_equal(delta, differences_by_loops(static))
        np.testing.assert_array_equal(second, differences_by_loops(delta))
        assert np.abs(second).max() > 0.1

    def test_differences_of_a_ramp(self):
        ramp = 3 * np.arange(6, dtype=np.float32)[:, None]
        np.testing.assert_array_equal(features.differences(ramp)[:, 0], [3, 6, 6, 6, 6, 3])

    def test_digital_silence_is_finite_and_the_same_audio_has_the_same_features(self):
        silence = features.extract(np.zeros(1000, np.float32), "filterbank")
        assert np.all(np.isfinite(silence))
        twice = [features.extract(self.AUDIO, "filterbank") for _ in range(2)]
        np.testing.assert_array_equal(*twice)

    def test_normalisation(self):
        parts = [features.extract(noise(n, n), "mfcc") for n in (4000, 9000)]
        normalise = features.normalisation(parts)
        together = np.concatenate([normalise(part) for part in parts])
        np.testing.assert_allclose(together.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(together.std(0), 1, atol=1e-5)
        assert np.abs(normalise(parts[0]).mean(0)).max() > 0.1  # not each by itself

    def test_what_is_constant_is_refused(self):
        values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        values[:, 1] = 2.5
        with pytest.raises(ValueError, match=r"features \[1\] are the same in all 50 frames"):
            features.normalisation([values])

    def test_errors(self, monkeypatch):
        with pytest.raises(ValueError, match=r"399 samples, fewer than the 400 of a frame"):
            features.extract(noise(399), "mfcc")
        with pytest.raises(ValueError, match=r"features = 'plp' is unknown: write 'filterbank' or"):
            features.extract(self.AUDIO, "plp")
        hide(monkeypatch, "kaldi_native_fbank")
        with pytest.raises(SystemExit, match=r"pip install 'eprop\[speech\]'"):
            features.extract(self.AUDIO, "mfcc")


def hide(monkeypatch, library):
    real = builtins.__import__

    def without(name, *rest):
        if name == library:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


def heard_at(segments, sample):
    """The phoneme of the segment that covers a sample, None where none does."""
    covering = [segment for segment in segments if segment.start <= sample < segment.end]
    return covering[0].phoneme if covering else None


class TestLabels:
    PHONEMES = ("a", "b", "c")
    FRAMES = 200

    def segments(self, first, length, count):
        edges = first + length * np.arange(count + 1)
        names = [self.PHONEMES[i % 3] for i in range(count)]
        return tuple(map(Segment, edges[:-1].tolist(), edges[1:].tolist(), names))

    def by_search(self, segments, hop):
        heard = [heard_at(segments, hop * t + 200) for t in range(self.FRAMES)]
        return [self.PHONEMES.index(phoneme) for phoneme in heard if phoneme is not None]

    @pytest.mark.parametrize(("first", "length"), [(0, 640), (0, 333), (1000, 500), (201, 320)])
    def test_are_of_the_sample_in_the_centre(self, first, length):
        segments = self.segments(first, length, 60)
        inside, found = features.labels(segments, self.PHONEMES, self.FRAMES)
        np.testing.assert_array_equal(found, self.by_search(segments, 160))
        covered = [heard_at(segments, 160 * t + 200) is not None for t in range(self.FRAMES)]
        np.testing.assert_array_equal(np.arange(self.FRAMES)[inside], np.flatnonzero(covered))
        assert found.dtype == np.int32 and set(found.tolist()) == {0, 1, 2}
        assert found.tolist() != self.by_search(segments, 161)[: len(found)]  # one sample too many

    def test_boundaries_to_the_sample(self):
        a, b = Segment(0, 360, "a"), Segment(360, 1000, "b")  # the centres: 200, 360, 520
        assert features.labels((a, b), self.PHONEMES, 3)[1].tolist() == [0, 1, 1]
        a, b = Segment(0, 361, "a"), Segment(361, 1000, "b")
        assert features.labels((a, b), self.PHONEMES, 3)[1].tolist() == [0, 0, 1]

    def test_the_last_segment_is_not_lost(self):
        segments = (Segment(0, 500, "a"), Segment(500, 840, "c"))
        inside, found = features.labels(segments, self.PHONEMES, 10)
        assert found.tolist() == [0, 0, 2, 2] and inside == slice(0, 4)


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        ([(0, 5, "a"), (5, 9, "x")], r"F: x from sample 5 to 9 is no phoneme.*\['a', 'b'\]"),
        ([(0, 5, "a"), (4, 9, "b")], r"b from sample 4 to 9 overlaps with.*ends at 5"),
        ([(0, 5, "a"), (6, 9, "b")], r"b from sample 6 to 9 leaves a gap.*ends at 5"),
        ([(5, 9, "b"), (0, 5, "a")], r"a from sample 0 to 5 overlaps with.*ends at 9"),
        ([(0, 5, "a"), (5, 5, "b")], r"b from sample 5 to 5 has no length"),
        ([(-1, 5, "a")], r"a from sample -1 to 5 has no length.*from 0 on"),
        ([(0, 5, "a"), (5, 11, "b")], r"b from sample 5 to 11 lies beyond the audio.*10 samples"),
        ([], r"F has no segments"),
    ],
)
def test_segments_that_are_none(segments, text):
    segments = [Segment(*segment) for segment in segments]
    with pytest.raises(ValueError, match=text):
        recordings.check_segments(segments, 10, ("a", "b"), "F")


@pytest.fixture
def tree(tmp_path):
    return miniature_timit.write(tmp_path)


class TestTimit:
    def test_standard_split(self):
        train, development, test, sentences = timit.STANDARD
        assert sum(train.values()) * sentences == 3696
        assert len(set(development)) * sentences == 400
        assert len(set(test)) * sentences == 192
        assert not set(development) & set(test)
        assert all(len(name) == 5 and name[0] in "fm" for name in (*development, *test))
        assert sum(name[0] == "f" for name in test) == 8  # of each region two men and a woman

    @pytest.mark.parametrize(
        ("container", "lower", "above"),
        [
            *(("sphere", False, ""), ("sphere", True, "timit/TIMIT"), ("riff", False, "data")),
            *(("riff", True, ""), ("both", False, "TIMIT/Data"), ("both", True, "data")),
        ],
    )
    def test_is_read_as_delivered(self, tmp_path, container, lower, above):
        miniature_timit.write(tmp_path / above, lower=lower, container=container)
        found = timit.read(tmp_path, SPLIT)
        assert found.phonemes is phonemes.TIMIT
        names = [[utterance.name for utterance in part] for part in found[1:4]]
        assert names == [
            [f"{who}_{what}" for who in speakers for what in ("si345", "sx12")]
            for speakers in (("ftra0", "mtra1", "mtrb0"), ("fdev0", "mdev1"), ("mtst0",))
        ]
        for part in found[1:4]:
            for utterance in part:
                speaker, sentence = utterance.name.split("_")
                assert utterance.speaker == speaker and utterance.audio.dtype == np.float32
                expected = miniature_timit.audio(speaker, sentence)
                np.testing.assert_array_equal(32768 * utterance.audio, expected)
                assert utterance.segments == tuple(Segment(*mark) for mark in MARKS)
                assert 0.05 < np.abs(utterance.audio).max() < 1

    def test_as_networks_see_it(self, tree):
        found = corpus.prepare(timit.read(tree, SPLIT), "filterbank")
        assert len(found.phonemes) == 61 and len(found.scored) == 39
        assert [len(part) for part in (found.train, found.development, found.test)] == [6, 4, 2]
        together = np.concatenate([sentence.features for sentence in found.train])
        for sentence in (*found.train, *found.development, *found.test):
            assert sentence.features.dtype == np.float32 and sentence.samples == 7040
            assert sentence.features.shape == (42, 123) and sentence.labels.shape == (42,)
            assert [found.phonemes[i] for i in sentence.phonemes] == ["h#", "q", "ax-h", "kcl"]
            segments = [Segment(*mark) for mark in MARKS]
            heard = [heard_at(segments, 160 * t + 200) for t in range(42)]
            assert [found.phonemes[i] for i in sentence.labels] == heard
        np.testing.assert_allclose(together.std(0), 1, atol=1e-3)
        assert found.settings["data"] == "TIMIT" and found.settings["features"] == "filterbank"

    @pytest.mark.parametrize("stack", [3, 4])  # 42 frames: none are left, or two
    def test_stacked(self, tree, stack):
        """A frame is that many in order, its label that of one in the middle."""
        found = timit.read(tree, SPLIT)
        plain, stacked = (corpus.prepare(found, "mfcc", n) for n in (1, stack))
        for one, several in zip(plain.test, stacked.test, strict=True):
            n = 42 // stack
            assert several.features.shape == (n, stack * 39) and several.labels.shape == (n,)
            np.testing.assert_array_equal(
                several.features.reshape(-1, 39), one.features[: n * stack]
            )
            np.testing.assert_array_equal(
                several.labels, one.labels[stack // 2 : n * stack : stack]
            )
            np.testing.assert_array_equal(several.phonemes, one.phonemes)
        assert len(set(stacked.test[0].labels.tolist())) > 2
        assert (plain.settings["stack"], stacked.settings["stack"]) == (1, stack)

    def test_refuses_to_stack(self, tree):
        found = timit.read(tree, SPLIT)
        with pytest.raises(ValueError, match=r"has 42 frames, fewer than the 50 .* smaller stack"):
            corpus.prepare(found, "mfcc", 50)
        with pytest.raises(ValueError, match=r"stack = 0"):
            corpus.prepare(found, "mfcc", 0)

    def test_another_recording_is_another_corpus(self, tree):
        before = recordings.sha256(timit.read(tree, SPLIT))
        assert before == recordings.sha256(timit.read(tree, SPLIT))
        path = tree / "TEST/DR3/MTST0/SX12.WAV"
        path.write_bytes(miniature_timit.sphere(miniature_timit.audio("MTST0", "SX99")))
        assert recordings.sha256(timit.read(tree, SPLIT)) != before

    def test_frames_after_the_last_segment_are_left_out(self, tree):
        (tree / "TRAIN/DR1/FTRA0/SX12.PHN").write_text("320 2120 h#\n2120 4000 iy\n")
        sentence = corpus.prepare(timit.read(tree, SPLIT), "mfcc").train[1]
        assert sentence.name == "ftra0_sx12" and len(sentence.phonemes) == 2
        assert len(sentence.labels) == len(sentence.features) == len(range(360, 4000, 160))

    @pytest.mark.parametrize(
        ("n_samples", "lines", "text"),
        [(390, "0 390 h#\n", "the 0 frames of its 390"), (7040, "0 200 h#\n", "the 42 frames")],
    )
    def test_utterances_without_frames_are_refused(self, tree, n_samples, lines, text):
        samples = miniature_timit.audio("MTST0", "SX12")[:n_samples]
        (tree / "TEST/DR3/MTST0/SX12.WAV").write_bytes(miniature_timit.sphere(samples))
        (tree / "TEST/DR3/MTST0/SX12.PHN").write_text(lines)
        with pytest.raises(ValueError, match=rf"mtst0_sx12 is too short: none of {text}"):
            corpus.prepare(timit.read(tree, SPLIT), "mfcc")


MISSING = [
    ("TRAIN/DR2/MTRB0", r"TRAIN/DR2 has 0 speakers in place of 1"),
    ("TRAIN/DR1/MTRA1", r"TRAIN/DR1 has 1 speakers in place of 2"),
    ("TEST/DR1/FDEV0", r"1 speakers of the development set are not under TEST: fdev0"),
    ("TEST/DR3", r"development set.*: mdev1; 1 speakers of the core test set.*: mtst0"),
    ("TEST/DR3/MTST0/SX12.WAV", r"mtst0 has no sx12\.wav"),
    ("TRAIN/DR1/FTRA0/SI345.PHN", r"ftra0 has no si345\.phn"),
    ("TEST", r"is not TIMIT: there is no TRAIN and TEST in it.*'TRAIN'"),
]


@pytest.mark.parametrize(("path", "text"), MISSING, ids=[path for path, _ in MISSING])
def test_what_is_missing_of_timit_is_named(tree, path, text):
    path = tree / path
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=text):
        timit.read(tree, SPLIT)


class TestTimitThatIsNone:
    def test_other_numbers(self, tree):
        for end in ("WAV", "PHN"):
            (tree / f"TEST/DR1/FDEV0/SX12.{end}").unlink()
        with pytest.raises(ValueError, match=r"fdev0 has 1 sentences in place of 2: si345\. Copy"):
            timit.read(tree, SPLIT)
        shutil.copytree(tree / "TRAIN/DR2/MTRB0", tree / "TRAIN/DR4/MTRC0")
        with pytest.raises(ValueError, match=r"TRAIN/DR4 has 1 speakers in place of 0"):
            timit.read(tree, SPLIT)

    def test_the_standard_is_expected_of_others(self, tree):
        with pytest.raises(ValueError, match=r"TRAIN/DR1 has 2 speakers in place of 38.*and \d+ m"):
            corpus.load(tree)

    def test_folders(self, tmp_path):
        with pytest.raises(ValueError, match=r"nowhere is no folder: write the one with TIMIT"):
            corpus.load(tmp_path / "nowhere")
        (tmp_path / "music").mkdir()
        with pytest.raises(ValueError, match=r"is not TIMIT.*but \['music'\]"):
            corpus.load(str(tmp_path))

    WAV = "TRAIN/DR1/FTRA0/SX12.WAV"

    @pytest.mark.parametrize("size", [500, 1024, 9000, 15103])
    def test_sphere_that_is_cut_off(self, tree, size):
        path = tree / self.WAV
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"SX12\.WAV (is cut off|can't be read).*opy it again"):
            timit.read(tree, SPLIT)

    @pytest.mark.parametrize("size", [20, 44, 9000, 14122])
    def test_riff_that_is_cut_off(self, tree, size):
        path = tree / self.WAV
        soundfile.write(path, miniature_timit.audio("FTRA0", "SX12"), 16000, format="WAV")
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"SX12\.WAV (is cut off|can't be read).*opy it again"):
            timit.read(tree, SPLIT)

    def test_other_audio(self, tree):
        path, samples = tree / self.WAV, miniature_timit.audio("FTRA0", "SX12")
        path.write_bytes(miniature_timit.sphere(samples, rate=8000))
        with pytest.raises(ValueError, match=r"SX12\.WAV has 8000 samples per second in place of"):
            timit.read(tree, SPLIT)
        soundfile.write(path, np.stack([samples, samples], 1), 16000, format="WAV")
        with pytest.raises(ValueError, match=r"SX12\.WAV has 2 channels in place of one"):
            timit.read(tree, SPLIT)
        path.write_text("not audio")
        with pytest.raises(ValueError, match=r"SX12\.WAV can't be read as audio"):
            timit.read(tree, SPLIT)

    @pytest.mark.parametrize(
        ("lines", "text"),
        [
            ("0 2120 h#\n2120 7041 iy\n", r"SX12\.PHN: iy from sample 2120 to 7041 lies beyond"),
            ("0 2120 h#\n2000 7040 iy\n", r"SX12\.PHN: iy .* overlaps with"),
            ("2120 7040 iy\n0 2120 h#\n", r"SX12\.PHN: h# .* overlaps with"),
            ("0 2120 h#\n2200 7040 iy\n", r"SX12\.PHN: iy .* leaves a gap"),
            ("0 2120 h#\n2120 7040 qq\n", r"SX12\.PHN: qq .* is no phoneme that is known"),
            ("0 2120 h#\n2120 iy\n", r"line 2 of .*SX12\.PHN is '2120 iy': it must be"),
            ("0 2120 h#\n2120 x iy\n", r"line 2 of .*SX12\.PHN is '2120 x iy'"),
            ("0 -5 h#\n", r"line 1 of .*SX12\.PHN is '0 -5 h#'"),
            ("\x00\xff\n", r"line 1 of .*SX12\.PHN is"),
            ("", r"SX12\.PHN has no segments"),
        ],
    )
    def test_segments(self, tree, lines, text):
        (tree / self.WAV).with_suffix(".PHN").write_text(lines)
        with pytest.raises(ValueError, match=text):
            timit.read(tree, SPLIT)

    def test_without_soundfile(self, tree, monkeypatch):
        hide(monkeypatch, "soundfile")
        with pytest.raises(SystemExit, match=r"pip install 'eprop\[speech\]'"):
            timit.read(tree, SPLIT)
