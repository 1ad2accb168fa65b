"""How fast does a wide, sparse network learn online, with an update at each step?

A recurrent layer of ALIF neurons with a fixed number of synapses each, on spikes at 20 Hz, learns
by e-prop with random feedback. Its memory goes with the synapses. A small one is first held
against a dense network with zeros where there is no synapse, gradient against gradient.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import eprop

from ..runs import RunFolder
from . import machine, sparse_layer

TOLERANCE = 1e-10
"""By how much gradients may differ from the dense network's in float64, of the largest entry."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    n: int = 100_000
    """Neurons."""
    fan_in: int = 100
    """Recurrent synapses of each."""
    n_compared: int = 500
    """Neurons of the network that is held against a dense one."""
    n_steps: int = 1000
    """Steps of 1 ms, an update after each."""
    chunk: int = 100
    """Steps that are given to the learner at a time. The first ones are not timed."""
    results: Path = Path("results/wide_online")
    """Folder of the results."""
    run: str = "n{n}_fan_in{fan_in}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if not 0 < self.chunk < self.n_steps or self.n_steps % self.chunk:
            raise ValueError(
                f"chunk = {self.chunk} must be positive, divide n_steps = {self.n_steps} and be "
                f"less, for the first chunk is not timed"
            )

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(n=self.n, fan_in=self.fan_in)


def loss(trajectory, targets):
    return jnp.sum((trajectory.outputs - targets) ** 2)


def random_feedback(network: eprop.Network) -> eprop.EProp:
    b = jax.random.normal(jax.random.key(9), (network.n, network.n_out), network.dtype)
    return eprop.EProp(eprop.RandomFeedback(b))


def difference_from_dense(config: Config) -> float:
    """The largest difference of a gradient's entries, over the largest of them; in float64."""
    of_small = sparse_layer.Config(n=config.n_compared, fan_in=config.fan_in, n_steps=100)
    network, inputs, targets = sparse_layer.make(of_small)
    (layer,) = network.layers
    recurrent: Any = layer.recurrent
    w_in, w_rec = (_as_matrix(x) for x in (layer.below, recurrent))
    dense = eprop.Network(
        layer.neurons.cells[0],
        n_in=network.n_in,
        n_out=network.n_out,
        w_in=w_in,
        w_rec=w_rec,
        w_out=network.w_out,
    )
    gradient = jax.jit(eprop.grad(loss, random_feedback(network)))
    found = np.asarray(gradient(network, inputs, targets).layers[0].recurrent.weights)
    of_dense = np.asarray(gradient(dense, inputs, targets).w_rec)
    expected = of_dense[np.asarray(recurrent.indices), np.arange(network.n)[:, None]]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _as_matrix(synapses: Any) -> np.ndarray:
    matrix = np.zeros((synapses.n_pre, synapses.n_post))
    matrix[np.asarray(synapses.indices), np.arange(synapses.n_post)[:, None]] = synapses.weights
    return matrix


def measure(config: Config) -> dict[str, Any]:
    """Steps and synaptic events a second, and bytes."""
    network, inputs, targets = sparse_layer.make(
        sparse_layer.Config(n=config.n, fan_in=config.fan_in, n_steps=config.n_steps)
    )
    learner = eprop.OnlineLearner(
        network, loss, random_feedback(network), optax.sgd(1e-6), update_every=1
    )
    state, spikes, seconds = learner.init(batch=1), 0.0, []
    for start in range(0, config.n_steps, config.chunk):
        part = slice(start, start + config.chunk)
        begun = time.perf_counter()
        state, info = learner.run(state, (inputs[part], targets[part]))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - begun)
        rate = float(info.rates.mean())  # Hz
        spikes += rate / 1000 * config.n * config.chunk
        print(f"  {start + config.chunk} steps, {rate:.1f} Hz", flush=True)
    without_first = sum(seconds[1:])  # which compiles
    timed = config.n_steps - config.chunk
    change = _weights(state.network) - _weights(network)
    return {
        "steps_per_second": timed / without_first,
        "events_per_second": spikes / config.n_steps * config.fan_in * timed / without_first,
        "firing_rate_hz": 1000 * spikes / config.n_steps / config.n,
        "synapses": config.n * (config.fan_in + min(10, network.n_in)),
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(eqx.filter(state, eqx.is_array))),
        "largest_change": float(jnp.abs(change).max()),
    }


def _weights(network: eprop.Network) -> jax.Array:
    return network.layers[0].recurrent.weights  # pyright: ignore[reportOptionalMemberAccess]


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if nothing was learned or a gradient differs."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.wide_online", description=__doc__
    )
    folder, metrics = RunFolder(config.folder, config), machine()
    with jax.enable_x64(True):
        difference = difference_from_dense(config)
    print(f"{config.n_compared} neurons: gradient off a dense network's by {difference:.0e}")
    print(f"{config.n} neurons, fan-in {config.fan_in}, an update at each step:")
    with jax.enable_x64(False):
        found = measure(config) | {"difference": difference}
    folder.write_json("metrics", metrics | found)
    print(
        f"  {found['steps_per_second']:.1f} steps/s, {found['events_per_second']:.2g} synaptic "
        f"events/s\n  {found['state_bytes'] / 2**20:.0f} MiB of state, "
        f"{found['state_bytes'] / found['synapses']:.1f} bytes for each of "
        f"{found['synapses']:.3g} synapses"
    )
    learned = found["firing_rate_hz"] > 0.1 and found["largest_change"] > 0
    return 0 if learned and difference < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
