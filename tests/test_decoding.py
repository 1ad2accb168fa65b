"""Transcriptions from outputs, and how many of their phonemes are wrong."""

import itertools

import numpy as np
import pytest

from experiments.speech import decoding

SAME = np.arange(4)


def outputs_along(path, n_classes):
    """Outputs of which one is far above the others at each frame."""
    return 9.0 * np.eye(n_classes)[list(path)]


def likeliest(outputs):
    """The transcription of the largest probability, summed over all of its paths."""
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    total = {}
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        said = tuple(x for x, _ in itertools.groupby(path) if x != p.shape[1] - 1)
        total[said] = total.get(said, 0.0) + np.prod(p[np.arange(len(p)), path])
    return max(total, key=total.__getitem__)


@pytest.mark.parametrize("decode", [decoding.greedy, decoding.beam])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ([0, 0, 3, 0, 1, 1], [0, 0, 1]),
        ([3, 3, 3], []),
        ([2, 1, 2], [2, 1, 2]),
        ([3, 0, 3], [0]),
        ([1], [1]),
    ],
)
def test_repeats_are_merged_and_blanks_removed(decode, path, said):
    assert decode(outputs_along(path, 4)).tolist() == said


def test_beam_search_finds_the_likeliest_of_all_transcriptions():
    rng, differ = np.random.default_rng(0), 0
    for _ in range(20):
        outputs = rng.normal(size=(5, 3))
        expected = list(likeliest(outputs))
        assert decoding.beam(outputs, size=100).tolist() == expected
        differ += decoding.greedy(outputs).tolist() != expected
    assert differ > 2  # the likeliest path is not always one of it


def test_the_likeliest_path_may_say_less():
    outputs = np.log([[0.4, 0.6], [0.4, 0.6]])  # "- -" has 0.36, and all others say "0"
    assert decoding.greedy(outputs).tolist() == []
    assert decoding.beam(outputs).tolist() == [0]


def test_many_classes_and_frames():
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(700, 62)).astype(np.float32)
    found = decoding.beam(outputs)
    assert found.min() >= 0 and found.max() <= 60 and len(found) > 100


class TestFolding:
    FOLDED = np.array([0, 0, 1, -1])

    @pytest.mark.parametrize(
        ("said", "scored"),
        [
            ([0, 1, 2], [0, 1]),  # two that count as one
            ([0, 2, 1], [0, 1, 0]),
            ([0, 3, 1], [0, 0]),  # what is left out is heard all the same
            ([3, 3], []),
            ([], []),
        ],
    )
    def test_what_is_alike_counts_once(self, said, scored):
        assert decoding.fold(np.array(said, int), self.FOLDED).tolist() == scored

    def test_is_done_on_both_sides(self):
        found, true = [np.array([0, 2])], [np.array([1, 1, 3, 2])]
        assert decoding.phoneme_error(found, true, self.FOLDED) == 0.0
        assert decoding.phoneme_error(found, true, SAME) == pytest.approx(2 / 3)


class TestErrors:
    def test_of_phonemes_is_a_quotient_of_sums(self):
        found = [np.array([0]), np.array([0, 1, 2, 3]), np.array([], int)]
        true = [np.array([1]), np.array([0, 1, 2]), np.array([0, 1])]
        # One other, one too many, two missing, of 1 + 3 + 2; the mean of quotients is 0.78.
        assert decoding.phoneme_error(found, true, SAME) == pytest.approx(4 / 6)

    def test_of_nothing(self):
        with pytest.raises(ValueError, match="no phoneme to be found in 1 transcriptions"):
            decoding.phoneme_error([np.array([1])], [np.array([], int)], SAME)

    def test_each_sentence_has_its_transcription(self):
        with pytest.raises(ValueError, match="zip"):
            decoding.phoneme_error([np.array([1])], [], SAME)

    def test_of_frames_counts_each_frame_alike(self):
        outputs = [outputs_along([0, 1, 1, 1], 3), outputs_along([2], 3)]
        labels = [np.array([0, 1, 1, 2]), np.array([0])]
        assert decoding.frame_error(outputs, labels) == pytest.approx(2 / 5)
