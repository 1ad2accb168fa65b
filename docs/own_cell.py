"""The code of own_cell.md. Run it: it asserts what the page says."""

# --8<-- [start:cell]
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import eprop


class SynapticState(NamedTuple):
    """State of a `SynapticLIF` population."""

    i: Float[Array, "batch n"]  # synaptic current
    v: Float[Array, "batch n"]  # membrane potential


class SynapticLIF(eprop.AbstractCell):
    """Leaky integrate-and-fire neurons with a synaptic current that decays by itself."""

    n: int = eqx.field(static=True)
    tau_i: float = eqx.field(static=True, default=5.0)  # ms
    tau_v: float = eqx.field(static=True, default=20.0)  # ms
    v_th: float = eqx.field(static=True, default=0.6)
    dt: float = eqx.field(static=True, default=1.0)  # ms
    surrogate: eprop.AbstractSurrogate = eprop.Triangular(gamma=0.3)
    spiking: ClassVar[bool] = True

    def init(self, batch: int) -> SynapticState:
        zeros = jnp.zeros((batch, self.n))
        return SynapticState(i=zeros, v=zeros)

    def step(self, state: SynapticState, current: Array, z_tm1: Array) -> SynapticState:
        decay = jnp.exp(-self.dt / self.tau_i)
        i = decay * state.i + (1 - decay) * current
        v = jnp.exp(-self.dt / self.tau_v) * state.v + i - self.v_th * z_tm1
        return SynapticState(i=i, v=v)

    def output(self, state: SynapticState) -> Array:
        return self.surrogate.spike((state.v - self.v_th) / self.v_th)


# --8<-- [end:cell]
# --8<-- [start:test]
jax.config.update("jax_enable_x64", True)  # so that only a mistake is larger than 1e-10

cell = SynapticLIF(n=12)
network = eprop.Network(cell, n_in=5, n_out=2, tau_out=20.0, key=jax.random.key(0))
inputs = (jax.random.uniform(jax.random.key(1), (30, 4, 5)) < 0.3).astype(jnp.float64)
targets = jax.random.normal(jax.random.key(2), (30, 4, 2))


def loss(trajectory, targets):
    return jnp.sum((trajectory.outputs - targets) ** 2)


def gradient(rule):
    return eprop.grad(loss, rule)(network, inputs, targets)


def difference(g, h):
    """Largest difference of the recurrent weights' gradients, relative to the largest entry."""
    return jnp.max(jnp.abs(g.w_rec - h.w_rec)) / jnp.max(jnp.abs(h.w_rec))


oracle = gradient(eprop.BPTT(stop_z_gradients=True))

assert network(inputs).spikes.mean() > 0.01  # alive
assert difference(gradient(eprop.EProp()), oracle) < 1e-10
assert difference(gradient(eprop.EProp(window=1)), oracle) < 1e-10
assert difference(gradient(eprop.EProp(window=7)), oracle) < 1e-10
assert difference(gradient(eprop.BPTT()), oracle) > 1e-3  # through the network: another gradient
# --8<-- [end:test]
