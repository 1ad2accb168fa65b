"""What is easily given by mistake: refused with its name, or taken as what it is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import losses
from tests.cases import Options, make_case, slow_but
from tests.comparison import assert_close, relative_error
from tests.errors import assert_raises, check

pytestmark = pytest.mark.usefixtures("as_a_user_has_it")

T, BATCH = 12, 2
NETWORK, INPUTS, TARGETS, LOSS, B = make_case("ALIF", Options(n_steps=T, batch=BATCH))
OUTPUTS = jnp.asarray(TARGETS["outputs"])  # [12, 2, 2]
RULE, OPTIMIZER = eprop.EProp(window=2), optax.sgd(1e-3)
RAGGED = [[1.0, 2.0], [3.0]]
NO_NUMBERS = "no array of numbers"


def network(**changes):
    arguments = {"n_in": 2, "n_out": 1, "key": jax.random.key(0)} | changes
    return lambda: eprop.Network(arguments.pop("cell", eprop.LIF(3)), **arguments)


def replaced(where, value):
    return lambda: eqx.tree_at(where, NETWORK, value)(INPUTS)


def in_float32(build):
    def function():
        with jax.enable_x64(False):
            build()

    return function


@check(
    {
        "w_in None": (network(w_in=None), TypeError, ["w_in = None", NO_NUMBERS]),
        "w_out None": (network(w_out=None), TypeError, ["w_out = None", NO_NUMBERS]),
        "ragged": (network(w_rec=RAGGED), TypeError, ["w_rec = [[1.0, 2.0], [3.0]]", "one length"]),
        "text in it": (network(w_in=["text"]), TypeError, ["w_in = ['text']", NO_NUMBERS]),
        "dense": (lambda: eprop.Dense(None), TypeError, ["weights = None", NO_NUMBERS]),
        "dense, ragged": (lambda: eprop.Dense(RAGGED), TypeError, ["weights = [[", "one length"]),
        "mask": (
            lambda: eprop.Dense(np.ones((3, 6)), mask="all"),
            TypeError,
            ["mask = 'all'", NO_NUMBERS],
        ),
        "kernel": (
            lambda: eprop.Convolution("gauss", (3, 3)),
            TypeError,
            ["weights = 'gauss'", NO_NUMBERS],
        ),
        "b None": (lambda: eprop.RandomFeedback(None), TypeError, ["b = None", NO_NUMBERS]),
        "b ragged": (lambda: eprop.AdaptiveFeedback(RAGGED), TypeError, ["b = [[", "one length"]),
        "b text": (lambda: eprop.RandomFeedback("b"), TypeError, ["b = 'b'", NO_NUMBERS]),
        "a layer alone": (
            network(cell=eprop.Layer(eprop.LIF(3), n_in=2, key=jax.random.key(0))),
            TypeError,
            ["cell = Layer( neurons=", "... is no AbstractCell", "[Layer(...)]"],
        ),
        "no cells": (lambda: eprop.Network([], n_in=1, n_out=1), ValueError, ["there is no cell"]),
        "decay": (
            lambda: eprop.AdaptiveFeedback(np.ones((3, 1)), decay=".1"),
            TypeError,
            ["decay = '.1'", "one real number"],
        ),
        "decays": (
            lambda: eprop.AdaptiveFeedback(np.ones((3, 1)), decay=[0.1]),
            ValueError,
            ["decay = [0.1]", "one number"],
        ),
        "rate": (lambda: eprop.Dropout(".1"), TypeError, ["rate = '.1'", "one real number"]),
        "gamma": (lambda: eprop.Triangular("0.3"), TypeError, ["gamma = '0.3'", "one real number"]),
        "width": (lambda: eprop.Arctan(width=None), TypeError, ["width = None", "one real number"]),
        "tau_out": (network(tau_out="20"), TypeError, ["tau_out = '20'", "real number, in ms"]),
        "long refractory": (
            lambda: eprop.LIF(3, n_refractory=2**31),
            ValueError,
            ["n_refractory = 2147483648", "less than 2**31"],
        ),
        "longer": (
            lambda: eprop.LIF(3, n_refractory=[1, 2**63, 1]),
            ValueError,
            ["n_refractory = [1, 9223372036854775808, 1]", "less than 2**31"],
        ),
        "too large": (
            in_float32(lambda: eprop.LIF(3, v_th=1e300)),
            ValueError,
            ["v_th = 1e+300", "finite in float32"],
        ),
        "too small": (
            in_float32(lambda: eprop.ALIF(3, v_th=[0.3, 1e-60, 0.3])),
            ValueError,
            ["v_th = [0.3, 1e-60, 0.3]", "greater than 0 in float32"],
        ),
    }
)
def test_built(given, error, parts):
    assert_raises(given, error, parts)


def test_what_float64_can_hold():
    """Negative control: it is a number there."""
    assert eprop.LIF(3, v_th=1e300).v_th.number == 1e300
    assert eprop.LIF(3, n_refractory=2**31 - 1).n_refractory == 2**31 - 1


@check(
    {
        "w_in None": (replaced(lambda n: n.w_in, None), TypeError, ["network.w_in = None"]),
        "w_in text": (replaced(lambda n: n.w_in, "a"), TypeError, ["network.w_in = 'a'"]),
        "w_rec": (replaced(lambda n: n.w_rec, 1.0), TypeError, ["network.w_rec = 1.0"]),
        "w_out": (replaced(lambda n: n.w_out, None), TypeError, ["network.w_out = None"]),
        "a gradient": (
            lambda: eqx.filter(NETWORK, False)(INPUTS),
            TypeError,
            ["network.w_in = None is no array of weights"],
        ),
        "rule": (
            lambda: NETWORK(INPUTS, eprop.EProp),
            TypeError,
            ["rule = <class", "no AbstractRule: write EProp()"],
        ),
        "rule of run": (
            lambda: NETWORK.run(NETWORK.init(BATCH), INPUTS, None),
            TypeError,
            ["rule = None", "EProp()"],
        ),
        "inputs": (lambda: NETWORK(None), TypeError, ["inputs = None", NO_NUMBERS]),
        "text": (lambda: NETWORK("spikes"), TypeError, ["inputs = 'spikes'", NO_NUMBERS]),
        "objects": (
            lambda: NETWORK(np.full((T, BATCH, 3), None)),
            TypeError,
            ["inputs = array([[[None", NO_NUMBERS],
        ),
        "ragged": (
            lambda: NETWORK([[[1, 0, 0]], [[1, 0]]]),
            TypeError,
            ["inputs = [[[1", "length"],
        ),
        "batch": (lambda: NETWORK.init(-1), ValueError, ["batch = -1", "at least 1"]),
        "layer": (
            lambda: eprop.eligibility_traces(NETWORK, INPUTS, layer=1),
            ValueError,
            ["layer = 1", "from 0 to 0"],
        ),
    }
)
def test_run(given, error, parts):
    assert_raises(given, error, parts)


STREAM = eprop.EProp(window=4)


@check(
    {
        "no loss": (lambda: eprop.value_and_grad(None, RULE), TypeError, ["loss = None"]),
        "in a stream": (
            lambda: eprop.stream_value_and_grad(0.5, STREAM),
            TypeError,
            ["loss = 0.5", "loss(trajectory, targets)"],
        ),
        "has_aux": (lambda: eprop.grad(LOSS, RULE, "no"), TypeError, ["has_aux = 'no'"]),
        "has_aux of a stream": (
            lambda: eprop.stream_value_and_grad(LOSS, STREAM, has_aux=1),
            TypeError,
            ["has_aux = 1", "True or False"],
        ),
        "arguments": (
            lambda: eprop.value_and_grad(LOSS, RULE)(INPUTS, NETWORK, TARGETS),
            TypeError,
            ["network = array", "evaluate(network, inputs, targets)"],
        ),
        **{
            f"{name} online": (
                lambda loss=loss: eprop.OnlineLearner(
                    NETWORK, loss, RULE, OPTIMIZER, update_every=4
                ).run(LEARNER.init(BATCH), (INPUTS, OUTPUTS)),
                ValueError,
                ["no gradient", "has_aux=True"],
            )
            for name, loss in {
                "accuracy": lambda y, _: jnp.mean((y.outputs.argmax(-1) == 0).astype(float)),
                "a constant": lambda *_: jnp.ones(()),
            }.items()
        },
        "trainable": (
            lambda: eprop.value_and_grad(LOSS, RULE, trainable="w_in"),
            TypeError,
            ["trainable = 'w_in'", "function of a leaf", "network of booleans"],
        ),
        "trainable of a learner": (
            lambda: eprop.OnlineLearner(NETWORK, LOSS, RULE, OPTIMIZER, trainable=["w_in"]),
            TypeError,
            ["trainable = ['w_in']"],
        ),
        "lists in a stream": (
            lambda: eprop.stream_value_and_grad(LOSS, STREAM)(
                NETWORK, [(INPUTS, TARGETS["outputs"].tolist())]
            ),
            TypeError,
            ["targets is a list of numbers", "np.asarray"],
        ),
    }
)
def test_gradients(given, error, parts):
    assert_raises(given, error, parts)


def fit(**changes):
    def run():
        given = {
            "step": eprop.training_step(LOSS, OPTIMIZER),
            "state": eprop.init_training(NETWORK, RULE, OPTIMIZER),
            "batches": lambda _: (INPUTS, TARGETS),
            "iterations": 1,
            "evaluate_every": 1,
            "progress": False,
        }
        return eprop.fit(**given | changes)

    return run


@check(
    {
        "evaluate": (fit(evaluate=3), TypeError, ["evaluate = 3", "(state, iteration)"]),
        "stop": (fit(stop=True), TypeError, ["stop = True", "no function"]),
        "callbacks": (fit(callbacks=print), TypeError, ["callbacks = <built-in", "[function]"]),
        "callback": (fit(callbacks=[3]), TypeError, ["callback = 3", "no function"]),
        "progress": (fit(progress="no"), TypeError, ["progress = 'no'", "True or False"]),
        "no name": (fit(evaluate=lambda *_: 0.5), TypeError, ["0.5 has no name", "a dictionary"]),
        "one batch": (
            fit(batches=(INPUTS, TARGETS["outputs"])),
            TypeError,
            ["a batch is an array of shape (12, 2, 3)", "fit many of them"],
        ),
        "lists": (
            fit(batches=[(INPUTS.tolist(), TARGETS)]),
            TypeError,
            ["the inputs of a batch are a list", "np.asarray(inputs)"],
        ),
        "key": (
            lambda: eprop.training_step(LOSS, OPTIMIZER, key=3),
            TypeError,
            ["key = 3", "jax.random.key(0)"],
        ),
    }
)
def test_training(given, error, parts):
    assert_raises(given, error, parts)


def test_nan_in_a_compiled_step_is_said_in_one_line():
    broken = INPUTS.astype(float)
    broken[3, 0, 1] = np.nan
    with pytest.raises(ValueError, match="holds NaN") as caught:
        fit(batches=lambda _: (broken, TARGETS))()
    assert str(caught.value) == "inputs of shape (12, 2, 3) holds NaN or infinity"
    assert caught.value.__suppress_context__ and "at iteration 1" in caught.value.__notes__[0]


def squared_error(trajectory, targets):
    return 0.5 * jnp.square(trajectory.outputs - targets).sum()


LEARNER = eprop.OnlineLearner(NETWORK, squared_error, RULE, OPTIMIZER, update_every=4)
LISTS = TARGETS["outputs"].tolist()


@check(
    {
        name: (function, TypeError, parts)
        for name, (function, parts) in {
            "chunk": (
                lambda state: LEARNER.run(state, [INPUTS, OUTPUTS]),
                ["chunk is a list", "tuple"],
            ),
            "targets": (lambda state: LEARNER.run(state, (INPUTS, LISTS)), ["targets is a list"]),
            "among others": (
                lambda state: LEARNER.run(state, (INPUTS, {"y": LISTS, "mask": np.ones(T)})),
                ["targets['y'] is a list of numbers", "np.asarray"],
            ),
            "of a step": (
                lambda state: LEARNER.step(state, INPUTS[0], LISTS[0]),
                ["target_t is a list"],
            ),
            "swapped": (
                lambda state: LEARNER.step(INPUTS[0], state, OUTPUTS[0]),
                ["state = ", "of shape (2, 3) is no LearnerState", "learner.init(batch)"],
            ),
            "swapped chunk": (
                lambda state: LEARNER.run((INPUTS, OUTPUTS), state),
                ["state = (", "is no LearnerState", "learner.run(state, chunk)"],
            ),
            "not unpacked": (
                lambda state: LEARNER.run((state, None), (INPUTS, OUTPUTS)),
                ["state = (LearnerState(", "state, info = learner.run"],
            ),
            "a pair as inputs": (
                lambda state: LEARNER.step(state, (INPUTS[0], OUTPUTS[0]), None),
                ["x_t = (array(", NO_NUMBERS],
            ),
            "key": (lambda _: LEARNER.init(1, 3), ["key = 3", "jax.random.key(0)"]),
            "text": (lambda state: LEARNER.step(state, "x", LISTS[0]), ["x_t = 'x'", NO_NUMBERS]),
        }.items()
    }
)
def test_online(given, error, parts):
    state = LEARNER.init(BATCH)
    assert_raises(lambda: given(state), error, parts)


def test_lists_that_are_inputs():
    """They can be nothing but an array."""
    state = LEARNER.init(BATCH)
    after, _ = LEARNER.step(state, INPUTS[0].tolist(), OUTPUTS[0])
    expected, _ = LEARNER.step(state, INPUTS[0], OUTPUTS[0])
    assert_close(after.gradients.layers[0].readout, expected.gradients.layers[0].readout, 0)
    assert_close(NETWORK(INPUTS.tolist()).outputs, NETWORK(INPUTS).outputs, 0)


def swapped(array):
    """The same numbers in the other order of bytes, and of the bits."""
    array = np.asarray(array, np.float64 if np.asarray(array).dtype == bool else None)
    return array.astype(array.dtype.newbyteorder())


def by_stream(inputs, targets):
    value, gradients = eprop.stream_value_and_grad(squared_error, STREAM)(
        NETWORK, [(inputs, targets)]
    )
    return value, gradients.w_in


def by_run(inputs, targets):
    state, info = LEARNER.run(LEARNER.init(BATCH), (inputs, targets))
    return info.loss, state.network.w_in


def by_step(inputs, targets):
    state, info = LEARNER.step(LEARNER.init(BATCH), inputs[0], targets[0])
    (neurons,) = state.progress.network.layers[0].neurons
    return info.loss, neurons.v


def by_fit(inputs, targets):
    step = eprop.training_step(squared_error, OPTIMIZER)
    state, rows = fit(step=step, batches=lambda _: (inputs, targets))()
    return rows[0]["loss"], state.network.w_in


TRAJECTORY = NETWORK(INPUTS)


@check(
    {
        "outputs": (
            lambda: losses.mean_squared_error(TRAJECTORY, OUTPUTS),
            TypeError,
            ["outputs = Trajectory(", NO_NUMBERS],
        ),
        "of labels": (
            lambda: losses.softmax_cross_entropy(TRAJECTORY, np.zeros(BATCH, int)),
            TypeError,
            ["outputs = Trajectory(", NO_NUMBERS],
        ),
        "names": (
            lambda: losses.softmax_cross_entropy(OUTPUTS, ["cat", "dog"]),
            TypeError,
            ["labels have dtype <U3", "np.unique(names, return_inverse=True)[1]"],
        ),
        "spikes": (
            lambda: losses.firing_rate_penalty(TRAJECTORY, 10.0, dt=1.0),
            TypeError,
            ["spikes = Trajectory(", NO_NUMBERS],
        ),
        "v": (
            lambda: losses.voltage_penalty(TRAJECTORY.states, 1.0),
            TypeError,
            ["v = ALIFState(", NO_NUMBERS],
        ),
    }
)
def test_losses(given, error, parts):
    assert_raises(given, error, parts)


def test_a_list_of_labels():
    """Compiled or not: to JAX each of them is an array."""
    expected = losses.softmax_cross_entropy(OUTPUTS, np.array([0, 1]))
    for function in (losses.softmax_cross_entropy, jax.jit(losses.softmax_cross_entropy)):
        np.testing.assert_allclose(function(OUTPUTS, [0, 1]), expected, rtol=1e-12)
    assert abs(losses.softmax_cross_entropy(OUTPUTS, [1, 0]) - expected) > 1e-3


def by_gradient(inputs, targets):
    """The loss is of the losses here, which take arrays of NumPy."""
    loss = lambda y, targets: losses.mean_squared_error(y.outputs, targets)  # noqa: E731
    value, gradients = eprop.value_and_grad(loss, RULE)(NETWORK, inputs, targets)
    return value, gradients.w_in


def by_weights(inputs, _):
    weights = {name: swapped(getattr(NETWORK, name)) for name in ("w_in", "w_rec", "w_out")}
    if inputs.dtype.isnative:
        weights = {name: np.asarray(getattr(NETWORK, name)) for name in weights}
    built = eprop.Network(eprop.ALIF(6, v_th=0.6), n_in=3, n_out=2, **weights)
    return built(inputs).outputs, eprop.RandomFeedback(weights["w_out"]).b


def by_losses(inputs, targets):
    mask, labels = inputs[..., 0], np.zeros((T, BATCH), int)
    labels = labels if inputs.dtype.isnative else swapped(labels)
    return (
        losses.mean_squared_error(OUTPUTS + 1, targets, mask),
        losses.softmax_cross_entropy(OUTPUTS, labels, mask),
    )


class TestOrderOfBytes:
    """Arrays as they come from a file of another machine."""

    @pytest.mark.parametrize(
        "way",
        slow_but(
            [by_run, by_step, by_fit, by_gradient, by_losses],
            [by_stream, by_run, by_step, by_fit, by_gradient, by_weights, by_losses],
        ),
    )
    def test_is_no_other_number(self, way):
        """After an array in this machine's order too, for which all is compiled."""
        inputs, targets = INPUTS.astype(float), TARGETS["outputs"]
        expected = way(inputs, targets)
        actual = way(swapped(inputs), swapped(targets))
        other = way(np.roll(inputs, 1, axis=0), targets + 1)
        for a, b in zip(actual, expected, strict=True):
            assert np.abs(b).max() > 1e-3
            np.testing.assert_array_equal(a, b)
        assert relative_error(other[0], expected[0]) > 1e-6

    def test_of_a_step_with_an_end(self):
        done = np.array([False, True])
        state = LEARNER.init(BATCH)
        now = INPUTS[0].astype(float), TARGETS["outputs"][0]
        expected, _ = LEARNER.step(state, *now, done)
        actual, _ = LEARNER.step(state, *map(swapped, now), done)
        for a, b in zip(
            jax.tree.leaves(actual.progress), jax.tree.leaves(expected.progress), strict=True
        ):
            np.testing.assert_array_equal(a, b)
