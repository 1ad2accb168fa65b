"""Synaptic delays against an explicit lookup in the history, forward and in every gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import eprop
import eprop.record
from eprop.compiled import without_kernels
from tests.cases import Options, make_case, slow_but
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error
from tests.errors import assert_raises

TOLERANCE = 1e-10
AUTODIFF = eprop.BPTT(stop_z_gradients=True)
LINES = [eprop.RotatingBuffer(), eprop.ConcatenatedBuffer()]
OPTIONS = Options(n_steps=13, n_refractory=1, readout_bias=True, dt=0.5)
IN_STEPS = [
    (0, 3),
    (2, 0),
    ((0, 1, 4), (3, 0, 1, 2, 5, 3)),
    ((25, 0, 1), (6, 0, 0, 0, 0, 0)),  # one longer than the sequence
]


def with_delays(case, delay_in, delay_rec, line=LINES[0]):
    """The case, with delays given in steps."""
    network = case.network
    weights = {name: getattr(network, name) for name in ("w_in", "w_rec", "w_out", "readout_bias")}
    network = eprop.Network(
        network.cell,
        n_in=network.n_in,
        n_out=network.n_out,
        tau_out=network.readout.tau,
        scale_readout=network.readout.scale,
        delay_in=np.multiply(delay_in, network.cell.dt),
        delay_rec=np.multiply(delay_rec, network.cell.dt),
        delay_line=line,
        **weights,
    )
    return case._replace(network=network)


@functools.cache
def delayed_case(cell="ALIF", in_steps=IN_STEPS[2], line=LINES[0]):
    case = with_delays(make_case(cell, OPTIONS), *in_steps, line)
    value, gradients = case.value_and_grad(AUTODIFF)
    assert_alive(case.network, case.inputs, gradients)
    return case, value, gradients


NO_DELAY = np.array(0)
respond = jax.jit(lambda network, inputs: network(inputs))


@jax.jit
def respond_on_xla(network, inputs):
    """By the network's own delay line: compiled programs have one of theirs."""
    with without_kernels():
        return network(inputs)


def look_up(network, inputs, stop=lambda x: x):
    """The trajectory by a loop that keeps everything and looks up what arrives."""
    n, batch = network.n, inputs.shape[1]
    (layer,), (start,) = network.layers, network.init(batch).layers
    delay_in, delay_rec = (
        layer.delays.get("below", NO_DELAY),
        layer.delays.get("recurrent", NO_DELAY),
    )
    state, spikes, states = start.neurons[0], [jnp.zeros((batch, n))], []
    x = inputs.astype(float)

    def arriving(history, t, delays):
        zeros = jnp.zeros_like(history[:1])
        delays = np.broadcast_to(delays, history.shape[-1])
        rows = np.where(t >= delays, 1 + t - delays, 0)
        return jnp.concatenate([zeros, history])[rows, :, np.arange(len(delays))].T

    for t in range(len(x)):
        z = stop(arriving(jnp.stack(spikes), t, delay_rec))
        current = arriving(x, t, delay_in) @ network.w_in + z @ network.w_rec
        state = network.cell.step(state, current, stop(spikes[t]))
        spikes.append(network.cell.output(state))
        states.append(state)
    y, outputs = jnp.zeros((batch, network.n_out)), []
    for z in spikes[1:]:
        y = network.kappa * y + network.readout_gain * z @ network.w_out
        y = y if network.readout_bias is None else y + network.readout_bias[None]
        outputs.append(y)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    of_layer = eprop.LayerTrajectory(jnp.stack(spikes[1:]), stacked)
    return eprop.Trajectory(jnp.stack(outputs), (of_layer,))


delays_of = {n: st.lists(st.integers(0, 8), min_size=n, max_size=n) for n in (3, 6)}


@pytest.mark.slow
@settings(max_examples=6, derandomize=True, deadline=None)
@given(
    st.sampled_from(["LIF", "ALIF", "own cell"]),
    st.one_of(st.integers(0, 8), delays_of[3]),
    st.one_of(st.integers(0, 8), delays_of[6]),
    st.integers(2, 12),
    st.integers(0, 9),
)
@example("ALIF", 0, 2, 9, 0)
@example("LIF", [0, 5, 1], [4, 0, 1, 1, 8, 2], 12, 1)
def test_both_lines_are_a_lookup_in_the_history(cell, delay_in, delay_rec, n_steps, seed):
    options = Options(n_steps=n_steps, dt=2.0, seed=seed)
    case = make_case(cell, options)
    networks = [with_delays(case, delay_in, delay_rec, line).network for line in LINES]
    rotating, concatenated = (respond_on_xla(network, case.inputs) for network in networks)
    jax.tree.map(np.testing.assert_array_equal, rotating, concatenated)  # bit for bit
    expected = look_up(networks[0], case.inputs)
    for actual in (rotating, respond(networks[0], case.inputs)):
        np.testing.assert_array_equal(actual.spikes, expected.spikes)
        assert_trees_close(actual, expected, TOLERANCE, "trajectory")


@pytest.mark.slow
@pytest.mark.parametrize(("in_steps", "stop"), [(IN_STEPS[2], True), (IN_STEPS[3], False)])
def test_autodiff_through_both_lines_is_that_of_the_lookup(in_steps, stop):
    case, *_ = delayed_case(in_steps=in_steps)

    def loss(network):
        keep = jax.lax.stop_gradient if stop else lambda x: x
        return case.loss(look_up(network, case.inputs, keep), case.targets)

    expected = jax.jit(jax.grad(loss))(case.network)
    for line in LINES:
        actual = delayed_case(in_steps=in_steps, line=line)[0].grad(eprop.BPTT(stop))
        for name in ("w_in", "w_rec", "w_out", "readout_bias"):
            off = 1 - np.eye(6) if name == "w_rec" else 1.0  # no autapses
            assert_close(getattr(actual, name), off * getattr(expected, name), TOLERANCE, name)


@pytest.mark.parametrize("window", slow_but([2, 5, 12, 13, None], [1, 2, 5, 12, 13, None]))
def test_eprop_is_its_autodiff_for_every_window(window):
    case, value, expected = delayed_case()
    actual_value, actual = case.value_and_grad(eprop.EProp(window=window))
    assert_close(actual_value, value, TOLERANCE, "loss")
    assert_trees_close(actual, expected, TOLERANCE, f"window={window}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "in_steps"),
    [("LIF", IN_STEPS[0]), ("own cell", IN_STEPS[1]), ("ALIF", IN_STEPS[3])],
)
def test_eprop_is_its_autodiff_for_every_cell(cell, in_steps):
    case, _, expected = delayed_case(cell, in_steps)
    for window in (1, 4, None):
        actual = case.grad(eprop.EProp(window=window))
        assert_trees_close(actual, expected, TOLERANCE, f"window={window}")


@pytest.mark.slow
def test_both_lines_have_one_gradient():
    """That of autodiff, as without the compiled programs; these have a line of their own."""
    *_, expected = delayed_case()
    for rule in (eprop.BPTT(), eprop.EProp(), eprop.EProp(window=4)):
        with without_kernels():
            rotating, concatenated = (delayed_case(line=line)[0].grad(rule) for line in LINES)
        if isinstance(rule, eprop.EProp):
            assert_trees_close(rotating, expected, TOLERANCE, str(rule))
        jax.tree.map(np.testing.assert_array_equal, rotating.w_rec, concatenated.w_rec)
        assert_trees_close(rotating.w_in, concatenated.w_in, 1e-14, str(rule))


def test_delays_in_float32_are_whole_steps():
    delays = jnp.arange(200, dtype=jnp.float32) * 0.1
    network = eprop.Network(
        eprop.LIF(200, dt=0.1), n_in=1, n_out=1, delay_rec=delays, key=jax.random.key(0)
    )
    np.testing.assert_array_equal(network.layers[0].delays["recurrent"], np.arange(200))


def test_blocks_are_about_as_long_as_their_history():
    """Each begins with what was under way: short ones would keep it many times over."""
    for delay, length in ((0.0, 30), (200.0, 150), (225.0, 225)):
        network = eprop.Network(
            eprop.LIF(100), n_in=40, n_out=1, delay_rec=delay, key=jax.random.key(0)
        )
        assert eprop.record.block_steps(network.layers, 2250, 64) == length


def test_delays_matter():
    """Else all of this would pass without them."""
    _, _, expected = delayed_case()
    for in_steps in [(0, 0), ((0, 1, 4), (3, 0, 1, 2, 5, 4))]:
        other = with_delays(make_case("ALIF", OPTIONS), *in_steps).grad(AUTODIFF)
        assert relative_error(other.w_rec, expected.w_rec) > 1e-3


def test_no_delay_is_a_network_without():
    case = make_case("ALIF", OPTIONS)
    zero = with_delays(case, 0, [0.0] * 6)
    (layer,), (start,) = zero.network.layers, zero.network.init(2).layers
    assert not layer.delays and not start.past
    jax.tree.map(
        np.testing.assert_array_equal, zero.network(case.inputs), case.network(case.inputs)
    )


def test_delay_of_inputs_is_a_shift():
    case = make_case("ALIF", OPTIONS)
    shifted = np.concatenate([np.zeros((4, 3, 3), bool), case.inputs[:-4]])
    delayed = with_delays(case, 4, 0).network(case.inputs)
    expected = case.network(shifted)
    assert expected.spikes.sum() > 10
    jax.tree.map(np.testing.assert_array_equal, delayed, expected)


def test_blocks_hand_on_what_is_under_way(monkeypatch):
    """A long sequence is worked through in blocks: here of one step, shorter than the delays."""
    case, value, expected = delayed_case()
    monkeypatch.setattr(eprop.response, "block_steps", lambda *_, **__: 1)
    for rule in (AUTODIFF, eprop.EProp()):
        actual_value, actual = case.value_and_grad(rule)
        assert_close(actual_value, value, TOLERANCE, "loss")
        assert_trees_close(actual, expected, TOLERANCE, str(rule))


def test_eligibility_traces_and_total_derivative():
    """Their product is BPTT's gradient, with what is under way."""
    case = with_delays(
        make_case("ALIF", dataclasses.replace(OPTIONS, terms=("outputs",))), *IN_STEPS[2]
    )
    expected = case.grad(eprop.BPTT())
    assert_alive(case.network, case.inputs, expected)
    signal = eprop.total_derivative(case.network, case.inputs, case.targets, case.loss)
    traces = eprop.eligibility_traces(case.network, case.inputs)
    for name in ("w_in", "w_rec"):
        actual = jnp.einsum("tbj,tbij->ij", signal, getattr(traces, name).trace)
        assert_close(actual, getattr(expected, name), TOLERANCE, name)


def test_chunks():
    case, value, expected = delayed_case()
    chunks = [
        (case.inputs[i : i + 3], jax.tree.map(lambda x: x[i : i + 3], case.targets))  # noqa: B023
        for i in range(0, 13, 3)
    ]
    evaluate = eprop.stream_value_and_grad(case.loss, eprop.EProp(window=4))
    actual_value, actual = evaluate(case.network, chunks)
    assert_close(actual_value, value, TOLERANCE, "loss")
    assert_trees_close(actual, expected, TOLERANCE, "chunks")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"delay_in": -1.0}, ValueError, ["delay_in = -1.0 ms", "at least 0"]),
        ({"delay_rec": 1.25}, ValueError, ["delay_rec = 1.25 ms", "dt = 0.5 ms"]),
        ({"delay_rec": [1.0, 2.0]}, ValueError, ["delay_rec has shape (2,)", "6 neurons"]),
        ({"delay_in": [1.0, 2.0]}, ValueError, ["delay_in has shape (2,)", "3 inputs"]),
        ({"delay_rec": 1e300}, ValueError, ["delay_rec = 1e+300 ms"]),
        ({"delay_in": np.nan}, ValueError, ["delay_in", "finite"]),
        ({"delay_in": "1 ms"}, TypeError, ["delay_in = '1 ms'", "real number"]),
        ({"delay_line": eprop.RotatingBuffer}, TypeError, ["delay_line", "RotatingBuffer()"]),
    ],
)
def test_errors(change, error, words, as_a_user_has_it):
    def build():
        eprop.Network(eprop.LIF(6, dt=0.5), n_in=3, n_out=1, key=jax.random.key(0), **change)

    assert_raises(build, error, words)
