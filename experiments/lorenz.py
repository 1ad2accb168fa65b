"""Lorenz's attractor, forecast from its own past: spiking neurons, a deep LSTM, a polynomial.

A network is trained to tell the next sample of the series from those so far, by e-prop or BPTT, and
is then left alone: after a warm-up it goes on from its own predictions, from many points of a
stretch of the trajectory that was never used before. Its error against time ahead is compared with
that of regressions on delayed samples: a next-generation reservoir (NVAR), and a linear one.
Several seeds are trained one after another: other trajectories, weights, feedback and batches.

Presets, named first: "spiking", the default, a recurrent layer of LIF neurons with and without
adaptation; and "lstm", a stack of four LSTM layers with dropout between them.
A run can be interrupted at any time: the same command goes on from the last checkpoint.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import eprop
from eprop import losses
from eprop.trajectory import NetworkState
from figures.lorenz import draw

from .attractor import LYAPUNOV_EXPONENT, Attractor, Split, errors_of
from .learners import make_rule
from .nvar import NVAR
from .runs import RunFolder, configuration, random_key, resumable, without_seeds

N = 3
"""Coordinates of a sample."""

key_of = functools.partial(random_key, ("weights", "feedback", "batches", "dropout", "validation"))


@dataclasses.dataclass(frozen=True)
class Spiking:
    """One recurrent layer of spiking neurons."""

    n_lif: int = 100
    """Neurons without adaptation."""
    n_alif: int = 100
    """Neurons with an adaptive threshold."""
    tau_v: float = 10.0
    """Membrane time constant in ms."""
    tau_a: float = 100.0
    """Time constant of the threshold adaptation in ms."""
    tau_out: float = 10.0
    """Time constant of the readout in ms."""
    v_th: float = 0.5
    """Threshold, in units of the membrane potential."""
    beta: float = 0.05
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    gamma: float = 0.5
    """Height of the pseudo-derivative (dimensionless)."""
    steps: int = 2
    """Time steps of 1 ms that each sample is shown for."""
    rate_target_hz: float = 50.0
    """Firing rate that the penalty draws each neuron to, in Hz."""
    rate_penalty: float = 0.01
    """Weight of the firing-rate penalty, of the mean of ((f - f*) / f*)²."""

    name = "spiking"

    def make(self, key: Array) -> eprop.Network:
        """Inputs and a bias drive the neurons to all sides of their thresholds."""
        n, normal = self.n_lif + self.n_alif, jax.nn.initializers.normal
        cell = eprop.ALIF(
            n,
            tau_v=self.tau_v,
            v_th=self.v_th,
            n_refractory=2,
            scale_current=True,
            tau_a=self.tau_a,
            beta=np.repeat([0.0, self.beta], [self.n_lif, self.n_alif]),
            surrogate=eprop.Triangular(self.gamma),
        )
        return eprop.Network(
            cell,
            n_in=N,
            n_out=N,
            bias=normal(1.0),
            tau_out=self.tau_out,
            scale_readout=True,
            w_out=normal(0.01),
            readout_bias=jax.nn.initializers.zeros,
            key=key,
        )

    def penalty(self, trajectory: eprop.Trajectory) -> tuple[Array, dict[str, Array]]:
        """What is added to the loss, and what is to be watched."""
        rate = losses.firing_rate_penalty(trajectory.spikes, self.rate_target_hz, dt=1.0)
        relative = rate * (1000 / self.rate_target_hz) ** 2 / trajectory.spikes.shape[-1]
        return self.rate_penalty * relative, {"rate_hz": 1000 * trajectory.spikes.mean()}


@dataclasses.dataclass(frozen=True)
class LSTMStack:
    """Layers of LSTM units, one after another; the readout sees all of them."""

    n: int = 32
    """Units of each layer."""
    depth: int = 4
    """Layers."""
    dropout: float = 0.2
    """Fraction of what a layer sends to the next that is lost, at each step of training."""

    name = "lstm"
    steps = 1

    def make(self, key: Array) -> eprop.Network:
        keys, layers = jax.random.split(key, self.depth + 1), []
        for i in range(self.depth):
            layers.append(
                eprop.Layer(
                    eprop.LSTM(self.n),
                    n_in=self.n if i else N,
                    bias=jax.nn.initializers.zeros,
                    autapses=True,
                    dropout=eprop.Dropout(self.dropout) if i else None,
                    key=keys[i],
                )
            )
        return eprop.Network(
            layers,
            n_out=N,
            tau_out=None,
            w_out=jax.nn.initializers.normal(0.01),
            readout_bias=jax.nn.initializers.zeros,
            readout_of="all",
            key=keys[-1],
        )

    def penalty(self, trajectory: eprop.Trajectory) -> tuple[Array, dict[str, Array]]:
        return jnp.zeros((), trajectory.outputs.dtype), {}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    network: Spiking | LSTMStack = dataclasses.field(default_factory=Spiking)
    """What is trained; by a preset."""
    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    seeds: tuple[int, ...] = (0,)
    """Of the trajectory, the weights, the feedback and the batches: a training for each."""

    series: Attractor = dataclasses.field(default_factory=Attractor)
    """The series, and what is asked of it."""
    nvar: NVAR = dataclasses.field(default_factory=NVAR)
    """The next-generation reservoir; the linear regression has its delays, stride and ridge."""

    length: int = 120
    """Samples of a sequence to learn from."""
    settle: int = 20
    """Samples at its beginning for which the network is not yet asked."""
    batch_size: int = 32
    """Sequences per iteration."""
    learning_rate: float = 5e-3
    """Adam's, at the beginning; it falls to zero along a cosine."""
    iterations: int = 600
    """Updates."""
    check_every: int = 100
    """Iterations between validations, and between checkpoints."""

    results: Path = Path("results/lorenz")
    """Folder of the results."""
    run: str = "{network}_{learner}"
    """Name of this run's own folder in it."""

    def __post_init__(self):
        if self.series.n_ahead < 1:
            one = LYAPUNOV_EXPONENT * self.series.interval
            raise ValueError(
                f"series.horizon = {self.series.horizon:g} Lyapunov times hold no sample to "
                f"forecast: give at least {one:.3g}, the time from one sample to the next"
            )
        shortest = min(self.series.n_train, self.series.n_validation) - 1
        if not 0 <= self.settle < self.length < shortest:
            raise ValueError(
                f"settle = {self.settle} must be less than length = {self.length}, and that less "
                f"than {shortest}, for it is cut out of the samples of training and validation"
            )
        if self.nvar.memory > self.series.warm_up:
            raise ValueError(
                f"the regressions see {self.nvar.memory} samples back, but warm_up = "
                f"{self.series.warm_up}: give at least {self.nvar.memory}"
            )

    @property
    def learner(self) -> str:
        """The rule in one word."""
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(network=self.network.name, learner=self.learner)


PRESETS = {"spiking": Config(), "lstm": Config(network=LSTMStack())}


def shown(config: Config, samples: Float[Array, "time batch 3"]) -> Float[Array, "steps batch 3"]:
    """Samples as the network is shown them."""
    return jnp.repeat(samples, config.network.steps, axis=0)


def answers(config: Config, outputs: Float[Array, "steps batch 3"]) -> Float[Array, "time batch 3"]:
    """The output in the last step of each sample."""
    return outputs[config.network.steps - 1 :: config.network.steps]


def make_batches(
    config: Config, key: Array, series: Float[np.ndarray, "time 3"], *, scale: float
) -> Callable[[int], Any]:
    """Sequences from anywhere in a series; targets are the increments that follow, over `scale`."""
    samples = jnp.asarray(series, float)
    steps = jnp.diff(samples, axis=0) / scale

    @jax.jit
    def batch(iteration):
        begins = jax.random.randint(
            jax.random.fold_in(key, iteration), (config.batch_size,), 0, len(steps) - config.length
        )
        chosen = begins[None] + jnp.arange(config.length, dtype=begins.dtype)[:, None]
        return shown(config, samples[chosen]), steps[chosen]

    return batch


def make_loss(config: Config):
    """Mean squared error of the increments; its root is relative to them."""

    def loss(trajectory, targets):
        found = answers(config, trajectory.outputs)
        error = losses.mean_squared_error(found[config.settle :], targets[config.settle :])
        penalty, info = config.network.penalty(trajectory)
        return error + penalty, {"error": jnp.sqrt(error), **info}

    return loss


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.iterations))


def train_network(
    config: Config, seed: int, split: Split, progress: bool = True
) -> tuple[eprop.Network, list[dict[str, Any]]]:
    """The trained network, and the metrics of each iteration."""
    network, loss = config.network.make(key_of(seed, "weights")), make_loss(config)
    of_series = functools.partial(make_batches, config, scale=split.increment)
    b = jax.random.normal(key_of(seed, "feedback"), (network.n, N))
    held_out = of_series(key_of(seed, "validation"), split.validation)(0)
    judge = eqx.filter_jit(lambda network, x, y: loss(network(x), y)[1]["error"])
    optimizer, rule = make_optimizer(config), make_rule(config.learner, b)
    state, rows = eprop.fit(
        eprop.training_step(loss, optimizer, has_aux=True, key=key_of(seed, "dropout")),
        eprop.init_training(network, rule, optimizer),
        of_series(key_of(seed, "batches"), split.train),
        iterations=config.iterations,
        evaluate=lambda state, _: {"validation_error": judge(state.network, *held_out)},
        evaluate_every=config.check_every,
        folder=config.folder / f"seed{seed}",
        config=config,
        save_every=config.check_every,
        progress=progress,
    )
    return state.network, rows


@eqx.filter_jit
def forecast(
    config: Config, network: eprop.Network, scale: Array, past: Float[Array, "time batch 3"]
) -> Float[Array, "n_ahead batch 3"]:
    """What a network makes of the past, and then of its own predictions, a sample at a time."""

    def following(u, outputs):
        return u + scale * outputs[-1]

    def step(carry: tuple[NetworkState, Array], _):
        state, u = carry
        state, run = network.run(state, shown(config, u[None]))
        return (state, following(u, run.outputs)), u

    state, run = network.run(network.init(past.shape[1]), shown(config, past))
    first = following(past[-1], run.outputs)
    return jax.lax.scan(step, (state, first), length=config.series.n_ahead)[1]


def forecasts(
    config: Config, split: Split, network: eprop.Network, past: Float[np.ndarray, "time starts 3"]
) -> dict[str, Float[np.ndarray, "n_ahead starts 3"]]:
    """By the name of what makes them, what does not learn first."""
    n_ahead = config.series.n_ahead
    linear = dataclasses.replace(config.nvar, order=1)
    return {
        "persistence": np.broadcast_to(past[-1], (n_ahead, *past.shape[1:])),
        "linear": linear.forecast(linear.fit(split.train), past, n_ahead),
        "nvar": config.nvar.forecast(config.nvar.fit(split.train), past, n_ahead),
        config.network.name: np.asarray(
            forecast(config, network, jnp.asarray(split.increment), jnp.asarray(past, float))
        ),
    }


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train each seed, from its last checkpoint if there is one, and let all make their forecasts.

    Returns the summary, as in `summary.json`. All else is in the run's folder too.
    """
    folder, series = RunFolder(config.folder, config), config.series
    seeds, config = config.seeds, without_seeds(config)
    errors, last, trial = [], [], {}
    for seed in seeds:
        split = series.trajectory(seed)
        network, rows = train_network(config, seed, split, progress)
        past, future = series.trials(split.test)
        made = forecasts(config, split, network, past)
        errors.append({name: errors_of(found, future) for name, found in made.items()})
        last.append(rows[-1])
        if seed == seeds[0]:
            of_first = {f"forecast_{name}": found[:, 0] for name, found in made.items()}
            trial = {"times": series.times, "future": future[:, 0], **of_first}
    medians = {
        f"error_{name}": np.stack([np.median(found[name], axis=1) for found in errors])
        for name in errors[0]
    }
    summary = {"seeds": list(seeds), **summarise(config, errors, last)}
    folder.write_arrays("trial", trial | medians)
    folder.write_json("summary", summary)
    return summary


def summarise(
    config: Config, errors: list[dict[str, np.ndarray]], last: list[dict[str, Any]]
) -> dict[str, Any]:
    """Of the errors of all forecasts and the last metrics, of each seed."""

    def one_step(found, name):
        now, nothing = (np.mean(np.square(found[x][0])) for x in (name, "persistence"))
        return float(np.sqrt(now / nothing))

    valid_times = config.series.valid_times
    return {
        "network": config.network.name,
        "learner": config.learner,
        "valid_time": {
            name: [float(np.median(valid_times(found[name]))) for found in errors]
            for name in errors[0]
        },
        "one_step": {name: [one_step(found, name) for found in errors] for name in errors[0]},
        "seconds": [row["seconds"] for row in last],
        **{name: [row[name] for row in last] for name in last[0] if name.endswith("_hz")},
    }


def in_words(summary: dict[str, Any]) -> str:
    """A line for each forecaster."""
    lines = [f"{'':12}{'one step':>10}   valid time, by seed"]
    for name, times in summary["valid_time"].items():
        error = np.mean(summary["one_step"][name])
        lines.append(f"{name:12}{error:10.2g}   {', '.join(f'{time:.2f}' for time in times)}")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    config = configuration(PRESETS, args, experiment="lorenz", description=__doc__)
    with resumable():
        summary = run(config)
    figure = draw([config.folder], config.folder / "figure.png")
    print(
        f"{in_words(summary)}\n"
        f"One step: error of the next sample, relative to persistence. Valid time: Lyapunov times "
        f"until half of {config.series.starts} forecasts err by more than "
        f"{config.series.threshold:g} standard deviations.\n"
        f"Training the {config.network.name} network by {config.learner} took "
        f"{sum(summary['seconds']):.0f} s.\n"
        f"Figure: {figure}"
    )


if __name__ == "__main__":
    main()
