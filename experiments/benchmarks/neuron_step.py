"""What does a step of a neuron cost? LIF neurons alone, in PyTorch, in JAX and here.

Forward over the steps, and the gradient of the sum of all spikes with respect to the input
current, of neurons without synapses. Threshold 1, decay 0.5 a step, and a rectangular surrogate of
half-width 0.5. The first three equations and the sizes are those of SpikingJelly's issue 29. Each
equation is written once here, for PyTorch, eager, and for a jitted scan:

    LISNN                v <- decay v (1 - s) + x
    FuseLIF              v <- v / tau s + x (sic: v is kept where there was a spike)
    LIF in three phases  charge v <- v - v / tau + x, fire, reset v <- (1 - s) v
    soft reset           v <- decay v + x - threshold s

LISNN is the same neuron as LIF in three phases, and as SpikingJelly's `LIFNode`: the same spikes
and gradients. The soft reset is the equation of `eprop.LIF`, which has no other and is no such
neuron. The gradient goes through the reset everywhere here, as BPTT has it (e-prop stops it there).
Inputs are uniform between 0 and 2, where the issue has 0 to 1, with which FuseLIF never spikes.

All programs run in one process in turn. Times are medians. Without PyTorch or SpikingJelly their
rows are left out.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import eprop
from figures.costs import draw

from ..runs import RunFolder
from . import machine, peer, peer_versions, relative_difference, time_in_turn

V_TH, DECAY, TAU, HALF_WIDTH = 1.0, 0.5, 2.0, 0.5  # τ in steps: 1 - 1/τ is the decay
BOUND = 1e-5
"""The largest relative difference of two gradients that is still rounding of float32."""
CONTROL = 1e-2
"""The smallest relative difference of other equations' gradients: else nothing was compared."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    n_steps: int = 64
    """Length of the sequence in steps."""
    n: int = 128
    """Number of neurons."""
    rounds: int = 32
    """Timed calls of each program."""
    seed: int = 0
    """Of the inputs."""
    results: Path = Path("results/neuron_step")
    """Folder of the results."""
    run: str = "steps{n_steps}_n{n}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(n_steps=self.n_steps, n=self.n, seed=self.seed)


class Rectangular(eprop.AbstractSurrogate):
    """h(x) = 1 / (2 w) within w thresholds either side of the threshold, and 0 beyond."""

    half_width: float = eqx.field(static=True)

    def pseudo_derivative(self, x: jax.Array) -> jax.Array:
        return (jnp.abs(x) < self.half_width).astype(x.dtype) / (2 * self.half_width)


# One step each, from v_{t-1}, s_{t-1} and x_t to v_t and s_t, of PyTorch's arrays or JAX's.


def lisnn(v, s, x, spike):
    v = DECAY * v * (1 - s) + x
    return v, spike(v - V_TH)


def fuse_lif(v, s, x, spike):
    v = v / TAU * s + x
    return v, spike(v - V_TH)


def three_phases(v, s, x, spike):
    v = v - v / TAU + x
    s = spike(v - V_TH)
    return (1 - s) * v, s


def soft_reset(v, s, x, spike):
    v = DECAY * v + x - V_TH * s
    return v, spike(v - V_TH)


EQUATIONS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "LISNN": lisnn,
    "FuseLIF": fuse_lif,
    "LIF in three phases": three_phases,
    "soft reset": soft_reset,
}
SAME_NEURON = {"LIF in three phases": "LISNN", "LIFNode": "LISNN", "LIF": "soft reset"}
"""The equation whose spikes and gradients are another's too."""

Program = Callable[[], tuple[Any, Any]]
"""Returns the spikes `[time, n]` and the gradient `[time, n]`."""


def jax_program(equation: Callable[..., Any], inputs: np.ndarray) -> Program:
    surrogate, x = Rectangular(HALF_WIDTH), jnp.asarray(inputs)

    def run(x):
        def step(carry, x):
            v, s = equation(*carry, x, surrogate.spike)
            return (v, s), s

        nothing = jnp.zeros_like(x[0])
        return jax.lax.scan(step, (nothing, nothing), x)[1]

    return _jitted(run, x)


def own_program(inputs: np.ndarray) -> Program:
    """`eprop.LIF`, stepped as a network does it."""
    cell = eprop.LIF(
        inputs.shape[1], tau_v=-1 / np.log(DECAY), v_th=V_TH, n_refractory=0, dt=1.0,
        surrogate=Rectangular(HALF_WIDTH),
    )  # fmt: skip

    def run(x):
        def step(carry, current):
            state = cell.step(carry[0], current, carry[1])
            z = cell.output(state)
            return (state, z), z

        start = cell.init(batch=1)
        return jax.lax.scan(step, (start, jnp.zeros_like(start.v)), x[:, None])[1][:, 0]

    return _jitted(run, jnp.asarray(inputs))


def _jitted(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> Program:
    def total(x):
        spikes = run(x)
        return spikes.sum(), spikes

    evaluate = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(x).compile()

    def program():
        (_, spikes), gradient = evaluate(x)
        return spikes, gradient

    return program


def torch_program(torch: Any, equation: Callable[..., Any], inputs: np.ndarray) -> Program:
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x > 0).to(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * (x.abs() < HALF_WIDTH).to(x) / (2 * HALF_WIDTH)

    x = torch.tensor(inputs, requires_grad=True)

    def program():
        v = s = torch.zeros(x.shape[1])
        spikes = []
        for x_t in x:
            v, s = equation(v, s, x_t, Spike.apply)
            spikes.append(s)
        spikes = torch.stack(spikes)
        return spikes, torch.autograd.grad(spikes.sum(), x)[0]

    return program


def node_program(torch: Any, spikingjelly: Any, inputs: np.ndarray) -> Program:
    """SpikingJelly's own `LIFNode`, in its multi-step mode."""
    node = spikingjelly.neuron.LIFNode(
        tau=TAU, decay_input=False, v_threshold=V_TH, v_reset=0.0, step_mode="m",
        surrogate_function=spikingjelly.surrogate.Rect(alpha=1 / (2 * HALF_WIDTH)),
    )  # fmt: skip
    x = torch.tensor(inputs, requires_grad=True)

    def program():
        spikingjelly.functional.reset_net(node)
        spikes = node(x)
        return spikes, torch.autograd.grad(spikes.sum(), x)[0]

    return program


def make_programs(inputs: np.ndarray) -> dict[str, Program]:
    """By library and equation, for those libraries that are installed."""
    programs = {"eprop, LIF": own_program(inputs)}
    programs |= {f"JAX, {name}": jax_program(step, inputs) for name, step in EQUATIONS.items()}
    torch = peer("torch")
    if torch is not None:
        for name, step in EQUATIONS.items():
            programs[f"PyTorch, {name}"] = torch_program(torch, step, inputs)
        if peer("spikingjelly.activation_based.neuron") is not None:
            spikingjelly = peer("spikingjelly.activation_based")
            programs["SpikingJelly, LIFNode"] = node_program(torch, spikingjelly, inputs)
    return programs


def measure(config: Config) -> dict[str, Any]:
    """Compare and time all programs."""
    rng = np.random.default_rng(config.seed)
    inputs = 2 * rng.random((config.n_steps, config.n), dtype=np.float32)
    programs = make_programs(inputs)
    results = {label: _arrays(*run()) for label, run in programs.items()}
    rounds = dict.fromkeys(programs, config.rounds)
    rows = time_in_turn(programs, rounds, "neuron_step", warm_up=3)
    for row in rows.values():
        row["time_ratio"] = row["median_seconds"] / rows["eprop, LIF"]["median_seconds"]
    title = f"{config.n} neurons, {config.n_steps} steps, forward and backward"
    return {"title": title, "programs": rows, "check": check(results)}


def check(results: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Whether the same neuron does the same everywhere, and others do not; NaN passes nowhere."""
    n_different, differences, fractions = {}, {}, {}
    for label, (spikes, gradient) in results.items():
        equation = label.split(", ")[1]
        reference = f"JAX, {SAME_NEURON.get(equation, equation)}"
        expected_spikes, expected_gradient = results[reference]
        fractions[label] = float(spikes.mean())
        n_different[label] = int(np.sum(spikes != expected_spikes))
        differences[label] = relative_difference(gradient, expected_gradient)
    gradients = [results[f"JAX, {name}"][1] for name in ("LISNN", "FuseLIF", "soft reset")]
    pairs = [(a, b) for i, a in enumerate(gradients) for b in gradients[:i]]
    control = float(np.min([relative_difference(a, b) for a, b in pairs]))
    return {
        "spikes_per_step": fractions,
        "spikes_that_differ": n_different,
        "differences": differences,
        "smallest_difference_of_other_equations": control,
        "passed": all(0.05 < x < 0.95 for x in fractions.values())
        and not any(n_different.values())
        and all(x <= BOUND for x in differences.values())
        and control >= CONTROL,
    }


def table(found: dict[str, Any]) -> str:
    """The measurements, to be read."""
    verdict = found["check"]
    lines = [found["title"], f"{'':32}{'median ms':>10}{'× eprop.LIF':>13}{'spikes/step':>13}"]
    for label, row in found["programs"].items():
        lines.append(
            f"  {label:30}{1e3 * row['median_seconds']:10.3f}{row['time_ratio']:13.2f}"
            f"{verdict['spikes_per_step'][label]:13.2f}"
        )
    lines.append(
        f"  Check {'passed' if verdict['passed'] else 'FAILED'}: "
        f"{sum(verdict['spikes_that_differ'].values())} spikes differ where the neuron is the "
        f"same, gradients by {max(verdict['differences'].values()):.0e}, and of other neurons by "
        f"{verdict['smallest_difference_of_other_equations']:.0e} at least."
    )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, writes and draws; returns 1 if a neuron did not what it should."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.neuron_step",
        description=__doc__,
    )  # fmt: skip
    versions = peer_versions(("torch", "spikingjelly"))
    folder = RunFolder(config.folder, config)
    with jax.enable_x64(False):
        found = measure(config)
    metrics = {**machine(), "peers": versions, "workloads": {"neuron_step": found}}
    folder.write_json("metrics", metrics)
    print(table(found) + f"\n\nFigure: {draw(config.folder)}")
    return 0 if found["check"]["passed"] else 1


def _arrays(spikes: Any, gradient: Any) -> tuple[np.ndarray, np.ndarray]:
    """As NumPy's. PyTorch's spikes are still part of its graph."""
    spikes = spikes.detach() if hasattr(spikes, "detach") else spikes
    return np.asarray(spikes), np.asarray(gradient)


if __name__ == "__main__":
    sys.exit(main())
