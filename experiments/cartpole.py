"""A pole on a cart, balanced by a spiking network that learns online from its rewards.

The network sees the cart as spikes of neurons with tuning curves, decides every few steps whether
to push to the left or to the right, and hears a reward for each decision until the pole falls. Its
weights change while episodes go on; each synapse keeps what it is to be credited for. Without
`--velocities` it sees where cart and pole are but not how fast they move: it has to remember.

It learns in an environment written in JAX, with the equations of Gymnasium's CartPole-v1, and is
tested at the end in Gymnasium's own, looked at once: episodes of actions drawn from its policy, and
of greedy ones, the more probable action each time.
Several seeds are trained one after another. A run can be interrupted at any time: the same command
goes on from the last checkpoint.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Bool, Float, PRNGKeyArray

import eprop
from eprop.environments import (
    AbstractEnvironment,
    GymnasiumEnvironments,
    Transition,
    reset,
)
from figures.cartpole import draw

from . import rollouts
from .learners import make_rule
from .runs import RunFolder, random_key, resumable, without_seeds

key_of = functools.partial(random_key, ("weights", "feedback", "training", "episodes", "test"))

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH = 9.8, 1.0, 0.1, 0.5
"""In m/s², kg, kg and m."""
FORCE, TAU = 10.0, 0.02
"""In N and s."""
FAR, TILTED = 2.4, 12 * np.pi / 180
"""Where an episode is over: m from the middle, rad from the vertical."""
LIMIT = 500
"""Decisions until an episode is broken off."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    feedback: Literal["random", "symmetric"] = "random"
    """How the readouts' errors reach the neurons."""
    velocities: bool = True
    """Whether velocities are seen, or only where cart and pole are."""
    seeds: tuple[int, ...] = (11, 12, 13, 14, 15)
    """Of the weights, the feedback and the episodes: a training for each."""

    n_tuned: int = 20
    """Input neurons for each quantity, with tuning curves side by side."""
    peak: float = 0.5
    """Probability of a spike in a step of the input neuron whose tuning fits best."""
    steps: int = 10
    """Steps of the network, of 1 ms, from one decision to the next."""

    n_lif: int = 50
    """Neurons without adaptation."""
    n_alif: int = 50
    """Neurons with an adaptive threshold."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 100.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 10.0
    """Time constant of the readouts in ms."""
    v_th: float = 0.6
    """Threshold, in units of the membrane potential."""
    beta: float = 0.05
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    refractory_ms: float = 2.0
    """Length of the refractory period in ms, the spike's step included."""

    batch_size: int = 16
    """Environments side by side."""
    discount: float = 0.99
    """γ, from one decision to the next. A decision's reward is 1 - γ, so values are 0 to 1."""
    update_every: int = 10
    """Decisions from one weight update to the next."""
    learning_rate: float = 1e-3
    """Adam's, at the beginning; it falls to zero along a cosine."""
    value_weight: float = 1.0
    """C_V, of the value's error."""
    entropy_weight: float = 3e-3
    """c, by which the policy's entropy is rewarded."""
    rate_target_hz: float = 20.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 50.0
    """Weight of the firing-rate penalty at each step, of squared rates in (spikes/ms)²."""
    decisions: int = 500
    """Decisions of each environment in an iteration."""
    iterations: int = 40
    """Of so many decisions; there is a checkpoint every five."""
    test_episodes: int = 100
    """Episodes for each of the two tests at the end."""

    results: Path = Path("results/cartpole")
    """Folder of the results."""
    run: str = "{seen}_{feedback}"
    """Name of this run's own folder in it."""

    @property
    def seen(self) -> str:
        return "all" if self.velocities else "positions"

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(seen=self.seen, feedback=self.feedback)


class PopulationCode(eqx.Module):
    """Observations as spikes: for each quantity a row of neurons with Gaussian tuning curves."""

    largest: tuple[float, ...] = eqx.field(static=True)
    """Of each quantity, the curves' middles being spread from minus to plus that."""
    columns: tuple[int, ...] = eqx.field(static=True)
    """Where the quantities are in an observation."""
    n_tuned: int = eqx.field(static=True)
    peak: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    @property
    def n_in(self) -> int:
        return len(self.columns) * self.n_tuned

    def __call__(
        self, observation: Float[Array, " quantities"], key: PRNGKeyArray
    ) -> Bool[Array, "steps n_in"]:
        middles = jnp.linspace(-1.0, 1.0, self.n_tuned)
        quantities = observation[jnp.asarray(self.columns)] / jnp.asarray(self.largest)
        distance = jnp.clip(quantities, -1.0, 1.0)[:, None] - middles[None]
        probability = self.peak * jnp.exp(-0.5 * (distance * (self.n_tuned - 1) / 2) ** 2)
        probability = jnp.broadcast_to(probability.reshape(1, -1), (self.steps, self.n_in))
        return jax.random.bernoulli(key, probability)


def make_code(config: Config) -> PopulationCode:
    largest, columns = (FAR, 2.5, TILTED, 2.5), (0, 1, 2, 3)
    if not config.velocities:
        largest, columns = (FAR, TILTED), (0, 2)
    return PopulationCode(largest, columns, config.n_tuned, config.peak, config.steps)


class CartPole(AbstractEnvironment):
    """Gymnasium's CartPole-v1. Its state: position, velocity, angle, angular velocity; and time."""

    code: PopulationCode
    reward: float = eqx.field(static=True, default=1.0)
    n_actions: int = eqx.field(static=True, default=2)

    def reset(self, key):
        of_start, of_spikes = jax.random.split(key)
        observation = jax.random.uniform(of_start, (4,), minval=-0.05, maxval=0.05)
        return (observation, jnp.zeros((), jnp.int32)), self.code(observation, of_spikes)

    def step(self, state, action, key):
        observation, t = state
        observation, t = moved(observation, action), t + 1
        is_over = (jnp.abs(observation[0]) > FAR) | (jnp.abs(observation[2]) > TILTED)
        reward = jnp.asarray(self.reward)
        return Transition(
            (observation, t), self.code(observation, key), reward, is_over, t >= LIMIT
        )


def moved(observation: Float[Array, "4"], action: Array) -> Float[Array, "4"]:
    """After a push to the left (0) or right (1), by Euler's method."""
    x, v, angle, omega = observation
    force, mass = jnp.where(action == 1, FORCE, -FORCE), CART_MASS + POLE_MASS
    push = (force + POLE_MASS * HALF_LENGTH * omega**2 * jnp.sin(angle)) / mass
    inertia = HALF_LENGTH * (4 / 3 - POLE_MASS * jnp.cos(angle) ** 2 / mass)
    turning = (GRAVITY * jnp.sin(angle) - jnp.cos(angle) * push) / inertia
    pull = push - POLE_MASS * HALF_LENGTH * turning * jnp.cos(angle) / mass
    return jnp.stack([x + TAU * v, v + TAU * pull, angle + TAU * omega, omega + TAU * turning])


def make_learner(config: Config, seed: int) -> eprop.RewardLearner:
    n = config.n_lif + config.n_alif
    cell = eprop.ALIF(
        n,
        tau_v=config.tau_v,
        v_th=config.v_th,
        n_refractory=round(config.refractory_ms),
        tau_a=config.tau_a,
        beta=np.repeat([0.0, config.beta], [config.n_lif, config.n_alif]),
        surrogate=eprop.Triangular(config.gamma),
    )
    network = eprop.Network(
        cell,
        n_in=make_code(config).n_in,
        n_out=3,
        tau_out=config.tau_out,
        w_out=jax.nn.initializers.normal(0.01),  # small: a policy that tries both, a value of 0
        key=key_of(seed, "weights"),
    )
    rule = make_rule(
        config.feedback, jax.random.normal(key_of(seed, "feedback"), (n, network.n_out))
    )
    assert isinstance(rule, eprop.EProp)
    n_updates = config.iterations * config.decisions // config.update_every
    return eprop.RewardLearner(
        network,
        rule,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, n_updates)),
        discount=config.discount,
        steps=config.steps,
        update_every=config.update_every,
        value_weight=config.value_weight,
        entropy_weight=config.entropy_weight,
        rate_penalty=eprop.RatePenalty(config.rate_target_hz, config.rate_penalty),
        tau_rate=1000.0,
    )


def train(config: Config, seed: int, progress: bool) -> tuple[rollouts.State, list[dict[str, Any]]]:
    """Train one seed, from its last checkpoint if there is one."""
    learner = make_learner(config, seed)
    environment = CartPole(code=make_code(config), reward=1 - config.discount)
    return rollouts.train(
        learner,
        environment,
        (
            learner.init(config.batch_size, key_of(seed, "training")),
            reset(environment, config.batch_size, key_of(seed, "episodes")),
        ),
        decisions=config.decisions,
        iterations=config.iterations,
        of_episodes=lambda played: {
            "decisions": rollouts.per_episode(jnp.asarray(float(played.rewards.size)), played)
        },
        folder=config.folder / f"seed{seed}",
        config=config,
        progress=progress,
    )


def test(
    config: Config, network: eprop.Network, seed: int, *, greedy: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decisions of each episode in Gymnasium's environment, and the first one's course.

    Actions are drawn from the policy; the `greedy` ones are its most probable.
    """
    code, n = make_code(config), config.test_episodes

    @eqx.filter_jit
    def decide(neurons, observations, key):
        observations = observations.astype(network.dtype)
        of_actions, of_code = jax.random.split(key)
        x = jax.vmap(code, out_axes=1)(observations, jax.random.split(of_code, n))
        neurons, trajectory = network.run(neurons, x)
        logits = trajectory.outputs[-1, :, :-1]
        actions = jnp.argmax(logits, -1) if greedy else jax.random.categorical(of_actions, logits)
        return neurons, actions, x, trajectory

    environments = GymnasiumEnvironments(gymnasium.make_vec("CartPole-v1", num_envs=n))
    key = key_of(seed, "test")
    observations = environments.reset(seed=int(jax.random.randint(key, (), 0, 2**31 - 1)))
    neurons, lengths, course = network.init(n), np.zeros(n, int), []
    for t in range(LIMIT):
        neurons, actions, x, run = decide(neurons, observations, jax.random.fold_in(key, t))
        if t < 50:
            of_first = (x[:, 0], run.spikes[:, 0] > 0, run.outputs[:, 0])
            course.append((observations[0], actions[0], *of_first))
        step = environments.step(np.asarray(actions))
        ended = step.terminated | step.truncated
        lengths = np.where((lengths == 0) & ended, t + 1, lengths)
        observations = step.observations
    names = ("observations", "actions", "inputs", "spikes", "outputs")
    return lengths, {
        name: np.stack([np.asarray(x) for x in values])
        for name, values in zip(names, zip(*course, strict=True), strict=True)
    }


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one; then test it.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, tested, greedy, last = RunFolder(config.folder, config), [], [], []
    seeds, config = config.seeds, without_seeds(config)
    for seed in seeds:
        (learning, _), rows = train(config, seed, progress)
        tested.append(test(config, learning.network, seed, greedy=False))
        greedy.append(test(config, learning.network, seed, greedy=True)[0])
        last.append(rows)
    summary = {
        "learner": config.feedback,
        "seeds": list(seeds),
        "test_decisions": [float(lengths.mean()) for lengths, _ in tested],
        "test_at_limit": [float(np.mean(lengths == LIMIT)) for lengths, _ in tested],
        "greedy_decisions": [float(lengths.mean()) for lengths in greedy],
        "greedy_at_limit": [float(np.mean(lengths == LIMIT)) for lengths in greedy],
        "test_episodes": config.test_episodes,
        "limit": LIMIT,
        "training_episodes": [int(sum(row["episodes"] for row in rows)) for rows in last],
        "training_decisions": config.iterations * config.decisions * config.batch_size,
        "rate_hz": [rows[-1]["rate_hz"] for rows in last],
        "seconds": [rows[-1]["seconds"] for rows in last],
    }
    folder.write_arrays("trial", tested[0][1])
    folder.write_json("summary", summary)
    return summary


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config,
        default=Config(),
        args=args,
        prog="python -m experiments.cartpole",
        description=__doc__,
    )
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    drawn, greedy = (
        ", ".join(f"{found:.0f}" for found in summary[name])
        for name in ("test_decisions", "greedy_decisions")
    )
    print(
        f"Balanced for {drawn} decisions of at most {LIMIT} in Gymnasium's CartPole-v1 (by greedy "
        f"actions {greedy}), as means of {summary['test_episodes']} episodes, seeing "
        f"{config.seen}, learning by "
        f"{config.feedback} feedback, seeds {', '.join(map(str, config.seeds))}.\n"
        f"Training took {sum(summary['seconds']):.0f} s and "
        f"{', '.join(map(str, summary['training_episodes']))} episodes.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
