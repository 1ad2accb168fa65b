"""Folders of runs refuse settings that would train something else without a word."""

import dataclasses

import pytest

from experiments import cartpole, digits, runs

pytestmark = pytest.mark.experiment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -0.01}, r"learning_rate = -0\.01 must be a finite number of at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan must be"),
        ({"rate_penalty": float("inf")}, "rate_penalty = inf must be"),
        ({"seeds": (0, -1)}, "seeds = -1 must be"),
        ({"seeds": ()}, "seeds is empty: at least one is needed"),
    ],
)
@pytest.mark.parametrize("experiment", [digits, cartpole])
def test_numbers_below_zero_are_refused_before_there_is_a_folder(
    experiment, changes, message, tmp_path
):
    config = dataclasses.replace(experiment.Config(results=tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        runs.RunFolder(config.folder, config)
    assert not list(tmp_path.iterdir())


def test_others_are_taken(tmp_path):
    config = {"learning_rate": 0.0, "clip": None, "seeds": [0], "cell": "lif", "frozen": False}
    runs.RunFolder(tmp_path, config)
    assert (tmp_path / "config.json").exists()
