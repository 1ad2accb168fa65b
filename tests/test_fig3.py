"""Fig. 3 in a reduced form, on a task of a few steps; each rule alone has its own tests."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import evidence_accumulation
from experiments import fig3_evidence_accumulation as experiment
from figures import fig3_evidence_accumulation as figure
from tests.test_evidence_accumulation import SMALL
from tests.test_experiments import assert_drawn, assert_options, help_of

pytestmark = pytest.mark.experiment

TRAINING = dataclasses.replace(SMALL, iterations=4, validate_every=2)
LEARNERS = ["random", "symmetric", "adaptive", "bptt", "lif_only"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A configuration and the summaries of its runs, by random feedback and of the control."""
    results = tmp_path_factory.mktemp("work") / "results" / "evidence_accumulation"
    config = experiment.Config(seeds=(3,), control_iterations=6, results=results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "RULES", {"random": experiment.RULES["random"]})
        return config, experiment.run(config, TRAINING, progress=False)


def folders_of(config):
    return [config.results / f"{learner}_seed3" for learner in ("random", "lif_only")]


def test_makes_the_runs(whole):
    config, summaries = whole
    assert [run["iterations"] for runs in summaries.values() for run in runs] == [4, 6]
    assert sorted(config.results.iterdir()) == sorted(folders_of(config))
    for (summary,), folder in zip(summaries.values(), folders_of(config), strict=True):
        assert json.loads((folder / "summary.json").read_text()) == summary


def test_the_rule_is_what_differs():
    """And in the control the neurons, of which there are as many."""
    runs = experiment.runs_of(experiment.Config(), TRAINING)
    assert list(runs) == LEARNERS
    for learner, of_learner in runs.items():
        assert [run.seed for run in of_learner] == [0, 1, 2, 3, 4]
        for run in of_learner:
            assert run.n_lif + run.n_alif == TRAINING.n_lif + TRAINING.n_alif
            assert (run.n_alif == 0) == (learner == "lif_only")
            assert run.learner == ("random" if learner == "lif_only" else learner)


def test_only_what_is_missing_is_run(whole, monkeypatch):
    config, summaries = whole
    asked = []
    monkeypatch.setattr(
        evidence_accumulation, "run", lambda config, progress: asked.append(config.folder.name)
    )
    shutil.copytree(config.results, copy := config.results.with_name("copy"))
    more = dataclasses.replace(config, seeds=(3, 5), results=copy)
    for folder in folders_of(more):
        made = json.loads((folder / "config.json").read_text()) | {"results": str(copy)}
        (folder / "config.json").write_text(json.dumps(made))
    found = experiment.run(more, TRAINING, progress=False)
    assert [found[learner][0] for learner in summaries] == [run for (run,) in summaries.values()]
    expected = {f"{learner}_seed{seed}" for learner in LEARNERS for seed in (3, 5)}
    assert sorted(asked) == sorted(expected - {folder.name for folder in folders_of(more)})


def test_the_table():
    runs = [{"iterations": i, "test_error": error} for i, error in ((20, 0.02), (40, 0.09))]
    *_, line = experiment.table({"lif_only": runs}).splitlines()
    assert line == "| LIF neurons only | 20, 40 | 5.5 % (2.0–9.0 %) | 1 of 2 |"


def test_draws_the_finished_runs(whole, tmp_path, monkeypatch, capsys):
    config, _ = whole
    monkeypatch.chdir(tmp_path)
    shutil.copytree(config.results, "results/evidence_accumulation")
    os.mkdir("results/evidence_accumulation/random_seed9")
    figure.main([])
    path = capsys.readouterr().out.strip()
    assert path == os.path.join("results", "evidence_accumulation", "fig3.png")
    assert_drawn(path)


def test_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"-m experiments\.fig3_evidence_accumulation"):
        figure.main([])


def test_runs_of_other_settings_are_not_compared(whole, tmp_path):
    config, _ = whole
    first, _ = folders_of(config)
    shutil.copytree(first, tmp_path / "other")
    other = json.loads((first / "config.json").read_text()) | {"batch_size": 4}
    (tmp_path / "other" / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="batch_size = 8 there, 4 here"):
        figure.draw([first, tmp_path / "other"], tmp_path / "fig3.png")


@pytest.mark.parametrize(
    ("of", "changes", "told"),
    [
        ("random", {"n_lif": 3}, "n_lif = 4 there, 3 here"),
        ("random", {"iterations": 9}, "iterations = 4 there, 9 here"),
        ("lif_only", {"n_lif": 9}, "n_lif = 8 there, 9 here"),
    ],
)
def test_only_the_control_has_other_neurons_and_iterations(whole, tmp_path, of, changes, told):
    """And one control as another."""
    config, _ = whole
    both, other = folders_of(config), tmp_path / "other"
    shutil.copytree(config.results / f"{of}_seed3", other)
    made = json.loads((other / "config.json").read_text())
    assert_drawn(figure.draw([*both, other], tmp_path / "fig3.png"))
    (other / "config.json").write_text(json.dumps(made | changes))
    with pytest.raises(ValueError, match=told):
        figure.draw([*both, other], tmp_path / "fig3.png")


def test_reads_the_errors(whole):
    config, _ = whole
    runs = [figure.read(folder) for folder in folders_of(config)]
    assert [run.learner for run in runs] == ["random", "lif_only"]
    lines = (runs[0].folder / "metrics.jsonl").read_text().splitlines()
    errors = [json.loads(line)["train_error"] for line in lines]
    assert len(errors) == 4 and len(set(errors)) > 1
    np.testing.assert_allclose(runs[0].errors, np.cumsum(errors) / [1, 2, 3, 4])


def test_what_ended_early_keeps_its_last_error(whole):
    config, _ = whole
    run = figure.read(folders_of(config)[0])
    early = run._replace(
        errors=np.array([0.5, 0.25]), summary=run.summary | {"reached_criterion": True}
    )
    late = run._replace(errors=np.array([0.75, 0.5, 0.25, 0.0]))
    axes = Figure().subplots()
    figure._curves(axes, {"random": [early, late]})
    mean, dots, *_ = axes.lines
    np.testing.assert_allclose(mean.get_xydata()[:, 1], [0.625, 0.375, 0.25, 0.125])
    assert dots.get_xydata().tolist() == [[2, 0.25]]


def test_the_number_of_seeds_is_told(whole):
    config, _ = whole
    run = figure.read(folders_of(config)[0])
    assert figure._seeds({"random": [run], "bptt": [run]}) == "one seed"
    assert figure._seeds({"random": 3 * [run]}) == "mean and range of 3 seeds"
    found = figure._seeds({"random": 3 * [run], "bptt": [run], "adaptive": 2 * [run]})
    assert found == "mean and range of 1 to 3 seeds"


def test_smoothed():
    values = np.array([4.0, 0.0, 2.0, 1.0])
    np.testing.assert_allclose(figure.smoothed(values, 2), [4, 2, 1, 1.5])
    np.testing.assert_allclose(figure.smoothed(values, 9), [4, 2, 2, 1.75])


def test_help():
    text = help_of("fig3_evidence_accumulation")
    assert_options(text, experiment.Config)
    assert "control that must fail" in text
