"""The same gradient by other software, side by side: BrainTrace, PyTorch and NEST.

    e-prop, window=...    this package
    BPTT, jax.grad        `jax.grad` of a plain scan, as in `gradient_cost`
    BrainTrace, D_RTRL    eligibility traces of each synapse: exact
    BrainTrace, EProp     the same, and low-pass filtered by the readout's leak
    BrainTrace, pp_prop   traces that are products of a pre- and a postsynaptic one: approximate
    PyTorch, BPTT         eager, a loop over the steps, and autograd
    NEST                  event by event, in C++ and float64: exact

All of them run the network of `gradient_cost`: its weights, inputs, equations (half LIF, half ALIF,
refractory time, leaky readout) and loss, and inputs without spikes in the first two steps, as NEST
needs them (see `nest_gradient`). What differs is how BrainTrace comes to a gradient:

- It takes the loss of one step at a time, so that the readout's leak must be in the neurons'
  traces. `D_RTRL` and `pp_prop` have the filtered spikes as one more hidden variable for it.
  `EProp` has its own filter, `kappa_filter_decay`, of the eligibility vector; the paper's is of
  the eligibility trace, which is that vector times the pseudo-derivative: another gradient.
- What a hidden variable takes of another must be of the step before, or it is counted twice. So the
  filtered spikes are those up to the last step, and this step's are added on the way out.
- The readout is outside of the learner: inside, its weights' gradient is zero (BrainTrace 0.2.6).
- Autapses are not masked: they are zero, and their gradient is left out.

All programs run in one process in turn, those that take long less often. Times are medians, ratios
are to `window=None`. The cosine is that of the gradient of all synapses (W_in and W_rec) with
`window=None`, of PyTorch's with `jax.grad`'s, and of NEST's with `window=None` in float64, since
some spikes of a long sequence are others in float32. What is not installed is left out.

Workloads: as in `gradient_cost`.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import eprop
from figures.costs import draw

from ..runs import RunFolder
from . import (
    gradient_cost,
    machine,
    nest_gradient,
    peer,
    peer_versions,
    relative_difference,
    time_in_turn,
)
from .gradient_cost import BOUND, CONTROL, WORKLOADS, Name

ALPHA, RHO, KAPPA = (
    float(np.exp(-gradient_cost.DT / tau))
    for tau in (gradient_cost.TAU_V, gradient_cost.TAU_A, gradient_cost.TAU_OUT)
)
V_TH, GAMMA, N_REFRACTORY = gradient_cost.V_TH, gradient_cost.GAMMA, gradient_cost.N_REFRACTORY

OWN, BPTT, NEST = "e-prop, window=None", "BPTT, jax.grad", "NEST"
APPROXIMATE = ("BrainTrace, EProp", "BrainTrace, pp_prop")
"""Programs whose gradient is another. All the rest must find that of one of the two above."""
SLOW = ("BrainTrace, D_RTRL", "BrainTrace, EProp", NEST)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    workloads: tuple[Name, ...] = ("w1", "w2", "w3")
    """Networks and sequences to measure on."""
    windows: tuple[int, ...] = (256,)
    """Windows of e-prop in steps, beside the whole sequence; those no shorter are left out."""
    traces: tuple[Name, ...] = ("w1", "w3", "tiny")
    """Workloads to run BrainTrace's D_RTRL and EProp on. On w1 they take about a minute each."""
    rounds: int = 7
    """Timed calls of each program."""
    slow_rounds: int = 1
    """Timed calls of BrainTrace's D_RTRL and EProp, and of NEST."""
    nest_threads: int = 2
    """Threads of NEST. On w1 and w3 two are faster than one."""
    seed: int = 0
    """Of the weights and the inputs."""
    results: Path = Path("results/peers")
    """Folder of the results."""
    run: str = "{workloads}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(workloads="_".join(self.workloads), seed=self.seed)


Gradients = tuple[Any, Any, Any]
"""Of W_in, W_rec and W_out."""
Program = Callable[[], tuple[Any, Gradients]]
"""Returns the loss, NaN where it isn't known, and the gradients."""


def jax_programs(
    name: str,
    windows: Sequence[int],
    network: eprop.Network,
    inputs: jax.Array,
    targets: Any,
) -> dict[str, Program]:
    shorter = [window for window in windows if window < len(inputs)]
    programs = gradient_cost.make_programs(WORKLOADS[name], [None, *shorter])

    def bind(label):
        compiled = jax.jit(programs[label]).lower(network, inputs, targets).compile()

        def program():
            value, gradients = compiled(network, inputs, targets)
            return value, (gradients.w_in, gradients.w_rec, gradients.w_out)

        return program

    labels = [OWN, *(f"e-prop, window={window}" for window in shorter), BPTT]
    return {label: bind(label) for label in labels}


def braintrace_program(
    brainstate: Any,
    braintrace: Any,
    algorithm: str,
    network: eprop.Network,
    inputs: jax.Array,
    targets: Any,
) -> Program:
    labels, mask = targets
    batch, n = inputs.shape[1], network.cell.n
    beta = jnp.asarray(_beta(network))[None]
    nothing = jnp.zeros((batch, n))
    by_itself = algorithm == "EProp"  # filters its traces itself
    options = {
        "D_RTRL": {},
        "EProp": {"kappa_filter_decay": KAPPA},
        "pp_prop": {"decay_or_rank": ALPHA},
    }

    class Recurrent(brainstate.nn.Module):
        """One step; what of the spikes a hidden variable depends on is of the step before."""

        def __init__(self):
            super().__init__()
            self.synapses = brainstate.ParamState(jnp.concatenate([network.w_in, network.w_rec]))

        def init_state(self, batch_size=None, **_):
            self.v = brainstate.HiddenState(nothing)
            self.a = brainstate.HiddenState(nothing)
            self.refractory = brainstate.ShortTermState(nothing.astype(jnp.int32))
            if not by_itself:
                self.filtered = brainstate.HiddenState(nothing)

        def reset_state(self, batch_size=None, **_):
            for state in self.states().values():
                if not isinstance(state, brainstate.ParamState):
                    state.value = jnp.zeros_like(state.value)

        def spikes(self):
            x = (self.v.value - V_TH - beta * self.a.value) / V_TH
            return gradient_cost.spike(x, self.refractory.value > 0)

        def update(self, x):
            own = self.spikes()
            z = jax.lax.stop_gradient(own)
            pre = jnp.concatenate([x.astype(z.dtype), z], axis=-1)
            current = braintrace.matmul(pre, self.synapses.value)
            self.v.value = ALPHA * self.v.value + current - V_TH * z
            self.a.value = RHO * self.a.value + own
            counted = jnp.maximum(self.refractory.value - 1, 0)
            self.refractory.value = jnp.where(z > 0, N_REFRACTORY - 1, counted)
            if by_itself:
                return self.spikes()
            self.filtered.value = KAPPA * self.filtered.value + own
            return KAPPA * self.filtered.value + self.spikes()

    recurrent, w_out = Recurrent(), brainstate.ParamState(network.w_out)
    learner = braintrace.compile(
        recurrent, getattr(braintrace, algorithm), inputs[0], batch_size=batch, **options[algorithm]
    )
    filtered = brainstate.ShortTermState(nothing)

    def loss(x, labels):
        drive = learner(x)
        if by_itself:
            drive = KAPPA * filtered.value + drive
            filtered.value = jax.lax.stop_gradient(drive)
        log_p = jax.nn.log_softmax(drive @ w_out.value)
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

    @brainstate.transform.jit
    def evaluate(inputs, labels, mask):
        recurrent.reset_state()
        learner.reset_state(batch)
        filtered.value = nothing
        return learner.etrace_grad(
            inputs, labels, step_fn=loss, mask=mask, return_value=True, loss_output="scalar",
            weights={"synapses": recurrent.synapses, "w_out": w_out},
        )  # fmt: skip

    def program():
        gradients, value = evaluate(inputs, labels, mask.astype(jnp.float32))
        w_in, w_rec = jnp.split(gradients["synapses"], [network.n_in])
        return value, (w_in, w_rec * (1 - jnp.eye(n)), gradients["w_out"])

    return program


def torch_program(
    torch: Any, name: str, network: eprop.Network, inputs: jax.Array, targets: Any
) -> Program:
    """Backpropagation through time."""

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, silent):
            ctx.save_for_backward(x, silent)
            return ((x > 0) & ~silent).to(x)

        @staticmethod
        def backward(ctx, gradient):
            x, silent = ctx.saved_tensors
            slope = GAMMA * torch.clamp(1 - x.abs(), min=0)
            return torch.where(silent, 0.0, slope * gradient), None

    def tensor(x, **options):
        return torch.tensor(np.asarray(x), **options)

    weights = [tensor(w, requires_grad=True) for w in (network.w_in, network.w_rec, network.w_out)]
    w_in, w_rec, w_out = weights
    n = network.cell.n
    x, beta = tensor(inputs).to(w_in), tensor(_beta(network))
    connected = 1 - torch.eye(n)
    labels = tensor(targets[0]).long()
    n_recall = WORKLOADS[name].n_recall

    def program():
        v = a = z = torch.zeros(x.shape[1], n)
        y = torch.zeros(x.shape[1], network.n_out)
        refractory = torch.zeros(x.shape[1], n, dtype=torch.int32)
        outputs = []
        for current in x @ w_in:
            v = ALPHA * v + current + z @ (w_rec * connected) - V_TH * z
            a = RHO * a + z
            counted = torch.clamp(refractory - 1, min=0)
            refractory = torch.where(z > 0, N_REFRACTORY - 1, counted)
            z = Spike.apply((v - V_TH - beta * a) / V_TH, refractory > 0)
            y = KAPPA * y + z @ w_out
            outputs.append(y)
        logits = torch.stack(outputs[-n_recall:]).flatten(0, 1)
        value = torch.nn.functional.cross_entropy(logits, labels[-n_recall:].flatten())
        return value.detach(), torch.autograd.grad(value, weights)

    return program


def nest_program(
    nest: Any, name: str, threads: int, network: eprop.Network, inputs: jax.Array, targets: Any
) -> Program:
    workload, spikes, labels = WORKLOADS[name], np.asarray(inputs), np.asarray(targets[0])[0]

    def program():
        return np.nan, nest_gradient.gradients(nest, workload, network, spikes, labels, threads)

    return program


def in_double(name: str, *arguments: Any) -> Gradients:
    """Own gradients in float64."""
    function = gradient_cost.make_programs(WORKLOADS[name], [None])[OWN]
    with jax.enable_x64(True):
        double = jax.tree.map(_as_double, arguments)
        found = jax.jit(function)(*double)[1]
    return np.asarray(found.w_in), np.asarray(found.w_rec), np.asarray(found.w_out)


def draw_inputs(name: Name, seed: int) -> tuple[eprop.Network, jax.Array, Any]:
    """Network, inputs and targets of `gradient_cost`, the first two steps' inputs left out."""
    network, inputs, targets = gradient_cost.draw_workload(name, seed)
    return network, inputs.at[:2].set(False), targets


def make_programs(name: Name, config: Config) -> dict[str, Program]:
    """By label, of those libraries that are installed."""
    arguments = draw_inputs(name, config.seed)
    programs = jax_programs(name, config.windows, *arguments)
    brainstate, braintrace = peer("brainstate"), peer("braintrace")
    if brainstate is not None and braintrace is not None:
        algorithms = ["pp_prop", *(["EProp", "D_RTRL"] if name in config.traces else [])]
        for algorithm in algorithms:
            programs[f"BrainTrace, {algorithm}"] = braintrace_program(
                brainstate, braintrace, algorithm, *arguments
            )
    torch = peer("torch")
    if torch is not None:
        programs["PyTorch, BPTT"] = torch_program(torch, name, *arguments)
    nest = peer("nest")
    if nest is not None:
        programs[NEST] = nest_program(nest, name, config.nest_threads, *arguments)
    return programs


def measure(name: Name, config: Config) -> dict[str, Any]:
    """Compare and time all programs on one workload."""
    programs = make_programs(name, config)
    results, first = {}, {}
    for label, program in programs.items():
        begun = time.perf_counter()
        value, gradients = program()
        results[label] = (float(value), tuple(map(np.asarray, gradients)))
        first[label] = time.perf_counter() - begun
    rounds = {x: config.slow_rounds if x in SLOW else config.rounds for x in programs}
    rows = time_in_turn(programs, rounds, name)
    for label, row in rows.items():
        row["time_ratio"] = row["median_seconds"] / rows[OWN]["median_seconds"]
        row["first_call_seconds"] = first[label]
    w = WORKLOADS[name]
    title = f"{w.n_in} inputs, {w.n} neurons, {w.n_steps:,} steps, batch {w.batch}"
    double = in_double(name, *draw_inputs(name, config.seed)) if NEST in results else None
    return {"title": title, "programs": rows, "check": check(results, double)}


def check(
    results: dict[str, tuple[float, Gradients]], double: Gradients | None = None
) -> dict[str, Any]:
    """How far the gradients agree, and whether the exact ones do; NaN passes nowhere.

    `double` are own gradients in float64, which NEST's are held against.
    """
    cosines, differences = {}, {}
    for label, (_, gradients) in results.items():
        expected = results[BPTT if "BPTT" in label else OWN][1]
        if label == NEST:
            assert double is not None
            expected = double
        cosines[label] = _cosine(gradients, expected)
        if label not in APPROXIMATE:
            differences[label] = relative_difference(gradients, expected)
    losses = {label: value for label, (value, _) in results.items() if label != NEST}
    control = relative_difference(results[BPTT][1][:2], results[OWN][1][:2])
    return {
        "losses": losses,
        "cosines": cosines,
        "differences": differences,
        "bptt_difference": control,
        "passed": all(x <= BOUND for x in differences.values())
        and all(abs(x - losses[OWN]) <= BOUND * abs(losses[OWN]) for x in losses.values())
        and control >= CONTROL,
    }


def table(name: str, found: dict[str, Any]) -> str:
    """One workload's measurements, to be read."""
    verdict, differences = found["check"], found["check"]["differences"]
    lines = [
        f"{name}: {found['title']}",
        f"{'':22}{'median s':>10}{'× own':>9}{'first call s':>14}{'cosine':>10}{'difference':>12}",
    ]
    for label, row in found["programs"].items():
        lines.append(
            f"  {label:20}{row['median_seconds']:10.3f}{row['time_ratio']:9.2f}"
            f"{row['first_call_seconds']:14.1f}{verdict['cosines'][label]:10.4f}"
            + (f"{differences[label]:12.0e}" if label in differences else "")
        )
    lines.append(
        f"  Check {'passed' if verdict['passed'] else 'FAILED'}: exact gradients may differ by "
        f"{BOUND:.0e}, and BPTT from e-prop must by {CONTROL:.0e}."
    )
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, writes and draws; returns 1 if an exact gradient was another."""
    config = tyro.cli(
        Config, args=args, prog="python -m experiments.benchmarks.peers",
        description=__doc__,
    )  # fmt: skip
    versions = peer_versions(("braintrace", "brainstate", "torch", "nest-simulator"))
    folder = RunFolder(config.folder, config)
    metrics = {**machine(), "peers": versions, "workloads": {}}
    for name in config.workloads:
        with jax.enable_x64(False):
            found = metrics["workloads"][name] = measure(name, config)
        folder.write_json("metrics", metrics)
        print(table(name, found) + "\n")
    print(f"Figure: {draw(config.folder)}")
    return 0 if all(x["check"]["passed"] for x in metrics["workloads"].values()) else 1


def _as_double(x: Any) -> Any:
    return x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _beta(network: eprop.Network) -> np.ndarray:
    cell = network.cell
    assert isinstance(cell, eprop.ALIF)
    return np.asarray(cell.beta.value, np.float32)


def _cosine(a: Gradients, b: Gradients) -> float:
    """Between the gradients of W_in and W_rec."""
    x, y = (np.concatenate([w.ravel() for w in gradients[:2]]) for gradients in (a, b))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


if __name__ == "__main__":
    sys.exit(main())
