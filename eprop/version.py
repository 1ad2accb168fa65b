"""The version of the package, here and nowhere else: pyproject.toml and checkpoints read it."""

__version__ = "0.2.0.dev0"
