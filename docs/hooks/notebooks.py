"""Tutorials are notebooks in jupytext's percent format: the build runs them and makes them pages.

What a cell prints and draws is kept on the page only. A cell that draws says what,
to those who can't see it: `# %% alt="..."`. A cell that raises ends the build.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor

FOLDER = "tutorials"
DOWNLOAD = "[Download as a notebook]({name}.ipynb){{ .download download }}\n\n"
KERNEL = ["--InlineBackend.figure_formats=['svg']", "--IPKernelApp.log_level=40"]


def on_files(files, config):
    """Adds a page for each notebook, its figures, and the notebook itself, without outputs."""
    with ThreadPoolExecutor(2) as pool:  # each waits for a process of its own
        for pages in pool.map(pages_of, sorted(Path(config.docs_dir, FOLDER).glob("*.py"))):
            for name, content in pages.items():
                files.append(File.generated(config, f"{FOLDER}/{name}", content=content))
    return files


def pages_of(path):
    """The content of files by their name."""
    notebook = jupytext.read(path)
    download = jupytext.writes(notebook, fmt="ipynb")
    run = ExecutePreprocessor(timeout=900, kernel_name="python3", extra_arguments=KERNEL)
    run.preprocess(notebook, {"metadata": {"path": str(path.parent)}})
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    page, resources = MarkdownExporter().from_notebook_node(
        notebook, {"unique_key": path.stem, "output_files_dir": "figures"}
    )
    figures = iter(cell.metadata.alt for cell in notebook.cells if "plt.show()" in cell.source)
    page = re.sub(r"(?<=!\[)svg(?=\])", lambda _: next(figures), page)
    page = DOWNLOAD.format(name=path.stem) + page
    return {f"{path.stem}.md": page, f"{path.stem}.ipynb": download, **resources["outputs"]}
