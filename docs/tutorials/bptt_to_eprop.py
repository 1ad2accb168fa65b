# %% [markdown]
# # From BPTT to e-prop, the gradient looked at
#
# E-prop writes the gradient of a recurrent network as a sum of products, and
# changes one factor. Here that is taken apart, with numbers: what each factor
# is, that they do add up to the gradient, what is left out, and whether it
# matters.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import eprop
from eprop import ALIF, BPTT, EProp, Network, RandomFeedback, losses
from eprop.tasks import PatternGeneration

# %% [markdown]
# ## A small network with something to learn
#
# Thirty adaptive neurons hear 400 ms of noise, and shall draw a curve with
# their readout. The weights are random: nothing is learned yet.

# %%
task = PatternGeneration(
    n_in=30, duration_ms=400.0, periods_ms=(400.0, 200.0, 133.0)
)
# Both are [time, batch, feature].
inputs, targets = task.sample(jax.random.key(0), batch_size=1)
network = Network(
    ALIF(30, v_th=0.4),
    n_in=30,
    n_out=1,
    scale_readout=True,
    key=jax.random.key(2),
)


def loss(trajectory, targets):
    return 0.5 * jnp.sum((trajectory.outputs - targets) ** 2)


trajectory = network(inputs)
# Alive? Else all gradients are 0.
print(f"{1000 * trajectory.spikes.mean():.0f} Hz per neuron")

# %% [markdown]
# ## One argument, three gradients
#
# `value_and_grad(loss, rule)` is as `jax.value_and_grad`, with the rule that
# says how. Random feedback replaces the readout's weights, on the way back,
# by a fixed random matrix.


# %% alt="Gradients by e-prop, symmetric and random, against those by BPTT"
def gradient(rule):
    """Of the recurrent weights, `[pre, post]`."""
    return np.asarray(eprop.grad(loss, rule)(network, inputs, targets).w_rec)


def difference(g, h):
    """Largest difference, relative to the largest entry."""
    return np.abs(g - h).max() / np.abs(h).max()


def angle(g, h):
    """Between two gradients as vectors, in degrees."""
    return np.degrees(
        np.arccos(np.sum(g * h) / np.linalg.norm(g) / np.linalg.norm(h))
    )


b = jax.random.normal(jax.random.key(3), (30, 1))
by_bptt, by_eprop = gradient(BPTT()), gradient(EProp())
by_random = gradient(EProp(RandomFeedback(b)))
print(
    f"e-prop is {angle(by_eprop, by_bptt):.0f}° from BPTT, by random feedback",
    end=" ",
)
print(f"{angle(by_random, by_bptt):.0f}°")

figure, panels = plt.subplots(
    1, 2, figsize=(8, 3.6), sharex=True, layout="constrained"
)
for panel, g, name in zip(
    panels, (by_eprop, by_random), ("symmetric feedback", "random"), strict=True
):
    panel.axline((0, 0), slope=1, color="0.8", zorder=0)
    panel.scatter(by_bptt, g, s=8, color="black", alpha=0.6, linewidths=0)
    panel.set(title=f"e-prop, {name}", xlabel="gradient by BPTT")
panels[0].set_ylabel("gradient by e-prop")
plt.show()

# %% [markdown]
# Each dot is a recurrent weight. E-prop with symmetric feedback mostly agrees
# with BPTT; random feedback gets some signs wrong, whole neurons at once:
# where a neuron's entry of B has another sign than its readout weight, all
# its incoming weights are sent the other way.
#
# ## Where e-prop's gradient comes from
#
# For the weight from neuron \(i\) to neuron \(j\),
#
# \[
# \frac{dE}{dW_{ij}} \approx \sum_t L_{t,j}\, \bar e_{t,ij}
# \]
#
# with the **eligibility trace** \(\bar e\), what this synapse did to its
# neuron so far, and the **learning signal** \(L\), what this neuron's spikes
# do to the error, by its own readout weight. Both are known at time \(t\).
# Both can be looked at, and their products summed by hand:

# %%
# Traces are [time, batch, pre, post], signals [time, batch, post].
traces = eprop.eligibility_traces(network, inputs).w_rec
signals = eprop.learning_signals(network, inputs, targets, loss)
products = signals.readout[:, :, None, :] * traces.filtered
by_hand = products.sum((0, 1))
print(f"differs by {difference(by_hand, by_eprop):.0e}")

# %% [markdown]
# One synapse, from its presynaptic spikes to its gradient:

# %% alt="One synapse: spikes, membrane, trace, learning signal, their sum"
pre, post = np.unravel_index(np.argmax(np.abs(by_eprop)), by_eprop.shape)
v, a = (np.asarray(x[:, 0, post]) for x in trajectory.states[:2])
figure, panels = plt.subplots(
    5, 1, figsize=(8, 7), sharex=True, layout="constrained"
)
panels[0].eventplot(
    [np.flatnonzero(trajectory.spikes[:, 0, k]) for k in (post, pre)],
    colors=["C0", "black"],
)
panels[0].set(yticks=[0, 1], yticklabels=["post", "pre"], title="spikes")
panels[1].plot(v, color="C0", label="membrane potential")
panels[1].plot(
    0.4 + np.asarray(network.cell.beta.value) * a,
    color="0.5",
    label="threshold",
)
panels[2].plot(traces.filtered[:, 0, pre, post], color="C2")
panels[2].set_title("eligibility trace, as the readout filters it")
panels[3].plot(signals.readout[:, 0, post], color="C3")
panels[3].set_title("learning signal")
panels[4].plot(
    np.cumsum(products[:, 0, pre, post]),
    color="black",
    label="sum of products so far",
)
panels[4].axhline(
    by_eprop[pre, post], color="C1", linestyle="--", label="e-prop's gradient"
)
panels[4].set_xlabel("time (ms)")
for panel in (panels[1], panels[4]):
    panel.legend(
        frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, 1.35)
    )
plt.show()

# %% [markdown]
# The trace moves when a presynaptic spike meets a membrane potential near the
# threshold. It never looks ahead. The learning signal is the readout's error
# times a weight: it says nothing about this synapse, and it is all that the
# rest of the network tells it.
#
# ## What is left out
#
# A spike acts on the loss not only by the readout: it also resets its own
# neuron and reaches others, which act on the readout later. If the learning
# signal held all of that, it would be the **total derivative** \(dE/dz_t\),
# and the same sum would be BPTT's gradient, with nothing approximated (the
# paper's equation 1):

# %%
# [time, batch, post]
total = eprop.total_derivative(network, inputs, targets, loss)
exact = jnp.einsum("tbj,tbij->ij", total, traces.trace)
print(f"differs from BPTT by {difference(exact, by_bptt):.0e}")

# %% [markdown]
# So the two rules differ in the learning signal alone. To compare: what a
# spike does by the readout, now and for as long as the readout remembers it,
# and what it does in total.

# %% alt="What a spike does to the loss, in total and by the readout alone"
kappa, gain = network.kappa, network.readout_gain
direct = np.zeros_like(total)
ahead = np.zeros_like(total[0])
for t in reversed(range(len(direct))):  # the readout's leak, backwards
    ahead = np.asarray(signals.readout[t]) + kappa * ahead
    direct[t] = gain * ahead

figure, panels = plt.subplots(
    1, 2, figsize=(9, 3), width_ratios=(2, 1), layout="constrained"
)
panels[0].plot(total[:, 0, post], color="0.6", label="in total: BPTT")
panels[0].plot(direct[:, 0, post], color="C3", label="by the readout: e-prop")
panels[0].set(xlabel="time (ms)", ylabel="what a spike does to the loss")
panels[0].legend(frameon=False)
panels[1].axline((0, 0), slope=1, color="0.8", zorder=0)
panels[1].scatter(
    total[:, 0], direct[:, 0], s=2, color="black", alpha=0.2, linewidths=0
)
panels[1].set(xlabel="in total", ylabel="by the readout")
plt.show()

# %% [markdown]
# The total jumps wherever other neurons are close to their thresholds. To
# know it at time \(t\) takes what happens after \(t\): this is why BPTT must
# store a run and replay it, and e-prop need not.
#
# The other way round, e-prop is BPTT with the spikes' way to other neurons
# cut. Autodiff can do that too:

# %%
cut = gradient(BPTT(stop_z_gradients=True))
print(f"differs from e-prop by {difference(cut, by_eprop):.0e}")

# %% [markdown]
# ## Does it matter?
#
# The same network, the same optimiser, 300 iterations. At each, the angle to
# what BPTT would have done *there*.

# %% alt="Losses by three rules, and the angles of two to BPTT"
optimizer = optax.adam(3e-3)


@jax.jit
def train(network, rule):
    def regularised(trajectory, targets):
        rate = losses.firing_rate_penalty(trajectory.spikes, 20.0, dt=1.0)
        return loss(trajectory, targets) + 100.0 * rate

    def angle_to_bptt(network, gradients):
        g, h = (
            gradients.w_rec.ravel(),
            eprop.grad(regularised, BPTT())(network, inputs, targets),
        )
        h = h.w_rec.ravel()
        return jnp.degrees(
            jnp.arccos(g @ h / jnp.linalg.norm(g) / jnp.linalg.norm(h))
        )

    def step(carry, _):
        network, state = carry
        value, gradients = eprop.value_and_grad(regularised, rule)(
            network, inputs, targets
        )
        updates, state = optimizer.update(gradients, state)
        seen = value, angle_to_bptt(network, gradients)
        return (optax.apply_updates(network, updates), state), seen

    return jax.lax.scan(step, (network, optimizer.init(network)), length=300)[1]


rules = {
    "BPTT": BPTT(),
    "e-prop, symmetric": EProp(),
    "e-prop, random": EProp(RandomFeedback(b)),
}
figure, panels = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for color, (name, rule) in zip(("0.6", "C0", "C3"), rules.items(), strict=True):
    values, angles = train(network, rule)
    panels[0].plot(values, color=color, label=name)
    if name != "BPTT":
        panels[1].plot(angles, color=color)
    print(f"{name}: loss {values[0]:.1f} to {values[-1]:.1f}")
panels[0].set(xlabel="iteration", ylabel="loss", yscale="log")
figure.legend(frameon=False, ncols=3, loc="outside upper center")
panels[1].axhline(90, color="0.8", zorder=0)
panels[1].set(xlabel="iteration", ylabel="angle to BPTT (°)", ylim=(0, 120))
plt.show()

# %% [markdown]
# An approximate gradient need only point downhill, and tell each synapse what
# *it* did. Whether that is enough is a question about the task: [Evidence
# accumulation](../evidence_accumulation.md) and [five rules side by
# side](../rule_comparison.md) have answers over several seeds. The proofs are
# in the [derivation](../derivation.md).
