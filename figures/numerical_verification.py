"""The figure of a numerical verification: gradients found in two ways, and what they are made of.

    python -m figures.numerical_verification results/numerical_verification/float64_seed2
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from experiments import plotting

NETWORK = "LIF and ALIF"
DIFFERENCE = "difference"


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    with np.load(folder / "arrays.npz") as arrays:
        found = {
            name.removeprefix(f"{NETWORK}."): array
            for name, array in arrays.items()
            if name.startswith(f"{NETWORK}.")
        }
    with plotting.style():
        figure = Figure(figsize=(9, 9.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(4.6, 4.6))
        left, right = above.subfigures(1, 2, wspace=0.04)
        errors = metrics["networks"][NETWORK]["relative_errors"]
        _gradients(left, found, "factorisation", ("BPTT", "$Σ_t\\,(dE/dz_t)\\,e_t$"), errors, config)
        _gradients(right, found, "recursion", ("autodiff", "recursion"), errors, config)
        left.suptitle("a   Check 1: factorisation of BPTT with the total derivative", x=0.01, ha="left")
        right.suptitle("b   Check 2: e-prop by recursion and by autodiff", x=0.01, ha="left")
        _sequence(below, found, config)
    path = folder / "figure.png"
    plotting.save(figure, path)
    return path


def _gradients(
    figure: SubFigure, found: dict[str, np.ndarray], check: str, names: tuple[str, str],
    errors: dict[str, Any], config: dict[str, Any],
) -> None:
    panels = figure.subplots(2, 3, sharex="col", sharey="row", height_ratios=(config["n_in"], config["n_lif"]+config["n_alif"]))
    pairs = {}
    for weights in ("w_in", "w_rec"):
        pair = [found[f"comparisons.{check}.{kind}.{weights}"] for kind in ("reference", "candidate")]
        pairs[weights] = (*pair, pair[1] - pair[0])
    limits = [max(np.abs(pair[k]).max() for pair in pairs.values()) for k in range(3)]
    images = []
    for row, weights in zip(panels, pairs, strict=True):
        for k, axes in enumerate(row):
            image = plotting.weight_image(axes, pairs[weights][k], (limits[0],limits[0],limits[2])[k], autapses=weights == "w_in")
            _populations(axes, config)
            images.append(image)
    for axes, name in zip(panels[0], (*names, DIFFERENCE), strict=True):
        axes.set_title(name, loc="center")
    panels[0, 0].set_ylabel("input $i$")
    panels[1, 0].set_ylabel("neuron $i$ (pre)")
    for axes in panels[1]:
        axes.set_xlabel("neuron $j$ (post)")
    plotting.colour_bar(images[0], panels[:, :2].ravel().tolist(), "gradient $dE/dW_{ij}$", location="bottom", aspect=30)
    plotting.colour_bar(images[2], panels[:, 2].tolist(), "of the two", location="bottom", aspect=15)


def _populations(axes, config):
    axes.axvline(config["n_lif"] + 0.5, color="black", linewidth=0.6)


def _sequence(figure: SubFigure, found, config) -> None:
    dt = config["dt"]
    n_lif=config["n_lif"]
    panels = figure.subplots(3, 2, sharex=True, height_ratios=(1, 1.3, 1.3))
    plotting.raster(panels[0,0], found["inputs"][:, 0], dt)
    plotting.raster(panels[1,0], found["spikes"][:, 0], dt)
    plotting.colour_map(panels[0,1], found["total_derivative"][:, 0], dt, "$dE/dz$")
    plotting.colour_map(panels[1,1], found["learning_signal"][:, 0], dt, "$L$")


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
