"""The figure of spoken digits: one as spikes, what the network makes of it, and learning.

python -m figures.heidelberg_digits                                       # all finished runs
python -m figures.heidelberg_digits results/heidelberg_digits/made_up_random/   # these runs

The recording is of the first seed, by random feedback if it is among the runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures import finished, plotting
from figures.digits import learning, readouts, tested
from figures.seed_runs import Run, comparable, read

ORDER = ("random", "symmetric", "bptt", "frozen")


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    runs = comparable([read(folder) for folder in folders], order=ORDER)
    with plotting.style():
        figure = Figure(figsize=(8, 5.6))
        of_one, of_all = figure.subfigures(1, 2, squeeze=False).flat
        _recording(of_one.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1.6)), runs[0])
        curves, dots = of_all.subplots(2, 1, height_ratios=(1.5, 1))
        learning(curves, runs)
        curves.legend(loc="center right", handlelength=3.5)  # off the frozen network's line
        tested(dots, runs)
        for n_parts, accuracy in runs[0].summary["linear_accuracy"].items():
            where = "" if n_parts == "1" else " in tenths of a recording"
            plotting.threshold(dots, accuracy, f"linear, of spike counts{where}")
        for axes in (curves, dots):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        plotting.save(figure, path)
    return path


def _recording(panels: Sequence[Axes], run: Run) -> None:
    dt, trial = run.config["dt"], run.trial
    inputs, spikes, outputs = panels
    rate = 1000 * trial["spikes"].mean() / dt
    plotting.raster(inputs, trial["inputs"], dt)
    inputs.set_title("A recording")
    inputs.set_ylabel("channel")
    plotting.raster(spikes, trial["spikes"], dt)
    spikes.set_ylabel(f"neuron\n({plotting.NAMES[run.learner]}, {rate:.0f} Hz)")
    readouts(outputs, run)


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.heidelberg_digits", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
