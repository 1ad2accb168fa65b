"""Figures, drawn from what experiments have written: `python -m figures.<name> FOLDER ...`.

Without a folder they are drawn of all finished runs in results/. A module here that draws a figure
has a `draw`, from results to the figure's path, and a `main`, which takes the folders named.
"""
