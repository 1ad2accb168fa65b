"""A network under e-prop as a part of something larger: exactly what plain autodiff gives.

The same loss is differentiated twice: with the engine's run, `network(inputs, EProp(...))`, and
with the oracle's, of which JAX's autodiff is e-prop.
"""

import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from tests import oracle
from tests.cases import slow_but
from tests.comparison import assert_close, assert_trees_close, relative_error
from tests.drawn_networks import LayerOptions, Options, draw

TOLERANCE = 1e-10
N_STEPS, BATCH, N_IN, N_OUT, N = 12, 2, 3, 2, 10
RNG = np.random.default_rng(0)
INPUTS = RNG.uniform(0, 1, (N_STEPS, BATCH, N_IN))
TARGETS = RNG.normal(size=(N_STEPS, BATCH, N_OUT))
MASK = RNG.random(N_STEPS) < 0.5
RANDOM = eprop.EProp(eprop.RandomFeedback(RNG.normal(size=(N, N_OUT))))
RULES = {"symmetric": eprop.EProp(), "random": RANDOM}


def make_network(seed=0, n_in=N_IN):
    """ALIF neurons, then rate and spiking neurons side by side; delays everywhere."""
    rng = np.random.default_rng(seed)

    def weights(n_pre, n_post, size):
        return rng.uniform(0, 2 * size / n_pre, (n_pre, n_post))

    first = eprop.Layer(
        eprop.ALIF(5, tau_v=10.0, tau_a=50.0, beta=0.2, n_refractory=1),
        n_in=n_in,
        w_in=weights(n_in, 5, 0.6),
        w_rec=0.2 * rng.normal(size=(5, 5)),
        delay_in=rng.integers(0, 4, n_in).astype(float),
        delay_rec=rng.integers(0, 3, 5).astype(float),
    )
    last = eprop.Layer(
        [eprop.CurrentLIF(3, tau_i=2.0, n_refractory=2), eprop.LeakyTanh(2, v_init=jnp.ones(2))],
        n_in=5,
        w_in=weights(5, 5, 1.0),
        w_rec=0.2 * rng.normal(size=(5, 5)),
        delay_in=1.0,
        bias=rng.uniform(0, 0.1, 5),
    )
    return eprop.Network(
        [first, last],
        n_out=N_OUT,
        w_out=rng.normal(size=(N, N_OUT)),
        readout_bias=rng.normal(size=N_OUT),
        readout_of="all",
    )


def by_engine(rule):
    return lambda network, inputs: network(inputs, rule)


def by_autodiff(rule):
    def run(network, inputs):
        return oracle.respond(network, inputs, rule.feedback.matrix(network))[1]

    return run


# What a network may be a part of: `loss(run, parts)` with `parts` a pytree to differentiate by.


def sequence_loss(outputs):
    return jnp.sum(jnp.square(outputs - TARGETS))


def encoder_and_decoder(run, parts):
    encoder, network, decoder = parts

    def each_step(function, x):
        return jax.vmap(jax.vmap(function))(x)

    trajectory = run(network, each_step(encoder, INPUTS))
    return sequence_loss(each_step(decoder, trajectory.outputs))


def bidirectional(run, parts):
    forth, back = parts
    outputs = [run(forth, INPUTS).outputs, run(back, INPUTS[::-1]).outputs[::-1]]
    return sequence_loss(jnp.tanh(outputs[0]) * outputs[1])


def in_a_row(run, parts):
    """The error passes to the first network through the inputs of the second."""
    first, second, scale = parts
    of_first = run(first, INPUTS)
    below = jnp.concatenate([of_first.layers[1].spikes, scale * of_first.outputs], axis=-1)
    return sequence_loss(run(second, below).outputs)


def over_time(run, parts):
    """A mean, a mask, a maximum and a last step."""
    outputs = run(parts, INPUTS).outputs
    masked = jnp.sum(jnp.where(MASK[:, None, None], outputs, 0.0) ** 2)
    return (
        outputs.mean() ** 2 + masked / float(MASK.sum()) + outputs.max(0).sum() + outputs[-1].prod()
    )


def several_heads(run, parts):
    network, of_spikes, of_states = parts
    trajectory = run(network, INPUTS)
    first, last = trajectory.layers
    rates = first.spikes.mean(0) @ of_spikes  # a mean over time
    potentials = jnp.concatenate([first.states.a, last.states[0].v, last.states[1].v], axis=-1)
    peak = jax.nn.logsumexp(potentials @ of_states, axis=0)
    return sequence_loss(trajectory.outputs) + jnp.sum(rates**2) + jnp.sum(peak)


def of_inputs(run, parts):
    network, inputs = parts
    trajectory = run(network, inputs)
    return sequence_loss(trajectory.outputs) + trajectory.layers[0].spikes.sum()


def parts_of(composition):
    network, rng = make_network(), np.random.default_rng(1)
    keys = jax.random.split(jax.random.key(0), 2)
    if composition is encoder_and_decoder:
        encoder = eqx.nn.Linear(N_IN, N_IN, key=keys[0])
        encoder = eqx.tree_at(lambda x: x.weight, encoder, jnp.abs(encoder.weight))
        return encoder, network, eqx.nn.MLP(N_OUT, N_OUT, 4, 1, key=keys[1])
    if composition is bidirectional:
        return network, make_network(1)
    if composition is in_a_row:
        return network, make_network(1, n_in=5 + N_OUT), jnp.asarray(0.7)
    if composition is several_heads:
        return network, jnp.asarray(rng.normal(size=(5, 2))), jnp.asarray(rng.normal(size=(10, 2)))
    if composition is of_inputs:
        return network, jnp.asarray(INPUTS)
    return network


COMPOSITIONS = {
    f.__name__: f
    for f in (encoder_and_decoder, bidirectional, in_a_row, over_time, several_heads, of_inputs)
}


@functools.cache
def gradients(composition, rule, how):
    """Value and gradients of a composition with each run: by the engine, by autodiff, by BPTT."""
    loss, rule = COMPOSITIONS[composition], RULES[rule]
    run = {
        "engine": by_engine(rule),
        "autodiff": by_autodiff(rule),
        "bptt": by_engine(eprop.BPTT()),
    }
    evaluate = eqx.filter_value_and_grad(lambda parts: loss(run[how], parts))
    return eqx.filter_jit(evaluate)(parts_of(loss))


@pytest.mark.parametrize(
    ("composition", "rule"),
    slow_but(
        [
            ("encoder_and_decoder", "random"),
            ("bidirectional", "random"),
            ("over_time", "random"),
            ("several_heads", "random"),
        ],
        [*((name, "random") for name in COMPOSITIONS), ("over_time", "symmetric")],
    ),
)
def test_as_autodiff(composition, rule):
    value, expected = gradients(composition, rule, "autodiff")
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)
    actual_value, actual = gradients(composition, rule, "engine")
    assert_close(actual_value, value, TOLERANCE, "loss")
    assert_trees_close(actual, expected, TOLERANCE)


def test_it_is_neither_bptt_nor_indifferent_to_feedback():
    actual = jax.tree.leaves(gradients("over_time", "random", "engine")[1])
    for other in (("random", "bptt"), ("symmetric", "engine")):
        expected = jax.tree.leaves(gradients("over_time", *other)[1])
        errors = [relative_error(x, y) for x, y in zip(actual, expected, strict=True)]
        assert max(errors) > 1e-2, other


def test_neurons_are_alive():
    run = eqx.filter_jit(lambda network: network(INPUTS))
    for seed in (0, 1):
        first, last = run(make_network(seed)).layers
        for spikes in (first.spikes, last.spikes[..., :3]):
            assert 0.05 < spikes.mean() < 0.6


@pytest.mark.parametrize(
    ("composition", "window"),
    slow_but(
        [("over_time", 1), ("several_heads", 4)],
        [("over_time", 1), ("over_time", 5), ("bidirectional", 4), ("several_heads", 4)],
    ),
)
def test_windows(composition, window):
    """Where nothing is asked of the inputs: whatever the loss does over time."""
    rule = eprop.EProp(RANDOM.feedback, window)
    evaluate = eqx.filter_grad(lambda parts: COMPOSITIONS[composition](by_engine(rule), parts))
    actual = eqx.filter_jit(evaluate)(parts_of(COMPOSITIONS[composition]))
    assert_trees_close(actual, gradients(composition, "random", "autodiff")[1], TOLERANCE)


def test_windows_have_no_gradient_of_inputs():
    network, rule = make_network(), eprop.EProp(window=3)

    def loss(inputs):
        return sequence_loss(network(inputs, rule).outputs)

    with pytest.raises(ValueError, match=r"window=3 goes forward in time.*EProp\(..., window=None"):
        jax.grad(loss)(jnp.asarray(INPUTS))


def test_windows_have_no_gradient_from_a_state():
    network, rule = make_network(), eprop.EProp(window=3)

    def loss(network):
        return sequence_loss(network.run(network.init(INPUTS.shape[1]), INPUTS, rule)[1].outputs)

    with pytest.raises(ValueError, match=r"a run that goes on from a state: write EProp"):
        eqx.filter_grad(loss)(network)


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("jit", [jax.jit, lambda function: function])
def test_there_are_no_second_derivatives(is_compiled, jit):
    network = make_network()
    w_in = network.layers[0].below.weights

    def size(w_in, rule):
        changed = eqx.tree_at(lambda net: net.layers[0].below.weights, network, w_in)
        gradient = eqx.filter_grad(lambda net: sequence_loss(net(INPUTS, rule).outputs))(changed)
        return jnp.sum(jnp.square(gradient.layers[0].below.weights))

    with contextlib.nullcontext() if is_compiled else eprop.compiled.without_kernels():
        assert np.abs(jax.grad(size)(w_in, eprop.BPTT())).max() > 1e-6
        with pytest.raises(ValueError, match=r"no derivative of its own.*use BPTT\(\)"):
            jax.grad(jit(lambda w: size(w, eprop.EProp())))(w_in)


# Under JAX's transformations.

SMALL = eprop.EProp(eprop.RandomFeedback(RNG.normal(size=(4, N_OUT))))


def make_small(seed=0):
    rng = np.random.default_rng(seed)
    return eprop.Network(
        eprop.LIF(4, tau_v=10.0, n_refractory=1),
        n_in=N_IN,
        n_out=N_OUT,
        w_in=rng.uniform(0, 0.5, (N_IN, 4)),
        w_rec=0.2 * rng.normal(size=(4, 4)),
        w_out=rng.normal(size=(4, N_OUT)),
    )


def loss_of(network, inputs, rule=SMALL):
    return sequence_loss(network(inputs, rule).outputs)


def by_oracle(network, inputs):
    return sequence_loss(by_autodiff(SMALL)(network, inputs).outputs)


of_network, of_sequence = (jax.jit(jax.value_and_grad(by_oracle, argnums)) for argnums in (0, 1))


@pytest.mark.parametrize(
    "rule",
    [
        eprop.EProp(window=5),
        *(pytest.param(x, marks=pytest.mark.slow) for x in (SMALL, eprop.BPTT())),
    ],
    ids=str,
)
def test_value_and_grad_is_no_more_than_jax_grad(rule):
    """Bit for bit."""

    def loss(trajectory, targets):
        return jnp.sum(jnp.square(trajectory.outputs - targets))

    ours = jax.jit(eprop.value_and_grad(loss, rule))(make_small(), INPUTS, TARGETS)
    own = jax.jit(jax.value_and_grad(lambda network: loss(network(INPUTS, rule), TARGETS)))
    jax.tree.map(np.testing.assert_array_equal, ours, own(make_small()))


def test_the_small_network_is_alive():
    assert 0.05 < make_small()(INPUTS).spikes.mean() < 0.6
    for leaf in jax.tree.leaves(of_network(make_small(), INPUTS)[1]):
        assert np.abs(leaf).max() > 1e-3


@pytest.mark.parametrize(
    "transform",
    [lambda f: f, lambda f: jax.jit(jax.grad(jax.checkpoint(loss_of)))],
    ids=["none", "checkpoint"],
)
def test_gradient(transform):
    actual = transform(jax.grad(loss_of))(make_small(), INPUTS)
    assert_trees_close(actual, of_network(make_small(), INPUTS)[1], TOLERANCE)


def test_vmap_over_networks():
    networks = [make_small(seed) for seed in (0, 1, 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *networks)
    actual = jax.jit(jax.vmap(jax.grad(loss_of), in_axes=(0, None)))(stacked, INPUTS)
    for i, network in enumerate(networks):
        of_one = jax.tree.map(lambda x: x[i], actual)  # noqa: B023
        assert_trees_close(of_one, of_network(network, INPUTS)[1], TOLERANCE)


def test_vmap_over_inputs():
    inputs = jnp.stack([INPUTS, INPUTS[::-1]])
    evaluate = jax.jit(jax.vmap(jax.grad(loss_of, argnums=1), in_axes=(None, 0)))
    actual = evaluate(make_small(), inputs)
    for i in range(2):
        assert_close(actual[i], of_sequence(make_small(), inputs[i])[1], TOLERANCE, "inputs")


def test_training_steps_in_a_scan():
    network, optimizer = make_small(), optax.sgd(1e-3)
    expected, losses = network, []
    for _ in range(3):
        value, gradients = of_network(expected, INPUTS)
        losses.append(value)
        expected = jax.tree.map(lambda x, dx: x - 1e-3 * dx, expected, gradients)

    @jax.jit
    def train(network):
        def step(carry, _):
            network, state = carry
            value, gradients = jax.value_and_grad(loss_of)(network, INPUTS)
            updates, state = optimizer.update(gradients, state)
            return (eqx.apply_updates(network, updates), state), value

        (network, _), values = jax.lax.scan(step, (network, optimizer.init(network)), length=3)
        return network, values

    trained, values = train(network)
    assert_close(values, jnp.stack(losses), TOLERANCE, "losses")
    assert_trees_close(trained, expected, TOLERANCE)
    assert relative_error(trained.w_out, network.w_out) > 1e-3


# From a state, and in chunks.

LENGTHS = [5, 1, 6]  # shorter than a delay, too


def in_chunks(run):
    """The same run, chunk by chunk, each from the state after the one before."""

    def chunk_by_chunk(network, state, inputs):
        trajectories, begin = [], 0
        for length in LENGTHS:
            state, trajectory = run(network, state, inputs[begin : begin + length])
            trajectories.append(trajectory)
            begin += length
        return state, jax.tree.map(lambda *x: jnp.concatenate(x), *trajectories)

    return chunk_by_chunk


def engine(network, state, inputs):
    return network.run(state, inputs, RANDOM)


def autodiff(network, state, inputs):
    return oracle.respond(network, inputs, RANDOM.feedback.b, start=state)


WAYS = {
    "autodiff": autodiff,
    "autodiff in chunks": in_chunks(autodiff),
    "engine": engine,
    "engine in chunks": in_chunks(engine),
}


@functools.cache
def from_a_state(way):
    """Gradients by network, first state and inputs of a loss that also looks at the last state."""

    def loss(arguments):
        end, trajectory = WAYS[way](*arguments)
        first, last = trajectory.layers
        value = sequence_loss(trajectory.outputs) + jnp.sum(
            first.states.v * last.states[0].v[..., :1]
        )
        value += end.layers[0].neurons[0].a.sum() + jnp.sum(end.layers[1].neurons[0].i ** 2)
        return value + jnp.sum(end.outputs**2) + jnp.sum(end.layers[1].spikes ** 2)

    network = make_network()
    state = jax.jit(lambda x: network.run(network.init(BATCH), x)[0])(
        INPUTS[::-1]
    )  # with spikes under way
    arguments = network, state, jnp.asarray(INPUTS)
    return eqx.filter_jit(eqx.filter_value_and_grad(loss))(arguments)


@pytest.mark.parametrize(
    "way",
    slow_but(["engine", "engine in chunks"], [way for way in WAYS if way != "autodiff"]),
)
def test_from_a_state(way):
    value, (network, state, inputs) = from_a_state(way)
    expected_value, (of_network, of_state, of_inputs) = from_a_state("autodiff")
    assert_close(value, expected_value, TOLERANCE, "loss")
    assert_trees_close(network, of_network, TOLERANCE, "network")
    assert_trees_close(state, of_state, TOLERANCE, "state")
    assert_close(inputs, of_inputs, TOLERANCE, "inputs")


def test_the_first_state_has_a_gradient():
    of_state = from_a_state("autodiff")[1][1]
    alive = [of_state.outputs, *of_state.layers[1].neurons[0][:2], of_state.layers[0].past["below"]]
    alive += [of_state.layers[0].neurons[0].v, of_state.layers[0].neurons[0].a]
    for leaf in alive:
        assert np.abs(leaf).max() > 1e-6
    assert not of_state.layers[0].spikes.any(), "stopped"


@pytest.mark.slow
def test_a_state_passed_on_without_gradient():
    """Truncated: as if each chunk had begun there."""

    def loss(run, network):
        def stopped(network, state, inputs):
            return run(network, jax.lax.stop_gradient(state), inputs)

        start = network.init(BATCH)
        return sequence_loss(in_chunks(stopped)(network, start, jnp.asarray(INPUTS))[1].outputs)

    network = make_network()
    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, run)))(network) for run in (engine, autodiff)
    )
    assert_trees_close(actual, expected, TOLERANCE)
    whole = gradients("over_time", "random", "autodiff")[1]
    assert relative_error(actual.layers[0].below.weights, whole.layers[0].below.weights) > 1e-2


@pytest.mark.parametrize(
    "kind",
    slow_but(
        ["ALIF", "LSTM", "TwoCurrents"],
        ["LIF", "ALIF", "CurrentLIF", "LSTM", "DendriteLIF", "TwoCurrents"],
    ),
)
def test_step_by_step(kind):
    """One step at a time, and in chunks, what happens is what happens at once."""
    options = {"delays": "in rec", "bias": True, "trained": True}
    layers = LayerOptions((kind,), **options), LayerOptions(("LeakyTanh",), **options)
    network, inputs, *_ = draw(Options(layers, seed=5, n_steps=12))
    run = jax.jit(lambda state, inputs: network.run(state, inputs))
    end, expected = run(network.init(2), inputs)
    assert 0.05 < (expected.layers[0].spikes > 0).mean() < 0.95
    for lengths in ([1] * 12, [5, 1, 1, 5]):
        state, begin, parts = network.init(2), 0, []
        for length in lengths:
            state, part = run(state, inputs[begin : begin + length])
            parts.append(part)
            begin += length
        actual = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        assert_trees_close((state, actual), (end, expected), 1e-12)
