"""Speech by eSpeak NG: its audio, where its phonemes are, and the sets that it makes."""

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.speech import corpus, espeak, phonemes, phrases, recordings
from experiments.speech.espeak import VOICES, Synthetic
from experiments.speech.recordings import Segment

SMALL = Synthetic(train=8, development=3, test=4)
CLEAR = SMALL._replace(noise_db=200.0)
SETS = ("train", "development", "test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def small(cache):
    return espeak.synthesize(SMALL, cache)


@pytest.fixture(scope="module")
def clear(cache):
    return espeak.synthesize(CLEAR, cache)


def utterances(found):
    return [utterance for part in SETS for utterance in getattr(found, part)]


FRESH = """
import sys
from pathlib import Path
from experiments.speech import espeak, recordings
print(recordings.sha256(espeak.synthesize(espeak.Synthetic(8, 3, 4), Path(sys.argv[1]))))
"""


class TestSets:
    def test_what_is_made(self, small):
        assert small.phonemes is phonemes.SYNTHETIC
        assert [len(getattr(small, part)) for part in SETS] == [8, 3, 4]
        assert len({utterance.name for utterance in utterances(small)}) == 15
        for utterance in utterances(small):
            n_samples = len(utterance.audio)
            assert utterance.audio.dtype == np.float32 and 1.5 < n_samples / 16000 < 6
            assert 0.05 < np.abs(utterance.audio).max() < 1
            assert utterance.segments[0].start == 0 and utterance.segments[-1].end == n_samples
            recordings.check_segments(utterance.segments, n_samples, phonemes.SYNTHETIC[0], "")
            heard = [segment.phoneme for segment in utterance.segments]
            assert heard[0] == heard[-1] == "sil" and len(heard) > 15
            assert ("sil", "sil") not in list(itertools.pairwise(heard))
        assert small.settings == {
            **{"data": "synthetic", "train": 8, "development": 3, "test": 4},
            **{"noise_db": 15.0, "seed": 0, "espeak": "1.52.0"},
        }

    def test_voices_of_a_set_are_heard_in_no_other(self, small):
        heard = {part: {of.speaker for of in getattr(small, part)} for part in SETS}
        for part in SETS:
            others = set().union(*(VOICES[other] for other in SETS if other != part))
            assert heard[part] <= set(VOICES[part]) and not set(VOICES[part]) & others

    def test_words_and_phrases_of_a_set_are_heard_in_no_other(self):
        made_of = {"train": phrases.TRAIN, "development": phrases.DEVELOPMENT, "test": phrases.TEST}
        words = {
            part: {word.lower() for words in of.words.values() for word in words}
            for part, of in made_of.items()
        }
        script = espeak.script(Synthetic())
        for part in SETS:
            assert len(words[part]) > 70
            others = [line for line in script if line.part != part]
            said = " ".join(line.text for line in others).lower().replace(",", "").split()
            assert len(set(said)) > 100 and not words[part] & set(said)
            assert not {line.text for line in script if line.part == part} & {
                line.text for line in others
            }
            assert not set(made_of[part].templates) & {
                one for other in SETS if other != part for one in made_of[other].templates
            }

    def test_a_set_is_its_own_affair(self):
        lines, fewer = (
            [line for line in espeak.script(settings) if line.part == "test"]
            for settings in (Synthetic(), Synthetic(train=7))
        )
        assert lines == fewer and len(lines) == 150
        assert lines != [line for line in espeak.script(Synthetic(seed=1)) if line.part == "test"]

    def test_as_networks_see_it(self, cache):
        found = corpus.load(SMALL, cache=cache)
        assert found.phonemes == found.scored == phonemes.SYNTHETIC_SYMBOLS
        assert [len(part) for part in (found.train, found.development, found.test)] == [8, 3, 4]
        for sentence in (*found.train, *found.development, *found.test):
            frames = len(sentence.labels)
            assert frames == 1 + (sentence.samples - 400) // 160
            assert sentence.features.shape == (frames, 123) and sentence.labels.dtype == np.int32
            assert np.all(np.isfinite(sentence.features)) and frames > 5 * len(sentence.phonemes)
            assert set(sentence.labels.tolist()) <= set(sentence.phonemes.tolist())
        mfcc = corpus.load(SMALL, "mfcc", cache=cache)
        assert mfcc.test[0].features.shape[1] == 39
        assert mfcc.settings["sha256"] == found.settings["sha256"]


class TestFreshProcesses:
    @pytest.mark.slow
    def test_say_the_same(self, small, tmp_path):
        fresh = subprocess.run(
            [sys.executable, "-c", FRESH, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
        assert fresh.stdout.strip() == recordings.sha256(small)

    def test_say_the_same_in_every_voice(self):
        voices = [voice for part in SETS for voice in VOICES[part]]
        lines = [espeak.Line("train", voice, "Who goes there?", 180, 50, 50) for voice in voices]
        first, second = espeak.say(lines), espeak.say(lines)
        assert len(set(voices)) == 36 and first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
        said = np.split(first["audio"], np.cumsum(first["samples"])[:-1])
        assert len({audio.tobytes() for audio in said}) == 36

    def test_another_seed_is_other_speech(self, small, tmp_path):
        others = [espeak.synthesize(SMALL._replace(seed=1), tmp_path / name) for name in "ab"]
        first, second = map(recordings.sha256, others)
        assert first == second != recordings.sha256(small)

    def test_the_library_stays_out_of_this_one(self, small):
        assert "espeakng_loader" not in sys.modules


class TestAudio:
    def test_noise_is_15_db_below_speech(self, small, clear):
        for noisy, plain in zip(utterances(small), utterances(clear), strict=True):
            assert noisy.segments == plain.segments
            noise = noisy.audio - plain.audio
            speech = plain.audio[plain.segments[0].end : plain.segments[-1].start]
            ratio = 10 * np.log10(np.mean(speech**2) / np.mean(noise**2))
            assert abs(ratio - 15) < 0.7, noisy.name  # some silence is speech to eSpeak
            spectrum = np.abs(np.fft.rfft(noise)) ** 2
            low, high = np.array_split(spectrum, 2)
            assert 0.8 < low.mean() / high.mean() < 1.25  # white

    @pytest.mark.parametrize("shift", [0, 1600])
    def test_phonemes_are_where_they_are_heard(self, clear, shift):
        """Vowels are loud, closures are silent, sibilants cross zero often; not 0.1 s away."""

        def heard(of):
            pieces = [
                utterance.audio[segment.start + shift : segment.end + shift]
                for utterance in utterances(clear)
                for segment in utterance.segments
                if segment.phoneme in of and segment.end + shift < len(utterance.audio)
            ]
            assert len(pieces) > 15
            return pieces

        def level(pieces):
            return np.median([np.sqrt(np.mean(piece**2)) for piece in pieces])

        def crossings(pieces):
            return np.median([np.mean(np.diff(np.signbit(piece))) for piece in pieces])

        vowels = heard({"a", "E", "0", "V", "aI", "oU", "eI", "i:", "I", "3:", "A:", "O:", "u:"})
        sibilants, stops = heard({"s", "S", "tS"}), heard({"p", "t", "k"})
        closures = [piece[: len(piece) // 4] for piece in stops]
        bursts = [piece[-len(piece) // 4 :] for piece in stops]
        right = (
            level(vowels) > 3 * level(stops)
            and level(closures) < 0.1 * level(bursts)
            and crossings(sibilants) > 3 * crossings(vowels)
        )
        assert right == (shift == 0)

    def test_the_silence_before_a_mark_belongs_to_it(self):
        samples = np.array([0, 0, 5, -5, 5, 0, 0, 0, 7, 7, 0, 0], np.int16)
        assert espeak.starts(samples, [2, 8, 12]).tolist() == [2, 5, 10]
        assert espeak.starts(samples, [0, 4, 4, 6]).tolist() == [0, 4, 4, 5]

    def test_segments_of_marks(self):
        found = espeak.as_segments([3, 5, 5, 7, 8], ["a", "b", "t", "sil", "sil"], 10)
        expected = [(0, 3, "sil"), (3, 5, "a"), (5, 7, "t"), (7, 10, "sil")]
        assert found == tuple(Segment(*segment) for segment in expected)

    def test_is_resampled_to_16_khz(self):
        times = np.arange(22050) / 22050
        samples = (20000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
        random = np.random.default_rng(0)
        audio, before = espeak.as_recorded(samples, 22050, 200.0, random)
        heard = audio[before : before + 16000].astype(np.float64)
        expected = 10000 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
        assert audio.dtype == np.int16 and 16000 + 3200 <= len(audio) < 16000 + 9600
        assert 1600 <= before < 4800 and not np.any(audio[: before - 200])
        np.testing.assert_allclose(heard[500:-500], expected[500:-500], atol=30)


class TestMnemonics:
    @pytest.mark.parametrize(
        ("mnemonic", "phoneme"),
        [
            *(("'eI", "eI"), (",aU", "aU"), ("%@", "@"), ("t", "t"), ("3", "@"), ("'3:", "3:")),
            *(("a#", "@"), ("@L", "l"), ("r-", "r"), ("i@3", "i@"), ("_:", "sil"), ("_", "sil")),
        ],
    )
    def test_are_reduced(self, mnemonic, phoneme):
        assert espeak.reduced(mnemonic) == phoneme and phoneme in phonemes.SYNTHETIC.phonemes

    def test_one_that_is_unknown(self, tmp_path, monkeypatch):
        monkeypatch.delitem(espeak.SYMBOLS, "i")
        with pytest.raises(ValueError, match=r"eSpeak's '.*': i from sample .* is no phoneme that"):
            espeak.synthesize(SMALL, tmp_path)
        assert not list(tmp_path.iterdir())


class TestCache:
    def test_a_second_run_starts_from_it(self, small, cache, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        again = espeak.synthesize(SMALL, cache)
        assert recordings.sha256(again) == recordings.sha256(small)
        assert again.settings == small.settings

    def test_damage_is_found(self, small, cache, tmp_path):
        path = espeak.cached(SMALL, cache)
        whole, damaged = path.read_bytes(), tmp_path / path.name
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        for content in (whole[:-1000], whole[: len(whole) // 2], b"", bytes(changed)):
            damaged.write_bytes(content)
            with pytest.raises(ValueError, match=r"\.npz is damaged: remove it, and the speech"):
                espeak.synthesize(SMALL, tmp_path)
        damaged.write_bytes(whole)
        assert recordings.sha256(espeak.synthesize(SMALL, tmp_path)) == recordings.sha256(small)

    def test_damage_that_an_archive_does_not_show(self, small, cache, tmp_path):
        path = espeak.cached(SMALL, cache)
        with np.load(path) as file:
            kept = dict(file)
        kept["segments"][3, 1] += 1
        np.savez(tmp_path / path.name, **kept)
        with pytest.raises(ValueError, match=r"is damaged"):
            espeak.synthesize(SMALL, tmp_path)

    def test_what_could_not_be_written_is_not_there(self, tmp_path, monkeypatch):
        def fail(file, **arrays):
            file.write(b"half")
            raise OSError("No space left on device")

        monkeypatch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="No space left"):
            espeak.synthesize(SMALL._replace(train=1, development=1, test=1), tmp_path)
        assert not list(tmp_path.iterdir())


class TestErrors:
    def test_espeak_is_not_installed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SystemExit, match=r"pip install 'eprop\[speech\]'"):
            espeak.synthesize(SMALL, tmp_path)

    def test_a_voice_that_it_does_not_have(self, tmp_path, monkeypatch):
        monkeypatch.setitem(VOICES, "train", ("m1", "nobody"))
        with pytest.raises(RuntimeError, match=r"has no voice 'gmw/en\+nobody'"):
            espeak.synthesize(SMALL, tmp_path)

    def test_settings(self, tmp_path):
        with pytest.raises(ValueError, match=r"test = 0 sentences: at least one is needed"):
            espeak.synthesize(SMALL._replace(test=0), tmp_path)
        with pytest.raises(ValueError, match=r"noise_db = nan dB: write a finite number"):
            espeak.synthesize(SMALL._replace(noise_db=float("nan")), tmp_path)

    def test_sentences_run_out(self):
        few = phrases.Phrases(("the {noun} and the {noun}.",), {"noun": ("cat", "dog")})
        found = phrases.compose(few, 4, np.random.default_rng(0))
        assert sorted(found) == [
            *("The cat and the cat.", "The cat and the dog."),
            *("The dog and the cat.", "The dog and the dog."),
        ]
        with pytest.raises(ValueError, match=r"5 different sentences were asked for.*only 4"):
            phrases.compose(few, 5, np.random.default_rng(0))
