"""The code of own_synapses.md. Run it: it asserts what the page says."""

# --8<-- [start:synapses]
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import eprop


class Ring(eprop.AbstractSynapses):
    """Neurons on a ring, with a weight for each distance: I_j = Σ_f w_f pre_{j - distance_f}."""

    weights: Float[Array, " fan_in"]
    distances: tuple[int, ...] = eqx.field(static=True)
    n_pre: int = eqx.field(static=True)
    n_post: int = eqx.field(static=True)

    def __init__(self, weights: Array, distances: tuple[int, ...], *, n: int):
        self.weights, self.distances, self.n_pre, self.n_post = weights, distances, n, n

    def effective(self) -> Array:
        return self.weights

    def currents(self, w: Array, pre: Array) -> Array:
        each = zip(w, self.distances, strict=True)
        drives = (w_f * jnp.roll(pre, distance, axis=-1) for w_f, distance in each)
        return sum(drives, start=jnp.zeros_like(pre))

    def seen(self, pre: Array) -> Array:
        return jnp.stack([jnp.roll(pre, distance, axis=-1) for distance in self.distances], axis=1)

    def spread(self, w: Array) -> Array:
        return jnp.broadcast_to(w[:, None], (len(w), self.n_post))


# --8<-- [end:synapses]
# --8<-- [start:contract]
jax.config.update("jax_enable_x64", True)  # so that only a mistake is larger than 1e-10


def check_contract(synapses):
    """The two ways to the same currents, and that they are linear in both arguments."""
    w = synapses.effective()
    v = jax.random.normal(jax.random.key(1), w.shape)
    pre, other = jax.random.normal(jax.random.key(2), (2, 4, synapses.n_pre))
    currents = synapses.currents(w, pre)
    assert currents.shape == (4, synapses.n_post) and jnp.abs(currents).max() > 0.1
    assert jnp.allclose(currents, (synapses.seen(pre) * synapses.spread(w)).sum(1))
    assert jnp.allclose(synapses.currents(w + 2 * v, pre), currents + 2 * synapses.currents(v, pre))
    assert jnp.allclose(
        synapses.currents(w, pre + 2 * other), currents + 2 * synapses.currents(w, other)
    )
    sequence = jnp.stack([pre, other])  # leading axes are whatever they are
    assert jnp.array_equal(synapses.currents(w, sequence)[0], currents)


near = (-3, -2, -1, 1, 2, 3)  # 0 would be a synapse of each neuron to itself
ring = Ring(jax.random.normal(jax.random.key(3), (6,)), near, n=20)
check_contract(ring)
# --8<-- [end:contract]
# --8<-- [start:test]
inputs = jax.random.uniform(jax.random.key(4), (30, 4, 5)) < 0.3
targets = jax.random.normal(jax.random.key(5), (30, 4, 2))


def loss(trajectory, targets):
    return jnp.sum((trajectory.outputs - targets) ** 2)


def check_gradient(synapses):
    network = eprop.Network(
        eprop.ALIF(20, beta=0.3), n_in=5, n_out=2, w_rec=synapses, key=jax.random.key(0)
    )

    def gradient(rule):
        return eprop.grad(loss, rule)(network, inputs, targets).layers[0].recurrent

    def difference(rule):
        """Largest difference from the oracle, relative to its largest entry, of all arrays."""
        pairs = zip(jax.tree.leaves(gradient(rule)), jax.tree.leaves(oracle), strict=True)
        return max(jnp.max(jnp.abs(g - h)) / jnp.max(jnp.abs(h)) for g, h in pairs)

    oracle = gradient(eprop.BPTT(stop_z_gradients=True))
    assert network(inputs).spikes.mean() > 0.01  # alive
    assert difference(eprop.EProp()) < 1e-10
    assert difference(eprop.EProp(window=1)) < 1e-10
    assert difference(eprop.EProp(window=7)) < 1e-10
    assert difference(eprop.BPTT()) > 1e-3  # through the network: another gradient


check_gradient(ring)


# --8<-- [end:test]
# --8<-- [start:lowrank]
class LowRank(eprop.AbstractSynapses):
    """I = pre (U V), both trained."""

    weights: Float[Array, "n_pre rank"]  # U
    v: Float[Array, "rank n_post"]
    n_pre: int = eqx.field(static=True)
    n_post: int = eqx.field(static=True)

    def __init__(self, u: Array, v: Array):
        self.weights, self.v, self.n_pre, self.n_post = u, v, len(u), v.shape[1]

    def effective(self) -> Array:
        return self.weights @ self.v

    def currents(self, w: Array, pre: Array) -> Array:
        return pre @ w

    def seen(self, pre: Array) -> Array:
        return pre[:, :, None]

    def spread(self, w: Array) -> Array:
        return w


u, v = jax.random.normal(jax.random.key(6), (2, 20, 3)) / 3**0.5
low_rank = LowRank(u, v.T)
check_contract(low_rank)
check_gradient(low_rank)
# --8<-- [end:lowrank]
