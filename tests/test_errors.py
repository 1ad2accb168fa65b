"""Bad input: the error has the right type, names what was met, and says what to write instead."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import losses
from tests.cases import Options, make_case, slow_but
from tests.errors import assert_raises, check

NETWORK, INPUTS, TARGETS, LOSS, B = make_case("ALIF", Options(readout_bias=True))
KEY = jax.random.key(0)
OUTPUTS = jnp.asarray(TARGETS["outputs"])  # [15, 3, 2]
SPIKES = jnp.zeros((15, 3, 6))
NAN = np.where(INPUTS, np.nan, 0.0)


pytestmark = pytest.mark.usefixtures("as_a_user_has_it")


def lif(**changes):
    return lambda: eprop.LIF(3, **changes)


@check(
    {
        "negative tau": (lif(tau_v=-20), ValueError, ["tau_v = -20", "greater than 0"]),
        "zero tau": (lambda: eprop.ALIF(3, tau_a=0.0), ValueError, ["tau_a = 0.0", "than 0"]),
        "negative tau_i": (
            lambda: eprop.CurrentLIF(3, tau_i=-5.0),
            ValueError,
            ["tau_i = -5.0", "greater than 0"],
        ),
        "one negative": (lif(tau_v=[1, 2, -3]), ValueError, ["tau_v = [1, 2, -3]"]),
        "NaN": (lif(v_th=np.nan), ValueError, ["v_th = nan", "finite"]),
        "infinity": (lif(tau_v=np.inf), ValueError, ["tau_v = inf", "finite"]),
        "shape": (lif(tau_v=[1, 2]), ValueError, ["tau_v", "(2,)", "each of the 3 neurons"]),
        "rank": (lif(v_th=np.ones((3, 1))), ValueError, ["v_th", "(3, 1)", "3 neurons"]),
        "beta": (lambda: eprop.ALIF(3, beta=[1.0]), ValueError, ["beta", "(1,)"]),
        "text": (lif(tau_v="20"), TypeError, ["tau_v = '20'", "number"]),
        "None": (lif(tau_v=None), TypeError, ["tau_v = None", "number"]),
        "complex": (lif(tau_v=2j), TypeError, ["tau_v = 2j", "real number"]),
        "ragged": (lif(tau_v=[[1, 2], [3]]), TypeError, ["tau_v = [[1, 2], [3]]", "number"]),
        "part of a step": (lif(n_refractory=2.5), ValueError, ["2.5", "divide ms by dt"]),
        "negative steps": (lif(n_refractory=-1), ValueError, ["n_refractory = -1", "at least 0"]),
        "dt": (lif(dt=0.0), ValueError, ["dt = 0.0", "greater than 0"]),
        "several dt": (lif(dt=[1.0]), ValueError, ["dt = [1.0]", "one number, in ms"]),
        "no neurons": (lambda: eprop.LIF(0), ValueError, ["n = 0", "at least 1"]),
        "half a neuron": (lambda: eprop.LIF(1.5), ValueError, ["n = 1.5", "whole number"]),
        "surrogate": (lif(surrogate=eprop.Triangular), TypeError, ["surrogate", "Triangular()"]),
        "gamma": (lambda: eprop.Triangular(-0.3), ValueError, ["gamma = -0.3", "greater than 0"]),
        "width": (lambda: eprop.Arctan(width=0.0), ValueError, ["width = 0.0", "greater than 0"]),
        "NaN gamma": (lambda: eprop.Exponential(np.nan), ValueError, ["gamma = nan", "finite"]),
        "traced steps": (
            lambda: jax.jit(lambda n: eprop.LIF(3, n_refractory=n).init(1))(2),
            TypeError,
            ["n_refractory is traced", "outside of jax.jit"],
        ),
        "trained integers": (
            lif(tau_v=jnp.array([20, 30, 40])),
            TypeError,
            ["tau_v is a JAX array of dtype int64", "tau_v.astype(jnp.float32)"],
        ),
        "negative, trained": (
            lif(tau_v=jnp.array([20.0, -1.0, 20.0])),
            ValueError,
            ["tau_v", "-1.", "greater than 0"],
        ),
        "shape, trained": (
            lambda: eprop.ALIF(3, beta=jnp.ones(2)),
            ValueError,
            ["beta has shape (2,)", "each of the 3 neurons"],
        ),
        "NaN, trained": (lif(v_th=jnp.full(3, jnp.nan)), ValueError, ["v_th", "finite"]),
        "shape, traced": (
            lambda: jax.jit(lambda v_th: eprop.LIF(3, v_th=v_th).init(1))(jnp.ones(2)),
            ValueError,
            ["v_th has shape (2,)", "() or (3,)"],
        ),
    }
)
def test_cell(given, error, parts):
    assert_raises(given, error, parts)


class OwnState(NamedTuple):
    v: Any


class OwnCell(eprop.AbstractCell):
    """A cell with an array among its fields, which nobody has looked at."""

    decay: Any
    n: int = eqx.field(static=True, default=3)
    dt: ClassVar[float] = 1.0

    def init(self, batch):
        return OwnState(jnp.zeros((batch, self.n)))

    def step(self, state, current, z_tm1):
        decay = jnp.broadcast_to(self.decay, state.v.shape)
        return OwnState(decay * state.v + current - 0.5 * z_tm1)

    def output(self, state):
        return eprop.Triangular().spike(state.v - 0.5)


def summed(trajectory, targets):
    return trajectory.outputs.sum()


def learn(network):
    learner = eprop.OnlineLearner(network, summed, eprop.EProp(), optax.sgd(1e-3))
    return learner.run(learner.init(3), (INPUTS, None))


RUNS = {
    "call": lambda network: network(INPUTS),
    "run": lambda network: network.run(network.init(3), INPUTS),
    "e-prop": lambda network: eprop.grad(summed, eprop.EProp())(network, INPUTS, None),
    "recursion": lambda network: eprop.grad(summed, eprop.EProp(window=1))(network, INPUTS, None),
    "BPTT": lambda network: eprop.grad(summed, eprop.BPTT())(network, INPUTS, None),
    "traces": lambda network: eprop.eligibility_traces(network, INPUTS),
    "stream": lambda network: eprop.stream_value_and_grad(summed, eprop.EProp(window=4))(
        network, [(INPUTS, np.zeros(15))]
    ),
    "online": learn,
}
NO_NUMBERS = {
    "for all": jnp.array(jnp.nan),
    "for each": jnp.array([1, np.inf, 1]),
    "of NumPy": np.full(3, np.nan),
}


SHORT = {
    "tau_v": lambda **of: eprop.LIF(3, tau_v=0.02, **of),
    "tau_a": lambda **of: eprop.ALIF(3, tau_v=0.5, tau_a=[0.2, 2, 0.02], **of),
    "tau_i": lambda **of: eprop.CurrentLIF(3, tau_v=0.5, tau_i=jnp.array(0.005), **of),
    "tau_out": lambda **of: eprop.Network(
        eprop.LIF(3, tau_v=0.5, **of), n_in=2, n_out=1, tau_out=0.02, key=jax.random.key(0)
    ),
}


@pytest.mark.parametrize("name", SHORT)
def test_seconds_in_place_of_milliseconds_are_warned_of(name):
    with pytest.warns(UserWarning, match=f"{name} = .*times are in ms"):
        SHORT[name]()
    SHORT[name](dt=0.001)  # all in seconds: no warning


class TestArraysOfACell:
    """They are no weights, but what comes of NaN in them is as little a number."""

    @pytest.mark.parametrize("array", NO_NUMBERS.values(), ids=NO_NUMBERS)
    def test_when_it_is_built(self, array):
        parts = ["OwnCell.decay", f"shape {array.shape}", "NaN or infinity"]
        assert_raises(network(cell=OwnCell(array)), ValueError, parts)

    @pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
    @pytest.mark.parametrize("array", NO_NUMBERS.values(), ids=NO_NUMBERS)
    def test_when_it_was_replaced(self, array, run):
        good = network(cell=OwnCell(jnp.full(3, 0.9)), n_in=3)()
        bad = eqx.tree_at(lambda net: net.cell.decay, good, array)
        parts = ["network.layers[0].neurons.cells[0].decay", f"{array.shape}", "NaN or infinity"]
        assert_raises(lambda: run(bad), ValueError, parts)

    def test_of_a_built_in_cell(self):
        good = network(cell=eprop.LIF(3, tau_v=jnp.full(3, 20.0)), n_in=3)()
        bad = jax.tree.map(lambda x: x * jnp.nan, good.cell)
        bad = eqx.tree_at(lambda net: net.cell, good, bad)
        assert_raises(lambda: bad(INPUTS), ValueError, ["cells[0].tau_v", "NaN or infinity"])

    def test_in_a_compiled_program(self):
        good = network(cell=OwnCell(jnp.full(3, 0.9)), n_in=3)()
        gradient = eqx.filter_jit(eprop.grad(summed, eprop.EProp()))
        jax.block_until_ready(gradient(good, INPUTS, None).w_in)
        bad = eqx.tree_at(lambda net: net.cell.decay, good, jnp.full(3, jnp.nan))
        with pytest.raises(RuntimeError, match=r"decay of shape \(3,\) holds NaN or infinity"):
            jax.block_until_ready(gradient(bad, INPUTS, None).w_in)

    @pytest.mark.parametrize("name", slow_but(["e-prop", "online"], RUNS))
    def test_numbers_are_fine(self, name):
        """Negative control."""
        RUNS[name](network(cell=OwnCell(jnp.full(3, 0.9)), n_in=3)())


def network(**changes):
    arguments = {"n_in": 2, "n_out": 1, "key": jax.random.key(0)} | changes
    return lambda: eprop.Network(arguments.pop("cell", eprop.LIF(3)), **arguments)


@check(
    {
        "no key": (network(key=None), ValueError, ["w_in", "key=jax.random.key(0)"]),
        "number as key": (network(key=0), TypeError, ["key = 0", "jax.random.key(0)"]),
        "integers": (
            network(w_in=np.ones((2, 3), int)),
            TypeError,
            ["w_in has dtype int64", "w_in.astype(jnp.float32)"],
        ),
        "shape": (network(w_rec=np.ones((3, 2))), ValueError, ["w_rec", "(3, 2)", "(3, 3)"]),
        "readout": (network(w_out=np.ones((1, 3))), ValueError, ["w_out", "(1, 3)", "(3, 1)"]),
        "bias": (network(readout_bias=np.ones(2)), ValueError, ["readout_bias", "(2,)", "(1,)"]),
        "bias as a switch": (
            network(readout_bias=True),
            TypeError,
            ["readout_bias = True", "jax.nn.initializers.zeros"],
        ),
        "text": (network(w_in="glorot"), TypeError, ["w_in = 'glorot'", "jax.nn.initializers"]),
        "NaN": (network(w_out=np.full((3, 1), np.nan)), ValueError, ["w_out", "(3, 1)", "NaN"]),
        "initializer": (
            network(w_in=lambda key, shape, dtype: jnp.ones(3)),
            ValueError,
            ["w_in", "(3,)", "(2, 3)"],
        ),
        "tau_out": (network(tau_out=-20.0), ValueError, ["tau_out = -20.0", "greater than 0"]),
        "n_in": (network(n_in=0), ValueError, ["n_in = 0", "at least 1"]),
        "n_out": (network(n_out=1.0), ValueError, ["n_out = 1.0", "whole number"]),
        "class of a cell": (network(cell=eprop.LIF), TypeError, ["cell", "LIF(n)"]),
        "cell without equations": (
            lambda: type("Cell", (eprop.AbstractCell,), {})(),
            TypeError,
            ["init", "step", "output"],
        ),
    }
)
def test_network(given, error, parts):
    assert_raises(given, error, parts)


@pytest.mark.parametrize("rule", [eprop.EProp(), eprop.EProp(window=4), eprop.BPTT()], ids=str)
@check(
    {
        "no batch": (INPUTS[:, 0], ValueError, ["inputs", "(15, 3)", "write inputs[:, None]"]),
        "rank": (INPUTS[None], ValueError, ["inputs", "(1, 15, 3, 3)", "[time, batch, feature]"]),
        "features": (INPUTS[..., :2], ValueError, ["(15, 3, 2)", "2 features", "takes 3"]),
        "no steps": (INPUTS[:0], ValueError, ["(0, 3, 3)", "empty time or batch axis"]),
        "no examples": (INPUTS[:, :0], ValueError, ["(15, 0, 3)", "empty time or batch axis"]),
        "precision": (
            INPUTS.astype(np.float32),
            TypeError,
            ["float32", "float64", "write inputs.astype(jnp.float64)"],
        ),
        "complex": (INPUTS.astype(complex), TypeError, ["complex128", "float64"]),
        "NaN": (NAN, ValueError, ["inputs", "(15, 3, 3)", "NaN or infinity"]),
        "infinity": (np.where(INPUTS, np.inf, 0.0), ValueError, ["NaN or infinity"]),
    }
)
def test_inputs(rule, given, error, parts):
    assert_raises(lambda: eprop.grad(LOSS, rule)(NETWORK, given, TARGETS), error, parts)


@pytest.mark.parametrize(
    ("compiled", "rule"),
    [
        (jax.jit, eprop.EProp()),
        (jax.jit, eprop.EProp(window=4)),
        (jax.jit, eprop.BPTT()),
        (eqx.filter_jit, eprop.EProp()),
    ],
)
def test_nan_in_a_compiled_program(compiled, rule):
    function = compiled(eprop.grad(LOSS, rule))
    jax.block_until_ready(function(NETWORK, np.zeros_like(NAN), TARGETS))
    message = r"inputs of shape \(15, 3, 3\) holds NaN or infinity"
    with pytest.raises((RuntimeError, ValueError), match=message):
        jax.block_until_ready(function(NETWORK, NAN, TARGETS))


@pytest.mark.parametrize("call", ["network", "eligibility_traces", "total_derivative"])
def test_inputs_of_other_functions(call):
    def function():
        inputs = INPUTS[:, 0]
        if call == "total_derivative":
            return eprop.total_derivative(NETWORK, inputs, TARGETS, LOSS)
        return NETWORK(inputs) if call == "network" else eprop.eligibility_traces(NETWORK, inputs)

    assert_raises(function, ValueError, ["inputs", "(15, 3)", "write inputs[:, None]"])


@pytest.mark.parametrize(
    ("name", "weight", "error", "parts"),
    [
        ("w_rec", jnp.ones((2, 2)), ValueError, ["network.w_rec", "(2, 2)", "(6, 6)"]),
        ("w_in", jnp.ones((3, 2)), ValueError, ["network.w_in", "(3, 2)", "(3, 6)"]),
        ("w_out", jnp.ones((2, 2)), ValueError, ["network.w_out", "(2, 2)", "(6, 2)"]),
        ("readout_bias", jnp.ones(5), ValueError, ["network.readout_bias", "(5,)", "(2,)"]),
        ("w_rec", jnp.full((6, 6), jnp.nan), ValueError, ["network.w_rec", "NaN"]),
        ("readout_bias", jnp.full(2, jnp.nan), ValueError, ["network.readout_bias", "NaN"]),
        ("w_rec", jnp.ones((6, 6), int), TypeError, ["network.w_rec", "int64"]),
        (
            "w_rec",
            jnp.ones((6, 6), jnp.float32),
            TypeError,
            ["network.w_rec", "float32", "float64"],
        ),
    ],
)
def test_replaced_weights(name, weight, error, parts):
    changed = eqx.tree_at(lambda net: getattr(net, name), NETWORK, weight)
    assert_raises(lambda: changed(INPUTS), error, parts)


@pytest.mark.parametrize("weights", [jnp.ones((1, 5)), jnp.ones((1, 1)), jnp.ones(6)])
def test_a_replaced_bias(weights):
    network = eprop.Network(eprop.LIF(6), n_in=3, n_out=2, bias=np.zeros(6), key=KEY)
    changed = eqx.tree_at(lambda net: net.layers[0].bias.weights, network, weights)
    parts = ["network.layers[0].bias.weights", str(weights.shape), "(1, 6)"]
    assert_raises(lambda: changed(INPUTS), ValueError, parts)


@pytest.mark.parametrize("fan_in", [1, 3])
def test_replaced_weights_of_sparse_synapses(fan_in):
    w_rec = eprop.Sparse.random(6, 6, 2, key=KEY)
    network = eprop.Network(eprop.LIF(6), n_in=3, n_out=2, w_rec=w_rec, key=KEY)
    changed = eqx.tree_at(lambda net: net.w_rec, network, jnp.ones((6, fan_in)))
    parts = ["network.w_rec", f"(6, {fan_in})", "(6, 2)"]
    assert_raises(lambda: changed(INPUTS), ValueError, parts)


@pytest.mark.parametrize("name", ["Dense", "Sparse"])
def test_synapses_are_final(name):
    def derive():
        return type("Positive", (getattr(eprop, name),), {})

    parts = [f"Positive can't be a subclass of {name}", "AbstractSynapses"]
    assert_raises(derive, TypeError, parts)


PLAIN = eprop.Network(eprop.LIF(6), n_in=3, n_out=2, key=KEY)
REST = PLAIN.init(3)


def rest_of(cell, **options):
    return eprop.Network(cell, n_in=3, n_out=2, key=KEY, **options).init(3)


@check(
    {
        "none": ((), TypeError, ["state", "network.init"]),
        "examples": (PLAIN.init(2), ValueError, ["of 3 examples", "is of 2", "network.init(3)"]),
        "neurons": (rest_of(eprop.LIF(7)), ValueError, ["(3, 7)", "(3, 6)", "network.init(3)"]),
        "cell": (rest_of(eprop.ALIF(6)), ValueError, ["ALIFState", "another network"]),
        "readouts": (REST._replace(outputs=jnp.zeros((3, 1))), ValueError, ["outputs", "(3, 1)"]),
        "layers": (REST._replace(layers=REST.layers * 2), ValueError, ["layers.1"]),
        "delays": (rest_of(eprop.LIF(6), delay_in=2.0), ValueError, ["layers.0.past"]),
        "dtype": (
            REST._replace(outputs=REST.outputs.astype(jnp.float32)), ValueError, ["float32"]
        ),
    }
)  # fmt: skip
def test_state(given, error, parts):
    """Programs would take its numbers for what they are not."""
    PLAIN.run(REST, INPUTS)
    for run in (PLAIN.run, eqx.filter_jit(PLAIN.run)):
        assert_raises(lambda run=run: run(given, INPUTS), error, parts)


def test_indices_of_neurons():
    def traces(post):
        return lambda: eprop.eligibility_traces(NETWORK, INPUTS, post)

    assert_raises(traces(np.array([1, 6])), ValueError, ["post = [1 6]", "0 to 5"])
    assert_raises(traces(2), TypeError, ["post", "()", "vector of integers"])
    assert_raises(traces(np.array([0.5])), TypeError, ["post", "float64", "vector of integers"])


def mse(*args, **kwargs):
    return lambda: losses.mean_squared_error(OUTPUTS, *args, **kwargs)


def cross_entropy(*args):
    return lambda: losses.softmax_cross_entropy(OUTPUTS, *args)


@check(
    {
        "one target for all": (
            mse(np.ones((15, 2))),
            ValueError,
            ["(15, 2)", "(15, 3, 2)", "jnp.broadcast_to(targets, outputs.shape)"],
        ),
        "length": (mse(np.ones((14, 3, 2))), ValueError, ["(14, 3, 2)", "(15, 3, 2)"]),
        "mask": (mse(OUTPUTS, np.ones(3)), ValueError, ["(3,)", "[time] = (15,)", "(15, 3)"]),
        "labels' length": (
            cross_entropy(np.zeros((14, 3), int)),
            ValueError,
            ["(14, 3)", "(15, 3)"],
        ),
        "labels' batch": (cross_entropy(np.zeros(4, int)), ValueError, ["(4,)", "[batch] = (3,)"]),
        "one-hot": (
            cross_entropy(np.zeros((15, 3, 2), int)),
            ValueError,
            ["(15, 3, 2)", "(15, 3)"],
        ),
        "labels' kind": (cross_entropy(np.zeros(3)), TypeError, ["float64", "class indices"]),
        "no such class": (cross_entropy(np.array([0, 1, 2])), ValueError, ["0 to 2", "0 to 1"]),
        "negative class": (cross_entropy(np.array([0, 1, -1])), ValueError, ["-1 to 1", "0 to 1"]),
        "mask of labels": (
            cross_entropy(np.zeros(3, int), np.ones((3, 15))),
            ValueError,
            ["(3, 15)"],
        ),
        "rates": (
            lambda: losses.firing_rate_penalty(SPIKES, np.ones(3), dt=1.0),
            ValueError,
            ["target_rate", "(3,)", "6 neurons"],
        ),
        "running rates": (
            lambda: losses.running_rate_penalty(SPIKES, np.ones(3), dt=1.0),
            ValueError,
            ["target_rate", "(3,)", "6 neurons"],
        ),
        "threshold": (
            lambda: losses.voltage_penalty(SPIKES, np.ones(3)),
            ValueError,
            ["threshold", "(3,)", "6 neurons"],
        ),
    }
)
def test_losses(given, error, parts):
    assert_raises(given, error, parts)
