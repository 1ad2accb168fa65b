"""What the documentation shows runs as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks_of(page):
    """The blocks of Python on a page, but those that include a file."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in blocks if "--8<--" not in block]


PAGES = [page for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if blocks_of(page)]


def run(*command, cwd):
    """The output of a Python process with warnings as errors, as a user's: no checks of types."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
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


def test_own_cell(tmp_path):
    """Its assertions are those of the page."""
    run(str(ROOT / "docs" / "own_cell.py"), cwd=tmp_path)


def test_own_cell_asserts_something():
    code = (ROOT / "docs" / "own_cell.py").read_text()
    assert len(re.findall(r"^assert ", code, re.MULTILINE)) >= 5
    page = (ROOT / "docs" / "own_cell.md").read_text()
    for section in re.findall(r'--8<-- "docs/own_cell.py:(\w+)"', page):
        assert f"[start:{section}]" in code and f"[end:{section}]" in code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page(page, tmp_path):
    """Its blocks, one after the other as a reader enters them, print something."""
    assert run("-c", "\n".join(blocks_of(page)), cwd=tmp_path)


def test_the_readme_has_an_example():
    assert ROOT / "README.md" in PAGES
