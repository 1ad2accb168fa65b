# %% [markdown]
# # A neuron of your own
#
# A leaky integrator forgets. Other neurons *ring*: a pulse makes their
# membrane swing, and the next pulse counts for more if it comes after a whole
# period. They are called resonate-and-fire neurons (Izhikevich 2001), and
# hear rhythms. Here is one, in a few lines, with e-prop for it, and a
# frequency that is learned.

# %%
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import eprop
from eprop import BPTT, LIF, EProp, Network, losses

# %% [markdown]
# ## The neuron
#
# The state is two numbers that turn around zero, by an angle of \(2 \pi f
# \Delta t\) in each step, while they decay:
#
# \[
# \begin{pmatrix} u_t \\ v_t \end{pmatrix} = e^{-\Delta t / \tau}
# \begin{pmatrix}
#     \cos\omega & -\sin\omega \\ \sin\omega & \cos\omega
# \end{pmatrix}
# \begin{pmatrix} u_{t-1} \\ v_{t-1} \end{pmatrix}
# + \begin{pmatrix} I_t \\ 0 \end{pmatrix},
# \qquad \omega = 2 \pi f \Delta t
# \]
#
# The current pushes \(u\), and the neuron spikes where \(v\) is above its
# threshold. That is all there is to write: where it starts, how it steps,
# what it sends.


# %%
class ResonatorState(NamedTuple):
    u: jax.Array  # [batch, n]
    v: jax.Array  # [batch, n]


class Resonator(eprop.AbstractCell):
    """Neurons whose membrane swings."""

    log_f: jax.Array  # of the frequency in Hz, [n]: an array, so trained
    n: int = eqx.field(static=True)
    tau: float = eqx.field(static=True, default=80.0)  # ms
    v_th: float = eqx.field(static=True, default=1.0)
    dt: float = eqx.field(static=True, default=1.0)  # ms
    surrogate: eprop.AbstractSurrogate = eprop.Triangular(gamma=0.3)
    spiking: ClassVar[bool] = True

    def init(self, batch):
        zeros = jnp.zeros((batch, self.n))
        return ResonatorState(zeros, zeros)

    def step(self, state, current, z_tm1):
        omega = 2 * jnp.pi * jnp.exp(self.log_f) * self.dt / 1000
        decay = np.exp(-self.dt / self.tau)
        cos, sin = decay * jnp.cos(omega), decay * jnp.sin(omega)
        u = cos * state.u - sin * state.v + current
        # A spike takes its share.
        v = sin * state.u + cos * state.v - self.v_th * z_tm1
        return ResonatorState(u, v)

    def output(self, state):
        return self.surrogate.spike((state.v - self.v_th) / self.v_th)


def resonators(hz, **constants):
    """One for each of these frequencies in Hz."""
    return Resonator(jnp.log(jnp.asarray(hz, float)), n=len(hz), **constants)


# %% [markdown]
# ## What it hears
#
# Pulses at different rates, into neurons of different frequencies, and into a
# leaky integrate-and-fire neuron. How far does the membrane go?

# %% alt="The highest potential by rate of pulses, and two over time"
DURATION = 400  # ms


def pulses(hz):
    """Booleans `[time]`: a pulse at the beginning of each period."""
    x = np.zeros(DURATION, bool)
    x[np.arange(0, DURATION, 1000 / hz).astype(int)] = True
    return x


def highest(cell, hz):
    """The highest membrane potential under pulses of these rates."""
    # [time, batch, channel]
    x = np.stack([pulses(f) for f in hz], axis=1)[:, :, None]
    w = np.full((1, cell.n), 0.3, np.float32)
    states = Network(
        cell, n_in=1, n_out=1, w_in=w, w_rec=None, key=jax.random.key(0)
    )(x).states
    return np.asarray(states.v.max(0))  # [rates, n]


rates = np.arange(4, 61)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
silent = resonators([12.0, 20.0, 35.0], v_th=1e6)  # so that no spike disturbs
for curve, f in zip(highest(silent, rates).T, (12, 20, 35), strict=True):
    left.plot(rates, curve, label=f"resonator, {f} Hz")
left.plot(rates, highest(LIF(1, v_th=1e6), rates), color="0.6", label="LIF")
left.set(xlabel="rate of the pulses (Hz)", ylabel="highest membrane potential")
left.legend(frameon=False, fontsize="small")
network = Network(
    silent,
    n_in=1,
    n_out=1,
    w_in=np.full((1, 3), 0.3, np.float32),
    w_rec=None,
    key=jax.random.key(0),
)
for hz, color in ((20, "C1"), (30, "0.6")):
    right.plot(
        network(pulses(hz)[:, None, None]).states.v[:, 0, 1],
        color=color,
        label=f"pulses at {hz} Hz",
    )
right.set(xlabel="time (ms)", ylabel="membrane of the 20 Hz neuron")
right.legend(
    frameon=False,
    ncols=2,
    fontsize="small",
    loc="lower center",
    bbox_to_anchor=(0.5, 1),
)
plt.show()

# %% [markdown]
# Left: each resonator picks its rhythm (and answers to simple fractions of
# it), while the integrator only tells more from less. Right: pulses at the
# neuron's own rate add up, others get in each other's way.
#
# ## E-prop for it
#
# There is nothing more to write. The eligibility trace follows from `step`:
# its matrix \(D_t = \partial s_t / \partial s_{t-1}\) is the rotation, so the
# trace *rings* too. Below is what a synapse remembers of a single presynaptic
# spike.

# %% alt="After a spike one eligibility vector rings, the other decays"
once = np.zeros((200, 1, 1), bool)
once[10] = True
figure, panel = plt.subplots(figsize=(7, 2.6), layout="constrained")
for cell, name, color in (
    (resonators([20.0]), "resonator, 20 Hz", "C1"),
    (LIF(1), "LIF", "0.6"),
):
    w = np.full((1, 1), 0.3, np.float32)
    network = Network(
        cell, n_in=1, n_out=1, w_in=w, w_rec=None, key=jax.random.key(0)
    )
    panel.plot(
        eprop.eligibility_traces(network, once).w_in.vectors.v[:, 0, 0, 0],
        color=color,
        label=name,
    )
panel.set(xlabel="time (ms)", ylabel="eligibility vector of v")
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# The sign says whether an earlier spike would by now help the neuron to fire,
# or hinder it: a memory of *phase*, which learning can use. And the frequency
# itself is an array, so it has a trace and a gradient as well.
#
# Is that gradient right? Autodiff knows it by an independent way, with the
# spikes' way to other neurons cut
# ([why](../derivation.md#third-evaluation-autodiff)). A comparison in which
# nothing spikes would show nothing, so look at that too.

# %%
x = jax.random.uniform(jax.random.key(1), (200, 4, 10)) < 0.05
y = jax.random.normal(jax.random.key(2), (200, 4, 2))
network = Network(
    resonators(np.linspace(8, 40, 20), v_th=1.5),
    n_in=10,
    n_out=2,
    key=jax.random.key(3),
)


def squared(trajectory, y):
    return jnp.sum((trajectory.outputs - y) ** 2)


rules = {
    "e-prop": EProp(),
    "oracle": BPTT(stop_z_gradients=True),
    "BPTT": BPTT(),
}
gradients = {
    name: eprop.grad(squared, rule)(network, x, y)
    for name, rule in rules.items()
}
print(f"{1000 * network(x).spikes.mean():.0f} Hz per neuron")
for name in ("oracle", "BPTT"):
    g, h = gradients["e-prop"], gradients[name]
    for what, of_g, of_h in (
        ("recurrent weights", g.w_rec, h.w_rec),
        ("frequencies", g.cell.log_f, h.cell.log_f),
    ):
        difference = float(jnp.abs(of_g - of_h).max() / jnp.abs(of_h).max())
        print(f"{what}: e-prop differs from {name} by {difference:.0e}")

# %% [markdown]
# The first two are rounding, the others are not.
#
# ## A frequency that is learned
#
# Two rhythms, 20 and 32 Hz: five pulses each, on ten channels, at a random
# time. Twelve resonators, not connected to each other, begin between 12 and
# 16 Hz: none of them fits. Once their frequencies stay, once they are trained
# too, with a learning rate of their own.


# %% alt="Fractions told right, and frequencies while they are learned"
def sample(key, batch=32):
    of_label, of_start, of_jitter = jax.random.split(key, 3)
    labels = jax.random.randint(of_label, (batch,), 0, 2)
    period = 1000 / jnp.where(labels == 0, 20.0, 32.0)
    start = jax.random.uniform(
        of_start, (batch, 1, 1), minval=10.0, maxval=80.0
    )
    times = start + period[:, None, None] * jnp.arange(5)[None, :, None]
    # ms, [batch, pulse, channel]
    times = times + 2 * jax.random.normal(of_jitter, (batch, 5, 10))
    steps, example = (
        jnp.round(times).astype(int),
        jnp.arange(batch)[:, None, None],
    )
    empty = jnp.zeros((300, batch, 10), bool)
    return empty.at[steps, example, jnp.arange(10)[None, None, :]].set(
        True
    ), labels


def loss(trajectory, labels):
    right = (trajectory.outputs[-1].argmax(-1) == labels).mean()
    return losses.softmax_cross_entropy(trajectory.outputs[-1:], labels), right


def train(key, rate_of_frequencies):
    """The fraction told right, `[iteration]`, and the frequencies in Hz."""
    of_neurons, of_network, of_examples = jax.random.split(key, 3)
    network = Network(
        resonators(
            jax.random.uniform(of_neurons, (12,), minval=12.0, maxval=16.0),
            v_th=0.7,
        ),
        n_in=10,
        n_out=2,
        w_in=jnp.full((10, 12), 0.1),
        w_rec=None,
        tau_out=60.0,
        key=of_network,
    )
    names = jax.tree.map(lambda _: "weights", network)
    names = eqx.tree_at(lambda net: net.cell.log_f, names, "frequencies")
    optimizer = optax.multi_transform(
        {
            "weights": optax.adam(1e-2),
            "frequencies": optax.adam(rate_of_frequencies),
        },
        lambda _: names,
    )
    evaluate = eprop.value_and_grad(loss, EProp(), has_aux=True)

    def step(carry, i):
        network, state = carry
        (_, right), gradients = evaluate(
            network, *sample(jax.random.fold_in(of_examples, i))
        )
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(network, updates), state), (
            right,
            jnp.exp(network.cell.log_f),
        )

    return jax.lax.scan(
        step, (network, optimizer.init(network)), jnp.arange(300)
    )[1]


seeds = jax.random.split(jax.random.key(0), 4)
conditions = {"frequencies stay": 0.0, "and learn": 3e-3}
of_seeds = jax.vmap(train, in_axes=(0, None))  # side by side, compiled once
of_all = jax.jit(jax.vmap(of_seeds, in_axes=(None, 0)))
told_right, frequencies = of_all(seeds, jnp.array([*conditions.values()]))
for name, of_condition in zip(conditions, told_right, strict=True):
    right = [f"{x:.2f}" for x in of_condition[:, -50:].mean(1)]
    print(f"{name}: last 50 batches {', '.join(right)}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for name, of_condition, color in zip(
    conditions, told_right, ("0.6", "C1"), strict=True
):
    smooth = [np.convolve(x, np.ones(15) / 15, "valid") for x in of_condition]
    left.plot(np.transpose(smooth), color=color, linewidth=1)
    left.plot([], color=color, label=name)
left.set(xlabel="iteration", ylabel="rhythms told right", ylim=(0.35, 1.02))
left.legend(frameon=False)
right.plot(frequencies[1, 0], color="C1", linewidth=1)
right.set(xlabel="iteration", ylabel="frequency (Hz)", ylim=(0, 34))
for hz in (20, 32):
    right.axhline(hz, color="0.8", linestyle="--", zorder=0)
plt.show()

# %% [markdown]
# Left, four seeds of each; right, the frequencies of the first. Where they
# learn, all four get it right. Where they stay, the network is at chance
# after 300 iterations (of other seeds some get there, later, by what weights
# alone can do). Some neurons go up to the slower rhythm, others down towards
# a third of it, where a pulse of 20 Hz still comes at a good moment. Nobody
# told them: each has only its own trace, and its learning signal.
#
# ## Where next
#
# - What `step` and `output` may do, several input currents, and how to test a
#   cell: [A cell of your own](../own_cell.md).
# - Why an arbitrary `step` is enough: [Derivation](../derivation.md).
#
# E. M. Izhikevich: *Resonate-and-fire neurons*, Neural Networks 14, 883–894
# (2001).
