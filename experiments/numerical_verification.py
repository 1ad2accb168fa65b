"""Does the code compute what the paper proves? Two checks of e-prop's gradients, to rounding.

1. Factorisation: with the total derivative dE/dz_t as learning signal, the sum over time of
   learning signal times eligibility trace is the gradient of BPTT (the paper's equation 1).
2. Recursion: e-prop as the paper writes it, traces carried forward one step at a time, is
   reverse-mode differentiation with the recurrent spikes' gradient stopped.

Both for random networks with a refractory period, of LIF neurons and of LIF and ALIF neurons.

Control: e-prop must differ from BPTT; if it did not, the checks could not fail.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import eprop
from eprop import losses
from eprop.tasks.pattern_generation import check_rate
from figures.numerical_verification import draw

from .runs import RunFolder

BOUNDS = {"float64": 1e-12, "float32": 1e-5}
"""The largest relative error that is still rounding."""
CONTROL = 1e-2
"""The smallest relative difference of e-prop from BPTT that lets the checks mean anything."""
CHECKS = {
    "factorisation": "1. factorisation with dE/dz, against BPTT",
    "recursion": "2. recursion, against autodiff e-prop",
    "control": "control: e-prop, against BPTT",
}
WEIGHTS = ("w_in", "w_rec")


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
    seed: int = 2
    """Of the weights, the inputs and the noise that the readout is compared with."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point numbers to compute with."""
    results: Path = Path("results/numerical_verification")
    """Folder of the results."""
    run: str = "{precision}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(precision=self.precision, seed=self.seed)


Numbers = np.ndarray | jax.Array


class Comparison(NamedTuple):
    """Gradients found in two ways, `[n_pre, n_rec]` by the name of the weights."""

    reference: Mapping[str, Numbers]
    candidate: Mapping[str, Numbers]

    def errors(self) -> dict[str, float]:
        """Largest difference as a fraction of the largest entry; NaN where all entries are zero."""
        errors = {}
        for name, reference in self.reference.items():
            largest, difference = np.abs(reference).max(), self.candidate[name] - reference
            errors[name] = float(np.abs(difference).max() / largest) if largest else np.nan
        return errors


class Findings(NamedTuple):
    """About one network; sequences are `[time, batch, ...]`."""

    inputs: Numbers
    spikes: Numbers
    total_derivative: Numbers
    """dE/dz_t."""
    learning_signal: Numbers
    """E-prop's, with symmetric feedback."""
    traces: Mapping[str, Numbers]
    """Eligibility traces by the name of the weights."""
    comparisons: dict[str, Comparison]
    """By the names in `CHECKS`."""


def run(config: Config) -> dict[str, Findings]:
    """Examine a network of LIF neurons, and one of LIF and ALIF neurons."""
    n = config.n_lif + config.n_alif
    beta = np.repeat([0.0, config.beta], [config.n_lif, config.n_alif])
    common = {
        "tau_v": config.tau_v,
        "v_th": config.v_th,
        "n_refractory": config.n_refractory,
        "dt": config.dt,
        "surrogate": eprop.Triangular(config.gamma),
    }
    cells = {
        "LIF": eprop.LIF(n, **common),
        "LIF and ALIF": eprop.ALIF(n, tau_a=config.tau_a, beta=beta, **common),
    }
    with jax.enable_x64(config.precision == "float64"):
        return {name: examine(cell, config) for name, cell in cells.items()}


def examine(cell: eprop.AbstractCell, config: Config) -> Findings:
    """Both checks, and the control, for a network of these neurons."""
    network, inputs, targets = _draw(cell, config)

    def loss(trajectory, targets):
        return losses.mean_squared_error(trajectory.outputs, targets, n_steps=config.n_steps)

    @jax.jit
    def measure(network, inputs, targets):
        def gradients(rule):
            found = eprop.grad(loss, rule)(network, inputs, targets)
            return {name: getattr(found, name) for name in WEIGHTS}

        total = eprop.total_derivative(network, inputs, targets, loss)
        seen = eprop.eligibility_traces(network, inputs)._asdict()
        traces = {name: seen[name].trace for name in WEIGHTS}
        factorised = {name: jnp.einsum("tbj,tbij->ij", total, traces[name]) for name in WEIGHTS}
        bptt = gradients(eprop.BPTT())
        recursion = gradients(eprop.EProp(window=1))
        return Findings(
            inputs=inputs,
            spikes=network(inputs).spikes > 0,
            total_derivative=total,
            learning_signal=eprop.learning_signals(network, inputs, targets, loss).readout,
            traces=traces,
            comparisons={
                "factorisation": Comparison(bptt, factorised),
                "recursion": Comparison(gradients(eprop.BPTT(stop_z_gradients=True)), recursion),
                "control": Comparison(bptt, recursion),
            },
        )

    return jax.tree.map(np.asarray, measure(network, inputs, targets))


def _draw(cell: eprop.AbstractCell, config: Config) -> tuple[eprop.Network, jax.Array, jax.Array]:
    """Network, inputs and targets: the same numbers in either precision, but for rounding."""
    check_rate("rate_hz", config.rate_hz, config.dt)
    rng = np.random.default_rng(config.seed)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.dtype(config.precision))

    network = eprop.Network(
        cell,
        n_in=config.n_in,
        n_out=config.n_out,
        tau_out=config.tau_out,
        scale_readout=True,
        w_in=normal(config.n_in, cell.n, scale=config.n_in**-0.5),
        w_rec=normal(cell.n, cell.n, scale=cell.n**-0.5),
        w_out=normal(cell.n, config.n_out),
    )
    p = config.rate_hz * config.dt / 1000
    inputs = rng.random((config.n_steps, config.batch, config.n_in)) < p
    return network, jnp.asarray(inputs), normal(config.n_steps, config.batch, config.n_out)


def summary(config: Config, results: dict[str, Findings]) -> dict[str, Any]:
    """For each network its spikes, the relative errors, and which of the checks it passed."""
    bound, networks = BOUNDS[config.precision], {}
    for name, found in results.items():
        errors = {check: pair.errors() for check, pair in found.comparisons.items()}
        # NaN, of a gradient that is zero, is neither below nor above.
        passed = {check: all(x <= bound for x in e.values()) for check, e in errors.items()}
        passed["control"] = all(x >= CONTROL for x in errors["control"].values())
        networks[name] = {
            "n_spikes": int(found.spikes.sum()),
            "relative_errors": errors,
            "passed": passed,
        }
    return {"bound": bound, "control": CONTROL, "networks": networks}


def table(numbers: dict[str, Any]) -> str:
    """The summary, to be read."""
    lines = [f"{'largest difference / largest entry':44}{'w_in':>9}{'w_rec':>9}"]
    for neurons, network in numbers["networks"].items():
        lines.append(f"{neurons} neurons, {network['n_spikes']} spikes")
        for check, text in CHECKS.items():
            errors = network["relative_errors"][check]
            columns = "".join(f"{errors[name]:9.1e}" for name in WEIGHTS)
            sign, limit = ("<", numbers["bound"])
            if check == "control":
                sign, limit = ">", numbers["control"]
            verdict = "" if network["passed"][check] else "  FAILED"
            lines.append(f"  {text:42}{columns}   {sign} {limit:.0e}{verdict}")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Runs, prints, writes and draws; returns 1 if a check failed, else 0."""
    config = tyro.cli(
        Config,
        args=args,
        prog="python -m experiments.numerical_verification",
        description=__doc__,
    )
    folder = RunFolder(config.folder, config)
    results = run(config)
    numbers = summary(config, results)
    print(table(numbers))
    folder.write_json("metrics", numbers)
    folder.write_arrays("arrays", flatten(results))
    print(f"Figure: {draw(config.folder)}")
    passed = [x for network in numbers["networks"].values() for x in network["passed"].values()]
    return 0 if all(passed) else 1


def flatten(results: dict[str, Findings]) -> dict[str, np.ndarray]:
    """All arrays by their path, such as "LIF.traces.w_in"."""
    leaves = jax.tree_util.tree_leaves_with_path(results)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


if __name__ == "__main__":
    sys.exit(main())
