"""The figure of a decision learned by reward: two trials, learning, and the test.

python -m figures.delayed_reward                              # all finished runs
python -m figures.delayed_reward results/delayed_reward/*/    # these runs
python -m figures.delayed_reward results/evidence_by_reward/*/

Trials are of the first seed, by random feedback if it is among the runs.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter

from figures import finished, plotting
from figures.seed_runs import Run, comparable, read

CONTROL = "lif_only"
NAMES = plotting.NAMES | {CONTROL: "LIF neurons only"}
ORDER = ("random", "symmetric", "bptt", CONTROL)
MAY_DIFFER = ("rule", "feedback", "seeds", "results", "run")
"""What sets runs apart that are drawn together."""
OF_CONTROL = ("n_lif", "n_alif")
"""What sets the control apart from them, too."""
SIDES = ("left", "right")
REQUIRED = 0.95
"""The accuracy that is asked for."""


def name_of(run: Run) -> str:
    """The rule, or that there are no adaptive neurons."""
    return run.learner if run.config["n_alif"] else CONTROL


def draw(folders: Sequence[Path], path: Path) -> Path:
    """Read the results of runs and draw them; returns the figure's path."""
    alike = functools.partial(comparable, order=ORDER, name=name_of)
    runs = alike([read(folder) for folder in folders], may_differ=MAY_DIFFER + OF_CONTROL)
    for same in (True, False):
        alike([x for x in runs if (name_of(x) == CONTROL) is same], may_differ=MAY_DIFFER)
    with plotting.style():
        figure = Figure(figsize=(8, 8.5))
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(5.5, 3)).flat
        _trials(above, runs[0])
        learning, test = below.subplots(1, 2, width_ratios=(2, 1))
        _learning(learning, runs)
        _test(test, runs)
        plotting.save(figure, path)
    return path


def _trials(figure: SubFigure, run: Run) -> None:
    """A trial with the (most) cues on either side, in a column each."""
    dt, trial = run.config["task"]["dt"], run.trial
    what = "The cue is" if run.config["task"]["n_cues"] == 1 else "More cues are"
    panels = figure.subplots(4, 2, sharex=True, sharey="row", height_ratios=(1.6, 2, 1, 1.2))
    for k, (inputs, spikes, thresholds, outputs) in enumerate(panels.T):
        plotting.raster(inputs, trial["inputs"][:, k], dt)
        inputs.set_title(f"{'ab'[k]}   {what} on the {SIDES[int(trial['labels'][k])]}")
        plotting.raster(spikes, trial["spikes"][:, k], dt)
        adapting = trial["thresholds"][:, k]
        if adapting.shape[-1]:
            busiest = np.argsort(-np.ptp(adapting, axis=0))[:3]
            plotting.traces(thresholds, adapting[:, busiest], dt)
        readouts = trial["outputs"][:, k]
        plotting.traces(outputs, readouts, dt, ("left", "right", "value") if k == 0 else ())
        if k == 0:  # where the readouts are still
            outputs.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 0.97), handlelength=2)
        outputs.set_xlabel("time (ms)")
        for axes in (inputs, spikes, thresholds, outputs):
            recall = np.flatnonzero(trial["mask"]) * dt
            axes.axvspan(recall[0], recall[-1], color="0.92", zorder=0)
    labels = ("input", f"neuron\n({NAMES[name_of(run)]})", "threshold", "readout $y$")
    for axes, label in zip(panels[:, 0], labels, strict=True):
        axes.set_ylabel(label)


def _learning(axes: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        iterations, accuracies = run.curve("validation_accuracy")
        look = {"label": NAMES[name_of(run)]}
        if name_of(run) == CONTROL:
            look |= {"linestyle": "solid", "linewidth": 0.7}
        trials = iterations * run.config["batch_size"]
        plotting.learning_curve(axes, trials, accuracies, run.learner, **look)
    seeds = plotting.mean_of(min(len(run.rows) for run in runs))
    axes.set(
        title=f"c   Learning: {seeds}",
        xlabel="trials, each with its reward",
        ylabel="greedy answers right",
        xlim=(0, 1.1 * axes.dataLim.xmax),  # room for the threshold's name
        ylim=(0.4, 1.02),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    plotting.threshold(axes, REQUIRED, f"{REQUIRED:.0%}")
    axes.legend(loc="lower right", handlelength=4, bbox_to_anchor=(1, 0.3))


def _test(axes: Axes, runs: Sequence[Run]) -> None:
    rows = {
        NAMES[name_of(run)]: (run.summary["test_accuracy"], plotting.COLOURS[run.learner])
        for run in runs
    }
    plotting.seeds(axes, rows)
    axes.axvline(REQUIRED, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set(
        title="d   Test: seeds, and mean (bar)",
        xlabel=f"right in {runs[0].summary['test_trials']} trials never used",
        xlim=(0.4, 1.02),
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def main(arguments: Sequence[str]) -> None:
    folders = finished.folders_of("experiments.delayed_reward", arguments)
    print(draw(folders, folders[0].parent / "figure.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
