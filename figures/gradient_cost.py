"""The figure of a run of the benchmark: time and memory per gradient, as multiples of the forward.

python -m figures.gradient_cost results/gradient_cost/w1_w2_w3_seed0
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import finished, plotting

FORWARD = {"color": "white", "edgecolor": "black"}
EPROP = {"color": plotting.COLOURS["symmetric"]}
RECURSION = {"color": "white", "edgecolor": plotting.COLOURS["symmetric"], "hatch": "/////"}
AUTODIFF = {"color": plotting.COLOURS["bptt_stop_z"]}
BPTT = {"color": plotting.COLOURS["bptt"]}


def draw(folder: Path) -> Path:
    """Read a run's results and draw its figure beside them; returns the figure's path."""
    metrics = json.loads((folder / "metrics.json").read_text())
    workloads = metrics["workloads"]
    n_bars = [len(found["programs"]) for found in workloads.values()]
    with plotting.style():
        figure = Figure(figsize=(9, 0.8 + sum(0.22 * n + 0.5 for n in n_bars)))
        rows = figure.subplots(len(workloads), 2, sharey="row", squeeze=False, height_ratios=n_bars)
        for (times, memory), (name, found) in zip(rows, workloads.items(), strict=True):
            _bars(times, found["programs"], "time_ratio", _milliseconds)
            _bars(memory, found["programs"], "memory_ratio", _mebibytes)
            w = found["workload"]
            times.set_title(
                f"{name}   {w['n_in']} inputs, {w['n']} neurons, {w['n_steps']:,} steps, "
                f"batch {w['batch']}"
            )
            if not found["check"]["passed"]:
                memory.set_title("CHECK FAILED: these gradients are not what they should be")
        rows[-1, 0].set_xlabel("time, as a multiple of the plain forward pass (median)")
        rows[-1, 1].set_xlabel("memory of the compiled program, likewise")
        figure.suptitle(
            f"{metrics['processor']}, {metrics['cores_usable']} cores, JAX {metrics['jax']}, "
            f"{metrics['date'][:10]}", x=0.99, ha="right", fontsize=7, color="0.35",
        )  # fmt: skip
        path = folder / "figure.png"
        plotting.save(figure, path)
    return path


def _bars(axes: Axes, programs: dict[str, Any], key: str, absolute) -> None:
    """One bar per program; one that would dwarf the others ends at the edge, with its number."""
    ratios = {label: row[key] for label, row in programs.items()}
    limit = 1.35 * max(x for label, x in ratios.items() if not _is_recursion(label))
    for i, (label, ratio) in enumerate(ratios.items()):
        beyond = ratio > limit
        axes.barh(i, min(ratio, limit), height=0.7, linewidth=0.8, **_look(label))
        text = f"{ratio:.2f}  ({absolute(programs[label])})"
        axes.annotate(
            f"{text} →" if beyond else text,
            (min(ratio, limit), i),
            xytext=(-4 if beyond else 4, 0),
            textcoords="offset points",
            ha="right" if beyond else "left",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1} if beyond else None,
        )
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set_xlim(0, limit)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.set_ylim(len(ratios) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _look(label: str) -> dict[str, Any]:
    if label.startswith("forward"):
        return FORWARD
    if _is_recursion(label):
        return RECURSION
    if label.startswith("BPTT"):
        return BPTT
    return AUTODIFF if "autodiff" in label else EPROP


def _is_recursion(label: str) -> bool:
    return label == "e-prop, window=1"


def _milliseconds(row: dict[str, Any]) -> str:
    return f"{1e3 * row['median_seconds']:.0f} ms"


def _mebibytes(row: dict[str, Any]) -> str:
    return f"{row['memory_bytes'] / 2**20:.3g} MiB"


def main(arguments: Sequence[str]) -> None:
    finished.draw_runs(draw, ["experiments.benchmarks.gradient_cost"], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
