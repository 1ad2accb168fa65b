"""What the documentation shows runs as written."""

import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from runpy import run_path
from types import ModuleType

import pytest

import eprop
import eprop.tasks  # no part of `import eprop`

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def blocks_of(page):
    """The blocks of Python on a page, but those that include a file."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in blocks if "--8<--" not in block]


PROGRAMS = sorted(ROOT.glob("docs/*.py"))
"""The code of a page that includes it section by section."""

PAGES = [page for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if blocks_of(page)]


def run(*command, cwd):
    """The output of a Python process with warnings as errors, as a user's: no checks of types."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    if command[0] != "-c":  # many small programs, each run once
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    result = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_program_of_a_page(program, tmp_path):
    """Its assertions are those of the page."""
    run(str(program), cwd=tmp_path)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_program_is_on_its_page_and_asserts_something(program):
    code, page = program.read_text(), program.with_suffix(".md").read_text()
    assert len(re.findall(r"^\s*assert ", code, re.MULTILINE)) >= 5
    shown = re.findall(rf'^--8<-- "docs/{program.name}:(\w+)"$', page, re.MULTILINE)
    begun, ended = (re.findall(rf"\[{word}:(\w+)\]", code) for word in ("start", "end"))
    assert begun and sorted(shown) == sorted(begun) == sorted(ended)


def test_no_program_is_left_out():
    assert [program.name for program in PROGRAMS] == [
        "around_the_network.py",
        "own_cell.py",
        "own_synapses.py",
    ]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "jnp.roll(pre, distance, axis=-1) for distance in",
            "jnp.roll(pre, -distance, axis=-1) for distance in",
        ),
        ("broadcast_to(w[:, None]", "broadcast_to(w[::-1, None]"),
        ("drives = (w_f *", "drives = (jnp.abs(w_f) *"),
    ],
    ids=["seen", "spread", "currents"],
)
def test_a_broken_contract_is_found(right, wrong, tmp_path):
    """The checks that the page shows can fail."""
    code = (ROOT / "docs" / "own_synapses.py").read_text()
    upto = code.index("# --8<-- [end:contract]")
    assert code.count(right) == 1
    (tmp_path / "broken.py").write_text(code[:upto].replace(right, wrong))
    with pytest.raises(AssertionError, match="check_contract"):
        run("broken.py", cwd=tmp_path)


@pytest.mark.parametrize(
    ("name", "section", "begin", "lines"),
    [
        ("own_cell", "cell", "class SynapticState", 30),
        ("own_cell", "currents", "class ConductanceState", 30),
        ("own_synapses", "synapses", "class Ring", 40),
        ("around_the_network", "model", "class Model", 20),
    ],
)
def test_it_is_short(name, section, begin, lines):
    """What is one's own takes no more code than this."""
    code = (ROOT / "docs" / f"{name}.py").read_text()
    shown = code[code.index(f"[start:{section}]") : code.index(f"# --8<-- [end:{section}]")]
    written = [line for line in shown[shown.index(begin) :].splitlines() if line.strip()]
    assert 5 < len(written) <= lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page(page, tmp_path):
    """Its blocks, one after the other as a reader enters them, print something."""
    assert run("-c", "\n".join(blocks_of(page)), cwd=tmp_path)


def documented():
    """What the reference is of, by its path, and the members that it names."""
    for page in sorted(ROOT.glob("docs/api/*.md")):
        entries = re.findall(
            r"^::: eprop\.(\S+)\n(?:    options:\n      members: \[(.*)\]\n)?",
            page.read_text(),
            re.MULTILINE,
        )
        for name, members in entries:
            yield name, [member for member in members.split(", ") if member]


def public():
    """The names of the package, and those of its public modules."""
    modules = {name for name in eprop.__all__ if isinstance(getattr(eprop, name), ModuleType)}
    for module in {"tasks", *modules}:
        yield from (f"{module}.{name}" for name in getattr(eprop, module).__all__)
    yield from set(eprop.__all__) - modules


def owner_of(name):
    """What a documented thing is in: the package, a module of it, or a class."""
    owner = name.rpartition(".")[0]
    return attrgetter(owner)(eprop) if owner else eprop


def test_the_reference_has_each_public_name_once_and_nothing_else():
    of_classes = [name for name, _ in documented() if isinstance(owner_of(name), type)]
    names = sorted(name for name, _ in documented() if name not in of_classes)
    assert names == sorted(public())
    assert {"Network", "tasks.Trials", "losses.voltage_penalty"} <= set(names)
    assert "Network.w_rec" in of_classes  # or the pages are read wrongly


def test_the_reference_has_nothing_that_is_private_or_gone():
    for name, members in documented():
        owner, last = owner_of(name), name.rpartition(".")[2]
        for thing, member in [(owner, last), *((getattr(owner, last, None), x) for x in members)]:
            fields = getattr(thing, "__dataclass_fields__", {})
            annotated = getattr(thing, "__annotations__", {})
            assert hasattr(thing, member) or member in fields or member in annotated, member
            assert member == "__call__" or not member.startswith("_")


def test_the_reference_begins_with_the_network_and_its_call():
    first = re.search(r"- Reference:\n\s+- .*: (\S+)", (ROOT / "mkdocs.yml").read_text())[1]
    page = (ROOT / "docs" / first).read_text()
    assert page.index("::: eprop.Network\n") < page.index("__call__") < page.index(":::", 200)


TUTORIALS = sorted(ROOT.glob("docs/tutorials/*.py"))


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda tutorial: tutorial.name)
def test_tutorial_is_a_notebook_of_the_site(tutorial):
    """`make docs` runs it: a cell that raises ends the build."""
    code = tutorial.read_text()
    assert code.startswith("# %% [markdown]\n# # ")
    assert code.count('# %% alt="') == code.count("plt.show()") >= 2
    assert f"tutorials/{tutorial.stem}.md" in (ROOT / "mkdocs.yml").read_text()


def test_no_tutorial_is_left_out():
    assert [tutorial.stem for tutorial in TUTORIALS] == [
        "bptt_to_eprop",
        "own_neuron",
        "rewards",
        "stream",
        "your_own_spikes",
    ]


def test_the_site_asks_no_other_server():
    """For scripts, styles or fonts."""
    assert "//" not in (ROOT / "mkdocs.yml").read_text()
    for style in ROOT.glob("docs/stylesheets/*"):
        assert "//" not in style.read_text()


def test_no_line_ends_within_an_option():
    mark = run_path(str(ROOT / "docs/hooks/hyphens.py"))["on_page_content"]
    page = "<p>E-prop <code>--n-lif</code> pre-prop a--b</p><img alt='e-prop'><pre>--seeds\n</pre>"
    marked = page
    for word in ("E-prop", "--n-lif"):
        marked = marked.replace(word, f'<span class="unbroken">{word}</span>')
    assert mark(page, None, None, None) == marked != page


def test_the_readme_has_an_example():
    assert ROOT / "README.md" in PAGES
