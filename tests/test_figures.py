"""All figures from the results there are, and a word on those there are not."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from experiments import numerical_verification
from figures import evidence_accumulation, finished, make_all
from tests.test_experiments import assert_drawn
from tests.test_layers import imported

ROOT = Path(__file__).parent.parent
MODULES = make_all.modules()
EXPERIMENTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.glob("experiments/**/*.py")
    if any(
        isinstance(node, ast.FunctionDef) and node.name == "main"
        for node in ast.parse(path.read_text()).body
    )
)


def test_all_figures_are_found():
    names = {module.__name__ for module in MODULES}
    files = {f"figures.{path.stem}" for path in ROOT.glob("figures/*.py")}
    helpers = {"__init__", "plotting", "finished", "seed_runs", "make_all"}
    assert names == files - {f"figures.{name}" for name in helpers}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_without_results_the_command_is_named(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as missing:
        module.main([])
    commands = re.findall(r"python -m ([\w.]+)", str(missing.value))
    assert commands
    assert all(importlib.util.find_spec(command) for command in commands)


@pytest.mark.experiment
def test_figures_are_drawn_again_from_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    numerical_verification.main(["--n-steps", "20", "--run", "a"])
    path = tmp_path / "results" / "numerical_verification" / "a" / "figure.png"
    path.unlink()
    capsys.readouterr()
    make_all.main()
    assert_drawn(path)
    lines = capsys.readouterr().out.splitlines()
    assert str(path.relative_to(tmp_path)) in lines
    named = [line for line in lines if "python -m experiments." in line]
    assert len(named) >= len(MODULES) - 1
    assert not [line for line in named if "numerical_verification" in line]


def test_runs_that_can_not_be_compared_leave_the_others_drawn(tmp_path, monkeypatch, capsys):
    drawn = []

    class Module:
        def __init__(self, name, error=None):
            self.__name__, self.error = name, error

        def main(self, arguments):
            drawn.append(self.__name__)
            if self.error is not None:
                raise self.error

    given = [Module("a"), Module("b", ValueError("they differ")), Module("c", SystemExit("none"))]
    monkeypatch.setattr(make_all, "modules", lambda: [*given, Module("d")])
    with pytest.raises(SystemExit, match=r"^not drawn: b$"):
        make_all.main()
    assert drawn == list("abcd")
    assert "they differ" in capsys.readouterr().out


def test_only_finished_runs_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, file in (("a", "summary.json"), ("b", "metrics.json"), ("c", "metrics.jsonl")):
        folder = tmp_path / "results" / "task" / run
        folder.mkdir(parents=True)
        (folder / file).touch()
    assert [path.name for path in finished.runs_of("experiments.task")] == ["a", "b"]


def test_an_error_names_the_run(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        evidence_accumulation.main([str(tmp_path / "gone")])
    assert str(tmp_path / "gone") in error.value.__notes__[0]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_run_in_a_reduced_form(experiment):
    """By a test that `make slow` runs."""
    marked = [
        path
        for path in (ROOT / "tests").glob("test_*.py")
        if re.search(r"^pytestmark = .*pytest\.mark\.experiment", path.read_text(), re.MULTILINE)
    ]
    assert experiment in {name for path in marked for name in imported(path)}


def test_experiments_are_found():
    assert {"experiments.numerical_verification", "experiments.benchmarks.scaling"} < {*EXPERIMENTS}
