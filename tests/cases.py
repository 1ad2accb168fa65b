"""Networks that the tests share: every cell, random sizes, parameters that differ by neuron."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop


class DendriteState(NamedTuple):
    """A counter between the hidden variables: they must be told apart."""

    i: Any
    refractory: Any
    v: Any


class DendriteLIF(eprop.AbstractCell):
    """A cell as a user writes it, with no entry of D, b or c that is always zero.

    i_t = a i_{t-1} + I_t - 0.1 v_{t-1}             a synaptic current with feedback from v
    v_t = α v_{t-1} + 0.3 i_t - v_th z_{t-1}
    z_t = 1 if v_t + 0.2 i_t > v_th and not refractory
    """

    n: int = eqx.field(static=True)
    tau_i: tuple[float, ...] = eqx.field(static=True)
    tau_v: tuple[float, ...] = eqx.field(static=True)
    n_refractory: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    v_th: float = eqx.field(static=True, default=0.6)
    surrogate: eprop.AbstractSurrogate = eprop.Exponential()

    def init(self, batch):
        # Not at rest: what a state starts from must not be taken for zero.
        start = jnp.full((batch, self.n), 0.1)
        return DendriteState(start, jnp.zeros((batch, self.n), jnp.int32), 2 * start)

    def step(self, state, current, z_tm1):
        i = self._decay(self.tau_i, state) * state.i + current - 0.1 * state.v
        v = self._decay(self.tau_v, state) * state.v + 0.3 * i - self.v_th * z_tm1
        started = self.n_refractory * (z_tm1 > 0).astype(jnp.int32)
        counter = jnp.clip(state.refractory + started - 1, 0, self.n_refractory)
        return DendriteState(i, counter, v)

    def output(self, state):
        z = self.surrogate.spike((state.v + 0.2 * state.i - self.v_th) / self.v_th)
        return jnp.where(state.refractory > 0, jnp.zeros_like(z), z)

    def _decay(self, tau, state):
        return jnp.asarray(np.exp(-self.dt / np.asarray(tau))[None], state.v.dtype)


class TrainableLIF(eprop.AbstractCell):
    """A cell with arrays among its fields: leaves that can be trained."""

    v_th: Any
    v_start: Any
    n: int = eqx.field(static=True)
    dt: float = eqx.field(static=True, default=1.0)
    spiking: ClassVar[bool] = True

    def init(self, batch):
        return eprop.LIFState(
            jnp.broadcast_to(self.v_start, (batch, self.n)), jnp.zeros((batch, self.n), jnp.int32)
        )

    def step(self, state, current, z_tm1):
        v = 0.9 * state.v + current - self.v_th[None] * z_tm1
        return eprop.LIFState(v, state.refractory)

    def output(self, state):
        return eprop.Triangular().spike((state.v - self.v_th[None]) / self.v_th[None])


def lif(n, o, draw):
    return eprop.LIF(
        n,
        tau_v=draw(5, 30),
        v_th=draw(0.5, 0.8),
        n_refractory=_fewer_for_some(o.n_refractory, draw),
        dt=o.dt,
        scale_current=o.scale_current,
    )


def alif(n, o, draw):
    return eprop.ALIF(
        n,
        tau_v=draw(5, 30),
        v_th=draw(0.5, 0.8),
        n_refractory=_fewer_for_some(o.n_refractory, draw),
        dt=o.dt,
        scale_current=o.scale_current,
        tau_a=draw(20, 200),
        beta=np.maximum(draw(-0.2, 0.5), 0) if o.heterogeneous else 0.3,  # some are LIF
        surrogate=eprop.FastSigmoid(),
    )


def current_lif(n, o, draw):
    return eprop.CurrentLIF(
        n,
        tau_v=draw(5, 30),
        v_th=draw(0.5, 0.8),
        n_refractory=_fewer_for_some(o.n_refractory, draw),
        dt=o.dt,
        scale_current=o.scale_current,
        tau_i=draw(2, 8),
        surrogate=eprop.FastSigmoid(),
    )


def dendrite_lif(n, o, draw):
    def each(low, high):
        return tuple(np.broadcast_to(draw(low, high), n).tolist())

    return DendriteLIF(n, each(2, 8), each(5, 30), o.n_refractory, o.dt)


def _fewer_for_some(n_refractory, draw):
    return np.where(draw(0, 1) < 0.3, n_refractory // 2, n_refractory)


def slow_but(quick, values):
    """Parameters, of which all but the quick ones are for `make slow`: they see little else."""
    known = list(values)
    assert set(quick) <= set(known), f"{quick} are not all in {known}"
    slow = pytest.mark.slow
    return [
        x if x in quick else pytest.param(*(x if isinstance(x, tuple) else [x]), marks=slow)
        for x in known
    ]


CELLS = {"LIF": lif, "ALIF": alif, "CurrentLIF": current_lif, "own cell": dendrite_lif}
EACH_CELL = pytest.mark.parametrize("cell", slow_but(["own cell"], CELLS))


@dataclass(frozen=True)
class Options:
    """What may vary from case to case.

    `heterogeneous`: whether a cell's parameters differ by neuron; `terms`: what the loss looks at.
    """

    n_in: int = 3
    n_rec: int = 6
    n_out: int = 2
    batch: int = 3
    n_steps: int = 15
    n_refractory: int = 1
    dt: float = 1.0
    heterogeneous: bool = True
    scale_current: bool = False
    scale_readout: bool = False
    readout_bias: bool = False
    autapses: bool = False
    terms: tuple[str, ...] = ("outputs", "spikes", "voltage")
    seed: int = 0


class Case(NamedTuple):
    """A network and what it is trained on; `b` is a random feedback matrix."""

    network: eprop.Network
    inputs: np.ndarray
    targets: dict[str, np.ndarray]
    loss: Callable
    b: np.ndarray

    def run(self) -> eprop.Trajectory:
        return jax.jit(lambda network, inputs: network(inputs))(self.network, self.inputs)

    def value_and_grad(self, rule: eprop.AbstractRule):
        evaluate = eprop.value_and_grad(self.loss, rule)
        return jax.jit(evaluate)(self.network, self.inputs, self.targets)

    def grad(self, rule: eprop.AbstractRule) -> eprop.Network:
        return self.value_and_grad(rule)[1]


def make_case(cell: str, options: Options = Options()) -> Case:
    """A case from its options alone, always the same."""
    o = options
    rng = np.random.default_rng(o.seed)
    size = o.n_rec if o.heterogeneous else None
    neurons = CELLS[cell](o.n_rec, o, lambda low, high: rng.uniform(low, high, size))
    strength = 1.0
    if o.scale_current and cell != "own cell":  # the weights make up for ζ, to keep them spiking
        strength = 1 / -np.expm1(-o.dt / neurons.tau_v.value)
    if cell == "CurrentLIF":  # a spike's current adds up, to twice as much in so few steps
        strength = strength * 2 * -np.expm1(-o.dt / neurons.tau_i.value)
    network = eprop.Network(
        neurons,
        n_in=o.n_in,
        n_out=o.n_out,
        tau_out=15.0,
        w_in=strength * rng.uniform(0.1, 0.5, (o.n_in, o.n_rec)) / o.n_in,
        w_rec=strength * rng.normal(0, 0.3, (o.n_rec, o.n_rec)) / np.sqrt(o.n_rec),
        w_out=rng.normal(size=(o.n_rec, o.n_out)),
        readout_bias=rng.normal(size=o.n_out) if o.readout_bias else None,
        scale_readout=o.scale_readout,
        autapses=o.autapses,
    )
    shape = (o.n_steps, o.batch)
    targets = {
        "outputs": rng.normal(size=(*shape, o.n_out)),
        "importance": rng.uniform(0.5, 1.5, o.n_steps),
    }
    inputs = rng.random((*shape, o.n_in)) < 0.5
    return Case(
        network, inputs, targets, sum_over_time(o.terms), rng.normal(size=(o.n_rec, o.n_out))
    )


def sum_over_time(terms: tuple[str, ...]) -> Callable:
    """A loss that is a sum over time, and no steps' terms are alike."""

    def loss(trajectory, targets):
        per_step = jnp.zeros(trajectory.outputs.shape[0], trajectory.outputs.dtype)
        if "outputs" in terms:
            error = trajectory.outputs - targets["outputs"]
            per_step += 0.5 * jnp.square(error).sum((1, 2))
        if "spikes" in terms:
            rate = trajectory.spikes.mean(1)
            per_step += 5 * jnp.square(rate - 0.1).sum(1)
        if "voltage" in terms:
            for k, s in enumerate(_hidden_variables(trajectory.states)):
                per_step += (k + 1) * jnp.square(s).sum((1, 2))
        return jnp.sum(targets["importance"] * per_step)

    return loss


def with_layer(trajectory: eprop.Trajectory, **changes: Any) -> eprop.Trajectory:
    """The trajectory of a network of one layer with other `spikes` or `states`."""
    (layer,) = trajectory.layers
    return trajectory._replace(layers=(layer._replace(**changes),))


def _hidden_variables(states):
    return [s for s in states if jnp.issubdtype(s.dtype, jnp.floating)]
