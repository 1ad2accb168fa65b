"""All evaluations of e-prop are one gradient, whatever the network: that of plain autodiff.

Recursion, windows, the adjoint and streams in chunks, on networks of one to three layers with all
cells, synapses, delays, feedbacks and trained constants there are. `EXAMPLES` sees to it that each
of them occurs; some more networks are drawn.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eprop
from eprop.compiled import programs, without_kernels
from tests import oracle
from tests.comparison import assert_close, assert_trees_close, relative_error
from tests.drawn_networks import LayerOptions, Options, draw

pytestmark = pytest.mark.slow

TOLERANCE = 1e-10
CHUNKS = [3, 1, 6]  # lengths in turn; no window of 4 fits them

CELLS = [
    ("LIF",),
    ("ALIF",),
    ("CurrentLIF",),
    ("LSTM",),
    ("LeakyTanh",),
    ("DendriteLIF",),
    ("TwoCurrents",),
    ("LIF", "ALIF"),
    ("LIF", "LSTM"),
]
SYNAPSES = ["dense", "masked", "signed", "masked signed", "sparse", "sparse signed", "convolution"]
RECURRENT = [None, "autapses", *SYNAPSES]
DELAYS = ["", "in", "rec", "in rec"]
TERMS = [(), ("spikes",), ("states",), ("spikes", "states")]

EXAMPLES = {
    "two populations": Options(
        (LayerOptions(("LIF", "ALIF"), "dense", "autapses", True, "rec", True),),
        feedback="random",
        terms=("spikes", "states"),
        n_steps=12,
    ),
    "three layers, the last seen": Options(
        (
            LayerOptions(("ALIF",), "convolution", "dense"),
            LayerOptions(("CurrentLIF",), "masked", "signed"),
            LayerOptions(("LeakyTanh",), "signed", "masked"),
        ),
        feedback="random",
        readout_of="last",
        readout_bias=True,
        terms=("spikes",),
        n_steps=12,
    ),
    "with LSTM units": Options(
        (
            LayerOptions(("LIF", "LSTM"), "sparse", "sparse", False, "in", True),
            LayerOptions(("LIF",), "masked signed", "convolution", False, "", True),
        ),
        feedback="adaptive",
        window=5,
    ),
    "two currents, trained": Options(
        (LayerOptions(("TwoCurrents",), "convolution", "convolution", True, "rec", True),),
        tau_out=None,
        terms=("states",),
        n_steps=12,
    ),
    "an own cell below LSTM units": Options(
        (
            LayerOptions(("DendriteLIF",), "signed", "sparse signed", False, "in rec"),
            LayerOptions(("LSTM",), "dense", "masked signed", True, "in rec", True),
        ),
        feedback="random",
        scale_readout=True,
        n_steps=12,
    ),
    "sparse and delayed": Options(
        (LayerOptions(("CurrentLIF",), "sparse signed", "sparse signed", False, "in rec", True),),
        scale_readout=True,
        readout_bias=True,
        terms=("spikes", "states"),
        n_steps=12,
    ),
    "without recurrence": Options(
        (
            LayerOptions(("LeakyTanh",), "masked", None, True, "in", True),
            LayerOptions(("ALIF",), "sparse", None, False, "", True),
        ),
        window=6,
    ),
    "two currents, fixed": Options(
        (
            LayerOptions(("TwoCurrents",), "dense", "masked", False, "in"),
            LayerOptions(("LSTM",), "sparse", "dense"),
        ),
        feedback="adaptive",
        tau_out=None,
        n_steps=12,
    ),
    "spiking, all delayed from below": Options(
        (LayerOptions(("LIF", "ALIF"), "masked signed", "signed", True, "in", True),),
        feedback="adaptive",
        terms=("spikes", "states"),
        window=5,
    ),
    "spiking, in two layers": Options(
        (
            LayerOptions(("CurrentLIF",), "dense", "autapses", False, "", True),
            LayerOptions(("ALIF",), "sparse", "masked", True),
        ),
        feedback="random",
        readout_bias=True,
        window=4,
    ),
}
COMPILED = [
    "two populations",
    "three layers, the last seen",
    "sparse and delayed",
    "without recurrence",
    "spiking, all delayed from below",
    "spiking, in two layers",
]
STREAMED = ["two populations", "two currents, trained", "sparse and delayed"]


@functools.cache
def expected(options):
    """The problem, and the value and gradients of the oracle."""
    drawn = draw(options)
    evaluate = jax.jit(oracle.value_and_grad(drawn.loss, drawn.feedback))
    return drawn, *evaluate(drawn.network, drawn.inputs, drawn.targets)


def dead(options):
    """The layers whose neurons hardly spike, or always, and the weights without a gradient."""
    drawn, _, gradients = expected(options)
    layers = jax.jit(lambda network, x: network(x))(drawn.network, drawn.inputs).layers
    fractions = [float((layer.spikes > 0).mean()) for layer in layers]
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    return [
        *(f"layer {i}: {x:.3f} spike" for i, x in enumerate(fractions) if not 0.02 < x < 0.98),
        *(jax.tree_util.keystr(path) for path, x in leaves if not jnp.abs(x).max() > 1e-6),
    ]


def in_chunks(sequence, lengths):
    n_steps, begin, i = len(sequence[0]), 0, 0
    while begin < n_steps:
        end = min(n_steps, begin + lengths[i % len(lengths)])
        yield jax.tree.map(lambda x: x[begin:end], sequence)  # noqa: B023
        begin, i = end, i + 1


def assert_rules_agree(options, windows):
    drawn, value, gradients = expected(options)
    for window in windows:
        evaluate = jax.jit(eprop.value_and_grad(drawn.loss, eprop.EProp(drawn.feedback, window)))
        actual = evaluate(drawn.network, drawn.inputs, drawn.targets)
        assert_close(actual[0], value, TOLERANCE, f"loss, window={window}")
        assert_trees_close(actual[1], gradients, TOLERANCE, f"window={window}")


def assert_streams_agree(options, windows):
    drawn, value, gradients = expected(options)
    for window in windows:
        rule = eprop.EProp(drawn.feedback, window)
        chunks = in_chunks((drawn.inputs, drawn.targets), CHUNKS)
        actual = eprop.stream_value_and_grad(drawn.loss, rule)(drawn.network, chunks)
        assert_close(actual[0], value, TOLERANCE, f"loss, stream, window={window}")
        assert_trees_close(actual[1], gradients, TOLERANCE, f"stream, window={window}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_neurons_and_weights_are_alive(name):
    assert not dead(EXAMPLES[name])


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    """Recursion, windows and the adjoint; or streams, which make use of the first two."""
    options = EXAMPLES[name]
    if name in STREAMED:
        assert_streams_agree(options, [1, 4])
        assert_rules_agree(options, [None])
    else:
        assert_rules_agree(options, [1, options.window, None])


def is_compiled(options):
    """Of each layer."""
    layers = expected(options)[0].network.layers
    return [not isinstance(programs(layer), str) for layer in layers]


@pytest.mark.parametrize("name", COMPILED)
def test_the_same_without_kernels(name):
    """Spike for spike, and to rounding: what ran on compiled programs runs on XLA as well."""
    options = EXAMPLES[name]
    drawn, *_ = expected(options)
    assert any(is_compiled(options))
    compiled = jax.jit(lambda network, x: network(x))(drawn.network, drawn.inputs)
    with without_kernels():
        assert_rules_agree(options, [options.window, None])
        on_xla = jax.jit(lambda network, x: network(x))(drawn.network, drawn.inputs)
    for of_compiled, of_xla in zip(compiled.layers, on_xla.layers, strict=True):
        assert_trees_close(of_compiled, of_xla, TOLERANCE, "what happened")
        spiking = set(np.unique(of_xla.spikes)) <= {0, 1}
        assert not spiking or np.array_equal(of_compiled.spikes, of_xla.spikes)


def test_which_examples_are_compiled():
    assert [name for name in EXAMPLES if any(is_compiled(EXAMPLES[name]))] == COMPILED
    assert any(all(is_compiled(EXAMPLES[name])) for name in COMPILED)


@pytest.mark.parametrize("name", ["with LSTM units", "two currents, trained"])
def test_online_where_an_example_ends(name):
    """The first stream begins anew after its fifth step: as if each example had run alone."""
    drawn, *_ = expected(EXAMPLES[name])
    network = drawn.network
    feedback = eprop.RandomFeedback(drawn.feedback.matrix(network))  # so that nothing decays
    inputs, targets = jax.tree.map(lambda x: x[:12], (drawn.inputs, drawn.targets))
    done = np.zeros(inputs.shape[:2], bool)
    done[4, 0] = True
    rule = eprop.EProp(feedback, window=4)
    learner = eprop.OnlineLearner(network, drawn.loss, rule, optax.sgd(1.0), update_every=12)
    state, info = learner.run(learner.init(inputs.shape[1]), (inputs, targets, done))
    assert all(0 < norm < np.inf for norm in info.trace_norms)

    evaluate = jax.jit(oracle.value_and_grad(drawn.loss, feedback))
    values, gradients = [], []
    for steps, example in ((slice(5), 0), (slice(5, 12), 0), (slice(12), 1)):
        one = {"importance": targets["importance"][steps]}
        one["outputs"] = targets["outputs"][steps, [example]]
        value, of_one = evaluate(network, inputs[steps, [example]], one)
        values.append(value)
        gradients.append(of_one)
    before, after = (eqx.filter(x, eqx.is_inexact_array) for x in (network, state.network))
    moved = jax.tree.map(jnp.subtract, before, after)
    assert_close(info.loss[0], sum(values), TOLERANCE, "loss")
    assert_trees_close(moved, jax.tree.map(lambda *x: sum(x), *gradients), TOLERANCE, "online")


layers = st.builds(
    LayerOptions,
    cells=st.sampled_from(CELLS),
    below=st.sampled_from(SYNAPSES),
    recurrent=st.sampled_from(RECURRENT),
    bias=st.booleans(),
    delays=st.sampled_from(DELAYS),
    trained=st.booleans(),
)


@st.composite
def options_of_networks(draw):
    drawn_layers = tuple(draw(st.lists(layers, min_size=1, max_size=2)))
    readout_of = draw(st.sampled_from(["all", "last"]))
    sees_all = readout_of == "all" or len(drawn_layers) == 1
    return Options(
        drawn_layers,
        feedback=draw(
            st.sampled_from(["symmetric", "random", "adaptive"] if sees_all else ["random"])
        ),
        readout_of=readout_of,
        tau_out=draw(st.sampled_from([None, 10.0])),
        scale_readout=draw(st.booleans()),
        readout_bias=draw(st.booleans()),
        terms=draw(st.sampled_from(TERMS)),
        window=draw(st.integers(2, 14)),
        n_steps=draw(st.integers(10, 14)),
        batch=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=3, derandomize=True, deadline=None, database=None)
@given(options_of_networks())
def test_drawn_networks(options):
    assume(not dead(options))
    assert_rules_agree(options, [1, options.window, None])
    if any(is_compiled(options)):
        with without_kernels():
            assert_rules_agree(options, [options.window, None])


def test_every_kind_occurs():
    """Among the examples alone."""
    all_layers = [layer for options in EXAMPLES.values() for layer in options.layers]
    assert {layer.cells for layer in all_layers} == set(CELLS)
    assert {layer.below for layer in all_layers} == set(SYNAPSES)
    assert {layer.recurrent for layer in all_layers} == set(RECURRENT)
    assert {layer.delays for layer in all_layers} == set(DELAYS)
    assert {layer.bias for layer in all_layers} == {True, False}
    trained = {(cell, layer.trained) for layer in all_layers for cell in layer.cells}
    assert {cell for cell, is_trained in trained if is_trained} == {
        *("LIF", "ALIF", "CurrentLIF", "LSTM", "LeakyTanh", "TwoCurrents")
    }
    of_networks = {
        "feedback": {"symmetric", "random", "adaptive"},
        "readout_of": {"all", "last"},
        "tau_out": {None, 10.0},
        "scale_readout": {True, False},
        "readout_bias": {True, False},
        "terms": set(TERMS),
    }
    for name, values in of_networks.items():
        assert {getattr(options, name) for options in EXAMPLES.values()} == values, name
    assert {len(options.layers) for options in EXAMPLES.values()} == {1, 2, 3}
    divides = {options.n_steps % options.window == 0 for options in EXAMPLES.values()}
    assert divides == {True, False}


# What must differ, so that agreement means something.


@pytest.mark.parametrize("other", ["BPTT", "feedback"])
def test_e_prop_differs(other):
    drawn, _, gradients = expected(EXAMPLES["two populations"])
    rule = eprop.BPTT() if other == "BPTT" else eprop.EProp()
    evaluate = jax.jit(eprop.value_and_grad(drawn.loss, rule))
    _, differing = evaluate(drawn.network, drawn.inputs, drawn.targets)
    actual, expected_layer = gradients.layers[0], differing.layers[0]
    for name in ("below", "recurrent"):
        weights = (getattr(layer, name).weights for layer in (actual, expected_layer))
        assert relative_error(*weights) > 1e-2, name
    assert_close(gradients.w_out, differing.w_out, TOLERANCE, "w_out, the same under every rule")
