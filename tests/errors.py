"""Tables of bad input."""

import pytest


def check(cases):
    """Parametrises by `name: (what is given, error, parts of its message)`."""
    return pytest.mark.parametrize(("given", "error", "parts"), cases.values(), ids=list(cases))


def assert_raises(function, error, parts):
    """The error, with all parts of its message."""
    with pytest.raises(error) as caught:
        function()
    for part in parts:
        assert part in str(caught.value)
