"""Pong and Fishing Derby, played by a spiking network that learns online from its rewards.

The task of the paper's Figs. 4 and 5, on the Arcade Learning Environment. The network sees a grey
image of 84 × 84 pixels, the brighter of the last two frames, through two layers of LIF neurons that
are convolutions; a layer of LIF and adaptive LIF neurons decides every 4 frames, which are 5 steps
of the network. Rewards are clipped to -1, 0 and 1. By `--learner frozen` only the readouts learn.

What is here is not the authors' program: their readout also sees the convolutions, which goes
round the recurrent layer; their convolutions have a bias, and a higher pseudo-derivative; their
penalty of voltages is left out, and that of rates here is of all layers; and they update the
weights when all games have ended, and cut traces every 100 decisions, where here weights change
every `update_every` decisions and traces go on. Sizes and time constants are theirs, and with
"reference" the learning rate, and the weights of the loss's terms for each game.

This takes days. A run can be interrupted at any time: the same command, or one with more
`--decisions`, goes on from the last checkpoint, with weights, optimiser and curve, and with games
that begin anew: an emulator's state is not saved.

Presets, named first: "default"; and "reference", the hyperparameters of the official code. That
adds up over its 32 games what is averaged here, so that its Adam's ε of 1 is 1/32 here. Its
penalty is of mean rates, once for 505 steps, and here at each step of rates over 1000 steps, so
that its weight of 50 is 50 · 1000 / (505 · 32).
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ale_py.vector_env import AtariVectorEnv
from tqdm import tqdm

import eprop
from eprop.environments import GymnasiumEnvironments
from figures.atari import draw

from .learners import make_rule, only_readout
from .runs import RunFolder, configuration, random_key, resumable

key_of = functools.partial(random_key, ("weights", "feedback", "training", "games"))

SIDE = 84
"""Pixels of the image's sides."""
ACTIONS = {"pong": (0, 3, 4), "fishing_derby": tuple(range(10))}
FRAMES = 4
"""From one decision to the next."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    game: Literal["pong", "fishing_derby"] = "pong"
    """Which game."""
    learner: Literal["random", "frozen"] = "random"
    """Random feedback; or frozen, readouts trained alone."""
    seed: int = 0
    """Of the weights, the feedback and the games."""
    actions: tuple[int, ...] | None = None
    """Those of the game that may be chosen. By default the authors': of Pong to stay and two
    directions, (0, 3, 4); of Fishing Derby the first ten."""

    background: Literal["removed", "kept"] = "removed"
    """What most of an image shows: "removed", its median is taken from each pixel, so that neurons
    spike for what is not background; or "kept"."""
    steps: int = 5
    """Steps of the network, of 1 ms, from one decision to the next."""
    channels: tuple[int, int] = (16, 8)
    """Of the two convolutions."""
    tau_convolution: float = 1.0
    """Membrane time constant of their neurons in ms."""
    v_th_convolution: float = 0.1
    """Threshold of their neurons, in units of the membrane potential."""
    n_lif: int = 240
    """Recurrent neurons without adaptation."""
    n_alif: int = 160
    """Recurrent neurons with an adaptive threshold."""
    tau_v: float = 15.0
    """Membrane time constant in ms."""
    tau_a: float = 70.0
    """Time constant of the threshold adaptation in ms."""
    beta: float = 0.1
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    v_th: float = 1.0
    """Threshold, in units of the membrane potential."""
    refractory_ms: float = 5.0
    """Length of the refractory period in ms, the spike's step included."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    tau_out: float = 2.0
    """Time constant of the readouts in ms."""

    batch_size: int = 16
    """Games side by side."""
    point: float = 0.1
    """What a reward of 1 is worth: what the value is to be grows with it."""
    discount: float = 0.99
    """γ, from one decision to the next."""
    update_every: int = 10
    """Decisions from one weight update to the next."""
    learning_rate: float = 1e-3
    """Adam's, of the readouts."""
    learning_rate_below: float = 3e-5
    """Adam's, of the layers below. Their neurons have up to 2312 synapses, whose steps add up."""
    adam_epsilon: float = 1e-5
    """Adam's ε."""
    value_weight: float = 1.0
    """C_V, of the value's error."""
    entropy_weight: float = 0.001
    """c, by which the policy's entropy is rewarded."""
    rate_target_hz: float = 20.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 10.0
    """Weight of the firing-rate penalty at each step, of squared rates in (spikes/ms)²."""
    decisions: int = 250_000
    """Decisions of each game, so long as they follow upon each other."""
    save_every: int = 500
    """Decisions from one checkpoint to the next."""
    compared: int = 4
    """Games in each emulator whose actions are drawn at random, to compare with."""

    results: Path = Path("results/atari")
    """Folder of the results."""
    run: str = "{game}_{learner}_seed{seed}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if self.compared < 1:
            raise ValueError(
                f"compared = {self.compared}: there is no score at random without a game, "
                f"give at least 1"
            )

    @property
    def chosen_from(self) -> tuple[int, ...]:
        """Actions, by the readouts' order."""
        return ACTIONS[self.game] if self.actions is None else self.actions

    @property
    def folder(self) -> Path:
        names = {"game": self.game, "learner": self.learner, "seed": self.seed}
        return self.results / self.run.format(**names)


PRESETS = {
    "default": Config(),
    "reference": Config(
        background="kept",
        point=1.0,
        learning_rate_below=1e-3,
        batch_size=32,
        update_every=100,
        adam_epsilon=1 / 32,
        entropy_weight=0.0025,
        rate_penalty=50 * 1000 / (505 * 32),
        run="reference_{game}_{learner}_seed{seed}",
    ),
}


def make_network(config: Config) -> eprop.Network:
    """Two convolutions, recurrent neurons, and readouts of these: the actions', and the value's."""
    first, second = config.channels
    of = dict(zip("abcd", jax.random.split(key_of(config.seed, "weights"), 4), strict=True))

    def lif(n: int) -> eprop.LIF:
        return eprop.LIF(
            n,
            tau_v=config.tau_convolution,
            v_th=config.v_th_convolution,
            surrogate=eprop.Triangular(config.gamma),
        )

    def convolution(key: str, shape: tuple[int, int, int, int], side: int, stride: int):
        kernel = jax.random.normal(of[key], shape) / float(np.sqrt(np.prod(shape[:3])))
        return eprop.Convolution(kernel, (side, side), stride=stride, padding="VALID")

    w_first = convolution("a", (8, 8, 1, first), SIDE, 4)
    w_second = convolution("b", (4, 4, first, second), w_first.shape_out[0], 1)
    n_first, n_second = (int(np.prod(x.shape_out)) for x in (w_first, w_second))
    alike = {
        "tau_v": config.tau_v,
        "v_th": config.v_th,
        "n_refractory": round(config.refractory_ms),
        "surrogate": eprop.Triangular(config.gamma),
    }
    recurrent = [
        eprop.LIF(config.n_lif, **alike),
        eprop.ALIF(config.n_alif, tau_a=config.tau_a, beta=config.beta, **alike),
    ]
    return eprop.Network(
        [
            eprop.Layer(lif(n_first), w_in=w_first, w_rec=None),
            eprop.Layer(lif(n_second), w_in=w_second, w_rec=None),
            eprop.Layer(recurrent, n_in=n_second, key=of["c"]),
        ],
        n_out=len(config.chosen_from) + 1,
        tau_out=config.tau_out,
        readout_bias=np.zeros(len(config.chosen_from) + 1),
        scale_readout=True,
        key=of["d"],
    )


def make_learner(config: Config) -> eprop.RewardLearner:
    network = make_network(config)
    b = jax.random.normal(key_of(config.seed, "feedback"), (network.n, network.n_out))
    rule = make_rule("random", b)
    assert isinstance(rule, eprop.EProp)
    is_readout = only_readout(network)
    adam = functools.partial(optax.adam, eps=config.adam_epsilon)
    return eprop.RewardLearner(
        network,
        rule,
        optax.partition(
            {True: adam(config.learning_rate), False: adam(config.learning_rate_below)},
            lambda _: is_readout,
        ),
        discount=config.discount,
        steps=config.steps,
        update_every=config.update_every,
        value_weight=config.value_weight,
        entropy_weight=config.entropy_weight,
        rate_penalty=eprop.RatePenalty(config.rate_target_hz, config.rate_penalty),
        tau_rate=1000.0,
        trainable=is_readout if config.learner == "frozen" else eqx.is_inexact_array,
    )


def make_games(config: Config) -> GymnasiumEnvironments:
    """Of the last image only; the emulator repeats an action for `FRAMES` frames."""
    games = AtariVectorEnv(config.game, config.batch_size, frameskip=FRAMES, stack_num=1)
    return GymnasiumEnvironments(games)


def seen(config: Config, images: np.ndarray) -> np.ndarray:
    """Images `[batch, 1, 84, 84]` as they are for all steps of a decision, `[steps, batch, n_in]`,
    from 0 to 1 for black to white; less the image's median, where the background is removed.
    """
    flat = images.reshape(len(images), -1).astype(jnp.result_type(float)) / 255
    if config.background == "removed":
        flat -= np.median(flat, axis=1, keepdims=True).astype(flat.dtype)
    return np.broadcast_to(flat, (config.steps, *flat.shape))


def scores_at_random(config: Config) -> list[float]:
    """Of the first games in each emulator, by actions that are all as likely."""
    games, drawn = make_games(config), np.random.default_rng((config.seed, 0))
    games.reset(seed=int(drawn.integers(2**30)))
    scores, ended = np.zeros(config.batch_size), [[] for _ in range(config.batch_size)]
    while min(map(len, ended)) < config.compared:
        step = games.step(drawn.choice(config.chosen_from, config.batch_size))
        scores += step.rewards
        for i in np.flatnonzero(step.terminated | step.truncated):
            ended[i].append(float(scores[i]))
            scores[i] = 0.0
    return [score for of_one in ended for score in of_one[: config.compared]]


LASTING = ("network", "rule", "optimizer", "rates", "n_decisions", "key")
"""What of a learner's state a checkpoint has: not what games are under way."""


def load(path: Path, state: eprop.RewardState) -> tuple[eprop.RewardState, dict[str, Any]]:
    """The state to go on from, and what has been so far."""
    if not path.exists():
        return state, {"episodes": [], "seconds": 0.0, "of_emulator": 0.0}
    like = {name: getattr(state, name) for name in LASTING}
    saved, so_far = eprop.checkpoints.load(path, like)
    return state._replace(**saved), so_far


def save(path: Path, state: eprop.RewardState, so_far: dict[str, Any]) -> None:
    eprop.checkpoints.save(path, {name: getattr(state, name) for name in LASTING}, so_far)


def train(config: Config, progress: bool = True) -> tuple[eprop.RewardState, dict[str, Any]]:
    """Play on from the last checkpoint, if there is one.

    Returns the state, and what has been so far: of each game that ended the decisions made until
    then by all and its score; and seconds, how many of them the emulator's.
    """
    learner, games = make_learner(config), make_games(config)
    state = learner.init(
        config.batch_size, key_of(config.seed, "training"), dtype=learner.network.dtype
    )
    path = config.folder / "checkpoint.eprop"
    state, so_far = load(path, state)
    begun = int(state.n_decisions)
    of_games = jax.random.fold_in(key_of(config.seed, "games"), begun)
    images = games.reset(seed=int(jax.random.randint(of_games, (), 0, 2**30)))
    scores = np.zeros(config.batch_size)
    decisions = tqdm(
        range(begun + 1, config.decisions + 1),
        initial=begun,
        total=config.decisions,
        disable=not progress,
    )
    clock = time.perf_counter()
    for decision in decisions:
        state, chosen = learner.act(state, seen(config, images))
        before = time.perf_counter()
        step = games.step(np.asarray(config.chosen_from)[np.asarray(chosen)])
        so_far["of_emulator"] += time.perf_counter() - before
        state, info = learner.learn(
            state,
            config.point * step.rewards,
            step.terminated,
            step.truncated,
            after=seen(config, step.after),
            counts=step.counts,
        )
        images, scores = step.observations, scores + step.rewards
        for i in np.flatnonzero(step.terminated | step.truncated):
            so_far["episodes"].append([decision * config.batch_size, float(scores[i])])
            scores[i] = 0.0
        if decision % config.save_every == 0 or decision == config.decisions:
            now = time.perf_counter()
            so_far["seconds"], clock = so_far["seconds"] + now - clock, now
            save(path, state, so_far)
            decisions.set_postfix(
                score=np.mean([x for _, x in so_far["episodes"][-20:]] or [np.nan]),
                entropy=float(info.entropy.mean()),
                rate_hz=float(info.rates.mean()),
            )
    return state, so_far


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train, and write what came out into the run's folder; returns the summary."""
    folder = RunFolder(config.folder, config, may_change=("decisions", "save_every", "compared"))
    state, so_far = train(config, progress)
    frames = FRAMES * config.batch_size * int(state.n_decisions)
    scores = [x for _, x in so_far["episodes"]]
    summary = {
        "game": config.game,
        "learner": config.learner,
        "frames": frames,
        "episodes": len(scores),
        "first_scores": scores[:50],
        "last_scores": scores[-50:],
        "scores_at_random": scores_at_random(config),
        "frames_per_second": frames / so_far["seconds"],
        "share_of_emulator": so_far["of_emulator"] / so_far["seconds"],
        "rate_hz": float(state.rates.rates.mean()),
    }
    folder.write_json("episodes", so_far["episodes"])
    folder.write_json("summary", summary)
    return summary


def main(args: Sequence[str] | None = None) -> None:
    config = configuration(PRESETS, args, experiment="atari", description=__doc__)
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    first, last = (np.mean(summary[f"{which}_scores"] or [np.nan]) for which in ("first", "last"))
    print(
        f"{summary['frames']:,} frames of {config.game}, {summary['frames_per_second']:.0f} in a "
        f"second, {100 * summary['share_of_emulator']:.0f} % of the time the emulator's.\n"
        f"{summary['episodes']} games ended; score {first:.1f} in the first 50, {last:.1f} "
        f"in the last 50; {np.mean(summary['scores_at_random']):.1f} by actions at random.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
