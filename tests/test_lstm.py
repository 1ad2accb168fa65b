"""LSTM units: the reference implementation's numbers (golden/README.md), and peepholes."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from tests import oracle
from tests.cases import slow_but
from tests.comparison import assert_close, assert_trees_close, relative_error
from tests.golden_cases import FOLDER

TOLERANCE = 1e-12
RULES = {
    "recursion": eprop.EProp(window=1),
    "windows that don't divide": eprop.EProp(window=7),
    "windows that divide": eprop.EProp(window=5),
    "adjoint": eprop.EProp(),
    "autodiff": eprop.BPTT(stop_z_gradients=True),
    "bptt": eprop.BPTT(),
}


def loss(trajectory, targets):
    return 0.5 * jnp.sum(jnp.square(trajectory.outputs - targets))


@functools.cache
def record():
    """What the file holds, its sequences time-major."""
    with np.load(FOLDER / "lstm_sym_seed0.npz") as file:
        stored = {key: file[key] for key in file.files}
    sequences = ("inputs", "target", "h", "c", "gates", "y_out", "L")
    stored |= {key: np.swapaxes(stored[key], 0, 1) for key in sequences}
    return SimpleNamespace(**stored)


def network(**changes):
    """The reference's: one kernel for [x; h], b_f beside the bias, a readout without leak."""
    r = record()
    cell = eprop.LSTM(int(r.n), **{"forget_bias": float(r.forget_bias)} | changes)
    return eprop.Network(
        cell,
        n_in=int(r.n_in),
        n_out=int(r.n_out),
        w_in=r.kernel[: r.n_in],
        w_rec=r.kernel[r.n_in :],
        bias=r.bias,
        w_out=r.w_out,
        readout_bias=r.b_out,
        tau_out=None,
        autapses=True,
    )


@functools.cache
def gradients(rule):
    evaluate = jax.jit(eprop.value_and_grad(loss, RULES[rule]))
    return evaluate(network(), record().inputs, record().target)


def test_dynamics():
    r, trajectory = record(), network()(record().inputs)
    assert_close(trajectory.spikes, r.h, TOLERANCE, "h")
    assert_close(trajectory.states.c, r.c, TOLERANCE, "c")
    assert_close(trajectory.states.c[-1], r.c_final_tf, TOLERANCE, "c at the end")
    assert_close(jax.nn.sigmoid(trajectory.states.o), r.gates[:, :, 3], TOLERANCE, "σ(o)")
    assert_close(trajectory.outputs, r.y_out, TOLERANCE, "y")


def test_learning_signal():
    r = record()
    signals = eprop.learning_signals(network(), r.inputs, r.target, loss)
    assert_close(signals.readout, r.L, TOLERANCE, "L")
    assert not signals.direct.any()


@pytest.mark.parametrize("rule", RULES)
def test_gradients(rule):
    r, (value, actual) = record(), gradients(rule)
    assert_close(value, r.loss, TOLERANCE, "loss")
    prefixes = ("g_bptt",) if rule == "bptt" else ("g_eprop", "g_hard")
    kernel = np.concatenate([actual.w_in, actual.w_rec])
    (bias,) = actual.layers[0].bias.weights
    for prefix in prefixes:
        assert_close(kernel, getattr(r, f"{prefix}_kernel"), TOLERANCE, f"{prefix}, kernel")
        assert_close(bias, getattr(r, f"{prefix}_bias"), TOLERANCE, f"{prefix}, bias")
    assert_close(actual.w_out, getattr(r, f"{prefixes[0]}_w_out"), TOLERANCE, "w_out")
    assert_close(actual.readout_bias, getattr(r, f"{prefixes[0]}_b_out"), TOLERANCE, "b_out")


def test_e_prop_by_traces():
    """Σ_t L_t e_t, the paper's formula written out."""
    r, traces = record(), eprop.eligibility_traces(network(), record().inputs)
    signal = np.tile(r.L, 4)  # that of a unit is that of each of its four currents
    kernel = [jnp.einsum("tbj,tbij->ij", signal, kind.trace) for kind in traces]
    assert_close(np.concatenate(kernel), r.g_eprop_kernel, TOLERANCE, "kernel")


def test_factorisation():
    """Σ_t dE/dh_t e_t is BPTT's."""
    r = record()
    total = eprop.total_derivative(network(), r.inputs, r.target, loss)
    traces = eprop.eligibility_traces(network(), r.inputs)
    kernel = [jnp.einsum("tbj,tbij->ij", np.tile(total, 4), kind.trace) for kind in traces]
    assert_close(np.concatenate(kernel), r.g_bptt_kernel, TOLERANCE, "kernel")


def test_every_gate_has_a_gradient_and_rules_differ():
    """Else the numbers above would say little."""
    kernels = {}
    for rule in ("adjoint", "bptt"):
        _, actual = gradients(rule)
        kernels[rule] = np.concatenate([actual.w_in, actual.w_rec])
        for gate, columns in zip("ijfo", np.split(kernels[rule], 4, axis=1), strict=True):
            assert np.abs(columns).min() > 0, gate
        assert np.abs(np.diag(actual.w_rec[:, :7])).min() > 0, "autapses"
    assert relative_error(kernels["adjoint"], kernels["bptt"]) > 0.1


def test_what_the_reference_fixes_matters():
    """Each convention, changed, gives other numbers."""
    r = record()
    i, j, f, o = np.split(r.kernel, 4, axis=1)
    swapped = eprop.Network(
        eprop.LSTM(7),
        n_in=5,
        n_out=2,
        w_in=np.concatenate([j, i, f, o], axis=1)[:5],
        w_rec=np.concatenate([j, i, f, o], axis=1)[5:],
        bias=r.bias,
        w_out=r.w_out,
        tau_out=None,
        autapses=True,
    )
    for other in (network(forget_bias=0.0), network(peepholes=np.full((3, 7), 0.1)), swapped):
        assert relative_error(other(r.inputs).spikes, r.h) > 1e-2


# Peepholes: the memory seen by the gates. Trained, and exact.


@functools.cache
def with_peepholes():
    rng = np.random.default_rng(0)
    peepholes, forget_bias = rng.normal(size=(3, 7)), rng.normal(size=7)
    return network(peepholes=peepholes, forget_bias=jnp.asarray(forget_bias))


@functools.cache
def expected_with_peepholes():
    evaluate = jax.jit(oracle.value_and_grad(loss, eprop.SymmetricFeedback()))
    return evaluate(with_peepholes(), record().inputs, record().target)


@pytest.mark.parametrize(
    "rule",
    slow_but(
        ["windows that don't divide", "adjoint"],
        ["recursion", "windows that don't divide", "adjoint", "autodiff"],
    ),
)
def test_gradients_with_peepholes(rule):
    evaluate = jax.jit(eprop.value_and_grad(loss, RULES[rule]))
    value, actual = evaluate(with_peepholes(), record().inputs, record().target)
    expected_value, expected = expected_with_peepholes()
    assert_close(value, expected_value, TOLERANCE, "loss")
    assert_trees_close(actual, expected, TOLERANCE)


def test_peepholes_are_trained():
    of_cell = expected_with_peepholes()[1].cell
    assert np.abs(of_cell.peepholes).min() > 1e-6
    assert np.abs(of_cell.forget_bias.value).min() > 1e-6


def test_equations_with_peepholes():
    """A step written out."""
    cell, rng = with_peepholes().cell, np.random.default_rng(1)
    c, o, *currents = rng.normal(size=(6, 2, 7))
    before = eprop.LSTMState(jnp.asarray(c), jnp.asarray(o))
    after = cell.step(before, jnp.asarray(currents), jnp.zeros((2, 7)))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    p_i, p_f, p_o = np.asarray(cell.peepholes)
    kept = sigmoid(currents[2] + np.asarray(cell.forget_bias.value) + p_f * c) * c
    c = kept + sigmoid(currents[0] + p_i * c) * np.tanh(currents[1])
    assert_close(after.c, c, 1e-14, "c")
    assert_close(cell.output(after), sigmoid(currents[3] + p_o * c) * np.tanh(c), 1e-14, "h")


def test_float32_with_peepholes():
    """Beside float64, which `init` alone would give."""
    r = record()
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), with_peepholes())
    inputs, targets = (np.asarray(x, np.float32) for x in (r.inputs, r.target))
    actual = jax.jit(eprop.grad(loss, eprop.EProp(window=5)))(single, inputs, targets)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(actual))
    assert_trees_close(actual, expected_with_peepholes()[1], 1e-5)
