"""A decision, and a reward for it: reward-based e-prop, with nobody to say what would be right.

A network of LIF and adaptive LIF neurons sees a cue on its left or right, waits a second, and is
asked for an answer. It draws one of two actions from its policy, and gets a reward of 1 if that is
the cue's side, of -1 if not. That, and how much it had expected, is all that it learns from.

Presets, named first: "default"; and "evidence", where it sees seven cues and has to say on which
side there were more: evidence accumulation by reward alone.

Several seeds are trained one after another, each for so many trials; accuracy is that of greedy
answers, the more probable action, on trials that were never used, which are looked at once.
A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

import eprop
from eprop import losses
from eprop.tasks import EvidenceAccumulation
from figures.delayed_reward import draw

from .learners import make_rule
from .runs import RunFolder, configuration, random_key, resumable, without_seeds

key_of = functools.partial(
    random_key, ("weights", "feedback", "training", "validation", "test", "figure")
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric"] = "random"
    """How the readouts' errors reach the neurons (e-prop only)."""
    seeds: tuple[int, ...] = (21, 22, 23, 24, 25)
    """Of the weights, the feedback and the trials: a training for each."""

    n_lif: int = 50
    """Neurons without adaptation."""
    n_alif: int = 50
    """Neurons with an adaptive threshold."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 2000.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 20.0
    """Time constant of the readouts in ms."""
    v_th: float = 0.6
    """Threshold, in units of the membrane potential."""
    beta: float = 0.0174242
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    refractory_ms: float = 5.0
    """Length of the refractory period in ms, the spike's step included."""
    task: EvidenceAccumulation = dataclasses.field(
        default_factory=lambda: EvidenceAccumulation(n_cues=1)
    )
    """The trials. The decision is at their end; the answer's side is that of the (most) cues."""
    answer_ms: float = 1.0
    """The decision is by the readouts' mean over so many ms, the last ones of the trial."""

    batch_size: int = 64
    """Trials per iteration; every one is new."""
    learning_rate: float = 2e-3
    """Adam's, at the beginning; it falls to zero along a cosine."""
    averaging: float = 0.98
    """Weights are judged as their running average, this much of which is kept at each iteration
    (0: the last weights themselves)."""
    value_weight: float = 0.5
    """C_V, of the value's error; 0 for no critic: the value stays as good as 0."""
    entropy_weight: float = 1.0
    """c, by which the policy's entropy is rewarded. So much keeps it from being sure too early: the
    gradient of a policy that is sure is almost zero, whether it is right or not."""
    rate_target_hz: float = 10.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 20.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)²."""
    iterations: int = 600
    """Updates."""
    check_every: int = 20
    """Iterations between validations, and between checkpoints."""
    validation_batches: int = 4
    """Batches of fresh trials to watch learning on."""
    test_batches: int = 16
    """Batches for the test at the end."""

    results: Path = Path("results/delayed_reward")
    """Folder of the results."""
    run: str = "{learner}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if not self.task.dt <= self.answer_ms <= self.task.recall_ms:
            raise ValueError(
                f"answer_ms = {self.answer_ms:g} must be from a step, {self.task.dt:g} ms, to the "
                f"window in which it is asked, {self.task.recall_ms:g} ms"
            )
        if not 1 <= self.check_every <= self.iterations:
            raise ValueError(
                f"check_every = {self.check_every} must be from 1 to iterations = "
                f"{self.iterations}, or there is no validation to draw learning by"
            )

    @property
    def learner(self) -> str:
        """The rule in one word."""
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(learner=self.learner)


PRESETS = {
    "default": Config(),
    "evidence": Config(
        task=EvidenceAccumulation(),
        answer_ms=150.0,
        learning_rate=5e-3,
        value_weight=0.0,
        entropy_weight=2.0,
        rate_penalty=100.0,
        iterations=200,
        seeds=(21, 22),
        results=Path("results/evidence_by_reward"),
    ),
}


class State(NamedTuple):
    """All that changes during training; all randomness is drawn from seed and iteration."""

    training: eprop.TrainState
    average: eprop.Network


def make_network(config: Config, seed: int) -> eprop.Network:
    """LIF neurons first, then adaptive ones; readouts of the two actions, and of the value."""
    n = config.n_lif + config.n_alif
    cell = eprop.ALIF(
        n,
        tau_v=config.tau_v,
        v_th=config.v_th,
        n_refractory=round(config.refractory_ms / config.task.dt),
        dt=config.task.dt,
        tau_a=config.tau_a,
        beta=np.repeat([0.0, config.beta], [config.n_lif, config.n_alif]),
        surrogate=eprop.Triangular(config.gamma),
    )
    return eprop.Network(
        cell,
        n_in=config.task.n_in,
        n_out=config.task.n_out + 1,
        tau_out=config.tau_out,
        w_out=jax.nn.initializers.normal(0.01),  # small: a policy that tries both, a value of 0
        key=key_of(seed, "weights"),
    )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.iterations))


def make_loss(config: Config):
    """Actor-critic of the one decision at the end of each trial, and the firing-rate penalty."""

    def loss(trajectory: eprop.Trajectory, targets: tuple[Int[Array, " batch"], PRNGKeyArray]):
        labels, key = targets
        decided = decisive(config, trajectory.outputs)
        actions = jax.random.categorical(key, jax.lax.stop_gradient(decided[:, :-1]))
        rewards = rewards_of(actions, labels)
        actor_critic = losses.actor_critic(
            decided[None],
            actions[None],
            rewards[None],
            terminated=jnp.ones((1, len(labels)), bool),
            truncated=jnp.zeros((1, len(labels)), bool),
            discount=1.0,
            value_weight=config.value_weight,
            entropy_weight=config.entropy_weight,
        )
        penalty = losses.firing_rate_penalty(
            trajectory.spikes, config.rate_target_hz, dt=config.task.dt
        )
        policy = jax.nn.softmax(decided[:, :-1])
        info = {
            "reward": rewards.mean(),
            "value": decided[:, -1].mean(),
            "entropy": -jnp.mean(jnp.sum(policy * jnp.log(policy), axis=-1)),
            "rate_hz": 1000 * trajectory.spikes.mean() / config.task.dt,
        }
        return actor_critic + config.rate_penalty * penalty, info

    return loss


def decisive(
    config: Config, outputs: Float[Array, "time batch n_out"]
) -> Float[Array, "batch n_out"]:
    """The readouts that the decision is made by."""
    return outputs[-round(config.answer_ms / config.task.dt) :].mean(0)


def rewards_of(actions: Array, labels: Array) -> Array:
    """1 for the right side, -1 for the other."""
    return jnp.where(actions == labels.astype(actions.dtype), 1.0, -1.0)


def make_batches(config: Config, seed: int) -> Callable[[int], Any]:
    """The trials of each iteration: inputs, and what decides about the rewards."""
    trials = key_of(seed, "training")

    @jax.jit
    def batch(iteration):
        of_trials, of_actions = jax.random.split(jax.random.fold_in(trials, iteration))
        drawn = config.task.sample(of_trials, config.batch_size)
        return drawn.inputs, (drawn.labels, of_actions)

    return batch


def make_step(config: Config) -> Callable[[State, Any], tuple[State, dict[str, Array]]]:
    """The usual step, and the running average of the weights."""
    train = eprop.training_step(make_loss(config), make_optimizer(config), has_aux=True)

    def step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        training, info = train(state.training, batch)
        with jax.numpy_dtype_promotion("standard"):  # iterations are counted in integers
            keep = jnp.minimum(config.averaging, training.iteration / (training.iteration + 9))
            average = jax.tree.map(
                lambda a, w: a + (1 - keep) * (w - a), state.average, training.network
            )
        return State(training, average), info

    return step


def make_accuracy(config: Config, n_batches: int) -> Callable[[eprop.Network, Array], Array]:
    """Fraction of right greedy answers on `n_batches` of new trials, drawn by a key."""

    @eqx.filter_jit
    def accuracy(network: eprop.Network, key: Array) -> Array:
        def one(key):
            trials = config.task.sample(key, config.batch_size)
            actions = jnp.argmax(decisive(config, network(trials.inputs).outputs)[:, :-1], axis=-1)
            return jnp.mean(rewards_of(actions, trials.labels) > 0)

        return jax.lax.map(one, jax.random.split(key, n_batches)).mean()

    return accuracy


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one; then test it.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, states, last = RunFolder(config.folder, config), [], []
    seeds, config = config.seeds, without_seeds(config)
    judge = make_accuracy(config, config.validation_batches)
    for seed in seeds:
        network = make_network(config, seed)
        b = jax.random.normal(key_of(seed, "feedback"), (network.n, network.n_out))
        training = eprop.init_training(
            network, make_rule(config.learner, b), make_optimizer(config)
        )

        def validate(state: State, iteration: int, seed: int = seed) -> dict[str, Array]:
            key = jax.random.fold_in(key_of(seed, "validation"), iteration)
            return {"validation_accuracy": judge(state.average, key)}

        state, rows = eprop.fit(
            make_step(config),
            State(training, network),
            make_batches(config, seed),
            iterations=config.iterations,
            evaluate=validate,
            evaluate_every=config.check_every,
            folder=config.folder / f"seed{seed}",
            config=config,
            save_every=config.check_every,
            progress=progress,
        )
        states.append(state)
        last.append(rows[-1])
    test = make_accuracy(config, config.test_batches)
    summary = {
        "learner": config.learner,
        "seeds": list(seeds),
        "test_accuracy": [
            float(test(state.average, key_of(seed, "test")))
            for seed, state in zip(seeds, states, strict=True)
        ],
        "test_trials": config.test_batches * config.batch_size,
        "training_trials": config.iterations * config.batch_size,
        "rate_hz": [row["rate_hz"] for row in last],
        "seconds": [row["seconds"] for row in last],
    }
    folder.write_arrays("trial", jax.device_get(record_trial(config, seeds[0], states[0].average)))
    folder.write_json("summary", summary)
    return summary


@eqx.filter_jit
def record_trial(config: Config, seed: int, network: eprop.Network) -> dict[str, Array]:
    """The first trials with a cue on either side, of the first seed, as the figure shows them."""
    trials = config.task.sample(key_of(seed, "figure"), 32)
    chosen = jnp.stack([jnp.argmax(trials.labels == 0), jnp.argmax(trials.labels == 1)])
    inputs = trials.inputs[:, chosen]
    trajectory = network(inputs)
    return {
        "inputs": inputs,
        "labels": trials.labels[chosen],
        "mask": trials.mask,
        "spikes": trajectory.spikes > 0,
        "thresholds": config.v_th + config.beta * trajectory.states.a[:, :, config.n_lif :],
        "outputs": trajectory.outputs,
    }


def main(args: Sequence[str] | None = None) -> None:
    config = configuration(PRESETS, args, experiment="delayed_reward", description=__doc__)
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    accuracies = ", ".join(f"{100 * found:.1f}" for found in summary["test_accuracy"])
    print(
        f"Greedy answers right in {summary['test_trials']} trials never used before, learning by "
        f"{config.learner} from {summary['training_trials']} rewards, seeds "
        f"{', '.join(map(str, config.seeds))}: {accuracies} %\n"
        f"Training took {sum(summary['seconds']):.0f} s.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
