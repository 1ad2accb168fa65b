"""Pattern generation (Bellec et al. 2020, Fig. S7) trained by e-prop, or by BPTT.

A network hears the same second of noise again and again and learns to draw a curve with its
readout. Several seeds are trained one after another: other weights, inputs and targets.

Presets, named first: "default", the settings of the official code, and "lemniscate", a figure
of eight drawn in the plane by 200 adaptive neurons.
A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import tyro
from jaxtyping import Array

import eprop
from eprop.tasks import Lemniscate
from figures.figS7_pattern_generation import draw

from . import patterns
from .patterns import Setting
from .runs import RunFolder, configuration, resumable, without_seeds


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    setting: Annotated[Setting, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Setting)
    """All but the rule."""
    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric", "adaptive"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the weights, the feedback and the pattern: a training for each."""

    results: Path = Path("results/pattern_generation")
    """Folder of the results."""
    run: str = "{learner}"
    """Name of this run's own folder in it."""

    @property
    def learner(self) -> str:
        """The rule in one word."""
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(learner=self.learner)


PRESETS = {
    "default": Config(),
    "lemniscate": Config(
        setting=Setting(
            task=Lemniscate(),
            n_lif=0,
            n_alif=200,
            tau_out=50.0,
            optimizer="adam",
            learning_rate=5e-3,
            rate_target_hz=20.0,
            rate_penalty=150.0,
        ),
        results=Path("results/lemniscate"),
    ),
}


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder = RunFolder(config.folder, config)
    seeds, config = config.seeds, without_seeds(config)
    setting, runs, states = config.setting, [], []
    for seed in seeds:
        where = config.folder / f"seed{seed}"
        state, rows = patterns.train(setting, config.learner, seed, where, config, progress)
        runs.append(rows)
        states.append(state)
    summary = {
        "learner": config.learner,
        "seeds": list(seeds),
        "squared_error": patterns.errors_of(runs),
        "rate_hz": [rows[-1]["rate_hz"] for rows in runs],
        "seconds": [rows[-1]["seconds"] for rows in runs],
    }
    before = patterns.make_network(setting, seeds[0])
    trial = record_trial(before, states[0].network, *patterns.make_data(setting, seeds[0]))
    folder.write_arrays("trial", jax.device_get(trial))
    folder.write_json("summary", summary)
    return summary


@eqx.filter_jit
def record_trial(
    before: eprop.Network, after: eprop.Network, inputs: Array, targets: Array
) -> dict[str, Array]:
    """The pattern as the network draws it before and after training."""
    drawn = {"before": before(inputs), "after": after(inputs)}
    return {
        "inputs": inputs[:, 0],
        "targets": targets[:, 0],
        **{f"outputs_{when}": found.outputs[:, 0] for when, found in drawn.items()},
        **{f"spikes_{when}": found.spikes[:, 0] > 0 for when, found in drawn.items()},
    }


def main(args: Sequence[str] | None = None) -> None:
    config = configuration(PRESETS, args, experiment="pattern_generation", description=__doc__)
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    print(
        f"Half the squared error, summed over the pattern, learning by {config.learner}, "
        f"seeds {', '.join(map(str, config.seeds))}:\n"
        f"{patterns.in_words(summary['squared_error'])}\n"
        f"Training took {sum(summary['seconds']):.0f} s.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
