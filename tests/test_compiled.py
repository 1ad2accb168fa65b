"""Layers on compiled programs are what they are on XLA; and what runs on which."""

import concurrent.futures
import functools
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop.compiled import programs, without_kernels
from eprop.kernels import Neurons
from tests.cases import slow_but
from tests.comparison import assert_close, assert_trees_close, relative_error

KEY = jax.random.key(0)
N_IN, N, N_OUT, T, BATCH = 5, 12, 2, 50, 3
RULES = {"whole": eprop.EProp(), "windows": eprop.EProp(window=7), "random": None}


class ThreeState(NamedTuple):
    v: jax.Array
    trace: jax.Array
    gate: jax.Array


class ThreeVariables(eprop.AbstractCell):
    """An own cell whose author knows nothing of compiled programs."""

    spiking = True
    n: int = eqx.field(static=True)
    dt: float = eqx.field(static=True, default=1.0)

    def init(self, batch):
        zeros = jnp.zeros((batch, self.n))
        return ThreeState(zeros, zeros, zeros)

    def step(self, state, current, z_tm1):
        own = self.output(state)
        gate = 0.9 * state.gate + 0.1 * jnp.tanh(state.v - state.trace)
        v = 0.9 * state.v + current * jnp.exp(-jnp.square(gate)) - 0.5 * z_tm1
        return ThreeState(v, 0.95 * state.trace + 0.1 * own, gate)

    def output(self, state):
        return eprop.Arctan().spike(state.v - 0.4 - state.trace)


class ByALoop(ThreeVariables):
    """One that does the same in a way that has no translation."""

    def output(self, state):
        threshold = jax.lax.fori_loop(0, 2, lambda _, x: x + 0.2, jnp.zeros_like(state.v))
        return eprop.Arctan().spike(state.v - threshold - state.trace)


FADING = 0.9


class OfAModule(ThreeVariables):
    """One whose equations depend on what is no field of it."""

    pull: ClassVar[float] = 1.0

    def step(self, state, current, z_tm1):
        v = FADING * state.v + self.pull * current - 0.5 * z_tm1
        return ThreeState(v, 0.95 * state.trace + 0.1 * self.output(state), state.gate)


class OneForAll(ThreeVariables):
    """One with a trained number, and what can't be done with a number of each neuron."""

    fading: jax.Array

    def __init__(self, fading):
        self.n, self.dt, self.fading = N, 1.0, jnp.asarray(fading)

    def step(self, state, current, z_tm1):
        v = jax.lax.cond(self.fading > 0.5, lambda v: self.fading * v, jnp.zeros_like, state.v)
        return ThreeState(v + current, 0.95 * state.trace + 0.1 * self.output(state), state.gate)


def alif(n=N, **kwargs):
    return eprop.ALIF(n, **{"v_th": 0.3, "beta": 0.1, "tau_a": 100.0, "n_refractory": 2, **kwargs})


def alternating(low, high):
    return np.where(np.arange(N) % 2, low, high).tolist()


def sparse(n_pre, fan_in, seed=0, **kwargs):
    return eprop.Sparse.random(n_pre, N, fan_in, key=jax.random.key(seed), **kwargs)


CELLS = {
    "LIF": lambda: eprop.LIF(N, v_th=0.3),
    "ALIF": lambda: alif(),
    "each its own": lambda: alif(
        beta=alternating(0.0, 0.2), v_th=alternating(0.2, 0.4), n_refractory=[0, 1, 5] * 4
    ),
    "trained": lambda: alif(tau_a=jnp.full(N, 100.0), v_th=jnp.asarray(0.3)),
    "exponential": lambda: alif(surrogate=eprop.Exponential()),
    "fast sigmoid": lambda: alif(surrogate=eprop.FastSigmoid(), scale_current=True, v_th=0.03),
    "CurrentLIF": lambda: eprop.CurrentLIF(N, v_th=0.3),
    "own": lambda: ThreeVariables(N),
    "two populations": lambda: [eprop.LIF(5, v_th=0.2), alif(7)],
    "one neuron": lambda: [eprop.LIF(N - 1, v_th=0.3), eprop.LIF(1, v_th=0.1)],
}
OF_LAYER = {
    "plain": {},
    "no recurrence": {"w_rec": None},
    "a bias and autapses": {"bias": jax.nn.initializers.normal(0.1), "autapses": True},
    "delayed inputs": {"delay_in": np.array([0.0, 1.0, 3.0, 0.0, 2.0])},
    "sparse inputs": {"w_in": sparse(N_IN, 2)},
}
ON_A_PROCESSOR = {  # not on a GPU
    "sparse": {"w_in": sparse(N_IN, 2), "w_rec": sparse(N, 3, signs=np.array([-1, 1] * 6))},
    "delayed spikes": {"delay_rec": np.array(alternating(0.0, 3.0))},
    "all of it": {
        "w_rec": sparse(N, 3),
        "bias": jax.nn.initializers.normal(0.1),
        "delay_in": 1.0,
        "delay_rec": np.arange(N) % 5.0,
    },
}


def make(cell, of_layer=None):
    of_layer = OF_LAYER["plain"] if of_layer is None else of_layer
    return eprop.Network(
        cell, n_in=N_IN, n_out=N_OUT, readout_bias=jnp.ones(2), key=KEY, **of_layer
    )


INPUTS = jax.random.bernoulli(KEY, 0.3, (T, BATCH, N_IN))
TARGETS = jax.random.normal(jax.random.key(1), (T, BATCH, N_OUT))


def loss(trajectory, targets):
    """Looks at outputs, spikes and states."""
    states = [x for x in jax.tree.leaves(trajectory.states) if jnp.issubdtype(x.dtype, jnp.inexact)]
    of_states = sum(jnp.mean(jnp.square(x)) for x in states)
    return jnp.mean((trajectory.outputs - targets) ** 2) + trajectory.spikes.mean() + of_states


def on_both(function, *args):
    """On compiled programs, and on XLA."""
    fast = jax.jit(function)(*args)
    with without_kernels():
        return fast, jax.jit(lambda *args: function(*args))(*args)


def is_compiled(network):
    return [not isinstance(programs(layer), str) for layer in network.layers]


@pytest.mark.parametrize(
    "of_layer",
    slow_but(["plain", "a bias and autapses", *ON_A_PROCESSOR], [*OF_LAYER, *ON_A_PROCESSOR]),
)
@pytest.mark.parametrize("cell", slow_but(["two populations"], ["ALIF", "two populations"]))
def test_layers(cell, of_layer):
    check(make(CELLS[cell](), (OF_LAYER | ON_A_PROCESSOR)[of_layer]), "whole")


@pytest.mark.parametrize("of_layer", slow_but(["all of it"], ["sparse", "all of it"]))
def test_layers_by_windows(of_layer):
    """Of two populations, for each of which a part of the synapses' sums is."""
    check(make(CELLS["two populations"](), ON_A_PROCESSOR[of_layer]), "windows")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cell", slow_but(["ALIF", "own"], CELLS))
def test_cells(cell, rule):
    check(make(CELLS[cell]()), rule)


def check(network, rule, inputs=INPUTS):
    rule = RULES[rule] or eprop.EProp(
        eprop.RandomFeedback(jax.random.normal(KEY, (network.n, N_OUT)))
    )
    assert all(is_compiled(network))
    spikes = [run.spikes for run in on_both(lambda net: net(inputs), network)]
    np.testing.assert_array_equal(*spikes)
    assert 0.02 < spikes[0].mean() < 0.7
    fast, plain = on_both(eprop.value_and_grad(loss, rule), network, inputs, TARGETS)
    assert_trees_close(fast, plain, 1e-10)
    assert all(float(np.abs(x).max()) > 1e-6 for x in jax.tree.leaves(fast))


def test_all_that_happened():
    fast, plain = on_both(lambda network: network(INPUTS), make(alif()))
    assert_trees_close(fast, plain, 1e-12)


def test_float32():
    with jax.enable_x64(False):
        network = make(alif(beta=alternating(0.0, 0.2)))
        args = network, INPUTS, TARGETS.astype(np.float32)
        fast, plain = on_both(eprop.value_and_grad(loss, eprop.EProp()), *args)
        assert network.dtype == np.float32 and all(is_compiled(network))
        assert_trees_close(fast, plain, 1e-5)
        assert relative_error(fast[1].w_in, plain[1].w_in) > 0  # they were two programs


@pytest.mark.parametrize("inputs", [INPUTS.astype(float), 0.7 * INPUTS.astype(float)])
def test_graded_inputs(inputs):
    check(make(alif()), "whole", inputs)


def test_layers_in_a_stack():
    layers = [
        eprop.Layer(eprop.LIF(8, v_th=0.2), n_in=N_IN, key=KEY),
        eprop.Layer(eprop.LSTM(6), n_in=8, key=KEY),
        eprop.Layer(alif(), n_in=6, key=KEY),
    ]
    network = eprop.Network(layers, n_out=N_OUT, readout_of="all", key=KEY)
    assert is_compiled(network) == [True, False, True]

    def of_outputs(trajectory, targets):
        return jnp.mean((trajectory.outputs - targets) ** 2)

    fast, plain = on_both(eprop.value_and_grad(of_outputs, eprop.EProp()), network, INPUTS, TARGETS)
    assert_trees_close(fast, plain, 1e-10)


def test_gradient_by_the_inputs():
    network = make(alif())

    def of_inputs(x):
        return loss(network(x, eprop.EProp()), TARGETS)

    fast, plain = on_both(jax.grad(of_inputs), INPUTS.astype(float))
    assert_close(fast, plain, 1e-10)
    assert np.abs(fast).max() > 1e-6


def test_from_a_state_in_chunks():
    network = make(alif())
    state, _ = network.run(network.init(BATCH), INPUTS[:20])
    _, later = network.run(state, INPUTS[20:])
    assert_close(later.outputs, network(INPUTS).outputs[20:], 1e-12)


def test_over_seeds():
    def of_key(key):
        network = eprop.Network(alif(), n_in=N_IN, n_out=N_OUT, key=key)
        return eprop.value_and_grad(loss, eprop.EProp())(network, INPUTS, TARGETS)

    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(of_key))(keys)
    alone = [jax.jit(of_key)(key) for key in keys]
    assert_trees_close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone), 1e-12)


def test_over_synapses():
    """In one program, whichever neurons are connected: each its own, as rewiring has it."""
    gradient = eprop.value_and_grad(loss, eprop.EProp())
    networks = [
        make(alif(), {"w_in": sparse(N_IN, 2, seed=i), "w_rec": sparse(N, 3, seed=i)})
        for i in range(3)
    ]
    of_one = jax.jit(gradient)
    alone = [of_one(network, INPUTS, TARGETS) for network in networks]
    assert of_one._cache_size() == 1
    with without_kernels():
        assert_trees_close(alone[2], jax.jit(gradient)(networks[2], INPUTS, TARGETS), 1e-10)
    assert relative_error(alone[1][1].w_rec, alone[2][1].w_rec) > 1e-2

    def stacked(trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    together = jax.jit(jax.vmap(lambda network: gradient(network, INPUTS, TARGETS)))
    assert_trees_close(together(stacked(networks)), stacked(alone), 1e-12)


@pytest.mark.parametrize("of_layer", slow_but(["all of it"], ["sparse", "all of it"]))
def test_online(of_layer):
    """Weights and all traces, after some updates."""

    def learned():
        def of_steps(trajectory, targets):
            return jnp.sum((trajectory.outputs - targets) ** 2)

        network = make(alif(), ON_A_PROCESSOR[of_layer])
        learner = eprop.OnlineLearner(
            network, of_steps, eprop.EProp(), optax.sgd(1e-3), update_every=10
        )
        state, _ = learner.run(learner.init(BATCH), (INPUTS, TARGETS))
        return network.w_rec, eqx.filter(state, eqx.is_inexact_array)

    before, fast = learned()
    with without_kernels():
        _, plain = learned()
    assert_trees_close(fast, plain, 1e-10)
    assert relative_error(fast.network.w_rec, before) > 1e-3


def test_in_a_scan_and_with_checkpoint():
    network = make(alif())
    gradient = eprop.grad(loss, eprop.EProp())

    @jax.jit
    def steps(network):
        def step(network, _):
            found = gradient(network, INPUTS, TARGETS)
            return eqx.apply_updates(network, jax.tree.map(lambda g: -0.01 * g, found)), None

        arrays, rest = eqx.partition(network, eqx.is_inexact_array)

        def of_arrays(arrays, _):
            return eqx.filter(step(eqx.combine(arrays, rest), None)[0], eqx.is_inexact_array), None

        return jax.lax.scan(of_arrays, arrays, None, length=2)[0]

    with without_kernels():
        plain = jax.jit(lambda network: steps.__wrapped__(network))(network)
    assert_trees_close(steps(network), plain, 1e-10)

    def of_network(network):
        return loss(jax.checkpoint(lambda net: net(INPUTS, eprop.EProp()))(network), TARGETS)

    again = eqx.filter_jit(eqx.filter_grad(of_network))(network)
    assert_trees_close(again, gradient(network, INPUTS, TARGETS), 1e-12)


def test_from_several_threads():
    """Each gets its own numbers, as often as it asks."""
    function = jax.jit(eprop.value_and_grad(loss, eprop.EProp()))
    networks = [
        eprop.Network(alif(), n_in=N_IN, n_out=N_OUT, key=key) for key in jax.random.split(KEY, 4)
    ]
    expected = [function(network, INPUTS, TARGETS) for network in networks]

    def ask(i):
        return [function(networks[i], INPUTS, TARGETS) for _ in range(50)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(ask, range(4)), expected, strict=True):
            for each in found:
                jax.tree.map(np.testing.assert_array_equal, each, one)


class TestWhatRunsOnXLA:
    def reason(self, cell, **of_layer):
        (layer,) = eprop.Network(cell, n_in=N_IN, n_out=N_OUT, key=KEY, **of_layer).layers
        return programs(layer)

    def test_is_said(self):
        w_rec = eprop.Convolution(np.ones((1, 1, 1, 1)), (3, 4))
        assert "more than 0 or 1" in self.reason(eprop.LSTM(N))
        assert "neither a matrix nor sparse" in self.reason(alif(), w_rec=w_rec)
        assert "the operation" in self.reason(ByALoop(N))
        assert "not those of each neuron (Pred must be" in self.reason(OneForAll(0.8))
        assert "division of integers" in self.reason(OneFunction(in_thirds))
        assert isinstance(self.reason(alif()), Neurons)

    def test_is_what_it_was(self):
        """The fall-back of an own cell, against the same cell that is compiled."""
        gradient = eprop.value_and_grad(loss, eprop.EProp())
        slow, fast = (
            jax.jit(gradient)(make(cell), INPUTS, TARGETS)
            for cell in (ByALoop(N), ThreeVariables(N))
        )
        assert_close(slow[0], fast[0], 1e-12)
        assert_close(slow[1].w_rec, fast[1].w_rec, 1e-10)

    def test_trains_a_number(self):
        gradients = [
            jax.jit(eprop.grad(loss, rule))(make(OneForAll(0.8)), INPUTS, TARGETS)
            for rule in (eprop.EProp(window=7), eprop.BPTT(stop_z_gradients=True))
        ]
        assert_trees_close(*gradients, 1e-10)
        assert abs(gradients[0].cell.fading) > 1e-3

    def test_no_program_without_kernels(self):
        def text(network):
            return jax.jit(lambda network: network(INPUTS).outputs).lower(network).as_text()

        network = make(alif())
        assert "eprop_run" in text(network)
        with without_kernels():
            assert "eprop_run" not in text(network)


ELEMENTWISE = {
    "exp": jnp.exp,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "sqrt": lambda x: jnp.sqrt(x * x + 0.5) + jax.lax.rsqrt(x * x + 0.5),
    "log": lambda x: jnp.log(x * x + 0.5) + jnp.log1p(x * x) + jnp.expm1(x),
    "sin": lambda x: jnp.sin(x) + jnp.cos(2 * x) + jnp.arctan(x),
    "power": lambda x: x**3 + (x * x + 1.0) ** -2 + jnp.power(x * x + 0.5, 0.7),
    "clip": lambda x: (
        jnp.clip(x, -0.5, 0.5) + jnp.abs(x) + jnp.maximum(x, 0.2) - jnp.minimum(x, 0.1)
    ),
    "floor": lambda x: x - jnp.floor(x) + jnp.ceil(x) + jnp.sign(x),
    "where": lambda x: jnp.where((x > 0) & ~(x > 1) | (x < -1), x, -x),
    "compare": lambda x: x * ((x != 0.3) ^ (x >= 1.0)).astype(x.dtype),
    "erf": lambda x: jax.lax.erf(x) + jnp.sinh(x) + jnp.cosh(x),
    "stack": lambda x: jnp.stack([x, 2 * x, 3 * x])[1] + jnp.sum(jnp.stack([x, x])[1:], axis=0),
    "integers": lambda x: x * (x > 0).astype(jnp.int32).astype(x.dtype),
    "saturated": lambda x: x + 1e-3 * (300 * x).astype(jnp.int8).astype(x.dtype),
}


def in_thirds(x):
    return jax.lax.div((9 * x).astype(jnp.int32), jnp.int32(3)).astype(x.dtype)


class OneFunction(eprop.AbstractCell):
    """Its potential goes through a function at each step."""

    function: callable = eqx.field(static=True)
    spiking = True
    n: int = eqx.field(static=True, default=N)
    dt: float = eqx.field(static=True, default=1.0)

    def init(self, batch):
        return ThreeState(*[jnp.zeros((batch, self.n))] * 3)

    def step(self, state, current, z_tm1):
        v = 0.8 * state.v + current - 0.3 * z_tm1
        return ThreeState(v, 0.5 * state.trace + 0.5 * self.function(v), state.gate)

    def output(self, state):
        return eprop.Arctan().spike(state.v - 0.5 + 0.1 * jnp.tanh(state.trace))


@pytest.mark.parametrize("name", slow_but(["exp", "where", "stack"], ELEMENTWISE))
def test_operations(name):
    """Each, and its derivative, is JAX's."""
    check(make(OneFunction(ELEMENTWISE[name])), "whole")


def test_what_a_cell_reads_may_change(monkeypatch):
    """In a notebook, say, where a number is changed and the network made again."""
    found = []
    for fading, pull in [(0.9, 1.0), (0.5, 1.0), (0.5, 2.0)]:
        monkeypatch.setitem(globals(), "FADING", fading)
        monkeypatch.setattr(OfAModule, "pull", pull)
        network = make(OfAModule(N))
        check(network, "whole")
        gradients = [
            jax.jit(eprop.grad(loss, rule))(network, INPUTS, TARGETS)
            for rule in (eprop.EProp(window=7), eprop.BPTT(stop_z_gradients=True))
        ]
        assert_trees_close(*gradients, 1e-10)
        found.append(np.abs(gradients[0].w_in).max())
    assert len(set(np.round(found, 6))) == 3


def test_negative_control(monkeypatch):
    """A wrong derivative is seen."""
    from eprop.kernels import scalar

    cell = functools.partial(OneFunction, lambda x: jnp.tanh(1.0 * x))
    monkeypatch.setitem(scalar.ELEMENTWISE, "tanh", lambda x: x)
    network = make(cell())
    fast, plain = on_both(eprop.value_and_grad(loss, eprop.EProp()), network, INPUTS, TARGETS)
    assert relative_error(fast[1].w_rec, plain[1].w_rec) > 1e-3


@pytest.mark.parametrize("of_layer", ["sparse", "delayed spikes"])
def test_wrong_synapses_and_delays_are_seen(of_layer, monkeypatch):
    from eprop import compiled, event_synapses

    if of_layer == "sparse":
        wiring = event_synapses.wiring
        monkeypatch.setattr(event_synapses, "wiring", lambda at, n: wiring((at + 1) % n, n))
    else:
        delayed = compiled.delayed
        monkeypatch.setattr(
            compiled, "delayed", lambda known, delays, n: delayed(known, delays[::-1], n)
        )
    network = make(alif(), ON_A_PROCESSOR[of_layer])
    fast, plain = on_both(eprop.value_and_grad(loss, eprop.EProp()), network, INPUTS, TARGETS)
    assert relative_error(fast[1].w_rec, plain[1].w_rec) > 1e-2


class TestDelaysBetweenChunks:
    """What is under way when a chunk of booleans begins."""

    def run(self, first):
        network = eprop.Network(
            eprop.LIF(N, v_th=0.3), n_in=3, n_out=1, delay_in=2.0, key=jax.random.key(0)
        )
        spikes = jax.random.bernoulli(jax.random.key(1), 0.5, (6, 2, 3))
        state, _ = network.run(network.init(2), first(spikes))
        return network.run(state, spikes)[1]

    def test_numbers_that_are_0_or_1_are_spikes(self):
        as_numbers = self.run(lambda x: x.astype(float))
        as_booleans = self.run(lambda x: x)
        assert as_numbers.spikes.any()
        np.testing.assert_array_equal(as_numbers.spikes, as_booleans.spikes)

    def test_others_are_refused(self):
        with pytest.raises(RuntimeError, match="give all of them as numbers"):
            self.run(lambda x: 0.5 * x.astype(float))
