"""What does not fit is refused where it is built: cells, feedback and layers."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from tests.cases import DendriteLIF
from tests.comparison import assert_trees_close, relative_error
from tests.drawn_networks import TwoCurrents
from tests.errors import assert_raises, check

pytestmark = pytest.mark.usefixtures("as_a_user_has_it")


class State(NamedTuple):
    v: Any


class Rate(eprop.AbstractCell):
    """A rate neuron that keeps to the contract; each cell below breaks it at one point."""

    n: int = eqx.field(static=True)
    gain: Any = None
    dt: float = eqx.field(static=True, default=1.0)

    def init(self, batch):
        return State(jnp.zeros((batch, self.n)))

    def step(self, state, current, z_tm1):
        return State(0.9 * self.seen(state.v) + self.driven(current) - 0.1 * self.reset(z_tm1))

    def output(self, state):
        return self.sent(jnp.tanh(state.v))

    def seen(self, v):
        return v

    def driven(self, current):
        return current

    def reset(self, z_tm1):
        return z_tm1

    def sent(self, z):
        return z


class SeesANeighbour(Rate):
    def seen(self, v):
        return v + 1e-3 * jnp.roll(v, 1, axis=1)


class SeesAnotherExample(Rate):
    def seen(self, v):
        return v + 1e-3 * jnp.roll(v, 1, axis=0)


class SeesTheMeanOfTheBatch(Rate):
    def driven(self, current):
        return current - current.mean(0, keepdims=True)


class Lateral(Rate):
    def reset(self, z_tm1):
        return z_tm1.sum(1, keepdims=True)


class Normalised(Rate):
    def sent(self, z):
        return jax.nn.softmax(z, axis=1)


class WinnerTakesAll(Rate):
    def sent(self, z):
        return (z == z.max(1, keepdims=True)).astype(z.dtype) * z


class SharedArrayOfNNumbers(Rate):
    """Each neuron sees all entries of an array, whose last axis is n."""

    def seen(self, v):
        return self.gain.mean() * v


class ReversedArray(Rate):
    """Each neuron sees another's number."""

    def seen(self, v):
        return self.gain[None, ::-1] * v


ONES = jnp.ones(4)
MIXING = {
    "neighbour": SeesANeighbour(4),
    "two neurons": SeesANeighbour(2),
    "example": SeesAnotherExample(4),
    "example, one neuron": SeesAnotherExample(1),
    "mean": SeesTheMeanOfTheBatch(4),
    "lateral": Lateral(4),
    "softmax": Normalised(4),
    "winner": WinnerTakesAll(4),
    "shared array": SharedArrayOfNNumbers(4, ONES),
    "other's number": ReversedArray(4, ONES),
}
OTHERS = [
    Rate(4),
    eprop.LIF(4),
    eprop.ALIF(4, beta=jnp.asarray([0.1, 0.2, 0.3, 0.4])),
    eprop.CurrentLIF(4),
    eprop.LSTM(4, peepholes=jnp.ones((3, 4))),
    eprop.LeakyTanh(4),
    DendriteLIF(4, (5.0,) * 4, (20.0,) * 4, 2, 1.0),
    TwoCurrents(4, jnp.ones(()), jnp.ones(3), jnp.ones((2, 4)), ONES, ONES),
]


def build(cell, **changes):
    return eprop.Layer(cell, **{"n_in": 3, "key": jax.random.key(0)} | changes)


@pytest.mark.parametrize("kind", MIXING)
def test_cells_that_mix_are_refused(kind):
    cell = MIXING[kind]
    parts = [type(cell).__name__, "mixes neurons, or examples", "w_rec", f"n = {cell.n}"]
    assert_raises(lambda: build(cell), ValueError, parts)
    assert_raises(lambda: build([eprop.LIF(3), cell]), ValueError, parts)


@pytest.mark.parametrize("cell", OTHERS, ids=lambda cell: type(cell).__name__)
def test_cells_that_do_not_mix_are_taken(cell):
    assert build(cell).n == 4


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("cell", [eprop.LIF, eprop.ALIF, eprop.CurrentLIF, eprop.LSTM])
def test_populations_of_any_size_are_taken(cell, n):
    assert build(cell(n)).n == n


def test_why_cells_must_not_mix(monkeypatch):
    """Their traces are wrong: e-prop would not be its own autodiff."""
    inputs = np.random.default_rng(0).normal(size=(10, 2, 3))

    def loss(trajectory, targets):
        return jnp.sum(jnp.square(trajectory.outputs))

    def error(cell):
        network = eprop.Network(cell, n_in=3, n_out=1, key=jax.random.key(0))
        actual, expected = (
            jax.jit(eprop.grad(loss, rule))(network, inputs, None)
            for rule in (eprop.EProp(window=1), eprop.BPTT(stop_z_gradients=True))
        )
        return relative_error(actual.w_in, expected.w_in)

    assert error(Rate(4)) < 1e-10
    monkeypatch.setattr("eprop.cells.populations.check_cell", lambda cell: None)
    assert error(Lateral(4)) < 1e-10, "by z_{t-1} it may, whose gradient is stopped"
    monkeypatch.setattr(SeesANeighbour, "seen", lambda self, v: v + 0.5 * jnp.roll(v, 1, axis=1))
    assert error(SeesANeighbour(4)) > 1e-2


def test_an_array_with_the_neurons_on_another_axis():
    """Of whose entries each concerns one neuron, though they count as shared: exact as well."""

    class TwoGains(Rate):
        def seen(self, v):
            return self.gain[:, 0] * v + 0.1 * self.gain[:, 1] * jnp.sin(v)

    gain = jnp.asarray(np.random.default_rng(1).uniform(0.3, 0.9, (4, 2)))
    cell = TwoGains(4, gain)
    # With `[n, 2]` the entries are neuron by neuron; broadcast against `[batch, n]` as `[n]`.
    with jax.numpy_rank_promotion("allow"):
        network = eprop.Network(cell, n_in=3, n_out=1, key=jax.random.key(0))
        inputs = np.random.default_rng(0).normal(size=(10, 2, 3))

        def loss(trajectory, targets):
            return jnp.sum(jnp.square(trajectory.outputs))

        def gradient(rule):
            return jax.jit(eprop.grad(loss, rule))(network, inputs, None)

        expected = gradient(eprop.BPTT(stop_z_gradients=True))
        assert np.abs(expected.cell.gain).min() > 1e-6
        for window in (1, 5, None):
            assert_trees_close(gradient(eprop.EProp(window=window)), expected, 1e-10)


# Other breaches.


class SaysItSpikes(Rate):
    spiking: ClassVar[bool] = True


class SendsMinusOne(Rate):
    spiking: ClassVar[bool] = True

    def sent(self, z):
        return jnp.where(z > 0, 1.0, -1.0)


class SendsBy(Rate):
    """What is in `gain` says what it sends."""

    def sent(self, z):
        return self.gain(z)


class Rectangular(eprop.AbstractSurrogate):
    """Nowhere near the states that the cell is looked at in."""

    def pseudo_derivative(self, x):
        return jnp.where(jnp.abs(x - 1e6) < 0.5, jnp.ones_like(x), jnp.zeros_like(x))


class WithStateOf(Rate):
    """A state of the shape in `gain`."""

    def init(self, batch):
        return State(jnp.zeros(self.gain(batch)))


class WithoutHiddenVariables(Rate):
    def init(self, batch):
        return State(jnp.zeros((batch, self.n), jnp.int32))

    def step(self, state, current, z_tm1):
        return State(state.v + (current > 0).astype(jnp.int32))

    def output(self, state):
        return (state.v > 2).astype(float)


class StepOfAnotherShape(Rate):
    def step(self, state, current, z_tm1):
        return State(state.v[..., None])


class StepOfAnotherDtype(Rate):
    def step(self, state, current, z_tm1):
        return State((0.9 * state.v).astype(jnp.float32))


class OutputOfAnotherShape(Rate):
    def sent(self, z):
        return z[:, :1]


class UsesItsGain(Rate):
    def seen(self, v):
        return self.gain[None] * v


def refused(cell, error, *parts):
    return lambda: build(cell), error, list(parts)


@pytest.mark.parametrize(
    "sent",
    [
        eprop.Triangular().spike,
        Rectangular().spike,
        jax.jit(eprop.Triangular().spike),
        lambda z: jnp.where(z > 0, 0.0, eprop.Triangular().spike(z)),
        lambda z: z + jax.lax.stop_gradient((z > 0).astype(z.dtype) - z),
    ],
    ids=["triangular", "far away", "compiled", "refractory", "straight through"],
)
def test_outputs_with_a_gradient_are_taken(sent):
    """Wherever it is zero: what counts is that there is one."""
    assert build(SendsBy(4, sent)).n == 4


@check(
    {
        "graded": refused(
            SaysItSpikes(4), ValueError, "SaysItSpikes says spiking = True", "surrogate's `spike`"
        ),
        "minus one": refused(
            SendsMinusOne(4), ValueError, "SendsMinusOne says spiking = True", "is -1", "0 or 1"
        ),
        **{
            name: refused(SendsBy(4, sent), ValueError, "SendsBy.output", "no gradient", ".spike(")
            for name, sent in {
                "comparison": lambda z: (z > 0).astype(z.dtype),
                "selection, compiled": jax.jit(lambda z: jnp.where(z > 0, 1.0, 0.0)),
                "rounding": lambda z: jnp.round(z),
                "stopped": lambda z: jax.lax.stop_gradient(z),
            }.items()
        },
        "state without batch": refused(
            WithStateOf(4, lambda batch: (4,)), ValueError, "shape (4,)", "[batch, n] = (2, 4)"
        ),
        "state without neurons": refused(
            WithStateOf(4, lambda batch: (batch,)), ValueError, "shape (2,)", "[batch, n] = (2, 4)"
        ),
        "state of another n": refused(
            WithStateOf(4, lambda batch: (batch, 3)), ValueError, "shape (2, 3)", "(2, 4)"
        ),
        "state with an axis more": refused(
            WithStateOf(4, lambda batch: (batch, 4, 1)), ValueError, "(2, 4, 1)", "WithStateOf.init"
        ),
        "no hidden variable": refused(
            WithoutHiddenVariables(4), ValueError, "WithoutHiddenVariables", "floating-point"
        ),
        "step, shape": refused(
            StepOfAnotherShape(4), ValueError, "StepOfAnotherShape", "step", "(2, 4)"
        ),
        "step, dtype": refused(
            StepOfAnotherDtype(4), ValueError, "StepOfAnotherDtype", "step", "float32", "float64"
        ),
        "output, shape": refused(
            OutputOfAnotherShape(4), ValueError, "OutputOfAnotherShape", "output", "(2, 4)"
        ),
        "NaN": refused(
            UsesItsGain(4, ONES.at[1].set(jnp.nan)), ValueError, "UsesItsGain.gain", "(4,)", "NaN"
        ),
        "infinity": refused(
            UsesItsGain(4, ONES.at[1].set(jnp.inf)), ValueError, "UsesItsGain.gain", "infinity"
        ),
        "NaN in a NumPy array": refused(
            UsesItsGain(4, np.full(4, np.nan)), ValueError, "UsesItsGain.gain", "(4,)", "NaN"
        ),
        "no cell": refused("LIF", TypeError, "cell", "LIF(n)"),
        "no cells": refused([], ValueError, "cell"),
        "time steps": refused(
            [eprop.LIF(4), eprop.LIF(4, dt=0.5)], ValueError, "dt = [1.0, 0.5] ms", "give one"
        ),
    }
)
def test_breaches(given, error, parts):
    assert_raises(given, error, parts)


# Layers and feedback.


def two_layers(readout_of="last"):
    return eprop.Network(
        [build(eprop.LIF(4)), build(eprop.ALIF(5), n_in=4)],
        n_out=2,
        readout_of=readout_of,
        key=jax.random.key(1),
    )


def network_of(*layers, **changes):
    return lambda: eprop.Network(
        [layer() for layer in layers], **{"n_out": 1, "key": jax.random.key(0)} | changes
    )


def layer_of(cell, n_in=3):
    return lambda: build(cell, n_in=n_in)


@check(
    {
        "sizes": (
            network_of(layer_of(eprop.LIF(4)), layer_of(eprop.LIF(5), 3)),
            ValueError,
            ["layers[1] takes 3 inputs", "has 4 neurons", "Layer(..., n_in=4)"],
        ),
        "the third": (
            network_of(*(layer_of(eprop.LIF(n), m) for n, m in ((4, 3), (5, 4), (6, 4)))),
            ValueError,
            ["layers[2] takes 4 inputs", "has 5 neurons"],
        ),
        "time steps": (
            network_of(layer_of(eprop.LIF(4)), layer_of(eprop.LIF(5, dt=0.5), 4)),
            ValueError,
            ["layers[1] has dt = 0.5 ms", "1.0 ms", "give all layers one"],
        ),
        "inputs": (
            network_of(layer_of(eprop.LIF(4)), n_in=5),
            TypeError,
            ["n_in", "give this to the layers", "Layer(cell, n_in=...)"],
        ),
        "a cell among layers": (
            network_of(layer_of(eprop.LIF(4)), lambda: eprop.LIF(4)),
            TypeError,
            ["layers", "LIF", "Layer(cell, n_in=...)"],
        ),
        "readout": (
            network_of(layer_of(eprop.LIF(4)), w_out=np.ones((3, 1))),
            ValueError,
            ["w_out has shape (3, 1)", "(4, 1)"],
        ),
        "readout of all": (
            network_of(
                layer_of(eprop.LIF(4)),
                layer_of(eprop.LIF(5), 4),
                readout_of="all",
                w_out=np.ones((5, 1)),
            ),
            ValueError,
            ["w_out has shape (5, 1)", "(9, 1)"],
        ),
        "readout of": (
            network_of(layer_of(eprop.LIF(4)), readout_of="first"),
            ValueError,
            ["readout_of = 'first'", '"last" or "all"'],
        ),
    }
)
def test_layers_that_do_not_fit(given, error, parts):
    assert_raises(given, error, parts)


def unseen(rule, network):
    """The rule on a network whose readout sees the last layer only, wherever it may be used."""
    inputs, targets = np.ones((4, 2, 3)), np.ones((4, 2, 2))

    def loss(trajectory, targets):
        return jnp.sum((trajectory.outputs - targets) ** 2)

    return {
        "value_and_grad": lambda: eprop.value_and_grad(loss, rule)(network, inputs, targets),
        "jax.grad": lambda: jax.grad(lambda net: loss(net(inputs, rule), targets))(network),
        "under jit": lambda: jax.jit(eprop.grad(loss, rule))(network, inputs, targets),
        "online": lambda: eprop.OnlineLearner(network, loss, rule, optax.sgd(0.1)),
        "stream": lambda: eprop.stream_value_and_grad(loss, eprop.EProp(rule.feedback, 2))(
            network, [(inputs, targets)]
        ),
        "learning_signals": lambda: eprop.learning_signals(
            network, inputs, targets, loss, rule.feedback
        ),
    }


WAYS = ["value_and_grad", "jax.grad", "under jit", "online", "stream", "learning_signals"]
B = np.random.default_rng(0).normal(size=(9, 2))
WRONG = {
    "symmetric": (
        eprop.SymmetricFeedback(),
        ["symmetric feedback", "the 4 neurons", 'readout_of="all"', "(9, 2)"],
    ),
    "adaptive": (eprop.AdaptiveFeedback(B), ["adaptive", "5 of the 9", 'readout_of="all"']),
    "one layer's": (
        eprop.RandomFeedback(B[:5]),
        ["shape (5, 2)", "[n, n_out] = (9, 2)", "all layers: 4 + 5"],
    ),
    "columns": (eprop.RandomFeedback(B[:, :1]), ["shape (9, 1)", "(9, 2)", "4 + 5"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", WRONG)
def test_feedback_that_does_not_fit(kind, way):
    feedback, parts = WRONG[kind]
    assert_raises(unseen(eprop.EProp(feedback), two_layers())[way], ValueError, parts)


@pytest.mark.parametrize("way", WAYS)
def test_feedback_that_fits(way):
    unseen(eprop.EProp(eprop.RandomFeedback(B)), two_layers())[way]()


@pytest.mark.parametrize(
    "feedback",
    [eprop.SymmetricFeedback(), eprop.AdaptiveFeedback(B), eprop.RandomFeedback(B)],
    ids=lambda feedback: type(feedback).__name__,
)
def test_where_the_readout_sees_all_every_feedback_fits(feedback):
    unseen(eprop.EProp(feedback), two_layers("all"))["under jit"]()


def test_the_run_alone_needs_no_feedback():
    """It is the derivative that does."""
    two_layers()(np.ones((4, 2, 3)), eprop.EProp())
