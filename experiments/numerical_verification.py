"""Does the code compute what the paper proves? Two checks of e-prop's gradients, to rounding.

1. Factorisation: with the total derivative dE/dz_t as learning signal, the sum over time of
   learning signal times eligibility trace is the gradient of BPTT (the paper's equation 1).
2. Recursion: e-prop as the paper writes it, traces carried forward one step at a time, is
   reverse-mode differentiation with the recurrent spikes' gradient stopped.

Both on a few random neurons with a refractory period: all of them LIF, and then half of them ALIF.
As a control, e-prop must differ from BPTT: where it does not, the checks could not fail.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import eprop
from eprop import losses
from eprop.tasks.pattern_generation import check_rate

from . import plotting
from .files import write_json

BOUNDS = {"float64": 1e-12, "float32": 1e-4}
"""The largest relative error that is still rounding."""
CONTROL = 1e-2
"""By how much e-prop must differ from BPTT at least for the checks to mean anything."""

WEIGHTS = ("w_in", "w_rec")
CHECKS = {
    "factorisation": ("BPTT", "factorisation"),
    "recursion": ("autodiff e-prop", "recursion"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the official verification script's (Bellec et al. 2020)."""

    n_in: int = 3
    """Input neurons."""
    n_lif: int = 4
    """LIF neurons, beside the ALIF neurons."""
    n_alif: int = 4
    """ALIF neurons."""
    n_out: int = 1
    """Readouts."""
    n_steps: int = 50
    """Length of the sequence in steps of dt."""
    batch: int = 1
    """Sequences; gradients are those of the mean over them, the figure shows the first."""
    dt: float = 1.0
    """Time step in ms."""
    rate_hz: float = 100.0
    """Firing rate of the input neurons in Hz."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 500.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 20.0
    """Time constant of the readout in ms."""
    v_th: float = 0.62
    """Threshold, in units of the membrane potential."""
    beta: float = 0.07
    """By how much a spike raises an ALIF neuron's threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    n_refractory: int = 2
    """Length of the refractory period in steps, the spike's included."""
    seed: int = 0
    """Of the weights, the inputs and the noise that the readout is compared with."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point numbers to compute with."""
    results: Path = Path("results/numerical_verification")
    """Folder of the results."""
    run: str = "{precision}_seed{seed}"
    """Name of the run's own folder in it."""


class Comparison(NamedTuple):
    """Gradients of the weights, each `[n_pre, n_rec]`, found in two ways."""

    reference: dict[str, np.ndarray]
    candidate: dict[str, np.ndarray]

    def errors(self) -> dict[str, float]:
        """Largest difference as a fraction of the largest entry; not a number if all are zero."""
        return {
            name: _relative(self.candidate[name] - reference, reference)
            for name, reference in self.reference.items()
        }


class Network(NamedTuple):
    """What was found for one network. Sequences are `[time, batch, ...]`."""

    name: str
    inputs: np.ndarray
    spikes: np.ndarray
    total_derivative: np.ndarray
    learning_signal: np.ndarray
    traces: dict[str, np.ndarray]
    comparisons: dict[str, Comparison]
    """The two checks, and "control"."""


def run(config: Config) -> list[Network]:
    """Both checks for both networks; a pure function of the configuration."""
    with jax.enable_x64(config.precision == "float64"):
        n = config.n_lif + config.n_alif
        lif = eprop.LIF(
            n,
            tau_v=config.tau_v,
            v_th=config.v_th,
            n_refractory=config.n_refractory,
            dt=config.dt,
            surrogate=eprop.Triangular(config.gamma),
        )
        alif = eprop.ALIF(
            n,
            tau_v=config.tau_v,
            v_th=config.v_th,
            n_refractory=config.n_refractory,
            dt=config.dt,
            surrogate=eprop.Triangular(config.gamma),
            tau_a=config.tau_a,
            beta=[0.0] * config.n_lif + [config.beta] * config.n_alif,
        )
        return [
            _examine(f"{n} LIF", lif, config),
            _examine(f"{config.n_lif} LIF + {config.n_alif} ALIF", alif, config),
        ]


def _examine(name: str, cell: eprop.AbstractCell, config: Config) -> Network:
    network, inputs, targets = _draw(cell, config)

    def loss(trajectory, targets):
        return losses.mean_squared_error(trajectory.outputs, targets, n_steps=config.n_steps)

    def gradients(rule):
        found = eprop.grad(loss, rule)(network, inputs, targets)
        return {name: np.asarray(getattr(found, name)) for name in WEIGHTS}

    total = np.asarray(eprop.total_derivative(network, inputs, targets, loss))
    traces = {
        name: np.asarray(traces.trace)
        for name, traces in eprop.eligibility_traces(network, inputs)._asdict().items()
    }
    factorised = {name: np.einsum("tbj,tbij->ij", total, traces[name]) for name in WEIGHTS}
    bptt = gradients(eprop.BPTT())
    recursion = gradients(eprop.EProp(window=1))
    stopped = gradients(eprop.BPTT(stop_z_gradients=True))
    signals = eprop.learning_signals(network, inputs, targets, loss)
    return Network(
        name,
        np.asarray(inputs),
        np.asarray(network(inputs).spikes > 0),
        total,
        np.asarray(signals.readout),
        traces,
        {
            "factorisation": Comparison(bptt, factorised),
            "recursion": Comparison(stopped, recursion),
            "control": Comparison(bptt, recursion),
        },
    )


def _draw(cell: eprop.AbstractCell, config: Config) -> tuple[eprop.Network, jax.Array, jax.Array]:
    """Network, inputs and targets; the same numbers, rounded, in both precisions."""
    check_rate("rate_hz", config.rate_hz, config.dt)
    rng, dtype = np.random.default_rng(config.seed), jnp.dtype(config.precision)
    shape = (config.n_steps, config.batch)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    network = eprop.Network(
        cell,
        n_in=config.n_in,
        n_out=config.n_out,
        tau_out=config.tau_out,
        scale_readout=True,
        w_in=normal(config.n_in, cell.n) / config.n_in**0.5,
        w_rec=normal(cell.n, cell.n) / cell.n**0.5,
        w_out=normal(cell.n, config.n_out),
    )
    inputs = rng.random((*shape, config.n_in)) < config.rate_hz * config.dt / 1000
    return network, jnp.asarray(inputs), normal(*shape, config.n_out)


def _relative(difference: np.ndarray, reference: np.ndarray) -> float:
    largest = np.abs(reference).max()
    return float(np.abs(difference).max() / largest) if largest > 0 else float("nan")
