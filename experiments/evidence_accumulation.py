"""Evidence accumulation (Bellec et al. 2020, Fig. 3) trained online by e-prop, or by BPTT.

A network of LIF and adaptive LIF neurons sees seven cues on its left and right, waits a second,
and has to say on which side there were more. Training ends when the error on fresh trials is
below a criterion; the network is then tested once on trials that were never used.

Presets, named first: "default"; "reference", the hyperparameters of the official code; and
"rewired", the default with a tenth of the recurrent synapses, which come and go (DEEP R).
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
from jaxtyping import Array

import eprop
from eprop import losses
from eprop.tasks import EvidenceAccumulation
from figures.evidence_accumulation import draw

from . import learners
from .runs import RunFolder, configuration, random_key, resumable

key_of = functools.partial(
    random_key, ("weights", "feedback", "training", "validation", "test", "figure", "rewiring")
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, how, and until when."""

    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric", "adaptive"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    stop_z_gradients: bool = False
    """BPTT only: stop the gradient of recurrent spikes, which makes it symmetric e-prop."""
    seed: int = 0
    """Of the weights, the feedback and the trials."""

    n_lif: int = 50
    """Neurons without adaptation."""
    n_alif: int = 50
    """Neurons with an adaptive threshold."""
    density: float = 1.0
    """Fraction of the recurrent synapses that there are. Below 1 each neuron hears as many others,
    and the network rewires: a synapse that crosses zero goes, another comes (DEEP R)."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 2000.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 20.0
    """Time constant of the readout in ms."""
    v_th: float = 0.6
    """Threshold, in units of the membrane potential."""
    beta: float = 0.0174242
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    refractory_ms: float = 5.0
    """Length of the refractory period in ms, the spike's step included."""
    task: EvidenceAccumulation = dataclasses.field(default_factory=EvidenceAccumulation)
    """The trials."""

    batch_size: int = 64
    """Trials per iteration; every one is new."""
    learning_rate: float = 5e-3
    """Adam's, at the beginning."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the learning rate goes on: "cosine" falls to zero at the last iteration."""
    averaging: float = 0.98
    """Weights are judged as their running average, this much of which is kept at each iteration
    (0: the last weights themselves)."""
    rate_target_hz: float = 10.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 1.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)²."""
    feedback_decay: float = 1e-2
    """Adaptive feedback: the fraction of B and of W_out lost at each iteration."""

    iterations: int = 1000
    """At most so many updates."""
    validate_every: int = 20
    """Iterations between validations, and between checkpoints."""
    criterion: float = 0.04
    """Stop below this error on fresh trials. The first of many looks to pass flatters, so it is
    stricter than the error that the test is to confirm, 7 %."""
    validation_batches: int = 8
    """Batches of fresh trials that the error is measured on."""
    test_batches: int = 16
    """Batches for the test at the end."""

    results: Path = Path("results/evidence_accumulation")
    """Folder of the results."""
    run: str = "{learner}_seed{seed}"
    """Name of this run's own folder in it."""

    @property
    def learner(self) -> str:
        """The rule in one word."""
        if self.rule == "bptt":
            return "bptt_stop_z" if self.stop_z_gradients else "bptt"
        return self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(learner=self.learner, seed=self.seed)


PRESETS = {
    "default": Config(),
    "reference": Config(
        schedule="constant",
        averaging=0.0,
        criterion=0.07,
        validate_every=10,
        iterations=2000,
        run="reference_{learner}_seed{seed}",
    ),
    "rewired": Config(density=0.1, results=Path("results/rewiring")),
}


class State(NamedTuple):
    """All that changes during training; all randomness is drawn from seed and iteration."""

    training: eprop.TrainState
    average: eprop.Network


def make_network(config: Config, key: Array) -> eprop.Network:
    """LIF neurons first, then adaptive ones."""
    cell = eprop.ALIF(
        config.n_lif + config.n_alif,
        tau_v=config.tau_v,
        v_th=config.v_th,
        n_refractory=round(config.refractory_ms / config.task.dt),
        dt=config.task.dt,
        tau_a=config.tau_a,
        beta=np.repeat([0.0, config.beta], [config.n_lif, config.n_alif]),
        surrogate=eprop.Triangular(config.gamma),
    )
    if not 0 < config.density <= 1:
        raise ValueError(f"density = {config.density} must be above 0, and at most 1")
    synapses = {}
    if config.density < 1:
        fan_in = round(config.density * (cell.n - 1))
        synapses["w_rec"] = eprop.Sparse.random(cell.n, cell.n, fan_in, autapses=False, key=key)
    return eprop.Network(
        cell,
        n_in=config.task.n_in,
        n_out=config.task.n_out,
        tau_out=config.tau_out,
        key=key,
        **synapses,
    )


def make_rule(config: Config, key: Array) -> eprop.AbstractRule:
    """The one thing that differs between a run by e-prop and one by BPTT."""
    learner = config.feedback
    if config.rule == "bptt":
        learner = "bptt_stop_z" if config.stop_z_gradients else "bptt"
    b = jax.random.normal(key, (config.n_lif + config.n_alif, config.task.n_out))
    return learners.make_rule(learner, b, config.feedback_decay)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    if config.schedule == "constant":
        return optax.adam(config.learning_rate)
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.iterations))


def make_loss(config: Config):
    """Cross-entropy of the answer in the recall window, and the firing-rate penalty."""

    def loss(trajectory, targets):
        labels, mask = targets
        cross_entropy = losses.softmax_cross_entropy(
            trajectory.outputs, labels, mask, n_steps=config.task.recall_ms / config.task.dt
        )
        penalty = losses.firing_rate_penalty(
            trajectory.spikes, config.rate_target_hz, dt=config.task.dt
        )
        info = {
            "cross_entropy": cross_entropy,
            "train_error": jnp.mean(answers(trajectory.outputs, mask) != labels),
            "rate_hz": 1000 * trajectory.spikes.mean() / config.task.dt,
        }
        return cross_entropy + config.rate_penalty * penalty, info

    return loss


def answers(outputs: Array, mask: Array) -> Array:
    """The side with the larger mean output in the recall window, `[batch]`."""
    total = jnp.tensordot(mask.astype(outputs.dtype), outputs, 1)
    return jnp.argmax(total, axis=-1).astype(jnp.int32)


def init(config: Config) -> State:
    network = make_network(config, key_of(config.seed, "weights"))
    rule = make_rule(config, key_of(config.seed, "feedback"))
    return State(eprop.init_training(network, rule, make_optimizer(config)), network)


def make_batches(config: Config) -> Callable[[int], tuple[Array, Any]]:
    """The trials of each iteration: inputs and targets, all of them new."""
    trials = key_of(config.seed, "training")

    @jax.jit
    def batch(iteration):
        drawn = config.task.sample(jax.random.fold_in(trials, iteration - 1), config.batch_size)
        return drawn.inputs, (drawn.labels, drawn.mask)

    return batch


def make_step(config: Config) -> Callable[[State, Any], tuple[State, dict[str, Array]]]:
    """The usual step, new synapses where some have gone, and the running average of the weights."""
    train = eprop.training_step(make_loss(config), make_optimizer(config), has_aux=True)
    rewiring = key_of(config.seed, "rewiring")

    def step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        training, info = train(state.training, batch)
        if config.density < 1:
            training = eprop.rewire(training, state.training, rewiring)
        with jax.numpy_dtype_promotion("standard"):  # iterations are counted in integers
            keep = jnp.minimum(config.averaging, training.iteration / (training.iteration + 9))
            average = averaged(state.average, training.network, keep)
        return State(training, average), info

    return step


def averaged(average: eprop.Network, network: eprop.Network, keep: Array) -> eprop.Network:
    """The running average of the weights. That of a new synapse begins with the synapse."""
    old, _ = eqx.partition(average, eqx.is_inexact_array)
    weights, wiring = eqx.partition(network, eqx.is_inexact_array)
    new = eqx.combine(jax.tree.map(lambda a, w: a + (1 - keep) * (w - a), old, weights), wiring)
    was, now = average.layers[0].recurrent, network.layers[0].recurrent
    if not (isinstance(was, eprop.Sparse) and isinstance(now, eprop.Sparse)):
        return new
    return eqx.tree_at(
        lambda net: net.w_rec, new, jnp.where(was.indices == now.indices, new.w_rec, now.weights)
    )


def make_error(config: Config, n_batches: int) -> Callable[[eprop.Network, Array], Array]:
    """Fraction of wrong answers on `n_batches` of new trials, drawn by a key."""

    @eqx.filter_jit
    def error(network: eprop.Network, key: Array) -> Array:
        def one(key):
            batch = config.task.sample(key, config.batch_size)
            return jnp.mean(answers(network(batch.inputs).outputs, batch.mask) != batch.labels)

        return jax.lax.map(one, jax.random.split(key, n_batches)).mean()

    return error


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train from the last checkpoint, if there is one, until the criterion is met; then test.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder = RunFolder(config.folder, config)
    error = make_error(config, config.validation_batches)

    def validate(state: State, iteration: int) -> dict[str, Array]:
        key = jax.random.fold_in(key_of(config.seed, "validation"), iteration)
        return {"validation_error": error(state.average, key)}

    def passed(row: dict[str, Any]) -> bool:
        return row.get("validation_error", 1.0) < config.criterion

    state, metrics = eprop.fit(
        make_step(config),
        init(config),
        make_batches(config),
        iterations=config.iterations,
        evaluate=validate,
        evaluate_every=config.validate_every,
        stop=passed,
        folder=folder.path,
        config=config,
        save_every=config.validate_every,
        progress=progress,
    )
    test = make_error(config, config.test_batches)
    summary = {
        "learner": config.learner,
        "reached_criterion": passed(metrics[-1]),
        "iterations": len(metrics),
        "test_error": float(test(state.average, key_of(config.seed, "test"))),
        "test_trials": config.test_batches * config.batch_size,
        "seconds": metrics[-1]["seconds"],
    }
    folder.write_arrays("trial", jax.device_get(record_trial(config, state)))
    folder.write_json("summary", summary)
    return summary


@eqx.filter_jit
def record_trial(config: Config, state: State) -> dict[str, Array]:
    """A trial answered correctly, if there is one among a few, and all the figure shows of it."""
    network, task = state.average, config.task
    trials = task.sample(key_of(config.seed, "figure"), 16)
    correct = answers(network(trials.inputs).outputs, trials.mask) == trials.labels
    chosen = jnp.argmax(correct)
    trials = trials._replace(
        inputs=trials.inputs[:, chosen, None],
        labels=trials.labels[chosen, None],
        cues=trials.cues[chosen, None],
    )
    targets = (trials.labels, trials.mask)
    trajectory = network(trials.inputs)
    adapting = config.n_lif + jnp.arange(config.n_alif)
    if config.n_alif == 0:
        adapting = jnp.arange(config.n_lif)
    busy = adapting[jnp.argsort(-trajectory.spikes[:, 0, adapting].sum(0))[:3]]
    feedback = getattr(state.training.rule, "feedback", eprop.SymmetricFeedback())
    loss = make_loss(config)
    signals = eprop.learning_signals(
        network, trials.inputs, targets, lambda *x: loss(*x)[0], feedback
    )
    traces = eprop.eligibility_traces(network, trials.inputs, busy).w_in
    return {
        "inputs": trials.inputs[:, 0],
        "cues": trials.cues[0],
        "label": trials.labels[0],
        "correct": correct[chosen],
        "mask": trials.mask,
        "spikes": trajectory.spikes[:, 0] > 0,
        "thresholds": config.v_th + config.beta * trajectory.states.a[:, 0, busy],
        "answer": jax.nn.softmax(trajectory.outputs[:, 0]),
        "learning_signal": signals.readout[:, 0],
        "neurons": busy,
        "fast_trace": traces.vectors.v[:, 0],
        "slow_trace": traces.vectors.a[:, 0],
        "trace": traces.trace[:, 0],
    }


def main(args: Sequence[str] | None = None) -> None:
    config = configuration(PRESETS, args, experiment="evidence_accumulation", description=__doc__)
    with resumable():
        summary = run(config)
    figure = draw(config.folder)
    reached = "Criterion met" if summary["reached_criterion"] else "Criterion NOT met"
    print(
        f"{reached} after {summary['iterations']} iterations, {summary['seconds']:.0f} s, "
        f"learning by {config.learner}.\n"
        f"Test error on {summary['test_trials']} trials never used before: "
        f"{summary['test_error']:.1%}\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
