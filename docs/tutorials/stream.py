# %% [markdown]
# # Learning from a stream
#
# E-prop needs no end of a sequence: whatever a synapse did to its neuron is
# in its trace by now. So a network can learn while data come in, for as long
# as they do, in constant memory. Here it reads the movement of a hand from 50
# simulated neurons of motor cortex, as a brain-machine interface does. Then
# the electrodes slip. A decoder that was trained once is lost; one that goes
# on learning recovers.

# %%
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import eprop
from eprop import (
    ALIF,
    EProp,
    Network,
    OnlineLearner,
    RandomFeedback,
    RatePenalty,
)

# %% [markdown]
# ## The stream
#
# The hand's velocity wanders in the plane. Each recorded neuron prefers a
# direction and fires up to 60 Hz when the hand goes there. After 150 s the
# electrodes slip: every channel records a neuron with another preference.
# Each second is a function of its number alone, so that a stream can be cut
# anywhere, and taken up again.

# %%
N_CHANNELS, SLIP = 50, 150  # s
of_directions, of_spikes = jax.random.split(jax.random.key(0))


@jax.jit
def second(number):
    """Spikes `[time, batch, channel]`, velocities `[time, batch, 2]`."""
    t = number + jnp.arange(1000) / 1000  # s
    x = jnp.sin(2 * jnp.pi * 0.53 * t) + jnp.sin(2 * jnp.pi * 0.21 * t + 1)
    y = jnp.sin(2 * jnp.pi * 0.43 * t + 2) + jnp.sin(2 * jnp.pi * 0.31 * t)
    velocity = jnp.stack([x, y], axis=-1) / 2
    placed = jax.random.fold_in(of_directions, number >= SLIP)
    preferred = jax.random.uniform(placed, (N_CHANNELS,), maxval=2 * jnp.pi)
    drive = velocity @ jnp.stack([jnp.cos(preferred), jnp.sin(preferred)])
    rate = 20 + 40 * jnp.clip(drive, -0.5, 1)  # Hz
    spikes = (
        jax.random.uniform(jax.random.fold_in(of_spikes, number), rate.shape)
        < rate / 1000
    )
    return spikes[:, None], velocity[:, None]


# %% [markdown]
# ## A learner
#
# An `OnlineLearner` is a network, a loss, a rule and an optimiser. The
# weights change every 20 ms. The loss is called on the steps since the last
# update, so it must be a sum over time; a mean would be another loss for each
# window, and is refused. A penalty draws the rates towards 20 Hz.

# %%
network = Network(
    ALIF(100, v_th=1.0),
    n_in=N_CHANNELS,
    n_out=2,
    tau_out=50.0,
    scale_readout=True,
    key=jax.random.key(1),
)
rule = EProp(RandomFeedback(jax.random.normal(jax.random.key(2), (100, 2))))


def loss(trajectory, velocity):
    return 0.5 * jnp.sum((trajectory.outputs - velocity) ** 2)


learner = OnlineLearner(
    network,
    loss,
    rule,
    optax.sgd(1e-3),
    update_every=20,
    rate_penalty=RatePenalty(target_rate=20.0, weight=100.0),
)
state = learner.init(batch=1)

# %% [markdown]
# All that changes is in the `state`: weights, neurons, traces, optimiser.
# `step` takes one time step as it comes; `run` takes a chunk, does the same,
# and is much faster.

# %%
spikes, velocity = second(0)
for t in range(3):
    state, info = learner.step(state, spikes[t], velocity[t])
print(f"after {state.n_steps} steps: output {info.outputs[0]}")

# %% [markdown]
# ## Five minutes
#
# A second at a time. The error is measured with care: an output that only
# chases its last error would look good on a slow movement, without reading a
# single spike. So in every fifth second nobody tells the velocity, and
# nothing is learned: `predict` lets the neurons follow the stream. Just
# before the electrodes slip, a copy is frozen.


# %%
def error(outputs, velocity):
    """Mean square, relative to the velocity's over a long time."""
    return float(jnp.mean((outputs - velocity) ** 2) / 0.25)


state, tested = learner.init(batch=1), range(4, 2 * SLIP, 5)
learning, frozen = {}, {}
start = time.perf_counter()
for number in range(2 * SLIP):
    spikes, velocity = second(number)
    if number == SLIP:
        copy = state
    if number in tested:
        state, trajectory = learner.predict(state, spikes)
        learning[number] = trajectory.outputs
    else:
        state, info = learner.run(state, (spikes, velocity))
    if number >= SLIP:
        copy, trajectory = learner.predict(copy, spikes)
        frozen[number] = trajectory.outputs
seconds = time.perf_counter() - start
print(
    f"{state.n_steps} steps in {seconds:.0f} s, {info.rates.mean():.0f} Hz each"
)

# %% alt="Errors over time: the network that goes on learning recovers"
figure, panel = plt.subplots(figsize=(9, 2.8), layout="constrained")
curves = {
    "goes on learning": (learning, "C0"),
    "frozen before the slip": (frozen, "0.6"),
}
errors = {}
for name, (outputs, color) in curves.items():
    errors[name] = [
        error(outputs[i], second(i)[1]) for i in tested if i in outputs
    ]
    at = [i for i in tested if i in outputs]
    panel.semilogy(at, errors[name], ".-", color=color, label=name)
panel.axvline(SLIP, color="C3", linestyle="--", linewidth=1)
panel.set(xlabel="time (s)", ylabel="error while not told")
figure.legend(frameon=False, ncols=2, loc="outside upper center")
plt.show()

# %% [markdown]
# An error of 1 is that of an output of 0. The copy is worse than that: it
# takes each movement for one in another direction. Here is what the network
# says in four seconds in which it was not told: the fifth, the last before
# the slip, the fifth after it, and the last.

# %% alt="The hand's velocity and the network's output in four seconds"
figure, panels = plt.subplots(
    2, 4, figsize=(9, 3.4), sharex=True, sharey=True, layout="constrained"
)
for column, number in zip(
    panels.T, (4, SLIP - 1, SLIP + 4, 2 * SLIP - 1), strict=True
):
    velocity, outputs = second(number)[1][:, 0], learning[number][:, 0]
    for k, panel in enumerate(column):
        panel.plot(velocity[:, k], color="0.8", linewidth=3)
        panel.plot(outputs[:, k], color="C0", linewidth=1)
    column[0].set_title(f"second {number}")
    column[1].set_xlabel("time (ms)")
panels[0, 0].set_ylabel("velocity, x")
panels[1, 0].set_ylabel("y")
plt.show()

# %% [markdown]
# Grey is the hand, blue the network's output.
#
# ## Stop, and go on
#
# To save the state is to save the run. What is loaded goes on to the same
# bits.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "decoder.eprop"
    eprop.checkpoints.save(path, state)
    loaded, _ = eprop.checkpoints.load(path, learner.init(batch=1))

_, once = learner.run(state, second(2 * SLIP))
_, again = learner.run(loaded, second(2 * SLIP))
print("the same bits:", bool(jnp.array_equal(once.outputs, again.outputs)))
after = [np.mean(of_curve[-5:]) for of_curve in errors.values()]
assert after[0] < 0.3 < 1 < after[1]

# %% [markdown]
# ## Where next
#
# - Windows, targets that are missing, examples that end, errors: [Learning
#   online](../online.md).
# - One gradient of a sequence longer than memory, without updates in it:
#   [Long sequences](../long_sequences.md).
# - A real test, over ten minutes, with curves that change: [the
#   experiment](../online.md#a-stream-that-changes).
