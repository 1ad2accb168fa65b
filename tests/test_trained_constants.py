"""Constants of cells that are trained: which they are, their gradients, and their range."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop.common_vectors import common_traces
from tests import oracle
from tests.cases import slow_but
from tests.comparison import assert_close, assert_trees_close, relative_error
from tests.errors import assert_raises, check

TOLERANCE = 1e-10
N, N_STEPS, BATCH = 4, 12, 2
POSITIVE = ("tau_v", "v_th", "tau_a", "tau_i")
RANGES = {
    "LIF": {"tau_v": (5, 20), "v_th": (0.4, 0.6), "v_init": (0, 0.4)},
    "ALIF": {
        "tau_v": (5, 20),
        "v_th": (0.4, 0.6),
        "v_init": (0, 0.4),
        "tau_a": (20, 90),
        "beta": (0.1, 0.3),
    },
    "CurrentLIF": {"tau_v": (5, 20), "v_th": (0.4, 0.6), "v_init": (0, 0.4), "tau_i": (2, 5)},
    "LeakyTanh": {"tau_v": (3, 9), "bias": (-1, 1), "v_init": (-1, 1)},
    "LSTM": {"forget_bias": (0, 2), "peepholes": (-1, 1)},
}
FEEDBACK = eprop.RandomFeedback(np.random.default_rng(5).normal(size=(N, 2)))


def make_network(cell, shared_first=True, as_array=jnp.asarray, **changes):
    """One layer whose constants are arrays, one number for all and one per neuron in turn."""
    rng = np.random.default_rng(0)
    constants = {}
    for i, (name, (low, high)) in enumerate(RANGES[cell].items()):
        shape = (3, N) if name == "peepholes" else () if (i % 2 == 0) == shared_first else (N,)
        constants[name] = as_array(rng.uniform(low, high, shape))
    if cell in ("LIF", "ALIF", "CurrentLIF"):
        constants |= {"n_refractory": 2, "scale_current": cell == "LIF"}
    neurons = getattr(eprop, cell)(N, **constants)
    n_post = neurons.n_currents * N
    scale = 4.0 if cell == "LIF" else 1.0
    arguments = {
        "n_in": 3,
        "n_out": 2,
        "w_in": scale * rng.uniform(0, 0.4, (3, n_post)),
        "w_rec": 0.3 * rng.normal(size=(N, n_post)),
        "w_out": rng.normal(size=(N, 2)),
    }
    return eprop.Network(neurons, **arguments | changes)


INPUTS = np.random.default_rng(1).random((N_STEPS, BATCH, 3)) < 0.5
TARGETS = np.random.default_rng(2).normal(size=(N_STEPS, BATCH, 2))


def loss(trajectory, targets):
    """A sum over time, of outputs, spikes and states."""
    states = jax.tree.leaves(eqx.filter(trajectory.states, eqx.is_inexact_array))
    value = 0.5 * jnp.sum(jnp.square(trajectory.outputs - targets)) + jnp.sum(trajectory.spikes)
    return value + 0.1 * sum(jnp.sum(jnp.square(s)) for s in states)


@functools.cache
def expected(cell, shared_first):
    network = make_network(cell, shared_first)
    evaluate = jax.jit(oracle.value_and_grad(loss, FEEDBACK))
    return network, *evaluate(network, INPUTS, TARGETS)


@eqx.filter_jit
def run(network):
    return network(INPUTS)


WINDOWS = (1, 4, None)
EVALUATE = {
    window: jax.jit(eprop.value_and_grad(loss, eprop.EProp(FEEDBACK, window))) for window in WINDOWS
}


def constants_of(network):
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(network.cell, eqx.is_inexact_array))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("cell", slow_but(["ALIF", "LeakyTanh", "LSTM"], RANGES))
def test_all_constants_have_a_gradient(cell):
    network, _, gradients = expected(cell, True)
    found = constants_of(gradients)
    assert len(found) == len(RANGES[cell])
    for name, leaf in found.items():
        assert np.abs(leaf).max() > 1e-6, name
    if cell in ("LIF", "ALIF", "CurrentLIF"):
        assert 0.05 < run(network).spikes.mean() < 0.5


@pytest.mark.parametrize(
    ("cell", "shared_first"),
    slow_but(
        [("LSTM", True)],
        [(cell, True) for cell in RANGES]
        + [(cell, False) for cell in ("ALIF", "CurrentLIF", "LSTM")],
    ),
)
def test_every_window(cell, shared_first):
    network, value, gradients = expected(cell, shared_first)
    for window in WINDOWS if shared_first else (4,):
        actual = EVALUATE[window](network, INPUTS, TARGETS)
        assert_close(actual[0], value, TOLERANCE, "loss")
        assert_trees_close(actual[1], gradients, TOLERANCE, f"window={window}")


@pytest.mark.parametrize(
    ("cell", "window"),
    slow_but(
        [("ALIF", 1), ("ALIF", 4), ("LeakyTanh", 4), ("LSTM", None)],
        [
            ("LIF", 1),
            ("ALIF", 1),
            ("ALIF", 4),
            ("CurrentLIF", None),
            ("LeakyTanh", 4),
            ("LSTM", None),
        ],
    ),
)
def test_online(cell, window):
    """One update of all steps is a step along `value_and_grad`'s gradient."""
    network, _, gradients = expected(cell, True)
    rule = eprop.EProp(FEEDBACK, window)
    learner = eprop.OnlineLearner(network, loss, rule, optax.sgd(1.0), update_every=N_STEPS)
    state, _ = learner.run(learner.init(BATCH), (INPUTS, TARGETS))
    moved = jax.tree.map(jnp.subtract, network, state.network)
    assert_trees_close(moved, gradients, TOLERANCE)


def test_online_step_by_step():
    network, _, gradients = expected("ALIF", True)
    rule = eprop.EProp(FEEDBACK)
    learner = eprop.OnlineLearner(network, loss, rule, optax.sgd(1.0), update_every=N_STEPS)
    state = learner.init(BATCH)
    for t in range(N_STEPS):
        state, _ = learner.step(state, INPUTS[t], TARGETS[t])
    moved = jax.tree.map(jnp.subtract, network, state.network)
    assert_trees_close(moved, gradients, TOLERANCE)


@pytest.mark.parametrize("name", ["v_th", "v_init", "tau_v"])
def test_common_vectors_are_the_same_within_jit(name):
    """A threshold leaves ε the same for all neurons, a time constant does not."""
    arrays, rest = eqx.partition(eprop.LIF(3, **{name: jnp.asarray(7.0)}), eqx.is_array)
    found = []

    @jax.jit
    def within(arrays):
        found.append(common_traces(eqx.combine(arrays, rest)))

    within(arrays)
    ((outside,),) = common_traces(eqx.combine(arrays, rest))
    assert found == [[[outside]]]
    assert (outside is None) == (name == "tau_v")


def test_by_finite_differences():
    """Without recurrence rate neurons have a true gradient, and e-prop is it."""
    network = make_network("LeakyTanh", w_rec=None)
    evaluate = jax.jit(eprop.value_and_grad(loss, eprop.EProp()))
    value = jax.jit(lambda network: loss(network(INPUTS), TARGETS))
    _, gradients = evaluate(network, INPUTS, TARGETS)
    leaves, structure = jax.tree.flatten(network)
    of_leaves = jax.tree.leaves(gradients)
    for i, (leaf, gradient) in enumerate(zip(leaves, of_leaves, strict=True)):
        direction = np.random.default_rng(i).normal(size=leaf.shape)

        def along(step):
            moved = [x + step * direction if i == j else x for j, x in enumerate(leaves)]  # noqa: B023
            return value(structure.unflatten(moved))

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        assert_close(jnp.sum(gradient * direction), slope, 1e-7, f"leaf {i}")


# Which constants are trained.


@pytest.mark.parametrize("cell", RANGES)
@pytest.mark.parametrize("as_array", [np.asarray, lambda x: np.asarray(x).tolist()])
def test_numbers_and_numpy_arrays_are_constants_of_the_program(cell, as_array):
    if cell == "LSTM":
        fixed = eprop.LSTM(N, forget_bias=as_array(np.ones(N)))
    else:
        fixed = make_network(cell, as_array=as_array).cell
    assert not jax.tree.leaves(fixed)
    default = getattr(eprop, cell)(N)
    assert not jax.tree.leaves(default)


@pytest.mark.parametrize("cell", RANGES)
def test_they_run_as_constants_do(cell):
    """The same numbers, trained or not."""
    trained = make_network(cell)
    fixed = make_network(cell, as_array=np.asarray)
    actual, known = run(trained), run(fixed)
    assert_trees_close(actual.states, known.states, 1e-12)
    for name, (low, high) in RANGES[cell].items():
        if name != "peepholes":
            value = getattr(trained.cell, name).value
            assert isinstance(value, jax.Array) and np.all((low <= value) & (value <= high))
            assert_close(value, getattr(fixed.cell, name).value, 1e-14, name)


def test_some_are_trained_and_others_not():
    """By the `trainable` of every function that takes it."""
    network = make_network("ALIF")
    nothing = jax.tree.map(lambda _: False, network)
    chosen = eqx.tree_at(lambda net: net.layers[0].neurons.cells[0].tau_v.log, nothing, True)
    evaluate = eqx.filter_jit(eprop.value_and_grad(loss, eprop.EProp(), trainable=chosen))
    _, gradients = evaluate(network, INPUTS, TARGETS)
    assert list(constants_of(gradients)) == [".tau_v.log"] and gradients.w_in is None
    assert len(jax.tree.leaves(gradients)) == 1
    learner = eprop.OnlineLearner(
        network, loss, eprop.EProp(), optax.sgd(0.1), update_every=4, trainable=chosen
    )
    state, _ = learner.run(learner.init(BATCH), (INPUTS, TARGETS))
    after, before = state.network, network
    assert relative_error(after.cell.tau_v.log, before.cell.tau_v.log) > 1e-3
    restored = eqx.tree_at(
        lambda net: net.layers[0].neurons.cells[0].tau_v.log, after, before.cell.tau_v.log
    )
    jax.tree.map(np.testing.assert_array_equal, restored, before)


# Range.


@pytest.mark.parametrize("cell", slow_but(["ALIF"], ["LIF", "ALIF", "CurrentLIF", "LeakyTanh"]))
def test_time_constants_and_thresholds_stay_positive(cell):
    """Under steps, down and up, so large that without the logarithm they would be negative."""
    positive, would_be_negative = [name for name in RANGES[cell] if name in POSITIVE], False
    for rate in (100.0, -100.0):
        network = make_network(cell)
        for _ in range(5):
            _, gradients = EVALUATE[None](network, INPUTS, TARGETS)
            for name in positive:
                constant, gradient = (getattr(net.cell, name) for net in (network, gradients))
                of_number = gradient.log / constant.value
                would_be_negative |= bool(jnp.any(constant.value - rate * of_number <= 0))
            # Of the constants alone: the weights stay as they are.
            moved = jax.tree.map(lambda x, dx: x - rate * dx, network.cell, gradients.cell)  # noqa: B023
            network = eqx.tree_at(lambda net: net.layers[0].neurons.cells[0], network, moved)
            for name in positive:
                value = getattr(network.cell, name).value
                assert np.all((value > 0) & np.isfinite(value)), name
        assert relative_error(network.cell.tau_v.value, make_network(cell).cell.tau_v.value) > 0.5
    assert would_be_negative


IN_FLOAT32 = jax.jit(eprop.value_and_grad(loss, eprop.EProp()))


@pytest.mark.parametrize("log", [-1e4, 1e4])
@pytest.mark.parametrize("name", ["tau_v", "v_th"])
def test_a_constant_beyond_all_numbers(name, log):
    """Where its logarithm is such that its exponential would be 0 or infinite, even in float32."""
    with jax.enable_x64(False):
        network = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_network("LIF"))
        where = lambda net: getattr(net.layers[0].neurons.cells[0], name).log  # noqa: E731
        network = eqx.tree_at(where, network, jnp.full_like(where(network), log))
        assert np.all((getattr(network.cell, name).value > 0) & np.isfinite(where(network)))
        value, gradients = IN_FLOAT32(network, INPUTS, TARGETS.astype(np.float32))
        assert np.isfinite(value)
        for leaf in jax.tree.leaves(gradients):
            assert np.isfinite(leaf).all()


# Errors.


@pytest.mark.usefixtures("as_a_user_has_it")
class TestErrors:
    @check(
        {
            "shape": (
                lambda: eprop.LIF(3, tau_v=jnp.ones(2)),
                ValueError,
                ["tau_v has shape (2,)", "each of the 3 neurons"],
            ),
            "negative": (
                lambda: eprop.ALIF(3, tau_a=jnp.asarray([1.0, -2.0, 3.0])),
                ValueError,
                ["tau_a", "greater than 0"],
            ),
            "zero": (
                lambda: eprop.LIF(3, v_th=jnp.asarray(0.0)),
                ValueError,
                ["v_th", "greater than 0"],
            ),
            "NaN": (
                lambda: eprop.LeakyTanh(3, bias=jnp.asarray(jnp.nan)),
                ValueError,
                ["bias", "finite"],
            ),
            "integers": (
                lambda: eprop.CurrentLIF(3, tau_i=jnp.asarray([5, 6, 7])),
                TypeError,
                ["tau_i", "int64", "tau_i.astype(jnp.float32)", "give a number"],
            ),
            "peepholes": (
                lambda: eprop.LSTM(4, peepholes=jnp.ones((4, 3))),
                ValueError,
                ["peepholes has shape (4, 3)", "(3, 4)"],
            ),
            "NaN in peepholes": (
                lambda: eprop.Network(
                    eprop.LSTM(4, peepholes=jnp.full((3, 4), jnp.nan)),
                    n_in=1,
                    n_out=1,
                    key=jax.random.key(0),
                ),
                ValueError,
                ["peepholes", "(3, 4)", "NaN"],
            ),
            "shape under jit": (
                lambda: jax.jit(lambda tau: eprop.LIF(3, tau_v=tau).init(1))(jnp.ones(2)),
                ValueError,
                ["tau_v has shape (2,)", "(3,)"],
            ),
            "refractory time": (
                lambda: jax.jit(lambda n: eprop.LIF(3, n_refractory=n).init(1))(2),
                TypeError,
                ["n_refractory is traced", "outside of jax.jit"],
            ),
            "precision": (
                lambda: make_network("LIF", as_array=lambda x: jnp.asarray(x, jnp.float32))(INPUTS),
                TypeError,
                ["tau_v", "float32", "float64"],
            ),
        }
    )
    def test_message(self, given, error, parts):
        assert_raises(given, error, parts)

    @pytest.mark.parametrize("rule", [eprop.EProp(), eprop.EProp(window=4), eprop.BPTT()], ids=str)
    def test_a_constant_that_became_nan(self, rule):
        network = eqx.tree_at(
            lambda net: net.layers[0].neurons.cells[0].tau_v.log,
            make_network("LIF"),
            jnp.asarray(jnp.nan),
        )
        evaluate = eprop.value_and_grad(loss, rule)
        with pytest.raises(ValueError, match=r"tau_v.* of shape .* holds NaN"):
            network(INPUTS, rule)
        with pytest.raises(Exception, match=r"tau_v.* of shape .* holds NaN"):
            jax.block_until_ready(eqx.filter_jit(evaluate)(network, INPUTS, TARGETS))

    def test_built_within_jit(self):
        """Where a constant is traced, it is trained as well."""
        network = make_network("LIF")

        def of_tau(tau):
            cell = eprop.LIF(N, tau_v=tau, v_th=0.5)
            arrays = {"w_in": network.w_in, "w_rec": network.w_rec, "w_out": network.w_out}
            return eprop.Network(cell, n_in=3, n_out=2, **arrays)

        def value(tau):
            return loss(of_tau(tau)(INPUTS, eprop.EProp()), TARGETS)

        tau = jnp.asarray(10.0)
        evaluate = jax.jit(eprop.value_and_grad(loss, eprop.EProp()))
        of_log = evaluate(of_tau(tau), INPUTS, TARGETS)[1].cell.tau_v.log
        assert_close(jax.jit(jax.grad(value))(tau), of_log / tau, TOLERANCE, "dE/dτ")
        assert abs(of_log) > 1e-6
