"""Figures, drawn from what experiments have written: `python -m figures.<name> FOLDER`."""
