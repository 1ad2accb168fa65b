"""MinAtar's Breakout, played by a spiking network that learns online from its rewards.

Ten by ten pixels in four channels, the paddle, the ball, its trail and the bricks, are spikes of
400 input neurons for as long as a decision takes: to stay, left or right. A brick that is hit is
worth a reward of 1; a ball that is lost is the end. One decision in ten is not heard, and the last
one is repeated. `--learner frozen` trains the readouts alone: recurrent e-prop must add to that.

The game is pgx's. At the end fresh games are played, by actions drawn from the policy, as while
learning, and by drawing them at random. Several seeds are trained one after another. A run can be
interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pgx
import tyro
from jaxtyping import Array

import eprop
from eprop.environments import AbstractEnvironment, Transition, reset
from eprop.learner_state import restarted
from figures.breakout import draw

from . import rollouts
from .learners import make_rule, only_readout
from .runs import RunFolder, random_key, resumable, without_seeds

key_of = functools.partial(random_key, ("weights", "feedback", "training", "games", "test"))


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    learner: Literal["random", "symmetric", "frozen"] = "random"
    """How the readouts' errors reach the neurons; or frozen, readouts trained alone."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the weights, the feedback and the games: a training for each."""

    steps: int = 5
    """Steps of the network, of 1 ms, from one decision to the next."""
    n_lif: int = 50
    """Neurons without adaptation."""
    n_alif: int = 50
    """Neurons with an adaptive threshold."""
    tau_v: float = 10.0
    """Membrane time constant in ms."""
    tau_a: float = 100.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 5.0
    """Time constant of the readouts in ms."""
    v_th: float = 1.0
    """Threshold, in units of the membrane potential."""
    beta: float = 0.05
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    refractory_ms: float = 2.0
    """Length of the refractory period in ms, the spike's step included."""

    batch_size: int = 16
    """Games side by side."""
    limit: int = 1000
    """Decisions until a game is broken off."""
    discount: float = 0.99
    """γ, from one decision to the next."""
    update_every: int = 5
    """Decisions from one weight update to the next."""
    learning_rate: float = 1e-3
    """Adam's, at the beginning; it falls to zero along a cosine."""
    value_weight: float = 0.5
    """C_V, of the value's error."""
    entropy_weight: float = 0.02
    """c, by which the policy's entropy is rewarded."""
    rate_target_hz: float = 30.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 0.1
    """Weight of the firing-rate penalty at each step, of squared rates in (spikes/ms)²."""
    decisions: int = 500
    """Decisions of each game in an iteration."""
    iterations: int = 100
    """Of so many decisions; there is a checkpoint every five."""
    test_games: int = 64
    """Games played side by side in the test at the end, each `limit` decisions long, anew after an
    end."""

    results: Path = Path("results/breakout")
    """Folder of the results."""
    run: str = "{learner}"
    """Name of this run's own folder in it."""

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(learner=self.learner)


class Breakout(AbstractEnvironment):
    """pgx's game, and how many decisions it has taken."""

    game: Any = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    limit: int = eqx.field(static=True)
    n_actions: int = eqx.field(static=True, default=3)

    def reset(self, key):
        state = self.game.init(key)
        return (state, jnp.zeros((), jnp.int32)), self.seen(state)

    def step(self, state, action, key):
        game, t = state
        with jax.numpy_dtype_promotion("standard"):  # pgx compares booleans with 1
            game, t = self.game.step(game, action, key), t + 1
        return Transition(
            (game, t), self.seen(game), game.rewards[0], game.terminated, t >= self.limit
        )

    def seen(self, game: Any) -> Array:
        """The screen, as it is for all steps of a decision, `[steps, n_in]`."""
        screen = game.observation.reshape(-1)
        return jnp.broadcast_to(screen, (self.steps, screen.size))


def make_environment(config: Config) -> Breakout:
    return Breakout(game=pgx.make("minatar-breakout"), steps=config.steps, limit=config.limit)


def make_learner(config: Config, seed: int) -> eprop.RewardLearner:
    n = config.n_lif + config.n_alif
    alike = {
        "tau_v": config.tau_v,
        "v_th": config.v_th,
        "n_refractory": round(config.refractory_ms),
        "surrogate": eprop.Triangular(config.gamma),
    }
    adaptive = eprop.ALIF(config.n_alif, tau_a=config.tau_a, beta=config.beta, **alike)
    of_layer, of_readout = jax.random.split(key_of(seed, "weights"))
    network = eprop.Network(
        [eprop.Layer([eprop.LIF(config.n_lif, **alike), adaptive], n_in=400, key=of_layer)],
        n_out=4,
        tau_out=config.tau_out,
        w_out=jax.nn.initializers.normal(0.01),  # small: a policy that tries all, a value of 0
        key=of_readout,
    )
    feedback = "random" if config.learner == "frozen" else config.learner
    b = jax.random.normal(key_of(seed, "feedback"), (n, network.n_out))
    rule = make_rule(feedback, b)
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
        trainable=only_readout(network) if config.learner == "frozen" else eqx.is_inexact_array,
    )


def train(config: Config, seed: int, progress: bool) -> tuple[rollouts.State, list[dict[str, Any]]]:
    """Train one seed, from its last checkpoint if there is one."""
    learner, environment = make_learner(config, seed), make_environment(config)
    return rollouts.train(
        learner,
        environment,
        (
            learner.init(config.batch_size, key_of(seed, "training")),
            reset(environment, config.batch_size, key_of(seed, "games")),
        ),
        decisions=config.decisions,
        iterations=config.iterations,
        of_episodes=lambda played: {"score": rollouts.per_episode(played.rewards.sum(), played)},
        folder=config.folder / f"seed{seed}",
        config=config,
        progress=progress,
    )


@eqx.filter_jit
def play(config: Config, network: eprop.Network | None, key: Array) -> tuple[Array, dict[str, Any]]:
    """Rewards and ends of fresh games, `[2, decision, game]`, by a network's policy or without one
    at random; and what the first game was like.
    """
    environment, n = make_environment(config), config.test_games
    of_start, of_games = jax.random.split(key)
    fresh = reset(environment, n, of_start)
    neurons = None if network is None else network.init(n)

    def decision(carried, t):
        games, x, neurons = carried
        of_actions, of_steps, of_resets = jax.random.split(jax.random.fold_in(of_games, t), 3)
        logits, run = jnp.zeros((n, 3)), None
        if network is not None:
            neurons, run = network.run(neurons, x)
            logits = run.outputs[-1, :, :-1]
        actions = jax.random.categorical(of_actions, logits).astype(jnp.int32)
        step = jax.vmap(environment.step, out_axes=eprop.environments.TRANSITION_AXES)
        found = step(games, actions, jax.random.split(of_steps, n))
        ended = found.terminated | found.truncated
        new = reset(environment, n, of_resets)
        start = (new.state, None if network is None else network.init(n))
        games, neurons = restarted(start, (found.state, neurons), ended)
        now = None
        if run is not None:
            screen = x[0, 0].reshape(10, 10, 4)
            now = (screen, actions[0], run.spikes[:, 0] > 0, run.outputs[:, 0])
        x = jnp.where(ended[None, :, None], new.x, found.x)
        heard = jnp.stack([found.reward, ended.astype(found.reward.dtype)])
        return (games, x, neurons), (heard, now)

    start = (fresh.state, fresh.x, neurons)
    _, (heard, course) = jax.lax.scan(decision, start, jnp.arange(config.limit))
    names = ("screens", "actions", "spikes", "outputs")
    first = {} if course is None else {k: x[:40] for k, x in zip(names, course, strict=True)}
    return jnp.moveaxis(heard, 1, 0), first


def score(heard: Array) -> float:
    """Mean sum of rewards of a game, of those that ended."""
    rewards, ended = np.asarray(heard)
    finished = np.cumsum(ended[::-1], axis=0)[::-1] > 0  # decisions of games that ended
    return float((rewards * finished).sum() / max(ended.sum(), 1))


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one; then test it.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, tested, last = RunFolder(config.folder, config), [], []
    seeds, config = config.seeds, without_seeds(config)
    for seed in seeds:
        (learning, _), rows = train(config, seed, progress)
        tested.append(play(config, learning.network, key_of(seed, "test")))
        last.append(rows)
    at_random = [play(config, None, key_of(seed, "test"))[0] for seed in seeds]
    summary = {
        "learner": config.learner,
        "seeds": list(seeds),
        "test_score": [score(heard) for heard, _ in tested],
        "test_games": [int(heard[1].sum()) for heard, _ in tested],
        "random_policy": [score(heard) for heard in at_random],
        "training_games": [int(sum(row["episodes"] for row in rows)) for rows in last],
        "training_decisions": config.iterations * config.decisions * config.batch_size,
        "rate_hz": [rows[-1]["rate_hz"] for rows in last],
        "seconds": [rows[-1]["seconds"] for rows in last],
    }
    folder.write_arrays("trial", jax.device_get(tested[0][1]))
    folder.write_json("summary", summary)
    return summary


def main(args: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Config,
        default=Config(),
        args=args,
        prog="python -m experiments.breakout",
        description=__doc__,
    )
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    scores = ", ".join(f"{found:.1f}" for found in summary["test_score"])
    games = summary["test_games"]
    print(
        f"Scores of {scores} as means of {min(games)} to {max(games)} games, learning by "
        f"{config.learner} from {summary['training_decisions']} decisions, seeds "
        f"{', '.join(map(str, config.seeds))}; {np.mean(summary['random_policy']):.1f} at random.\n"
        f"Training took {sum(summary['seconds']):.0f} s.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
