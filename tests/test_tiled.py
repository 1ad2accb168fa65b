"""Layers on programs for a GPU are what they are on XLA: interpreted, and lowered for one."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.compiled import gpu_kernels, programs, without_kernels
from eprop.kernels import NotTranslatable, Tiles, scalar, tiles
from tests.comparison import assert_close, assert_trees_close, relative_error
from tests.test_compiled import (
    CELLS,
    INPUTS,
    KEY,
    N_IN,
    N_OUT,
    OF_LAYER,
    RULES,
    TARGETS,
    ByALoop,
    N,
    OneFunction,
    T,
    ThreeVariables,
    alif,
    loss,
    make,
)

pytestmark = pytest.mark.slow

OF_ONE_POPULATION = [name for name, make in CELLS.items() if not isinstance(make(), list)]
SURROGATES = [eprop.Triangular(), eprop.Exponential(), eprop.FastSigmoid(), eprop.Arctan()]


@pytest.fixture(autouse=True)
def short_programs(monkeypatch):
    """Each step ahead is written once more, for XLA to compile here."""
    monkeypatch.setattr(tiles, "AHEAD", 1)


class Mixing(ThreeVariables):
    """A neuron hears its neighbour without a synapse."""

    def step(self, state, current, z_tm1):
        beside = jnp.concatenate([current[:, 1:], current[:, :1]], axis=1)
        return super().step(state, current + beside, z_tm1)


def on_both(function, *args):
    """On the programs for a GPU, interpreted, and on XLA."""
    with gpu_kernels(interpret=True):
        tiled = jax.jit(lambda *args: function(*args))(*args)
    with without_kernels():
        return tiled, jax.jit(lambda *args: function(*args))(*args)


def is_tiled(network):
    with gpu_kernels(interpret=True):
        return [isinstance(programs(layer), Tiles) for layer in network.layers]


def for_gpu(function, *args):
    """The text of a program that is lowered for a GPU, without one."""
    # Errors of traced numbers come by a callback, which is lowered for the device at hand alone.
    with mock.patch.object(eprop.checks, "all_finite", lambda arrays, guarded: guarded):
        return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def check(network, rule="whole", inputs=INPUTS):
    rules = RULES | {"windows": eprop.EProp(window=T // 2)}  # in one loop: XLA takes its time
    rule = rules[rule] or eprop.EProp(
        eprop.RandomFeedback(jax.random.normal(KEY, (network.n, N_OUT)))
    )
    assert all(is_tiled(network))
    spikes = [run.spikes for run in on_both(lambda network: network(inputs), network)]
    np.testing.assert_array_equal(*spikes)
    assert 0.02 < spikes[0].mean() < 0.7
    tiled, plain = on_both(eprop.value_and_grad(loss, rule), network, inputs, TARGETS)
    assert_trees_close(tiled, plain, 1e-10)
    assert all(float(np.abs(x).max()) > 1e-6 for x in jax.tree.leaves(tiled))


@pytest.mark.parametrize("cell", OF_ONE_POPULATION)
def test_cells(cell):
    check(make(CELLS[cell]()))


@pytest.mark.parametrize("rule", ["windows", "random"])
def test_rules(rule):
    check(make(alif()), rule)


@pytest.mark.parametrize("of_layer", OF_LAYER)
def test_layers(of_layer):
    check(make(alif(), OF_LAYER[of_layer]))


@pytest.mark.parametrize("inputs", [0.7 * INPUTS.astype(float)])
def test_graded_inputs(inputs):
    check(make(alif()), inputs=inputs)


def test_all_that_happened():
    tiled, plain = on_both(lambda network: network(INPUTS), make(alif()))
    assert_trees_close(tiled, plain, 1e-12)


def test_float32():
    with jax.enable_x64(False):
        args = make(ThreeVariables(N)), INPUTS, TARGETS.astype(np.float32)
        tiled, plain = on_both(eprop.value_and_grad(loss, eprop.EProp()), *args)
        assert_trees_close(tiled, plain, 1e-6)
        assert tiled[1].w_rec.dtype == np.float32


def test_layers_in_a_stack():
    layers = [
        eprop.Layer(eprop.LIF(8, v_th=0.2), n_in=N_IN, key=KEY),
        eprop.Layer(eprop.LSTM(6), n_in=8, key=KEY),
        eprop.Layer(alif(), n_in=6, key=KEY),
    ]
    network = eprop.Network(layers, n_out=N_OUT, readout_of="all", key=KEY)
    assert is_tiled(network) == [True, False, True]

    def of_outputs(trajectory, targets):
        return jnp.mean((trajectory.outputs - targets) ** 2)

    tiled, plain = on_both(
        eprop.value_and_grad(of_outputs, eprop.EProp()), network, INPUTS, TARGETS
    )
    assert_trees_close(tiled, plain, 1e-10)


def test_gradient_by_the_inputs():
    network = make(alif())

    def of_inputs(x):
        return loss(network(x, eprop.EProp()), TARGETS)

    tiled, plain = on_both(jax.grad(of_inputs), INPUTS.astype(float))
    assert_close(tiled, plain, 1e-10)
    assert np.abs(tiled).max() > 1e-6


def test_over_seeds():
    def of_key(key):
        network = eprop.Network(alif(), n_in=N_IN, n_out=N_OUT, key=key)
        return eprop.value_and_grad(loss, eprop.EProp())(network, INPUTS, TARGETS)

    tiled, plain = on_both(jax.vmap(of_key), jax.random.split(KEY, 2))
    assert_trees_close(tiled, plain, 1e-10)


def test_steps_ahead(monkeypatch):
    """Three at a time, and two that are left."""
    monkeypatch.setattr(tiles, "AHEAD", 3)
    assert len(INPUTS) % 3 == 2
    check(make(alif()))


def test_more_neurons_than_a_program_in_reverse_has():
    check(make(alif(tiles.STRETCH + 1, v_th=0.2)))


def test_blocks(monkeypatch):
    """Shorter than the run, and no divisor of it."""
    monkeypatch.setattr("eprop.record.GPU_BLOCK_BYTES", 19 * 3 * N * 8)
    check(make(alif()))


def test_negative_control(monkeypatch):
    """A wrong derivative is seen."""
    monkeypatch.setitem(scalar.ELEMENTWISE, "tanh", lambda x: x)
    network = make(OneFunction(lambda x: jnp.tanh(1.01 * x)))
    tiled, plain = on_both(eprop.value_and_grad(loss, eprop.EProp()), network, INPUTS, TARGETS)
    assert relative_error(tiled[1].w_rec, plain[1].w_rec) > 1e-3


class TestForAGPU:
    @pytest.fixture(autouse=True)
    def whole_programs(self, short_programs, monkeypatch):
        monkeypatch.setattr(tiles, "AHEAD", 4)

    @pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda x: type(x).__name__)
    @pytest.mark.parametrize("cell", [eprop.LIF, eprop.ALIF, eprop.CurrentLIF])
    def test_the_librarys_cells(self, cell, surrogate):
        self.check(cell(100, v_th=0.3, surrogate=surrogate))

    def test_own_cell(self):
        self.check(ThreeVariables(33))

    def test_constants_of_each_neuron_and_trained_ones(self):
        self.check(CELLS["each its own"]())
        with jax.enable_x64(False):
            self.check(eprop.ALIF(N, tau_a=jnp.full(N, 100.0), v_th=jnp.asarray(0.3)))

    def check(self, cell):
        with jax.enable_x64(False), gpu_kernels():
            network = eprop.Network(cell, n_in=N_IN, n_out=N_OUT, key=KEY)
            gradient = eprop.value_and_grad(loss, eprop.EProp())
            text = for_gpu(gradient, network, INPUTS, TARGETS.astype(np.float32))
        calls = [line for line in text.splitlines() if "xla.gpu.triton" in line]
        assert {name for name in ("eprop_gpu_run", "eprop_gpu_back") for x in calls if name in x}
        assert not any(re.search(r"\\00dot\\00|tf32", line, re.IGNORECASE) for line in calls)

    def test_not_without_being_asked(self):
        text = for_gpu(lambda network: network(INPUTS).outputs, make(alif()))
        assert "eprop_gpu_run" not in text

    @pytest.mark.parametrize("rule", [*RULES, "BPTT"])
    def test_products_are_as_exact_as_their_numbers(self, rule):
        rules = RULES | {"random": eprop.EProp(eprop.RandomFeedback(jnp.ones((N, N_OUT))))}
        rule = eprop.BPTT() if rule == "BPTT" else rules[rule]
        with without_kernels():
            text = for_gpu(eprop.value_and_grad(loss, rule), make(alif()), INPUTS, TARGETS)
        products = [line for line in text.splitlines() if "stablehlo.dot" in line]
        assert len(products) > 3
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


class TestWhatDoesNotFit:
    def reason(self, cell, interpret=True, **of_layer):
        network = eprop.Network(cell, n_in=1, n_out=N_OUT, key=KEY, **of_layer)
        with gpu_kernels(interpret=interpret):
            return programs(network.layers[0])

    def test_is_said(self):
        sparse = eprop.Sparse.random(N, N, fan_in=3, autapses=False, key=KEY)
        assert "more than 0 or 1" in self.reason(eprop.LSTM(N))
        assert "no matrix" in self.reason(alif(), w_rec=sparse)
        assert "delays" in self.reason(alif(), delay_rec=2.0)
        assert "the operation" in self.reason(ByALoop(N))
        assert "the function erf" in self.reason(OneFunction(jax.lax.erf))
        assert "several populations" in self.reason(CELLS["two populations"]())
        assert "dtype float64" in self.reason(alif(), interpret=False)
        assert "more than 4096" in self.reason(eprop.LIF(4097), w_rec=None)
        assert isinstance(self.reason(alif()), Tiles)

    def test_a_cell_that_mixes_neurons(self):
        """No layer takes one; Triton would."""
        with pytest.raises(NotTranslatable, match="does not keep neurons apart"):
            Tiles([Mixing(N)], np.float64, interpret=True)

    @pytest.mark.parametrize("cell", [ByALoop(N), OneFunction(jax.lax.erf)])
    def test_is_what_it_was(self, cell):
        network = make(cell)
        tiled, plain = on_both(eprop.value_and_grad(loss, eprop.EProp()), network, INPUTS, TARGETS)
        assert_trees_close(tiled, plain, 1e-12)

    def test_says_how_to_have_them(self, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert "outside of gpu_kernels()" in programs(make(alif()).layers[0])
