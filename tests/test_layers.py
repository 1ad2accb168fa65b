"""Imports point one way: each module of the engine only to those before it."""

import ast
from pathlib import Path

import pytest

ENGINE = Path(__file__).parent.parent / "eprop"
LAYERS = [
    {"checks", "files", "delays", "sequences"},
    {"surrogate", "checkpoints", "running_rates"},
    {"cells"},
    {"network"},
    {"losses", "feedback"},
    {"learning_signals", "traces"},
    {"recursion"},
    {"windowed"},
    {"rules"},
    {"training", "streaming", "online"},
    {"__init__"},
]
MODULES = sorted(path.stem for path in ENGINE.glob("*.py"))
TASKS = sorted(path.stem for path in (ENGINE / "tasks").glob("*.py"))


def imported(path):
    """What a file imports of this repository, as dotted paths from its root."""
    package = path.relative_to(ENGINE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def of_engine(path):
    """The modules of the engine that a file imports."""
    for name in imported(path):
        root, *rest = name.split(".")
        if root == "eprop" and rest and rest[0] in MODULES:
            yield rest[0]


def test_every_module_has_a_layer():
    assert sorted(set().union(*LAYERS)) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_only_layers_below_are_imported(module):
    (level,) = [i for i, layer in enumerate(LAYERS) if module in layer]
    below = set().union(*LAYERS[:level])
    assert set(of_engine(ENGINE / f"{module}.py")) <= below


def test_imports_are_found():
    """Else the tests here would pass whatever is imported."""
    assert set(of_engine(ENGINE / "cells.py")) == {"checks", "surrogate"}
    assert "windowed" in set(of_engine(ENGINE / "rules.py"))
    assert set(of_engine(ENGINE / "checkpoints.py")) == {"files"}


@pytest.mark.parametrize("module", TASKS)
def test_tasks_import_nothing_of_the_engine(module):
    names = {name for name in imported(ENGINE / "tasks" / f"{module}.py")}
    ours = {name for name in names if name.split(".")[0] == "eprop"}
    assert all(name.startswith("eprop.tasks") for name in ours)


@pytest.mark.parametrize("module", MODULES)
def test_the_engine_imports_no_tasks_and_no_experiments(module):
    names = set(imported(ENGINE / f"{module}.py"))
    may = {"training": ["optax", "tqdm"], "online": ["optax"]}.get(module, [])
    libraries = {"matplotlib", "optax", "tqdm"}.difference(may)
    forbidden = ["eprop.tasks", "experiments", "figures", "tests", *libraries]
    assert not [name for name in names if name.startswith(tuple(forbidden))]


OPTIONAL = ("braintrace", "brainstate", "spikingjelly", "torch")


def test_what_the_benchmarks_compare_with_is_optional():
    """Else nothing would run without it."""
    folders = ("eprop", "experiments", "figures", "tests")
    paths = [path for folder in folders for path in (ENGINE.parent / folder).rglob("*.py")]
    assert len(paths) > len(MODULES)
    found = [(path, name) for path in paths for name in imported(path) if name.startswith(OPTIONAL)]
    assert not found


def test_scikit_learn_is_needed_for_digits_alone():
    folders = ("eprop", "experiments", "figures")
    paths = [path for folder in folders for path in (ENGINE.parent / folder).rglob("*.py")]
    users = [path.name for path in paths if any(x.startswith("sklearn") for x in imported(path))]
    assert users == ["digit_spikes.py"]
