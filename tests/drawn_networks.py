"""Networks that the property tests draw: cells, synapses, delays and constants of every kind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eprop
from eprop.cells import hidden_variables
from tests.cases import DendriteLIF

N_IN, N, N_OUT = 8, 6, 2


@dataclass(frozen=True)
class LayerOptions:
    """What may vary from layer to layer.

    `cells`: the populations; `below`, `recurrent`: the kind of synapses; `delays`: which synapses
    have delays; `trained`: whether some of the cells' constants are arrays, which are trained.
    """

    cells: tuple[str, ...] = ("LIF",)
    below: str = "dense"
    recurrent: str | None = "dense"
    bias: bool = False
    delays: str = ""
    trained: bool = False


@dataclass(frozen=True)
class Options:
    """What may vary from network to network. `terms`: what the loss looks at beside the outputs."""

    layers: tuple[LayerOptions, ...]
    feedback: str = "symmetric"
    readout_of: str = "all"
    tau_out: float | None = 10.0
    scale_readout: bool = False
    readout_bias: bool = False
    terms: tuple[str, ...] = ()
    window: int = 4
    n_steps: int = 13
    batch: int = 2
    seed: int = 0


class Drawn(NamedTuple):
    """A network, what it is trained on, and the feedback."""

    network: eprop.Network
    inputs: np.ndarray
    targets: dict[str, np.ndarray]
    loss: Callable
    feedback: eprop.AbstractFeedback


class TwoCurrentsState(NamedTuple):
    u: Any
    v: Any


class TwoCurrents(eprop.AbstractCell):
    """An own cell with two currents, and arrays of many shapes among its fields.

    u_t = σ(I²_t + gate) u_{t-1} + gain¹ tanh(I¹_t)
    v_t = leak v_{t-1} + mix¹ u_t + gain² I¹_t - 0.5 z_{t-1}
    z_t = tanh(mix² v_t + mix³ u_t)
    """

    n: int = eqx.field(static=True)
    leak: Any  # []
    mix: Any  # [3]
    gain: Any  # [2, n]
    gate: Any  # [n]
    start: Any  # [n]
    dt: float = eqx.field(static=True, default=1.0)
    n_currents: ClassVar[int] = 2

    def init(self, batch):
        start = jnp.broadcast_to(self.start, (batch, self.n))
        return TwoCurrentsState(0.5 * start, start)

    def step(self, state, current, z_tm1):
        drive, gate = current
        u = jax.nn.sigmoid(gate + self.gate[None]) * state.u + self.gain[:1] * jnp.tanh(drive)
        v = self.leak * state.v + self.mix[0] * u + self.gain[1:] * drive - 0.5 * z_tm1
        return TwoCurrentsState(u, v)

    def output(self, state):
        return jnp.tanh(self.mix[1] * state.v + self.mix[2] * state.u)


class Pen:
    """Draws numbers, and the form in which a constant of a cell is given."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def constant(self, low: float, high: float, n: int, trained: bool) -> Any:
        """One number or one per neuron, trained or not."""
        value = self.rng.uniform(low, high, n if self.rng.random() < 0.5 else None)
        return jnp.asarray(value) if trained and self.rng.random() < 0.7 else value

    def choose(self, *options):
        return options[self.rng.integers(len(options))]


def make_cell(kind: str, n: int, trained: bool, pen: Pen) -> eprop.AbstractCell:
    def c(low, high):
        return pen.constant(low, high, n, trained)

    rng = pen.rng
    if kind == "LeakyTanh":
        return eprop.LeakyTanh(n, tau_v=c(3, 10), bias=c(-0.5, 0.5), v_init=c(-0.5, 0.5))
    if kind == "LSTM":
        peepholes = rng.normal(size=(3, n)) if trained else None
        return eprop.LSTM(n, forget_bias=c(0.5, 1.5), peepholes=peepholes)
    if kind == "DendriteLIF":
        each = [tuple(rng.uniform(*limits, n).tolist()) for limits in ((2, 8), (5, 30))]
        return DendriteLIF(n, *each, int(rng.integers(3)), 1.0)
    if kind == "TwoCurrents":
        arrays = [
            jnp.asarray(rng.uniform(0.5, 0.9)),
            jnp.asarray(rng.uniform(0.3, 0.9, 3)),
            jnp.asarray(rng.uniform(0.3, 0.9, (2, n))),
            jnp.asarray(rng.normal(size=n)),
            jnp.asarray(rng.normal(size=n)),
        ]
        return TwoCurrents(n, *(arrays if trained else map(np.asarray, arrays)))
    constants = {
        "tau_v": c(5, 30),
        "v_th": c(0.5, 0.8),
        "v_init": c(0, 0.5),
        "n_refractory": rng.integers(3, size=n),
        "scale_current": bool(rng.random() < 0.3),
        "surrogate": pen.choose(eprop.FastSigmoid(), eprop.Exponential(), eprop.Triangular()),
    }
    if kind == "ALIF":
        return eprop.ALIF(n, **constants, tau_a=c(20, 200), beta=c(0.1, 0.4))
    if kind == "CurrentLIF":
        return eprop.CurrentLIF(n, **constants, tau_i=c(2, 5))
    return eprop.LIF(n, **constants)


def drive(cell: eprop.AbstractCell) -> np.ndarray | None:
    """A current that makes the neurons spike every few steps; `None` for those that don't spike."""
    if isinstance(cell, DendriteLIF):
        return np.asarray(0.25)
    if not cell.spiking:
        return None
    strength = 0.25
    if cell.scale_current:
        strength = strength / -np.expm1(-1 / np.asarray(cell.tau_v.value))
    if isinstance(cell, eprop.CurrentLIF):
        strength = strength * 1.5 * -np.expm1(-1 / np.asarray(cell.tau_i.value))
    return np.asarray(strength)


def matrix(cells: list, n_pre: int, activity: float, pen: Pen) -> np.ndarray:
    """Weights `[n_pre, n_post]` under which neurons live, if so much of what they see is active."""
    columns = []
    for cell in cells:
        strength = drive(cell)
        for _ in range(cell.n_currents):
            if strength is None:
                columns.append(pen.rng.normal(size=(n_pre, cell.n)) / np.sqrt(activity * n_pre))
            else:
                scale = 2 * strength / (activity * n_pre)
                columns.append(scale * pen.rng.uniform(0, 1, (n_pre, cell.n)))
    return np.concatenate(columns, axis=1)


def synapses(kind: str, w: np.ndarray, pen: Pen) -> Any:
    """Synapses of a kind, whose weights are those of a matrix, or about as large."""
    n_pre, n_post = w.shape
    rng = pen.rng
    signs = np.where(rng.random(n_pre) < 0.8, 1, -1) if "signed" in kind else None
    if "sparse" in kind:
        fan_in = n_pre // 2
        key = jax.random.key(int(rng.integers(1000)))
        drawn = eprop.Sparse.random(n_pre, n_post, fan_in, key=key)
        weights = w[np.asarray(drawn.indices), np.arange(n_post)[:, None]] * n_pre / fan_in
        return eprop.Sparse(weights, drawn.indices, n_pre=n_pre, signs=signs)
    if kind == "convolution":
        return convolution(w, pen)
    mask = rng.random(w.shape) < 0.7 if "masked" in kind else None
    if mask is None and signs is None:
        return w
    return eprop.Dense(w, mask=mask, signs=signs)


def convolution(w: np.ndarray, pen: Pen) -> eprop.Convolution:
    n_pre, n_post = w.shape
    shape = {6: (2, 3), 8: (2, 4)}[n_pre]
    forms = {  # what it does, and how many positions are left
        (2, 2, "SAME", 1, 1): n_pre,
        (2, 2, "SAME", 2, 1): (shape[1] + 1) // 2,
        (2, 2, "VALID", 1, 1): shape[1] - 1,
        (1, 1, "SAME", 1, 2): shape[1] // 2,
    }
    fitting = [form for form, positions in forms.items() if n_post % positions == 0]
    height, width, padding, stride, pool = fitting[pen.rng.integers(len(fitting))]
    c_out = n_post // forms[height, width, padding, stride, pool]
    kernel = pen.rng.choice(w.ravel(), (height, width, 1, c_out)) * n_pre / (height * width)
    return eprop.Convolution(kernel, shape, stride=stride, padding=padding, pool=pool)


def make_layer(options: LayerOptions, n_in: int, activity: float, pen: Pen) -> eprop.Layer:
    o, k = options, len(options.cells)
    cells = [make_cell(kind, N // k, o.trained, pen) for kind in o.cells]
    below = synapses(o.below, matrix(cells, n_in, activity, pen), pen)
    n_post = sum(cell.n_currents * cell.n for cell in cells)
    recurrent = None
    if o.recurrent is not None:
        w = 0.5 * pen.rng.normal(size=(N, n_post)) / np.sqrt(N)
        recurrent = synapses(o.recurrent, w, pen)

    def delay(which, n):
        if which not in o.delays:
            return 0.0
        return pen.choose(2.0, pen.rng.integers(0, 5, n).astype(float))

    return eprop.Layer(
        cells,
        n_in=n_in,
        w_in=below,
        w_rec=recurrent,
        bias=pen.rng.uniform(0, 0.1, n_post) if o.bias else None,
        autapses=o.recurrent == "autapses",
        delay_in=delay("in", n_in),
        delay_rec=delay("rec", N),
        delay_line=pen.choose(eprop.RotatingBuffer(), eprop.ConcatenatedBuffer()),
    )


def draw(options: Options) -> Drawn:
    """A network and a problem from their options alone, always the same."""
    o, pen = options, Pen(options.seed)
    layers, n_in, activity = [], N_IN, 0.5
    for of_layer in o.layers:
        layers.append(make_layer(of_layer, n_in, activity, pen))
        n_in, activity = N, 0.2
    n, n_seen = N * len(layers), N * (len(layers) if o.readout_of == "all" else 1)
    network = eprop.Network(
        layers,
        n_out=N_OUT,
        w_out=pen.rng.normal(size=(n_seen, N_OUT)),
        readout_bias=pen.rng.normal(size=N_OUT) if o.readout_bias else None,
        readout_of=o.readout_of,
        tau_out=o.tau_out,
        scale_readout=o.scale_readout,
    )
    b = pen.rng.normal(size=(n, N_OUT))
    feedback = {
        "symmetric": eprop.SymmetricFeedback(),
        "random": eprop.RandomFeedback(b),
        "adaptive": eprop.AdaptiveFeedback(b),
    }[o.feedback]
    shape = (o.n_steps, o.batch)
    inputs = pen.rng.random((*shape, N_IN)) < 0.5
    if pen.rng.random() < 0.5:
        inputs = inputs * pen.rng.uniform(0.5, 1.5, inputs.shape)
    targets = {
        "outputs": pen.rng.normal(size=(*shape, N_OUT)),
        "importance": pen.rng.uniform(0.5, 1.5, o.n_steps),
    }
    return Drawn(network, inputs, targets, sum_over_time(o.terms), feedback)


def sum_over_time(terms: tuple[str, ...]) -> Callable:
    """A loss that is a sum over time, of what all layers do."""

    def loss(trajectory, targets):
        per_step = 0.5 * jnp.square(trajectory.outputs - targets["outputs"]).sum((1, 2))
        for i, layer in enumerate(trajectory.layers):
            if "spikes" in terms:
                per_step += (i + 1) * jnp.square(layer.spikes.mean(1) - 0.1).sum(1)
            if "states" in terms:
                for k, s in enumerate(hidden_variables(layer.states)):
                    per_step += (k + 1) * jnp.square(s).sum((1, 2))
        return jnp.sum(targets["importance"] * per_step)

    return loss
