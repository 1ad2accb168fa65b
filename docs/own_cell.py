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
# --8<-- [start:currents]
class ConductanceState(NamedTuple):
    """State of a `ConductanceLIF` population."""

    g_e: Float[Array, "batch n"]  # excitatory conductance
    g_i: Float[Array, "batch n"]  # inhibitory conductance
    v: Float[Array, "batch n"]  # membrane potential


class ConductanceLIF(eprop.AbstractCell):
    """Leaky integrate-and-fire neurons whose synapses pull the potential to one of two levels."""

    n: int = eqx.field(static=True)
    levels: tuple[float, float] = eqx.field(static=True, default=(3.0, -0.5))
    tau_g: float = eqx.field(static=True, default=5.0)  # ms
    tau_v: float = eqx.field(static=True, default=20.0)  # ms
    dt: float = eqx.field(static=True, default=1.0)  # ms
    spiking: ClassVar[bool] = True
    n_currents: ClassVar[int] = 2

    def init(self, batch: int) -> ConductanceState:
        zeros = jnp.zeros((batch, self.n))
        return ConductanceState(g_e=zeros, g_i=zeros, v=zeros)

    def step(self, state: ConductanceState, current: Array, z_tm1: Array) -> ConductanceState:
        excitation, inhibition = current  # [batch, n] each
        decay = jnp.exp(-self.dt / self.tau_g)
        g_e, g_i = decay * state.g_e + excitation, decay * state.g_i + inhibition
        pull = g_e * (self.levels[0] - state.v) + g_i * (self.levels[1] - state.v)
        return ConductanceState(g_e, g_i, jnp.exp(-self.dt / self.tau_v) * state.v + pull - z_tm1)

    def output(self, state: ConductanceState) -> Array:
        return eprop.Triangular(gamma=0.3).spike(state.v - 1)


# --8<-- [end:currents]
# --8<-- [start:test]
jax.config.update("jax_enable_x64", True)  # so that only a mistake is larger than 1e-10

inputs = jax.random.uniform(jax.random.key(1), (30, 4, 5)) < 0.3
targets = jax.random.normal(jax.random.key(2), (30, 4, 2))


def loss(trajectory, targets):
    return jnp.sum((trajectory.outputs - targets) ** 2)


def check(network):
    def gradient(rule):
        return jax.jit(eprop.grad(loss, rule))(network, inputs, targets)

    def difference(g, h):
        """Largest difference of the recurrent weights' gradients, relative to the largest entry."""
        return jnp.max(jnp.abs(g.w_rec - h.w_rec)) / jnp.max(jnp.abs(h.w_rec))

    oracle = gradient(eprop.BPTT(stop_z_gradients=True))
    assert network(inputs).spikes.mean() > 0.01  # alive
    assert difference(gradient(eprop.EProp()), oracle) < 1e-10
    assert difference(gradient(eprop.EProp(window=1)), oracle) < 1e-10
    assert difference(gradient(eprop.EProp(window=7)), oracle) < 1e-10
    assert difference(gradient(eprop.BPTT()), oracle) > 1e-3  # through the network: another one


check(eprop.Network(SynapticLIF(n=12), n_in=5, n_out=2, key=jax.random.key(0)))
# --8<-- [end:test]
# --8<-- [start:dale]
is_excitatory = jnp.arange(12) < 9


def positive_weights(key, is_excitatory):
    """From each neuron to the 12 excitatory or to the 12 inhibitory currents, never both."""
    weights = 0.1 * jax.random.normal(key, (len(is_excitatory), 24))
    mask = jnp.where(jnp.arange(24) < 12, is_excitatory[:, None], ~is_excitatory[:, None])
    return eprop.Dense(weights, mask=mask, signs=jnp.ones(len(is_excitatory)))


network = eprop.Network(
    ConductanceLIF(n=12),
    n_in=5,
    n_out=2,
    w_in=positive_weights(jax.random.key(3), jnp.ones(5, bool)),
    w_rec=positive_weights(jax.random.key(4), is_excitatory),
    key=jax.random.key(0),
)
check(network)
# --8<-- [end:dale]
