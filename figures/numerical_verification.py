"""The figure of a numerical verification: gradients found in two ways, and what they are made of.

python -m figures.numerical_verification results/numerical_verification/float64_seed2
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from figures import finished, plotting

NETWORK = "LIF and ALIF"
"""The one of the two that is drawn."""
SYMBOLS = {"w_in": r"$W^\mathrm{in}$", "w_rec": r"$W^\mathrm{rec}$"}
TITLES = {
    "factorisation": "a   Check 1: with the total derivative, e-prop is BPTT",
    "recursion": "b   Check 2: e-prop forward in time is autodiff with stopped spikes",
}
COLUMNS = {
    "factorisation": ("BPTT", r"$\Sigma_t\, (dE/dz_t)\, e_t$", "difference"),
    "recursion": ("autodiff", "forward recursion", "difference"),
}


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    with np.load(folder / "arrays.npz") as arrays:
        found = {name.removeprefix(f"{NETWORK}."): array for name, array in arrays.items()}
    with plotting.style():
        figure = Figure(figsize=(9.4, 9.4))
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.15)).flat
        _gradients(above, found, config, metrics["networks"][NETWORK]["relative_errors"])
        _sequence(below, found, config)
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def _gradients(
    figure: SubFigure, found: dict[str, np.ndarray], config: dict[str, Any], errors: dict[str, Any]
) -> None:
    """For each check two gradients that should be the same, and their difference."""
    triples = {}
    for check in TITLES:
        for weights in SYMBOLS:
            first = found[f"comparisons.{check}.reference.{weights}"]
            second = found[f"comparisons.{check}.candidate.{weights}"]
            triples[check, weights] = (first, second, second - first)
    largest = max(np.abs(x).max() for triple in triples.values() for x in triple)

    for part, check in zip(figure.subfigures(1, 2, squeeze=False).flat, TITLES, strict=True):
        relative = ", ".join(f"{x:.0e} ({SYMBOLS[w]})" for w, x in errors[check].items())
        title = f"{TITLES[check]}\n     relative error {relative.replace('-', '−')}"
        part.suptitle(title, x=0.01, ha="left", fontsize=8)
        rounding = max(np.abs(triples[check, weights][2]).max() for weights in SYMBOLS)
        limits = (largest, largest, rounding)
        _check(part, [triples[check, weights] for weights in SYMBOLS], limits, config)
        for axes, name in zip(part.axes, COLUMNS[check], strict=False):
            axes.set_title(name, loc="center")


def _check(
    figure: SubFigure,
    triples: list[tuple[np.ndarray, ...]],
    limits: tuple[float, ...],
    config: dict[str, Any],
) -> None:
    """W_in's gradients above W_rec's."""
    heights = [len(triple[0]) for triple in triples]
    panels = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=heights)
    for row, triple, autapses in zip(panels, triples, (True, False), strict=True):
        for axes, values, limit in zip(row, triple, limits, strict=True):
            plotting.weight_image(axes, values, limit, autapses=autapses)
            axes.axvline(config["n_lif"] + 0.5, color="black", linewidth=0.8)
    panels[0, 0].set_ylabel("from input $i$")
    panels[1, 0].set_ylabel("from neuron $i$")
    for axes in panels[1]:
        axes.set_xlabel("onto neuron $j$")
    gradient = "gradient $dE/dW_{ij}$  (hatched: no autapses)"
    for columns, label in ((slice(0, 2), gradient), (slice(2, 3), "rounding")):
        beside = panels[:, columns].ravel().tolist()
        aspect = 15 * len(beside) / 2
        plotting.colour_bar(beside[0].images[0], beside, label, location="bottom", aspect=aspect)


def _sequence(figure: SubFigure, found: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """The first example: spikes, learning signals and some eligibility traces."""
    dt, n_lif, n = config["dt"], config["n_lif"], config["n_lif"] + config["n_alif"]
    panels = figure.subplots(3, 2, sharex=True, height_ratios=(1, 1, 1.2))
    (inputs, total), (spikes, online), below = panels

    plotting.raster(inputs, found["inputs"][:, 0], dt)
    inputs.set(title="c   Input spikes", ylabel="input $i$")
    plotting.raster(spikes, found["spikes"][:, 0], dt)
    spikes.set(title=f"d   Spikes of the network ({_populations(n_lif, n)})", ylabel="neuron $j$")
    plotting.colour_map(total, found["total_derivative"][:, 0], dt, "$dE/dz_{t,j}$")
    total.set(title="e   Total derivative, learning signal of check 1", ylabel="neuron $j$")
    plotting.colour_map(online, found["learning_signal"][:, 0], dt, "$L_{t,j}$")
    online.set(
        title="f   E-prop's learning signal, known at time $t$ (symmetric feedback)",
        ylabel="neuron $j$",
    )
    for axes in (spikes, total, online):
        axes.axhline(n_lif + 0.5, color="black", linewidth=0.8)

    kinds = {"LIF": range(n_lif), "ALIF": range(n_lif, n)}
    for axes, letter, (kind, neurons) in zip(below, "gh", kinds.items(), strict=True):
        if len(neurons) == 0:
            axes.set_visible(False)
            continue
        post = _traces(axes, found, neurons, dt)
        title = f"{letter}   Eligibility traces onto {kind} neuron {post + 1} (▲ its spikes)"
        axes.set(title=title, xlabel="time (ms)", ylabel="trace $e_{t,ij}$")


def _traces(axes: Axes, found: dict[str, np.ndarray], neurons: range, dt: float) -> int:
    """The largest of the synapses onto the neuron that has the largest; returns the neuron."""
    names = {"w_in": "from input", "w_rec": "from neuron"}
    traces = {weights: found[f"traces.{weights}"][:, 0] for weights in names}  # [time, pre, post]
    height = {weights: np.abs(trace).max(axis=0) for weights, trace in traces.items()}
    post = max(neurons, key=lambda j: max(height[weights][:, j].max() for weights in names))
    shown, labels = [], []
    for weights, name in names.items():
        for pre in np.argsort(-height[weights][:, post])[:2]:
            shown.append(traces[weights][:, pre, post])
            labels.append(f"{name} {pre + 1}")
    plotting.traces(axes, np.stack(shown, axis=1), dt, labels)
    axes.legend(loc="upper left", ncols=2, handlelength=2.5)
    spikes = np.flatnonzero(found["spikes"][:, 0, post]) * dt
    below, above = axes.get_ylim()
    room = above - below
    axes.plot(spikes, np.full(len(spikes), below - 0.05 * room), "^", color="black", markersize=4)
    axes.set_ylim(below - 0.12 * room, above + 0.3 * room)
    return post


def _populations(n_lif: int, n: int) -> str:
    ranges = {"LIF": (1, n_lif), "ALIF": (n_lif + 1, n)}
    return ", ".join(f"{i}–{j} {kind}" for kind, (i, j) in ranges.items() if i <= j)


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.numerical_verification"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
