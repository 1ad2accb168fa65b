"""What the phonemes of frames are told by without a recurrent network.

- The most frequent phoneme of the training set, for all frames.
- A linear discriminant (scikit-learn's) of each frame's features, and of those of the frames
  around it as well.

Of the third baseline, a readout on a recurrent network that does not learn, see
python -m experiments.phonemes --frozen.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from .runs import RunFolder
from .speech.corpus import Sentence, load
from .speech.features import Kind


@dataclasses.dataclass(frozen=True)
class Config:
    """What is heard, and how much of it at a time."""

    data: str = "synthetic"
    """Speech by eSpeak NG, "synthetic", or the folder of TIMIT."""
    features: Kind = "filterbank"
    """What is heard of a frame: 123 numbers, or 39."""
    context: int = 5
    """Frames before and after each that are heard with it."""
    results: Path = Path("results/phoneme_baselines")
    """Folder of the results."""
    run: str = "{features}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(features=self.features)


def with_context(
    features: Float[np.ndarray, "frames n"], context: int
) -> Float[np.ndarray, "frames more"]:
    """Each frame beside those around it; beyond the ends the first and the last one again."""
    padded = np.pad(features, ((context, context), (0, 0)), mode="edge")
    n = len(features)
    return np.concatenate([padded[i : i + n] for i in range(2 * context + 1)], axis=1)


def majority_error(train: Sequence[Sentence], test: Sequence[Sentence]) -> float:
    """Of the most frequent phoneme."""
    counts = np.bincount(np.concatenate([sentence.labels for sentence in train]))
    return float(np.mean(np.concatenate([x.labels for x in test]) != counts.argmax()))


def discriminant_error(train: Sequence[Sentence], test: Sequence[Sentence], context: int) -> float:
    """Of the linear discriminant."""
    try:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    except ImportError:
        raise SystemExit(
            "The linear discriminant is scikit-learn's, which is not installed: "
            "write pip install 'eprop[speech]'"
        ) from None
    # Differences of frames depend on frames, so the covariance alone has no inverse.
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3)
    discriminant.fit(
        np.concatenate([with_context(sentence.features, context) for sentence in train]),
        np.concatenate([sentence.labels for sentence in train]),
    )
    wrong = [discriminant.predict(with_context(x.features, context)) != x.labels for x in test]
    return float(np.concatenate(wrong).mean())


def run(config: Config) -> dict[str, Any]:
    """The summary, as in `summary.json`."""
    corpus = load(config.data, config.features)
    settings = {**dataclasses.asdict(config), "corpus": corpus.settings}
    folder, sets = RunFolder(config.folder, settings), (corpus.train, corpus.test)
    frames = f"linear discriminant, ±{config.context} frames"
    errors = {
        "majority": majority_error(*sets),
        "linear discriminant": discriminant_error(*sets, 0),
        frames: discriminant_error(*sets, config.context),
    }
    summary = {"test_error": errors}
    folder.write_json("summary", summary)
    return summary


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.phoneme_baselines", description=__doc__
    )
    for name, error in run(config)["test_error"].items():
        print(f"{name:40}{error:.1%} of the test sentences' frames are wrong")


if __name__ == "__main__":
    main()
