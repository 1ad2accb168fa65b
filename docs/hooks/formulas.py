"""Formulas are MathML when the site is built: no script sets them, and no other server is asked."""

import html
import re
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from fontTools import subset
from math_core import LatexToMathML
from mkdocs.structure.files import File

CONVERTER = LatexToMathML(fancy_error=False)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FONT = "assets/STIXTwoMath.woff"
"""For readers whose system has no font for formulas, named in the style sheet."""
LETTERS = [(0x20, 0x7F), (0x370, 0x400), (0x2000, 0x2400), (0x1D400, 0x1D800)]
"""Latin and Greek, operators and braces, and letters in mathematical styles."""


def on_page_content(content, page, config, files):
    """Replaces LaTeX, as pymdownx.arithmatex marks it; what it can't read ends the build."""

    def mathml(match):
        element, latex = match[1], html.unescape(match[2])
        if element == "span":
            return CONVERTER.convert_with_local_state(latex, displaystyle=False)
        equation = rf"\begin{{equation*}}{latex}\end{{equation*}}"  # may have a \tag
        return CONVERTER.convert_with_local_state(equation, displaystyle=True)

    return FORMULA.sub(mathml, content)


def on_files(pages, config):
    """Adds the font."""
    options = subset.Options(flavor="woff", layout_features=["*"])
    with as_file(files("ziamath.fonts") / "STIXTwoMath-Regular.ttf") as path:
        font = subset.load_font(path, options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=[x for first, end in LETTERS for x in range(first, end)])
        subsetter.subset(font)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "font.woff"
        subset.save_font(font, str(path), options)
        pages.append(File.generated(config, FONT, content=path.read_bytes()))
    return pages
