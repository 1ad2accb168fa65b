"""Fig. 2 of Bellec et al. 2020: a sentence and what a network makes of it, and errors by rule.

python -m figures.fig2_phonemes             # of all finished runs of experiments.phonemes
python -m figures.fig2_phonemes FOLDER ...  # of these runs

The sentence is of the first run: framewise, of spiking neurons, by random feedback if there is one.
Runs with the presets' own names are compared; where there are baselines, they are beside them.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter

from figures import finished, plotting
from figures.seed_runs import MAY_DIFFER, Run, comparable, read

TASKS = {"framewise": "frames", "ctc": "phonemes"}
CELLS = {"lsnn": "LSNN", "lstm": "LSTM"}
ORDER = ("bptt", "symmetric", "random", "adaptive", "frozen")
NAMES = plotting.NAMES | {"frozen": "readout only"}
COLOURS = plotting.COLOURS | {"frozen": "0.5"}
ALIF, TRUTH = "#aa3377", "#d55e00"
N_MEL = 40
"""Log mel energies of a frame, behind its log energy."""
SHOWN = 40
"""Neurons of a kind whose spikes are drawn."""
FRAME_MS = 10.0


def draw(folders: Sequence[Path], path: Path, baselines: Sequence[Path] = ()) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    runs = sorted(map(read, folders), key=_place)
    with plotting.style():
        figure = Figure(figsize=(9, 13), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(4.2, 1), squeeze=False).flat
        _sentence(above, runs[0])
        tasks = [task for task in TASKS if any(run.config["task"] == task for run in runs)]
        panels = below.subplots(1, len(tasks), squeeze=False)[0]
        for letter, axes, task in zip("bc", panels, tasks, strict=False):
            _errors(axes, letter, [run for run in runs if run.config["task"] == task], baselines)
        plotting.save(figure, path)
    return path


def _place(run: Run) -> tuple[int, int, bool, int]:
    """The order of runs, the one whose sentence is shown first."""
    return (
        list(TASKS).index(run.config["task"]),
        list(CELLS).index(run.config["cell"]),
        run.learner != "random",
        ORDER.index(run.learner),
    )


def _sentence(figure: SubFigure, run: Run) -> None:
    """In panels that share their time axis."""
    heights = {_spectrogram: 1.2, _activity: 2.2, _thresholds: 0.8, _signals: 1.2}
    heights |= {_probabilities: 2.2, _transcripts: 0.5}
    if "thresholds" not in run.trial:
        del heights[_thresholds]
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=list(heights.values()))
    for axes, panel in zip(panels, heights, strict=True):
        panel(axes, run)
    name = f"{CELLS[run.config['cell']]}, {NAMES[run.learner]}"
    n = len(run.trial["labels"])
    panels[0].set_title(f"a   A sentence of the development set after training ({name})")
    panels[-1].set_xlabel("time (s)")
    panels[-1].set_xlim(0, n * _frame_s(run))


def _frame_s(run: Run) -> float:
    """From one frame that the network sees to the next in s."""
    return FRAME_MS / 1000 * run.config.get("stack", 1)


def _frames(run: Run) -> tuple[float, float]:
    """From the first frame's beginning to the last one's end in s."""
    return 0.0, len(run.trial["labels"]) * _frame_s(run)


def _spectrogram(axes: Axes, run: Run) -> None:
    width = run.trial["features"].shape[1]
    features = run.trial["features"].reshape(-1, width // run.config.get("stack", 1))
    is_spectrum = run.config["features"] == "filterbank"
    shown = features[:, 1 : 1 + N_MEL] if is_spectrum else features[:, :13]
    axes.imshow(
        shown.T, cmap="gray_r", origin="lower", aspect="auto", rasterized=True,
        extent=(*_frames(run), 0.5, shown.shape[1] + 0.5), vmin=-2.5, vmax=2.5,
    )  # fmt: skip
    axes.set_ylabel("mel band" if is_spectrum else "cepstral\ncoefficient")


def _activity(axes: Axes, run: Run) -> None:
    activity, config = run.trial["activity"], run.config
    step = _frame_s(run) / config["repeats"]
    if config["cell"] == "lstm":
        plotting.colour_map(axes, activity[:, :SHOWN], step, "$h$", limit=1.0)
        axes.set_ylabel(f"{SHOWN} units,\nforward in time")
        return
    first, kinds = 1, {"LIF": (0, config["n_lif"]), "ALIF": (config["n_lif"], config["n_alif"])}
    ticks = []
    for kind, (begin, n) in kinds.items():
        shown = activity[:, begin : begin + min(n, SHOWN)] > 0
        if not shown.size:
            continue
        colour = ALIF if kind == "ALIF" else "black"
        plotting.raster(axes, shown, step, first=first, color=colour)
        rate = activity[:, begin : begin + n].mean()
        label = f"{shown.shape[1]} {kind}\na spike in\n{rate:.1%} of steps"
        ticks.append((first + shown.shape[1] / 2, label))
        first += shown.shape[1]
    axes.set_ylim(first - 0.5, 0.5)
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set_ylabel("neurons, forward in time")


def _thresholds(axes: Axes, run: Run) -> None:
    thresholds = run.trial["thresholds"]
    time = np.arange(len(thresholds)) * _frame_s(run) / run.config["repeats"]
    for line, neuron, dash in zip(
        thresholds.T, run.trial["neurons"], ("-", "--", ":"), strict=False
    ):
        axes.plot(time, line, dash, color=ALIF, linewidth=0.9, label=f"neuron {neuron + 1}")
    plotting.threshold(axes, run.config["v_th"], "$v_{th}$")
    axes.set(ylabel="threshold\n$v_{th} + βa$", ylim=(0, None))
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2)
    legend.set_in_layout(False)  # in the margin that the learning signal's scale makes


def _signals(axes: Axes, run: Run) -> None:
    signals, repeats = run.trial["learning_signal"], run.config["repeats"]
    some = signals[:, :: max(1, signals.shape[1] // SHOWN)]
    of_steps = np.repeat(some, repeats, axis=0)
    plotting.colour_map(
        axes, of_steps, _frame_s(run) / repeats, "learning\nsignal $L_{t,j}$",
        limit=float(np.quantile(np.abs(some), 0.99)),
    )  # fmt: skip
    axes.set(ylabel=f"{some.shape[1]} of {signals.shape[1]}\nneurons", yticks=())


def _probabilities(axes: Axes, run: Run) -> None:
    """Of the phonemes of the sentence, in the order in which they are first heard."""
    labels, names = run.trial["labels"], run.summary["phonemes"]
    heard = labels[np.sort(np.unique(labels, return_index=True)[1])]
    axes.imshow(
        run.trial["probabilities"][:, heard].T, cmap="gray_r", aspect="auto", rasterized=True,
        extent=(*_frames(run), len(heard) - 0.5, -0.5), vmin=0, vmax=1, interpolation="nearest",
    )  # fmt: skip
    for start, end, phoneme in _runs(labels):
        row = int(np.flatnonzero(heard == phoneme)[0])
        times = [start * _frame_s(run), end * _frame_s(run)]
        axes.plot(times, [row + 0.5] * 2, color=TRUTH, linewidth=1.2, solid_capstyle="butt")
    axes.set_yticks(range(len(heard)), [names[x] for x in heard], fontsize=6)
    axes.set_ylabel("probability\n(underlined: the truth)")


def _transcripts(axes: Axes, run: Run) -> None:
    """The truth, and what is most likely at each frame."""
    names = [*run.summary["phonemes"], ""]  # of CTC's blank none
    found = run.trial["probabilities"].argmax(-1)
    for row, (labels, colour) in enumerate(((run.trial["labels"], TRUTH), (found, "black"))):
        for start, end, phoneme in _runs(labels):
            if not names[phoneme]:
                continue
            times = np.array([start + 0.2, end - 0.2]) * _frame_s(run)
            axes.plot(times, [row + 0.35] * 2, color=colour, linewidth=1.5, solid_capstyle="butt")
            if end - start >= 3 or run.config["task"] == "ctc":
                axes.text(
                    times.mean(), row, names[phoneme], ha="center", va="center", fontsize=6,
                    color=colour,
                )  # fmt: skip
    axes.set(ylim=(1.6, -0.5), yticks=(0, 1), yticklabels=("true", "output"))


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """First frame, the frame behind the last, and the label of each run of one label."""
    starts = np.flatnonzero(np.insert(labels[1:] != labels[:-1], 0, True))
    return [
        (int(start), int(end), int(labels[start]))
        for start, end in zip(starts, [*starts[1:], len(labels)], strict=True)
    ]


def _errors(axes: Axes, letter: str, runs: Sequence[Run], baselines: Sequence[Path]) -> None:
    """A row for each kind of network and each rule, of all of their seeds."""
    task, rows = runs[0].config["task"], {}
    for cell, name in CELLS.items():
        of_cell = [run for run in runs if run.config["cell"] == cell]
        for run in comparable(of_cell, order=ORDER, may_differ=MAY_DIFFER):
            rows[f"{name}, {NAMES[run.learner]}"] = (
                run.summary["test_error"], COLOURS[run.learner],
            )  # fmt: skip
    for folder in baselines if task == "framewise" else ():
        errors = json.loads((folder / "summary.json").read_text())["test_error"]
        rows |= {name.replace("_", " "): ([error], "0.5") for name, error in errors.items()}
    plotting.seeds(axes, rows)
    largest = max(max(errors) for errors, _ in rows.values())
    axes.set_xlim(0, 1.05 * largest or 1.0)  # with room for the last dot
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"{TASKS[task]} of test sentences that are wrong")
    title = {"framewise": "Framewise", "ctc": "CTC"}[task]
    axes.set_title(f"{letter}   {title}: a dot for each seed, a bar at their mean")


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.phonemes", arguments)
    baselines = finished.runs_of("experiments.phoneme_baselines")
    print(draw(folders, folders[0].parent / "figure.png", baselines))


if __name__ == "__main__":
    main(sys.argv[1:])
