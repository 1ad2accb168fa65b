"""The ways to one gradient agree, on every cell: recursion, windows, autodiff, factorisation.

The statements are those of docs/derivation.md. Sizes, parameters and losses are drawn; the three
`@example`s see to it that refractory times of 0, 1 and 5 steps and every option always occur.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import eprop
import eprop.record
import eprop.reverse
from tests.cases import EACH_CELL, Options, make_case, slow_but, with_layer
from tests.comparison import assert_alive, assert_close, assert_trees_close, relative_error

TOLERANCE = 1e-10
AUTODIFF = eprop.BPTT(stop_z_gradients=True)
TERMS = [
    ("outputs",),
    ("outputs", "spikes"),
    ("outputs", "voltage"),
    ("outputs", "spikes", "voltage"),
]

options = st.builds(
    Options,
    n_in=st.integers(1, 4),
    n_rec=st.integers(3, 7),
    n_out=st.integers(1, 3),
    batch=st.integers(2, 4),
    n_steps=st.integers(9, 20),
    n_refractory=st.sampled_from([0, 1, 5]),
    dt=st.sampled_from([0.5, 1.0, 2.0]),
    heterogeneous=st.booleans(),
    scale_current=st.booleans(),
    scale_readout=st.booleans(),
    readout_bias=st.booleans(),
    terms=st.sampled_from(TERMS),
    seed=st.integers(0, 29),
)
NO_REFRACTORY_TIME = Options(n_steps=12, seed=2, n_refractory=0, scale_readout=True, terms=TERMS[1])
ONE_STEP = Options(n_steps=13, n_refractory=1, readout_bias=True, terms=TERMS[2], seed=1)
FIVE_STEPS = Options(
    n_refractory=5, heterogeneous=False, scale_current=True, readout_bias=True, scale_readout=True
)


def on_every_cell(max_examples):
    """Parametrises by cell, and draws `options`: the three examples and `max_examples` others."""

    def decorate(test):
        test = settings(max_examples=max_examples, derandomize=True, deadline=None)(
            given(options=options)(test)
        )
        for chosen in (NO_REFRACTORY_TIME, ONE_STEP, FIVE_STEPS):
            test = example(options=chosen)(test)
        return EACH_CELL(test)

    return decorate


def windows(n_steps):
    """Dividing the sequence and not, up to the whole of it and beyond."""
    return [2, 7, n_steps - 1, n_steps, n_steps + 3]


def assert_windows_agree(case, windows):
    value, expected = case.value_and_grad(AUTODIFF)
    assert_alive(case.network, case.inputs, expected)
    for window in windows:
        actual_value, actual = case.value_and_grad(eprop.EProp(window=window))
        assert_close(actual_value, value, TOLERANCE, f"loss with window={window}")
        assert_trees_close(actual, expected, TOLERANCE, f"window={window}")


@on_every_cell(max_examples=2)
def test_recursion_and_windows_and_autodiff(cell, options):
    drawn = windows(options.n_steps)[options.seed % 5]
    assert_windows_agree(make_case(cell, options), [1, drawn, None])


def test_every_window():
    options = Options(n_steps=14, n_refractory=5, readout_bias=True)
    assert_windows_agree(make_case("ALIF", options), [1, 4, *windows(14), None])


@on_every_cell(max_examples=1)
def test_factorisation_with_the_total_derivative_is_bptt(cell, options):
    """dE/dW = Σ_t (dE/dz_t e_t + ∂E/∂s_t · ε_t)."""
    case = make_case(cell, options)
    arguments = case.network, case.inputs, case.targets
    expected = case.grad(eprop.BPTT())
    assert_alive(case.network, case.inputs, expected)

    @jax.jit
    def factorisation(network, inputs, targets):
        signal = eprop.total_derivative(network, inputs, targets, case.loss)
        trajectory = network(inputs)
        direct = jax.grad(
            lambda states: case.loss(with_layer(trajectory, states=states), targets), allow_int=True
        )(trajectory.states)
        return eprop.eligibility_traces(network, inputs), signal, direct

    traces, signal, direct = factorisation(*arguments)
    for name in ("w_in", "w_rec"):
        of_matrix = getattr(traces, name)
        actual = jnp.einsum("tbj,tbij->ij", signal, of_matrix.trace)
        for field, vector in of_matrix.vectors._asdict().items():
            if vector is not None:
                actual += jnp.einsum("tbj,tbij->ij", getattr(direct, field), vector)
        assert_close(actual, getattr(expected, name), TOLERANCE, name)


def autodiff_with_feedback(case, b):
    """E-prop with any feedback by autodiff: in the readout's backward pass, B in place of W_out."""

    def loss(network):
        trajectory = network(case.inputs, AUTODIFF)
        bias = 0.0 if network.readout_bias is None else network.readout_bias[None]

        def step(y, z):
            z_fixed = jax.lax.stop_gradient(z)
            drive = z_fixed @ network.w_out + (z - z_fixed) @ b
            y = network.kappa * y + network.readout_gain * drive + bias
            return y, y

        nothing = jnp.zeros_like(trajectory.outputs[0])
        _, outputs = jax.lax.scan(step, nothing, trajectory.spikes)
        return case.loss(trajectory._replace(outputs=outputs), case.targets)

    return jax.jit(jax.grad(loss))(case.network)


@on_every_cell(max_examples=1)
def test_random_feedback(cell, options):
    case = make_case(cell, options)
    expected = autodiff_with_feedback(case, case.b)
    assert_alive(case.network, case.inputs, expected)
    for window in ([1, 2, 7][options.seed % 3], None):
        actual = case.grad(eprop.EProp(eprop.RandomFeedback(case.b), window))
        assert_trees_close(actual, expected, TOLERANCE, f"window={window}")


@EACH_CELL
def test_the_oracle_of_random_feedback_with_symmetric_feedback(cell):
    case = make_case(cell)
    oracle = autodiff_with_feedback(case, case.network.w_out)
    assert_trees_close(oracle, case.grad(AUTODIFF), TOLERANCE)


@functools.cache
def in_one_block(cell):
    """A case, and its trajectory, value and gradient where a window is one block."""
    case = make_case(cell, Options(n_steps=15, n_refractory=2, readout_bias=True))
    value, gradients = case.value_and_grad(AUTODIFF)
    assert_alive(case.network, case.inputs, gradients)
    return case, case.run(), value, gradients


@pytest.mark.parametrize(
    ("window", "steps_per_block", "length", "keep_currents"),
    [
        (None, 1, 3, True),  # no smaller than the synapses' gradient
        (None, 4, 3, False),
        (None, 7, 5, True),
        (None, 14, 14, False),  # and one step is left
        (12, 7, 6, True),
        (12, 4, 4, False),
        (11, 5, 5, True),  # no length divides it: two blocks, and one step is left
    ],
)
@pytest.mark.parametrize("cell", slow_but(["own cell"], ["ALIF", "own cell"]))
def test_blocks(cell, window, steps_per_block, length, keep_currents, monkeypatch):
    """However a window is cut into blocks."""
    case, trajectory, value, expected = in_one_block(cell)
    (_, batch, n_rec), n_steps = trajectory.spikes.shape, window or 15
    (layer,) = case.network.layers
    assert eprop.record.block_steps([layer], n_steps, batch) == n_steps

    monkeypatch.setattr(eprop.record, "BLOCK_BYTES", 8 * batch * n_rec * steps_per_block)
    monkeypatch.setattr(eprop.reverse, "KEPT_BYTES", 2**20 if keep_currents else 0)
    assert eprop.record.block_steps([layer], n_steps, batch) == length
    assert_trees_close(case.run(), trajectory, TOLERANCE)
    actual_value, actual = case.value_and_grad(eprop.EProp(window=window))
    assert_close(actual_value, value, TOLERANCE, "loss")
    assert_trees_close(actual, expected, TOLERANCE)


# What must differ, so that agreement means something.


@functools.cache
def gradients_of(cell):
    case = make_case(cell, Options(n_steps=20, n_refractory=2, terms=("outputs",)))
    rules = {
        "e-prop": eprop.EProp(),
        "random": eprop.EProp(eprop.RandomFeedback(case.b)),
        "bptt": eprop.BPTT(),
    }
    gradients = {name: case.grad(rule) for name, rule in rules.items()}
    for each in gradients.values():
        assert_alive(case.network, case.inputs, each)
    return gradients


@EACH_CELL
@pytest.mark.parametrize("other", ["bptt", "random"])
def test_e_prop_differs(cell, other):
    gradients = gradients_of(cell)
    assert relative_error(gradients["e-prop"].w_in, gradients[other].w_in) > 1e-2
    assert relative_error(gradients["e-prop"].w_rec, gradients[other].w_rec) > 1e-2
    # The gradient of the readout is the same under every rule.
    assert_close(gradients["e-prop"].w_out, gradients[other].w_out, TOLERANCE, "w_out")


def mean_over_time(trajectory, targets):
    error = eprop.losses.mean_squared_error(trajectory.outputs, targets["outputs"])
    rates = eprop.losses.firing_rate_penalty(trajectory.spikes, 200.0, dt=1.0)
    return error + 30 * rates, trajectory.spikes


def test_a_mean_over_time_is_one_number_at_every_window():
    """Of the whole sequence, whose loss is called once: value, gradient, and bits of the spikes."""
    case = make_case("ALIF", Options(n_steps=15))

    def evaluate(rule):
        function = jax.jit(eprop.value_and_grad(mean_over_time, rule, has_aux=True))
        (value, spikes), gradients = function(case.network, case.inputs, case.targets)
        return value, spikes, gradients

    value, spikes, expected = evaluate(AUTODIFF)
    assert_alive(case.network, case.inputs, expected)
    for window in [1, 4, None]:
        actual_value, actual_spikes, actual = evaluate(eprop.EProp(window=window))
        assert_close(actual_value, value, TOLERANCE, f"loss with window={window}")
        jax.tree.map(np.testing.assert_array_equal, actual_spikes, spikes)
        assert_trees_close(actual, expected, TOLERANCE, f"window={window}")

    # Called on windows of 4 steps it would be another loss, with another gradient.
    def of_pieces(trajectory, targets):
        pieces = [
            jax.tree.map(lambda x, i=i: x[i : i + 4], (trajectory, targets)) for i in (0, 4, 8, 12)
        ]
        return sum(mean_over_time(*piece)[0] for piece in pieces)

    other_value, other = case._replace(loss=of_pieces).value_and_grad(AUTODIFF)
    assert relative_error(other_value, value) > 0.1
    assert relative_error(other.w_rec, expected.w_rec) > 0.1
