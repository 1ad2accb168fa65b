"""No line ends within an option of a command (`--seeds`), nor within "e-prop"."""

import re

WORD = re.compile(r"<pre>.*?</pre>|<[^>]*>|((?<![\w-])--[a-z][\w-]*|\b[Ee]-prop\b)", re.DOTALL)
"""Its group is a word of the text: blocks of code and what is within tags come first."""


def on_page_content(content, page, config, files):
    """Marks them for the style sheet."""
    return WORD.sub(lambda m: f'<span class="unbroken">{m[1]}</span>' if m[1] else m[0], content)
