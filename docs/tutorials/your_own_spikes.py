# %% [markdown]
# # Your own spikes in ten minutes
#
# You have recordings: lists of events, each a time and a channel. You want a
# spiking network to tell what was recorded. This page goes all the way: from
# events to arrays, a network, training by e-prop, a look at what it learned,
# a control, and a file to keep.
#
# It runs in less than a minute.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import eprop
from eprop import ALIF, EProp, Network, RandomFeedback, losses

# %% [markdown]
# ## Events
#
# Put your own recordings in place of these. Here 24 channels look at a bar
# that sweeps across them, upwards or downwards. A channel spikes around the
# time at which the bar passes it; some spikes are lost, and some come from
# nowhere. Each channel spikes as often for one direction as for the other:
# **only the order of the spikes tells them apart.**

# %%
N_CHANNELS, DURATION = 24, 120  # ms
CLASSES = ("up", "down")
rng = np.random.default_rng(0)


def record(label):
    """Events of one sweep, as an electrode array gives them: ms, channel."""
    channels = np.repeat(np.arange(N_CHANNELS), 2)
    place = channels if label == 0 else N_CHANNELS - 1 - channels
    times = 15 + 90 * place / N_CHANNELS + rng.normal(0, 6, len(channels))
    kept = rng.random(len(channels)) < 0.8
    noise = rng.poisson(8)
    times = np.concatenate([times[kept], rng.uniform(0, DURATION, noise)])
    channels = np.concatenate(
        [channels[kept], rng.integers(0, N_CHANNELS, noise)]
    )
    return times, channels


labels = rng.integers(0, 2, 600)
recordings = [record(label) for label in labels]
times, channels = recordings[0]
print(f"{CLASSES[labels[0]]}, {len(times)} events:")
for time, channel in zip(times[:3], channels, strict=False):
    print(f"{time:6.1f} ms, channel {channel}")

# %% [markdown]
# ## Arrays
#
# A network takes arrays `[time, batch, channel]`: time comes first, in steps
# of `dt`, 1 ms here. Booleans are fine, and take the least memory.


# %% alt="The events of a sweep up and of one down"
def as_array(recordings, dt=1.0):
    """Booleans `[time, batch, channel]`: was there an event in that step?"""
    array = np.zeros((round(DURATION / dt), len(recordings), N_CHANNELS), bool)
    for i, (times, channels) in enumerate(recordings):
        steps = (times / dt).astype(int)
        inside = (steps >= 0) & (steps < len(array))
        array[steps[inside], i, channels[inside]] = True
    return array


spikes = as_array(recordings)
train, test = slice(0, 400), slice(400, 600)
print(spikes.shape, spikes.dtype)

figure, panels = plt.subplots(
    1, 2, figsize=(8, 2.4), sharey=True, layout="constrained"
)
for label, panel in enumerate(panels):
    example = int(np.flatnonzero(labels == label)[0])
    panel.scatter(*np.nonzero(spikes[:, example]), s=6, color="black")
    panel.set(title=CLASSES[label], xlabel="time (ms)")
panels[0].set_ylabel("channel")
plt.show()

# %% [markdown]
# ## A network and a rule
#
# Sixty adaptive neurons, recurrent, and a leaky readout for each class. The
# loss looks at the last 20 ms, when the sweep is over: a mask says which
# steps count.
#
# The learning rule is an argument. `EProp(RandomFeedback(b))` sends the
# readout's errors to the neurons by fixed random weights; put `EProp()` or
# `eprop.BPTT()` there, and nothing else changes.

# %%
network = Network(
    ALIF(60, v_th=0.5),
    n_in=N_CHANNELS,
    n_out=2,
    scale_readout=True,
    key=jax.random.key(0),
)
rule = EProp(RandomFeedback(jax.random.normal(jax.random.key(1), (60, 2))))
counts = (jnp.arange(DURATION) >= DURATION - 20).astype(float)  # [time]


def loss(trajectory, labels):
    answer = losses.softmax_cross_entropy(trajectory.outputs, labels, counts)
    rate = losses.firing_rate_penalty(
        trajectory.spikes, target_rate=20.0, dt=1.0
    )
    return answer + 30.0 * rate


# %% [markdown]
# ## Training
#
# `fit` draws batches, shows a bar (switched off here), and records what the
# step returns. Given a `folder`, it would also keep checkpoints, and go on
# after an interruption.


# %% alt="Test accuracy against iterations"
@jax.jit
def answers(network, inputs):
    """The class of the highest readout, averaged over the last 20 ms."""
    return jnp.argmax(network(inputs).outputs[-20:].mean(0), axis=-1)


def accuracy(network, inputs):
    return float((answers(network, inputs) == labels[test]).mean())


def batch(iteration):
    """Draws a batch: a function of the iteration, so it can be repeated."""
    chosen = np.random.default_rng(iteration).choice(400, 50, replace=False)
    return spikes[:, chosen], labels[chosen]


optimizer = optax.adam(5e-3)
state, rows = eprop.fit(
    eprop.training_step(loss, optimizer),
    eprop.init_training(network, rule, optimizer),
    batch,
    iterations=150,
    evaluate=lambda state, iteration: {
        "test": accuracy(state.network, spikes[:, test])
    },
    evaluate_every=10,
    progress=False,
)
trained = state.network
before = accuracy(network, spikes[:, test])
print(f"test accuracy before {before:.2f}, after {rows[-1]['test']:.2f}")

figure, panel = plt.subplots(figsize=(5, 2.2), layout="constrained")
panel.plot(range(10, 151, 10), [row["test"] for row in rows if "test" in row])
panel.axhline(0.5, color="0.8", linestyle="--", zorder=0)
panel.set(xlabel="iteration", ylabel="test accuracy", ylim=(0.4, 1.02))
plt.show()

# %% [markdown]
# ## Look at it
#
# Always look: a network may be right for a wrong reason, or silent. Below is
# one test recording of each class: what comes in, what the neurons do, and
# the two readouts. The grey stretch is what the loss sees.

# %% alt="Events, spikes and readouts for a sweep up and one down"
figure, panels = plt.subplots(
    3,
    2,
    figsize=(8, 5),
    height_ratios=(2, 3, 2),
    sharex=True,
    layout="constrained",
)
for label in range(2):
    example = 400 + int(np.flatnonzero(labels[test] == label)[0])
    trajectory = trained(spikes[:, example : example + 1])
    top, middle, bottom = panels[:, label]
    top.scatter(*np.nonzero(spikes[:, example]), s=4, color="black")
    middle.scatter(*np.nonzero(trajectory.spikes[:, 0]), s=4, color="C0")
    for k, name in enumerate(CLASSES):
        bottom.plot(trajectory.outputs[:, 0, k], label=name, color=f"C{k + 1}")
    bottom.axvspan(DURATION - 20, DURATION, color="0.9", zorder=0)
    top.set_title(f"a sweep {CLASSES[label]}")
    bottom.set_xlabel("time (ms)")
for panel, name in zip(
    panels[:, 0], ("channel", "neuron", "readout"), strict=True
):
    panel.set_ylabel(name)
panels[2, 1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
rate = 1000 * float(trained(spikes[:, test]).spikes.mean())
print(f"{rate:.0f} Hz per neuron")

# %% [markdown]
# ## A control
#
# Did it learn the order of the spikes? If so, recordings with their steps
# shuffled must leave it at chance, for they have the same spikes of each
# channel.

# %%
shuffled = np.random.default_rng(1).permutation(spikes[:, test], axis=0)
print(f"steps shuffled: {accuracy(trained, shuffled):.2f}")
backwards = spikes[::-1, test]
print(f"played backwards: {accuracy(trained, backwards):.2f}")
assert rows[-1]["test"] > 0.9 and abs(accuracy(trained, shuffled) - 0.5) < 0.15

# %% [markdown]
# Played backwards, a sweep up is a sweep down, and the network says so.
#
# ## Keep it, use it
#
# A checkpoint holds the arrays; the code says what they are of. Loading needs
# a network built the same way.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "sweeps.eprop"
    eprop.checkpoints.save(path, trained, metadata={"classes": CLASSES})
    loaded, metadata = eprop.checkpoints.load(path, network)

new = as_array([record(0), record(1), record(1)])
print([metadata["classes"][k] for k in answers(loaded, new)])

# %% [markdown]
# ## Where next
#
# - What the rule computes, and what it leaves out: [From BPTT to
#   e-prop](bptt_to_eprop.md).
# - [Recordings of different lengths](../variable_lengths.md), several answers
#   at once, sweeps over learning rates: the how-to pages.
# - Recordings that never end: [Learning from a stream](stream.md).
