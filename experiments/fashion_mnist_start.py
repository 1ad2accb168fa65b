"""What a stack of layers begins with on Fashion-MNIST: firing rates and gradients, layer by layer.

Nothing is trained: it takes a minute. Weights are the usual ones or scaled by layer, the readout
sees the last layer or all; gradients are by BPTT and, where all layers are seen, by symmetric
e-prop. Beside them the processor time of a gradient of the training's loss, for each image.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import tyro

import eprop

from . import fashion_mnist as training
from .images import FASHION_MNIST


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at."""

    data: Path = FASHION_MNIST
    """Folder of the four IDX files."""
    depth: Literal[1, 2, 3, 4] = 4
    """Layers."""
    seed: int = 0
    """Of the weights."""
    rounds: int = 5
    """Gradients that are timed; the least time counts."""


class Row(NamedTuple):
    """One network by one rule."""

    start: str
    readout: str
    learner: str
    rates_hz: list[float]
    gradient_norms: list[float]
    ms: float
    """Of processor time for each image."""


def rows_of(config: Config, trained: training.Config = training.PRESETS["default"]) -> list[Row]:
    trained = dataclasses.replace(trained, data=config.data, depth=config.depth)
    images = training.split(trained)
    looked_at = [x[:200] for x in training.as_arrays(images.validation)]
    sample = training.as_arrays(images.train)[0][:200]
    found = []
    for start in ("plain", "scaled"):
        for readout, learners in {"last": ["bptt"], "all": ["bptt", "symmetric"]}.items():
            of_network = dataclasses.replace(trained, start=start, readout=readout)
            network = training.make_network(of_network, config.seed)
            if start == "scaled":
                inputs = training.encode(of_network, sample)
                network = training.scaled(network, inputs, of_network.rate_target_hz)
            batch = (training.encode(of_network, looked_at[0]), looked_at[1])
            rates = training.layer_rates(network, batch[0]).tolist()
            for learner in learners:
                rule = {"bptt": eprop.BPTT(), "symmetric": eprop.EProp()}[learner]
                norms = training.gradient_norms(of_network, network, rule, batch).tolist()
                ms = ms_per_image(of_network, network, rule, batch, config.rounds)
                found.append(Row(start, readout, learner, rates, norms, ms))
    return found


def ms_per_image(
    config: training.Config,
    network: eprop.Network,
    rule: eprop.AbstractRule,
    batch: Any,
    rounds: int,
) -> float:
    """Of a gradient of a batch as in training, in processor time: other work does not count."""
    inputs, labels = batch[0][:, : config.batch_size], batch[1][: config.batch_size]
    loss = training.make_loss(config)
    evaluate = eqx.filter_jit(eprop.value_and_grad(loss, rule, has_aux=True))
    seconds = []
    for _ in range(1 + rounds):  # the first compiles
        begin = time.process_time()
        jax.block_until_ready(evaluate(network, inputs, labels))
        seconds.append(time.process_time() - begin)
    return 1000 * min(seconds[1:]) / len(labels)


def table(rows: Sequence[Row]) -> str:
    """A line of Markdown for each network and rule."""
    depth = len(rows[0].rates_hz)
    lines = [
        f"| weights | readout | gradient by | Hz, layers 1 to {depth} | gradient | ms an image |",
        "|" + "---|" * 6,
    ]
    for row in rows:
        rates = ", ".join(f"{x:.3g}" for x in row.rates_hz)
        norms = ", ".join(f"{x:.2g}" for x in row.gradient_norms)
        lines.append(
            f"| {row.start} | {row.readout} | {row.learner} | {rates} | {norms} | {row.ms:.2f} |"
        )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.fashion_mnist_start", description=__doc__
    )
    try:
        print(table(rows_of(config)))
    except FileNotFoundError as missing:
        raise SystemExit(str(missing)) from None


if __name__ == "__main__":
    main()
