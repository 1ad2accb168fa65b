"""BPTT against e-prop: the same networks, patterns and settings, trained by one rule after another.

BPTT, e-prop by autodiff (BPTT with stopped spikes), and e-prop with symmetric, random and adaptive
feedback learn pattern generation from the same seeds. Every few iterations the rule's gradient is
compared with that of BPTT at the same weights: by the angle between the two. As a control, the
gradient of symmetric e-prop is compared with that of e-prop by autodiff, which is the same.

A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

import eprop
from figures import plotting
from figures.rule_comparison import draw

from . import patterns
from .patterns import LEARNERS, Setting
from .runs import RunFolder, resumable, without_seeds

WEIGHTS = ("w_in", "w_rec")
"""The matrices whose gradients are compared."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how often to compare."""

    setting: Annotated[Setting, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Setting)
    """All but the rule."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the weights, the feedback and the pattern: a training by each rule for each."""
    compare_every: int = 20
    """Iterations between comparisons of gradients."""

    results: Path = Path("results/rule_comparison")
    """Folder of the results."""
    run: str = "default"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if not 1 <= self.compare_every <= self.setting.iterations:
            raise ValueError(
                f"compare_every = {self.compare_every} must be from 1 to iterations = "
                f"{self.setting.iterations}, or no gradients are compared during training"
            )

    @property
    def folder(self) -> Path:
        return self.results / self.run


def angle(a: Float[Array, "..."], b: Float[Array, "..."]) -> Array:
    """Between two arrays as vectors, in degrees; also where it is small, unlike an arccosine."""
    a, b = a.ravel(), b.ravel()
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    return jnp.rad2deg(2 * jnp.arctan2(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b)))


def angles(kind: str, a: eprop.Network, b: eprop.Network) -> dict[str, Array]:
    """Between two gradients in degrees, by weight matrix; but W_out's is the same by all rules."""
    return {f"{kind}.{name}": angle(getattr(a, name), getattr(b, name)) for name in WEIGHTS}


def make_comparison(setting: Setting) -> Callable[[eprop.TrainState, Any], dict[str, Array]]:
    """Angles at the weights of a state, of its own rule's gradient and of the control's."""
    loss = patterns.make_loss(setting)

    @eqx.filter_jit
    def compare(state: eprop.TrainState, data: Any) -> dict[str, Array]:
        def gradient(rule: eprop.AbstractRule) -> eprop.Network:
            gradients, _ = eprop.grad(loss, rule, has_aux=True)(state.network, *data)
            return gradients

        mine, bptt = gradient(state.rule), gradient(eprop.BPTT())
        symmetric, autodiff = gradient(eprop.EProp()), gradient(eprop.BPTT(stop_z_gradients=True))
        return angles("angle", mine, bptt) | angles("control", symmetric, autodiff)

    return compare


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed by each rule, from its last checkpoint if there is one.

    Returns the summary, as in `summary.json`. All else is in folders by rule and seed beside it.
    """
    folder, setting = RunFolder(config.folder, config), config.setting
    seeds, config = config.seeds, without_seeds(config)
    compare = make_comparison(setting)
    learners = {}
    for learner in LEARNERS:
        runs, compared = [], []
        for seed in seeds:
            data = patterns.make_data(setting, seed)
            _, rows = patterns.train(
                setting,
                learner,
                seed,
                config.folder / learner / f"seed{seed}",
                config,
                progress,
                lambda state, iteration, data=data: compare(state, data),
                config.compare_every,
            )
            before = jax.device_get(compare(patterns.init(setting, learner, seed), data))
            later = [row for row in rows if "angle.w_in" in row]
            runs.append(rows)
            compared.append([{name: float(x) for name, x in before.items()}, *later])
        learners[learner] = {
            "squared_error": patterns.errors_of(runs),
            "angle_before": {w: [rows[0][f"angle.{w}"] for rows in compared] for w in WEIGHTS},
            "angle_median": {
                w: [float(np.median([row[f"angle.{w}"] for row in rows[1:]])) for rows in compared]
                for w in WEIGHTS
            },
            "control_largest": max(
                row[f"control.{w}"] for rows in compared for row in rows for w in WEIGHTS
            ),
            "seconds": [rows[-1]["seconds"] for rows in runs],
        }
    summary = {"seeds": list(seeds), "learners": learners}
    folder.write_json("summary", summary)
    return summary


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config,
        args=args,
        prog="python -m experiments.rule_comparison",
        description=__doc__,
        config=(tyro.conf.AvoidSubcommands,),
    )
    with resumable():
        summary = run(config)
    print("Half the squared error, summed over the pattern, and the angle to BPTT's gradient:")
    for learner, found in summary["learners"].items():
        print(f"{plotting.NAMES[learner]}\n{patterns.in_words(found['squared_error'])}")
        for w in WEIGHTS:
            before, median = (np.median(found[f"angle_{x}"][w]) for x in ("before", "median"))
            print(f"  {w:>5}: {before:.0f}° before training, {median:.0f}° during (medians)")
    control = max(found["control_largest"] for found in summary["learners"].values())
    print(f"Control: symmetric e-prop is e-prop by autodiff to {control:.1e}°")
    print(f"Figure: {draw(config.folder)}")


if __name__ == "__main__":
    main()
