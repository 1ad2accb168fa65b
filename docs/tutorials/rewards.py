# %% [markdown]
# # Learning from rewards
#
# Nobody says what would have been right: the network acts, and hears later
# how it went. Each synapse keeps a trace of what it did to its neuron, and
# one number more, its part in what was decided. When a reward comes, or does
# not, that number times the surprise is the weight change. Here a network
# learns a T-maze, where it has to remember on which side a cue was.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from eprop import ALIF, EProp, Network, RandomFeedback, RewardLearner
from eprop.environments import AbstractEnvironment, Transition, reset

# %% [markdown]
# ## The maze
#
# An environment is two functions: how an episode begins, and what comes of an
# action. What the network sees until its next decision are spikes, here of 24
# neurons for 20 ms. Eight of them are active where a light was on the left,
# eight where it was on the right, eight at the junction. In between there is
# noise. The fourth decision, at the junction, is the only one that counts:
# the light's side is worth a reward of 1, the other one costs 1.

# %%
STEPS, JUNCTION = 20, 3


class Maze(AbstractEnvironment):
    n_actions: int = 2

    def reset(self, key):
        of_side, of_spikes = jax.random.split(key)
        side = jax.random.randint(of_side, (), 0, 2, jnp.int32)
        place = jnp.zeros((), jnp.int32)
        return (side, place), self.seen(side, place, of_spikes)

    def step(self, state, action, key):
        side, place = state
        at_end = place == JUNCTION
        reward = jnp.where(at_end, jnp.where(action == side, 1.0, -1.0), 0.0)
        no = jnp.zeros((), bool)
        x = self.seen(side, place + 1, key)
        return Transition((side, place + 1), x, reward, at_end, no)

    def seen(self, side, place, key):
        group = jnp.arange(24, dtype=jnp.int32) // 8
        cue = (place == 0) & (group == side)
        bell = (place == JUNCTION) & (group == 2)
        rate = jnp.where(cue | bell, 0.3, 0.02)
        return jax.random.uniform(key, (STEPS, 24)) < rate


# %% [markdown]
# ## A learner
#
# The network has a readout for each action, and one for the *value*, what it
# expects of rewards to come. `discount` says by how much a reward counts less
# for each decision that it comes later, `entropy_weight` how much the policy
# is drawn to trying things out. Feedback from the readouts to the neurons is
# random, and stays so.

# %%
network = Network(
    ALIF(60, v_th=0.6, tau_a=200.0, beta=0.1),
    n_in=24,
    n_out=3,  # left, right, value
    w_out=jax.nn.initializers.normal(0.01),  # a policy that tries both
    key=jax.random.key(0),
)
rule = EProp(RandomFeedback(jax.random.normal(jax.random.key(1), (60, 3))))
learner = RewardLearner(
    network,
    rule,
    optax.adam(3e-3),
    discount=0.9,
    steps=STEPS,  # of the network, to each decision
    update_every=4,  # decisions, to each change of the weights
    entropy_weight=0.1,
)

# %% [markdown]
# ## A decision by hand
#
# `act` lets the network see, and says what it decides; `learn` tells it what
# that came to. Any world will do: a robot's, Gymnasium's, or this one.

# %%
maze = Maze()
place, x = maze.reset(jax.random.key(2))
state = learner.init(batch=1, key=jax.random.key(3))
state, actions = learner.act(state, x[:, None])  # [steps, batch, neuron]
found = maze.step(place, actions[0], jax.random.key(4))
state, info = learner.learn(
    state,
    rewards=found.reward[None],
    terminated=found.terminated[None],
    truncated=found.truncated[None],
    after=found.x[:, None],
)
print(f"action {actions[0]}, reward {found.reward}")
print(f"entropy {info.entropy[0]:.3f}, value {info.outputs[0, -1]:.3f}")

# %% [markdown]
# ## Many mazes side by side
#
# What is written in JAX runs as one program with the learner: `rollout`. Each
# call is 200 decisions in each of 16 mazes, 800 runs through the maze.


# %%
def train(learner, n_rollouts=8):
    """The state, and of each rollout the mean reward and value at the end."""
    state = learner.init(batch=16, key=jax.random.key(5))
    situation = reset(maze, batch=16, key=jax.random.key(6))
    rewards, values = [], []
    for _ in range(n_rollouts):
        state, situation, played = learner.rollout(state, maze, situation, 200)
        ends = np.asarray(played.terminated)
        rewards.append(float(np.asarray(played.rewards)[ends].mean()))
        values.append(float(np.asarray(played.info.outputs)[ends, -1].mean()))
    return state, np.array(rewards), np.array(values)


state, rewards, values = train(learner)
print(f"mean reward {rewards[0]:.2f} at first, {rewards[-1]:.2f} at the end")
assert rewards[0] < 0.5 and rewards[-1] > 0.85

# %% [markdown]
# ## A third factor of your own
#
# With `value_weight=None` there is no critic: all readouts are actions, and
# what `learn` is given as rewards *is* the third factor, by which each
# synapse's part is multiplied. Say the reward less what it has been on
# average, or the concentration of dopamine. In a rollout it is what the
# environment returns.

# %%
modulated = RewardLearner(
    Network(
        network.layers,
        n_out=2,
        w_out=network.w_out[:, :2],
        key=jax.random.key(7),
    ),
    EProp(RandomFeedback(rule.feedback.b[:, :2])),
    optax.adam(3e-3),
    discount=0.9,
    steps=STEPS,
    update_every=4,
    entropy_weight=0.1,
    value_weight=None,
)
_, alone, _ = train(modulated)
print(f"without a critic {alone[-1]:.2f}")

# %% alt="Rewards and values against runs through the maze"
figure, panel = plt.subplots(figsize=(9, 2.8), layout="constrained")
runs = 0.8 * np.arange(1, len(rewards) + 1)
panel.plot(runs, rewards, ".-", color="C0", label="reward")
panel.plot(runs, values, ".-", color="0.6", label="value, at the junction")
panel.plot(runs, alone, ".--", color="C1", label="reward, without a critic")
panel.set(xlabel="runs through the maze (thousands)", ylim=(-0.3, 1.05))
panel.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# The value follows the reward: what is expected is no surprise, and changes
# nothing any more.
#
# ## What it remembers
#
# Ten runs with the light on either side. What the network is drawn to, the
# readout of "right" less that of "left", is on the light's side when the
# junction comes, 40 ms after the light has gone out.


# %% alt="Spikes of one run, and the readouts of twenty"
def run_through(side, key):
    """What is seen on the whole way, `[time, neuron]`."""
    keys, places = jax.random.split(key, 4), range(JUNCTION + 1)
    return jnp.concatenate(
        [maze.seen(side, t, k) for t, k in zip(places, keys, strict=True)]
    )


keys = jax.random.split(jax.random.key(8), 20)
sides = jnp.arange(20, dtype=jnp.int32) % 2
x = jax.vmap(run_through, out_axes=1)(sides, keys)
trajectory = state.network(x)
drawn_to = trajectory.outputs[..., 1] - trajectory.outputs[..., 0]

figure, (of_spikes, of_outputs) = plt.subplots(
    2, 1, figsize=(9, 3.8), sharex=True, layout="constrained"
)
time, neuron = np.nonzero(np.asarray(trajectory.spikes[:, 0]))
of_spikes.plot(time, neuron, "k|", markersize=3)
of_spikes.set_ylabel("neuron")
colours = np.array(["C0", "C3"])[np.asarray(sides)]
for line, color in zip(np.asarray(drawn_to).T, colours, strict=True):
    of_outputs.plot(line, color=color, linewidth=1)
for panel in (of_spikes, of_outputs):
    for begin in (0, JUNCTION * STEPS):
        panel.axvspan(begin, begin + STEPS, color="0.93", zorder=0)
of_outputs.set(xlabel="time (ms)", ylabel="right less left")
plt.show()

right = np.mean((np.asarray(drawn_to[-1]) > 0) == np.asarray(sides, bool))
assert right > 0.85

# %% [markdown]
# Grey: the light, and the junction. Blue: runs in which the light was on the
# left. Above, the spikes of the first of these.
#
# ## Where next
#
# - Episodes that are broken off, Gymnasium, saving, errors: [Learning from
#   rewards](../rewards.md).
# - Real tests: [a delayed reward](../delayed_reward.md), [a pole on a
#   cart](../cartpole.md), [Breakout](../breakout.md).
