"""What is released: one version everywhere, and distributions that work where only they are.

Builds and installs by pip, in environments of their own. What pip needs for that (setuptools) comes
from the package registry, by the versions of constraints.txt; the dependencies are those that the
tests run with.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import eprop
from tests.test_layers import PATHS, imported

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, cwd, fails=False):
    """What a process prints that has nothing of this checkout but what is installed."""
    constraints = {
        name: str(ROOT / "constraints.txt") for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
    }
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(x) for x in command],
        cwd=cwd,
        env=kept | constraints | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stderr if fails else result.stdout


def checkout(folder):
    """A copy of what a distribution is built from."""
    for name in ("eprop", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder):
    """The Python of a new environment that has the dependencies here, but no eprop."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Paths alone: the editable eprop of this environment is in a .pth file, which is read only
    # where site-packages is Python's own.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    error = run(python, "-c", "import jax, eprop", cwd=folder, fails=True)
    assert "No module named 'eprop'" in error
    return python


def install(python, *what):
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", *what, cwd=python.parent)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel made of it."""
    folder = tmp_path_factory.mktemp("dist")
    source = checkout(tmp_path_factory.mktemp("source"))
    run(sys.executable, "-m", "build", "--outdir", folder, source, cwd=folder)
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel


USE = """
import importlib.metadata
from pathlib import Path

import jax, jax.numpy as jnp

import eprop
import eprop.tasks

assert Path(eprop.__file__).is_relative_to("{folder}"), eprop.__file__
assert importlib.metadata.version("eprop") == eprop.__version__ == "{version}"
inputs = jax.random.uniform(jax.random.key(0), (50, 2, 5)) < 0.3
network = eprop.Network(eprop.LIF(20, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(1))
loss = lambda trajectory, _: jnp.mean(trajectory.outputs**2)
value, gradients = jax.jit(eprop.value_and_grad(loss, eprop.EProp()))(network, inputs, None)
eprop.checkpoints.save("network.eprop", network)
assert eprop.checkpoints.read_header("network.eprop")["versions"]["eprop"] == "{version}"
assert not isinstance(eprop.compiled.programs(network.layers[0]), str)
print(value > 0 and jnp.abs(gradients.w_rec).max() > 0)
"""


@pytest.mark.parametrize("kind", ["source", "wheel"])
def test_it_works_where_only_the_distribution_is(kind, distributions, tmp_path):
    archive, wheel = distributions
    python = environment(tmp_path / "venv")
    install(python, {"source": archive, "wheel": wheel}[kind])
    code = USE.format(folder=tmp_path / "venv", version=eprop.__version__)
    assert run(python, "-W", "error", "-c", code, cwd=tmp_path).strip() == "True"


def test_what_is_in_the_distributions(distributions):
    """All of the engine, with its mark of types, and nothing else that can be imported."""
    archive, wheel = distributions
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "eprop").rglob("*.py")}
    ours.add("eprop/py.typed")
    with zipfile.ZipFile(wheel) as file:
        in_wheel = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in file.namelist() if name.endswith("/METADATA")]
        assert f"\nVersion: {eprop.__version__}\n" in file.read(metadata).decode()
    with tarfile.open(archive) as file:
        in_source = {name.partition("/")[2] for name in file.getnames() if not name.endswith("/")}
    assert in_wheel == ours
    assert ours | {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} < in_source
    assert not [name for name in in_source if name.startswith(("tests", "experiments", "docs"))]


@pytest.mark.parametrize("as_it_is", [True, False])
def test_beside_a_clone_of_the_same_name(as_it_is, tmp_path):
    """An editable install is found where Python starts in the folder that the clone lies in.

    Without its line in pyproject.toml an empty namespace is.
    """
    clone = tmp_path / "eprop"
    clone.mkdir()
    checkout(clone)
    if not as_it_is:
        text = (clone / "pyproject.toml").read_text()
        assert text.count('mode = "compat"\n') == 1
        (clone / "pyproject.toml").write_text(text.replace('mode = "compat"\n', ""))
    python = environment(tmp_path / "venv")
    install(python, "--editable", clone)
    command = (python, "-c", "import eprop; print(eprop.Network.__name__)")
    if as_it_is:
        assert run(*command, cwd=tmp_path).strip() == "Network"
    else:
        assert "module 'eprop' has no attribute" in run(*command, cwd=tmp_path, fails=True)
    assert run(*command, cwd=python.parent).strip() == "Network"


# One version.


def test_the_changelog_begins_with_this_version():
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    version, _, when = first.partition(", ")
    released, _, development = eprop.__version__.partition(".dev")
    assert version == released
    if development:
        assert when == "not released yet"
    else:
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", when)


def test_the_version_is_in_one_place():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    written = [path.name for path in PATHS.values() if f'"{eprop.__version__}"' in path.read_text()]
    assert written == ["version.py"]


# What it needs.


def test_dependencies_are_declared():
    """Whatever the engine imports, and nothing that it doesn't; the environments' are an extra."""
    tasks = sorted((ROOT / "eprop" / "tasks").glob("*.py"))
    roots = {name.split(".")[0] for path in (*PATHS.values(), *tasks) for name in imported(path)}
    needed = roots - set(sys.stdlib_module_names) - {"eprop"}
    declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    assert needed - {"gymnasium"} == declared and "jax" in needed
    extra = {re.match(r"[\w-]+", line)[0] for line in PROJECT["optional-dependencies"]["rl"]}
    assert "gymnasium" in needed & extra
    at_once = "import sys, eprop; sys.exit('gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", at_once]).returncode == 0


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_pre_commit_has_the_same_tools():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    tools = re.findall(r"additional_dependencies: \[([\w-]+)==([\d.]+)\]", config)
    assert config.count("additional_dependencies") == len(tools)
    versions = {name: {version for of, version in tools if of == name} for name, _ in tools}
    assert versions["ruff"] == {pinned()["ruff"]}
    assert all(len(of_tool) == 1 for of_tool in versions.values())


def test_versions_of_python():
    """The least is what linters and types are checked for; each is one that tests may run on."""
    prefix = "Programming Language :: Python :: 3."
    named = sorted(int(x[len(prefix) :]) for x in PROJECT["classifiers"] if x.startswith(prefix))
    assert PROJECT["requires-python"] == f">=3.{named[0]}"
    assert named == list(range(named[0], named[-1] + 1))
    assert sys.version_info.minor in named
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["ruff"]["target-version"] == f"py3{named[0]}"
    assert tools["basedpyright"]["pythonVersion"] == f"3.{named[0]}"
