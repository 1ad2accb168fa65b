"""Imports point one way: each module of the engine only to those before it."""

import ast
from pathlib import Path

import pytest

ENGINE = Path(__file__).parent.parent / "eprop"
LEVELS = [
    {
        "checks",
        "structure",
        "sequences",
        "loops",
        "delays",
        "precision",
        "processes",
        "jitted",
        "sharding",
        "version",
    },
    {"files", "dropout", "environments", "losses", "padding", "surrogate", "weights"},
    {"checkpoints", "rows", "cells.abstract", "cells.constants", "synapses.abstract"},
    {"cells.contract", "cells.membrane", "cells.leaky_tanh", "cells.lstm"},
    {"cells.lif", "cells.alif", "cells.current_lif", "cells.populations"},
    {"synapses.dense", "synapses.convolution"},
    {"synapses.sparse"},
    {"cells", "synapses"},
    {"kernels.language"},
    {"kernels.call", "kernels.scalar"},
    {"kernels.events", "kernels.equations", "kernels.lanes"},
    {"kernels.sparse", "kernels.delays", "kernels.readout"},
    {"kernels.arguments", "kernels.population"},
    {"kernels.neurons", "kernels.tiles", "kernels.traces"},
    {"kernels"},
    {"layer", "common_vectors", "event_synapses", "running_rates"},
    {"record", "signals", "trajectory"},
    {"replay", "readout"},
    {"tiled"},
    {"compiled"},
    {"compiled_reverse", "response"},
    {"network"},
    {"feedback", "reverse", "constant_traces"},
    {"traces"},
    {"recursion", "windowed"},
    {"evaluation"},
    {"adjoint"},
    {"rules"},
    {"diagnostics", "pieces", "keeping", "optimization", "credit"},
    {"learner_state"},
    {"decisions"},
    {"acting", "stepping"},
    {"training", "streaming", "online", "rewards"},
    {"rewiring"},
    {""},
]
"""What may be imported by all that comes later. `cells` is the folder's own `__init__`, as a name
without anything is that of the whole package."""


def name_of(path):
    """`cells.lif` of eprop/cells/lif.py, `cells` of eprop/cells/__init__.py."""
    parts = path.relative_to(ENGINE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {
    name_of(path): path
    for path in sorted(ENGINE.rglob("*.py"))
    if path.relative_to(ENGINE).parts[0] != "tasks"
}
FOLDERS = [name for name, path in PATHS.items() if path.name == "__init__.py" and name]
TASKS = sorted(path.stem for path in (ENGINE / "tasks").glob("*.py"))


def imported(path, source=None):
    """What a file imports, as dotted paths from the root of this repository."""
    package = path.relative_to(ENGINE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def of_engine(module, source=None):
    """The modules of the engine that one of them imports, in place of its text from `source`."""
    for name in imported(PATHS[module], source):
        root, *rest = name.split(".")
        if root == "eprop":  # the longest part of the path that is a module
            lengths = range(len(rest), -1, -1)
            yield next(x for n in lengths if (x := ".".join(rest[:n])) in PATHS)


def not_below(module, source=None):
    """The imported modules that are not below the module."""
    (level,) = [i for i, names in enumerate(LEVELS) if module in names]
    return set(of_engine(module, source)) - set().union(*LEVELS[:level])


def inside(module, source=None):
    """The imported modules that belong to a folder which the module doesn't."""
    return {
        name
        for name in of_engine(module, source)
        for folder in FOLDERS
        if name.startswith(f"{folder}.") and not f"{module}.".startswith(f"{folder}.")
    }


def test_every_module_has_one_level():
    assert sorted(name for names in LEVELS for name in names) == sorted(PATHS)
    assert FOLDERS == ["cells", "kernels", "synapses"]


@pytest.mark.parametrize("module", PATHS)
def test_no_import_points_upward_or_sideways(module):
    assert not not_below(module)


@pytest.mark.parametrize("module", PATHS)
def test_a_folder_is_seen_from_its_front_only(module):
    """What others import of `cells` and `synapses` is what these offer, whatever file it is in."""
    assert not inside(module)


def test_imports_are_found():
    """Else the tests here would pass whatever is imported."""
    membrane = {"surrogate", "cells.abstract", "cells.constants"}
    assert set(of_engine("cells.membrane")) == membrane
    assert set(of_engine("synapses.sparse")) == {"checks", "synapses.abstract", "synapses.dense"}
    assert set(of_engine("cells")) > {"cells.lif", "cells.populations"}
    assert set(of_engine("layer")) > {"cells", "synapses", "checks"}
    assert {"reverse", "windowed"} < set(of_engine("evaluation"))
    of_checkpoints = {"checks", "files", "processes", "structure", "version"}
    assert set(of_engine("checkpoints")) == of_checkpoints
    assert {"", "checks"}.isdisjoint(of_engine("")) and "rules" in set(of_engine(""))


@pytest.mark.parametrize(
    ("module", "source", "upward"),
    [
        ("network", "from .rules import EProp", "rules"),
        ("network", "from . import rules", "rules"),
        ("network", "import eprop.rules", "rules"),
        ("network", "def late():\n    from eprop.rules import EProp", "rules"),
        ("rules", "from . import EProp", ""),
        ("rules", "import eprop", ""),
        ("reverse", "from .feedback import SymmetricFeedback", "feedback"),  # sideways
        ("cells.lif", "from . import ALIF", "cells"),
        ("cells.lif", "from .alif import ALIF", "cells.alif"),
        ("cells.abstract", "from ..layer import Layer", "layer"),
        ("synapses.dense", "from .sparse import Sparse", "synapses.sparse"),
    ],
)
def test_an_import_that_points_upward_is_found(module, source, upward):
    assert not_below(module, source) == {upward}


def test_a_look_into_a_folder_is_found():
    assert inside("layer", "from .cells.abstract import AbstractCell") == {"cells.abstract"}
    assert inside("synapses.dense", "from ..cells import lif") == {"cells.lif"}
    assert not inside("cells.lif", "from .abstract import AbstractCell")


@pytest.mark.parametrize("module", TASKS)
def test_tasks_import_nothing_of_the_engine(module):
    names = set(imported(ENGINE / "tasks" / f"{module}.py"))
    ours = {name for name in names if name.split(".")[0] == "eprop"}
    assert all(name.startswith("eprop.tasks") for name in ours)


@pytest.mark.parametrize("module", PATHS)
def test_the_engine_imports_no_tasks_and_no_experiments(module):
    names = set(imported(PATHS[module]))
    optimising = {
        "acting", "learner_state", "online", "optimization", "rewards", "stepping", "training",
    }  # fmt: skip
    may = (["optax"] if module in optimising else []) + ["tqdm"] * (module == "training")
    libraries = {"matplotlib", "optax", "tqdm"}.difference(may)
    forbidden = ["eprop.tasks", "experiments", "figures", "tests", *libraries]
    assert not [name for name in names if name.startswith(tuple(forbidden))]


OPTIONAL = ("braintrace", "brainstate", "nest", "spikingjelly", "torch")


def test_what_the_benchmarks_compare_with_is_optional():
    """Else nothing would run without it."""
    folders = ("eprop", "experiments", "figures", "tests")
    paths = [path for folder in folders for path in (ENGINE.parent / folder).rglob("*.py")]
    assert len(paths) > len(PATHS)
    found = [(path, name) for path in paths for name in imported(path) if name.startswith(OPTIONAL)]
    assert not found


def test_gymnasium_is_needed_for_its_environments_alone():
    paths = [path for path in PATHS.values() if "gymnasium" in path.read_text()]
    users = [path.name for path in paths if any(x.startswith("gymnasium") for x in imported(path))]
    assert users == ["environments.py"]


def test_scikit_learn_is_needed_for_digits_and_a_baseline_alone():
    folders = ("eprop", "experiments", "figures")
    paths = [path for folder in folders for path in (ENGINE.parent / folder).rglob("*.py")]
    users = {path.name for path in paths if any(x.startswith("sklearn") for x in imported(path))}
    assert users == {"digit_spikes.py", "phoneme_baselines.py"}
