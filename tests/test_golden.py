"""Every number of the reference implementation, reproduced (golden/README.md)."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from tests import golden_cases
from tests.comparison import assert_alive, assert_close, relative_error

TOLERANCE = 1e-12
WEIGHTS = ("in", "rec", "out")

load = functools.cache(golden_cases.load)


@pytest.fixture(params=golden_cases.NAMES)
def golden(request):
    return load(request.param)


@functools.cache
def gradients(name, rule):
    case = load(name)
    rules = {
        "e-prop": eprop.EProp(case.feedback),
        "recursion": eprop.EProp(case.feedback, window=1),
        "windows": eprop.EProp(case.feedback, window=7),
        "autodiff": eprop.BPTT(stop_z_gradients=True),
        "bptt": eprop.BPTT(),
    }
    evaluate = jax.jit(eprop.value_and_grad(case.loss, rules[rule]))
    return evaluate(case.network, case.inputs, case.targets)


@functools.cache
def traces(name):
    case = load(name)
    return jax.jit(eprop.eligibility_traces)(case.network, case.inputs)


@functools.cache
def learning_signals(name):
    case = load(name)
    arguments = case.network, case.inputs, case.targets, case.loss
    return eprop.learning_signals(*arguments, case.feedback)


@functools.cache
def total_derivative(name):
    case = load(name)
    return eprop.total_derivative(case.network, case.inputs, case.targets, case.loss)


def assert_gradients(actual, golden, which, matrices=WEIGHTS):
    for matrix in matrices:
        expected = golden.record[f"g_{which}_{matrix}"]
        name = f"{golden.name}: g_{which}_{matrix}"
        assert_close(getattr(actual, f"w_{matrix}"), expected, TOLERANCE, name)


def symmetric_twin(golden):
    """The case itself, or the same with symmetric feedback."""
    return load(golden.name.replace("random", "symmetric"))


def off_diagonal(matrices):
    """`[..., n, n]` with zero diagonals: the reference stores some autapses' traces."""
    return np.where(np.eye(matrices.shape[-1], dtype=bool), 0, matrices)


def test_no_case_is_missing():
    assert len(golden_cases.NAMES) == 6


def test_every_number_is_of_a_living_network(golden):
    assert_alive(golden.network, golden.inputs, gradients(golden.name, "bptt")[1])


def test_dynamics(golden):
    trajectory = golden.network(golden.inputs)
    record, states = golden.record, trajectory.states
    np.testing.assert_array_equal(trajectory.spikes, record["z"])
    assert_close(states.v, record["v"], TOLERANCE, "v")
    assert_close(trajectory.outputs, record["y_out"], TOLERANCE, "y")
    if "b" in record:
        assert_close(states.a, record["b"], TOLERANCE, "a")
    if "filtered_z" in record:  # a readout of one neuron each
        identity = jnp.eye(golden.network.cell.n)
        network = eqx.tree_at(lambda net: net.w_out, golden.network, identity)
        assert_close(network(golden.inputs).outputs, record["filtered_z"], TOLERANCE, "filtered z")


def test_pseudo_derivative(golden):
    """ψ and -β ψ are the derivatives of the output."""
    network, inputs = golden.network, golden.inputs.astype(np.float64)
    trajectory, (start,) = network(inputs), network.init(inputs.shape[1]).layers

    def before(first, later):
        return jnp.concatenate([first[None], later[:-1]])

    z_tm1 = before(start.spikes, trajectory.spikes)
    current = inputs @ network.w_in + z_tm1 @ network.w_rec
    states_tm1 = jax.tree.map(before, start.neurons[0], trajectory.states)
    output = jax.vmap(network.cell.jacobians)(states_tm1, current).output
    psi = golden.record["psi"]
    assert_close(output[:, 0], psi, TOLERANCE, "ψ")
    if "beta" in golden.record:
        assert_close(output[:, 1], -golden.record["beta"] * psi, TOLERANCE, "-β ψ")


@pytest.mark.parametrize("matrix", ["in", "rec"])
def test_traces(golden, matrix):
    record, actual = golden.record, getattr(traces(golden.name), f"w_{matrix}")
    masked = off_diagonal if matrix == "rec" else np.asarray
    stored = {
        f"e_trace_{matrix}": actual.trace,
        f"e_trace_{matrix}_b0": actual.trace,
        f"e_trace_filt_{matrix}": actual.filtered,
        f"epsilon_v_{matrix}": actual.vectors.v,
        f"epsilon_a_{matrix}": getattr(actual.vectors, "a", None),
    }
    stored = {name: value for name, value in stored.items() if name in record}
    assert stored
    for name, value in stored.items():
        expected = record[name]
        assert_close(value[:, : expected.shape[1]], masked(expected), TOLERANCE, name)
    if f"pre_{matrix}" in record:
        pre = record[f"pre_{matrix}"][..., None]
        vectors = actual.vectors.v
        assert_close(vectors, masked(np.broadcast_to(pre, vectors.shape)), TOLERANCE, "pre")


def test_learning_signals(golden):
    signals = learning_signals(golden.name)
    record = golden.record
    assert_close(signals.readout, record["L" if "L" in record else "L_bar"], TOLERANCE, "L")
    if "L_reg" in record:
        assert_close(signals.direct, record["L_reg"], TOLERANCE, "L_reg")


def test_total_derivative(golden):
    actual = total_derivative(golden.name)
    assert_close(actual, golden.record["L_true"], TOLERANCE, "L_true")


def test_loss(golden):
    value, _ = gradients(golden.name, "e-prop")
    assert_close(value, golden.record["loss"], TOLERANCE, "loss")


def test_e_prop(golden):
    _, actual = gradients(golden.name, "e-prop")
    assert_gradients(actual, golden, "hard")
    assert_gradients(actual, golden, "auto")


def test_e_prop_by_traces(golden):
    """Σ_t L_t ē_t + (∂E/∂z_t) e_t: the paper's formula, written out."""
    signals = learning_signals(golden.name)
    for matrix in ("in", "rec"):
        of_matrix = getattr(traces(golden.name), f"w_{matrix}")
        task = jnp.einsum("tbj,tbij->ij", signals.readout, of_matrix.filtered)
        rates = jnp.einsum("tbj,tbij->ij", signals.direct, of_matrix.trace)
        assert_close(task + rates, golden.record[f"g_hard_{matrix}"], TOLERANCE, matrix)
        for name, term in (("task", task), ("reg", rates)):
            expected = golden.record.get(f"g_hard_{name}_{matrix}")
            if expected is None:
                expected = off_diagonal(golden.record[f"g_hard_{name}_{matrix}_unmasked"])
            assert_close(term, expected, TOLERANCE, f"{name}, {matrix}")


@pytest.mark.parametrize("rule", ["recursion", "windows"])
def test_e_prop_in_windows(golden, rule):
    """Of losses with means over time, too."""
    value, actual = gradients(golden.name, rule)
    assert_close(value, golden.record["loss"], TOLERANCE, "loss")
    assert_gradients(actual, golden, "hard")


def test_autodiff_with_stopped_spikes(golden):
    _, actual = gradients(golden.name, "autodiff")
    assert_gradients(actual, symmetric_twin(golden), "auto")


def test_bptt(golden):
    _, actual = gradients(golden.name, "bptt")
    assert_gradients(actual, golden, "bptt")


def test_factorisation(golden):
    """The paper's equation (1), Σ_t dE/dz_t e_t."""
    signal = total_derivative(golden.name)
    for matrix in ("in", "rec"):
        trace = getattr(traces(golden.name), f"w_{matrix}").trace
        product = jnp.einsum("tbj,tbij->ij", signal, trace)
        assert_close(product, golden.record[f"g_bptt_{matrix}"], TOLERANCE, f"bptt, {matrix}")
        if f"g_fact_{matrix}" in golden.record:
            assert_close(product, golden.record[f"g_fact_{matrix}"], TOLERANCE, matrix)


def test_rules_differ(golden):
    """Negative control: what the other tests tell apart is not the same anyway."""
    _, e_prop = gradients(golden.name, "e-prop")
    _, bptt = gradients(golden.name, "bptt")
    assert relative_error(e_prop.w_rec, bptt.w_rec) > 0.1
    if "random" in golden.name:
        _, symmetric = gradients(symmetric_twin(golden).name, "e-prop")
        assert relative_error(e_prop.w_rec, symmetric.w_rec) > 0.1
