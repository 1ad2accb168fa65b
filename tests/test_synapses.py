"""Synapses: the contract of every kind, and what structure promises: no autapses, masks, signs."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop.compiled import without_kernels
from eprop.synapses import Joined
from tests.cases import slow_but
from tests.comparison import assert_close, assert_trees_close, relative_error
from tests.errors import assert_raises, check

TOLERANCE = 1e-13
RNG = np.random.default_rng(0)
SIGNS = np.array([1, -1, 1, 1, -1, 1])
MASK = RNG.random((6, 9)) < 0.6


def kernel(*shape):
    return RNG.normal(size=shape)


KINDS = {
    "dense": eprop.Dense(RNG.normal(size=(6, 9))),
    "masked and signed": eprop.Dense(RNG.normal(size=(6, 9)), mask=MASK, signs=SIGNS),
    "without autapses": eprop.Dense(RNG.normal(size=(6, 9)), without_autapses_of=((3, 1), (3, 2))),
    "joined": Joined([eprop.Dense(RNG.normal(size=(n, 9))) for n in (2, 3, 1)]),
    "sparse": eprop.Sparse(RNG.normal(size=(9, 4)), RNG.integers(0, 6, (9, 4)), n_pre=6),
    "sparse and signed": eprop.Sparse.random(6, 9, 5, key=jax.random.key(0), signs=SIGNS),
    "convolution": eprop.Convolution(kernel(2, 3, 2, 4), (3, 5)),
    "stride": eprop.Convolution(kernel(2, 2, 1, 3), (5, 4), stride=2),
    "valid": eprop.Convolution(kernel(3, 2, 2, 3), (5, 4), padding="VALID"),
    "valid and stride": eprop.Convolution(kernel(2, 2, 1, 3), (5, 6), padding="VALID", stride=3),
    "pooled": eprop.Convolution(kernel(2, 2, 3, 2), (5, 7), pool=2),
    "same, large and stride": eprop.Convolution(kernel(4, 5, 2, 3), (6, 7), stride=3),
}


def random(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape))


# The contract.


def of_each(synapses, seen):
    """What the synapses of each postsynaptic neuron have `seen`, `[..., fan_in, n_post]`."""
    return np.repeat(seen, synapses.n_post // seen.shape[-1], axis=-1)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_currents_are_those_of_all_synapses(kind, leading):
    """I_j = Σ_f spread(w)_fj seen(pre)_fj, whatever the leading axes."""
    synapses, pre = KINDS[kind], random(*leading, KINDS[kind].n_pre)
    w = synapses.effective()
    currents = synapses.currents(w, pre)
    assert currents.shape == (*leading, synapses.n_post)
    assert np.abs(currents).min() > 0 or kind in ("masked and signed", "without autapses")
    seen = synapses.seen(pre.reshape(-1, synapses.n_pre))
    by_synapse = (of_each(synapses, seen) * synapses.spread(w)[None]).sum(1)
    assert_close(currents, by_synapse.reshape(currents.shape), TOLERANCE, "currents")


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_linear_in_both(kind):
    synapses = KINDS[kind]
    w, pre = synapses.effective(), random(2, 4, synapses.n_pre)
    v = random(*w.shape)
    both = synapses.currents(2 * w + v, pre)
    apart = 2 * synapses.currents(w, pre) + synapses.currents(v, pre)
    assert_close(both, apart, TOLERANCE, "w")
    both = synapses.currents(w, 2 * pre[:1] + pre[1:])
    apart = 2 * synapses.currents(w, pre[:1]) + synapses.currents(w, pre[1:])
    assert_close(both, apart, TOLERANCE, "pre")


@pytest.mark.parametrize("kind", KINDS)
def test_traces_are_collected_to_the_gradient(kind):
    """Σ_t seen_t r_t, collected, is the derivative of the currents with cotangent r."""
    synapses = KINDS[kind]
    w, pre, r = synapses.effective(), random(3, 4, synapses.n_pre), random(3, 4, synapses.n_post)
    _, pullback = jax.vjp(lambda w: synapses.currents(w, pre), w)
    seen = of_each(synapses, jax.vmap(synapses.seen)(pre))
    collected = synapses.collect(jnp.einsum("tbfj,tbj->fj", seen, r))
    assert collected.shape == w.shape
    assert_close(collected, pullback(r)[0], TOLERANCE, "gradient")


@pytest.mark.parametrize("n_steps", slow_but([13], [12, 13]))
def test_a_run_of_convolutions_is_one_block_if_it_is_small(n_steps, monkeypatch):
    """And if it is cut, the gradient is the same."""
    keys = jax.random.split(jax.random.key(0), 4)
    below = eprop.Convolution(jax.random.normal(keys[0], (3, 3, 1, 4)), (6, 6))
    layers = [
        eprop.Layer(eprop.LIF(144, v_th=0.8), w_in=below, w_rec=None),
        eprop.Layer(eprop.LIF(5, v_th=0.5), n_in=144, key=keys[1]),
    ]
    network = eprop.Network(layers, n_out=2, readout_of="all", key=keys[2])
    inputs = jax.random.uniform(keys[3], (n_steps, 3, 36), float)

    def loss(trajectory, _):
        return jnp.mean(trajectory.outputs**2)

    def gradient():
        return jax.jit(eprop.value_and_grad(loss, eprop.EProp()))(network, inputs, None)

    monkeypatch.setattr(eprop.record, "BLOCK_BYTES", 5 * 8 * 3 * 144)
    assert eprop.record.block_steps(network.layers, n_steps, 3) == n_steps
    _, whole = gradient()
    monkeypatch.setattr(eprop.record, "CONVOLVED_BYTES", 12 * 8 * 3 * 144 - 1)
    assert eprop.record.block_steps(network.layers, n_steps, 3) in (4, 5)
    _, in_blocks = gradient()
    assert min(float(jnp.abs(layer.below.weights).max()) for layer in whole.layers) > 1e-4
    assert_trees_close(in_blocks, whole, TOLERANCE)


# Each kind by other means.


def test_dense_by_hand():
    synapses = KINDS["masked and signed"]
    w, acts = np.asarray(synapses.weights), np.asarray(synapses.effective())
    for i, j in itertools.product(range(6), range(9)):
        assert acts[i, j] == (SIGNS[i] * abs(w[i, j]) if MASK[i, j] else 0)


def test_no_autapses_of_populations_with_several_currents():
    """Neurons 0 to 2 have one current, neurons 3 to 5 two: columns 3 to 5, and 6 to 8."""
    acts = np.asarray(KINDS["without autapses"].effective())
    autapses = {(i, i) for i in range(6)} | {(i, i + 3) for i in range(3, 6)}
    assert {(int(i), int(j)) for i, j in np.argwhere(acts == 0)} == autapses


def test_sparse_by_hand():
    synapses, pre = KINDS["sparse"], random(4, 6)
    matrix = np.zeros((6, 9))
    for j, f in itertools.product(range(9), range(4)):
        matrix[synapses.indices[j, f], j] += synapses.weights[j, f]  # a neuron may occur twice
    rows = np.sort(synapses.indices, axis=1)
    assert (rows[:, 1:] == rows[:, :-1]).any()
    assert_close(synapses.currents(synapses.effective(), pre), pre @ matrix, TOLERANCE, "currents")


def convolved(synapses, image):
    """The convolution of one image `[height, width, c_in]`, in loops."""
    pool, stride, w = synapses.pool, synapses.stride, np.asarray(synapses.weights)
    height, width = (n // pool for n in image.shape[:2])
    tiles = np.empty((height, width, image.shape[2]))
    for y, x in itertools.product(range(height), range(width)):
        tiles[y, x] = image[y * pool : (y + 1) * pool, x * pool : (x + 1) * pool].mean((0, 1))
    k_height, k_width = w.shape[:2]
    rows, columns, _ = synapses.shape_out
    before = (0, 0)
    if synapses.padding == "SAME":  # zeros around, the odd one behind
        needed = ((rows - 1) * stride + k_height, (columns - 1) * stride + k_width)
        before = tuple(max(n - m, 0) // 2 for n, m in zip(needed, (height, width), strict=True))
    result = np.zeros(synapses.shape_out)
    steps = itertools.product(range(rows), range(columns), range(k_height), range(k_width))
    for y, x, dy, dx in steps:
        at = (y * stride + dy - before[0], x * stride + dx - before[1])
        if 0 <= at[0] < height and 0 <= at[1] < width:
            result[y, x] += tiles[at] @ w[dy, dx]
    return result


CONVOLUTIONS = [kind for kind, x in KINDS.items() if isinstance(x, eprop.Convolution)]


def plainly(synapses, w, pre):
    """The currents by a convolution of JAX, with JAX's derivatives."""
    currents = jax.lax.conv_general_dilated(
        synapses._pooled(pre),
        w,
        (synapses.stride, synapses.stride),
        synapses.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return currents.reshape(len(pre), -1)


@pytest.mark.parametrize("at_a_time", [3, 4])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_derivatives_of_a_convolution(kind, at_a_time, monkeypatch):
    """In both arguments together and by each alone, backwards and forwards, and in a loop; of all
    four images at a time, and of three and one.
    """
    synapses = KINDS[kind]
    at = (synapses.effective(), random(4, synapses.n_pre))
    of_image = synapses._pooled(at[1]).nbytes // 4
    monkeypatch.setattr(eprop.synapses.convolution, "IMAGES_BYTES", at_a_time * of_image)
    r = random(4, synapses.n_post)
    found, pullback = jax.vjp(synapses.currents, *at)
    expected, plain = jax.vjp(lambda *at: plainly(synapses, *at), *at)
    assert_close(found, expected, TOLERANCE, "currents")
    for i, name in enumerate(("w", "pre")):
        derivative = plain(r)[i]
        assert float(jnp.abs(derivative).max()) > 0.1
        assert_close(pullback(r)[i], derivative, TOLERANCE, f"by {name}")
        assert relative_error(plain(r[::-1])[i], derivative) > 0.1  # of other cotangents

        def alone(x, i=i):
            return synapses.currents(*(x if i == j else y for j, y in enumerate(at)))

        assert_close(jax.vjp(alone, at[i])[1](r)[0], derivative, TOLERANCE, f"by {name} alone")

        def one_by_one(total, x, alone=alone, i=i):
            return total + jax.vjp(alone, x[0])[1](x[1])[0], None

        twice = (jnp.stack([at[i]] * 2), jnp.stack([r] * 2))
        in_loop, _ = jax.lax.scan(one_by_one, jnp.zeros_like(at[i]), twice)
        assert_close(in_loop, 2 * derivative, TOLERANCE, f"by {name} in a loop")
    tangents = (random(*at[0].shape), random(*at[1].shape))
    _, found = jax.jvp(synapses.currents, at, tangents)
    _, expected = jax.jvp(lambda *at: plainly(synapses, *at), at, tangents)
    assert_close(found, expected, TOLERANCE, "forwards")


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_by_hand(kind):
    synapses = KINDS[kind]
    pre = random(2, synapses.n_pre)
    images = np.asarray(pre).reshape(2, *synapses.shape_in, -1)
    expected = np.stack([convolved(synapses, image).ravel() for image in images])
    assert_close(synapses.currents(synapses.effective(), pre), expected, TOLERANCE, "currents")


# Sparse synapses at random.


@pytest.mark.parametrize("fan_in", [1, 7, 20, 39])
@pytest.mark.parametrize("autapses", [True, False])
def test_sparse_at_random(fan_in, autapses):
    drawn = eprop.Sparse.random(40, 40, fan_in, key=jax.random.key(fan_in), autapses=autapses)
    for j, row in enumerate(np.asarray(drawn.indices)):
        assert len(set(row.tolist())) == fan_in and row.min() >= 0 and row.max() < 40
        assert autapses or j not in row
    same = eprop.Sparse.random(40, 40, fan_in, key=jax.random.key(fan_in), autapses=autapses)
    other = eprop.Sparse.random(40, 40, fan_in, key=jax.random.key(99), autapses=autapses)
    np.testing.assert_array_equal(drawn.indices, same.indices)
    np.testing.assert_array_equal(drawn.weights, same.weights)
    assert relative_error(drawn.weights, other.weights) > 0.1


@pytest.mark.parametrize("fan_in", [10, 30])
def test_every_neuron_is_heard_as_often(fan_in):
    drawn = eprop.Sparse.random(50, 4000, fan_in, key=jax.random.key(0))
    counts = np.bincount(np.asarray(drawn.indices).ravel(), minlength=50) / 4000
    deviation = np.sqrt(fan_in / 50 * (1 - fan_in / 50) / 4000)
    assert np.abs(counts - fan_in / 50).max() < 5 * deviation
    assert abs(float(jnp.std(drawn.weights)) * np.sqrt(fan_in) - 1) < 0.02


def gradient_bytes(w_rec, n_steps, window=None, n=2000):
    """The memory that a compiled gradient needs for itself."""
    network = eprop.Network(
        eprop.LIF(n), n_in=5, n_out=1, w_in=np.ones((5, n)), w_rec=w_rec, w_out=np.ones((n, 1))
    )

    def loss(trajectory, targets):
        return jnp.sum(trajectory.outputs**2)

    evaluate = jax.jit(eprop.grad(loss, eprop.EProp(window=window)))
    inputs = jax.ShapeDtypeStruct((n_steps, 1, 5), jnp.result_type(float))
    compiled = evaluate.lower(network, inputs, None).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("window", [None, 5])
def test_memory_goes_with_the_synapses(window):
    """2000 neurons: 32 MB for a matrix of numbers, 0.16 MB for ten synapses each."""
    n, n_steps = 2000, 20
    w_rec = eprop.Sparse.random(n, n, 10, key=jax.random.key(0), autapses=False)
    sparse = gradient_bytes(w_rec, n_steps, window)
    assert sparse < 8 * n * (20 * 10 + 20 * n_steps), "arrays of synapses, and of steps and neurons"
    assert sparse < 8 * n * n / 3
    twice = eprop.Sparse.random(n, n, 20, key=jax.random.key(0), autapses=False)
    assert gradient_bytes(twice, n_steps, window) < 2.2 * sparse


def test_memory_of_a_matrix():
    """Else the bounds above would say nothing."""
    n = 2000
    with without_kernels():  # where the rows of a matrix are an array once more
        dense = gradient_bytes(np.zeros((n, n)), 20)
    assert dense > 8 * n * n / 3


# What structure promises.


def trained(network, steps=100, rate=0.5):
    """The network after steps of Adam much larger than its weights, and the spikes on the way."""
    rng = np.random.default_rng(3)
    inputs = jnp.asarray(rng.random((15, 2, network.n_in)) < 0.5)
    targets = jnp.asarray(rng.normal(size=(15, 2, network.n_out)))
    optimizer = optax.adam(rate)

    def loss(trajectory, targets):
        return jnp.mean((trajectory.outputs - targets) ** 2) + trajectory.states.v.mean() ** 2

    evaluate = eprop.value_and_grad(loss, eprop.EProp())
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)

    @jax.jit
    def train(arrays):
        def step(carry, _):
            arrays, state = carry
            _, gradients = evaluate(eqx.combine(arrays, rest), inputs, targets)
            gradients = eqx.filter(gradients, eqx.is_inexact_array)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradients, state)
            return (eqx.apply_updates(arrays, updates), state), gradients

        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.init(arrays)
        (arrays, _), gradients = jax.lax.scan(step, (arrays, state), length=steps)
        return arrays, gradients

    after, gradients = train(arrays)
    return eqx.combine(after, rest), gradients


def structured(kind):
    """A network whose synapses from below and recurrent synapses have signs, and a mask."""
    rng = np.random.default_rng(2)
    signs = np.array([1, -1, 1, 1, -1, 1])
    weights = np.abs(rng.normal(size=(6, 6))) * signs[:, None] / 2
    mask = rng.random((6, 6)) < 0.6
    below = {
        "dense": lambda: eprop.Dense(np.abs(weights), signs=np.ones(6, int), mask=mask),
        "sparse": lambda: eprop.Sparse.random(
            6, 6, 4, key=jax.random.key(0), signs=np.ones(6, int)
        ),
    }[kind]()
    recurrent = {
        "dense": lambda: eprop.Dense(weights, signs=signs, mask=mask),
        "sparse": lambda: eprop.Sparse.random(
            6, 6, 4, key=jax.random.key(1), signs=signs, autapses=False
        ),
    }[kind]()
    return eprop.Network(
        eprop.LIF(6, n_refractory=1),
        n_in=6,
        n_out=2,
        w_in=below,
        w_rec=recurrent,
        w_out=rng.normal(size=(6, 2)),
    )


@pytest.mark.parametrize("kind", slow_but(["dense"], ["dense", "sparse"]))
def test_signs_and_masks_outlast_training(kind):
    before = structured(kind)
    after, gradients = trained(before)
    moved, flipped = 0, 0
    for name in ("below", "recurrent"):
        old, new = (getattr(network.layers[0], name) for network in (before, after))
        acts, signs = np.asarray(new.effective()), np.asarray(new.signs)
        of_presynaptic = signs[np.asarray(new.indices)] if kind == "sparse" else signs[:, None]
        assert np.all(acts * of_presynaptic >= 0) and np.any(acts != 0)
        of_step = np.asarray(getattr(gradients.layers[0], name).weights)
        if kind == "dense":
            exists = np.asarray(new.mask) & (
                ~np.eye(6, dtype=bool) if name == "recurrent" else True
            )
            assert not acts[~exists].any() and not of_step[:, ~exists].any()
            np.testing.assert_array_equal(new.weights[~exists], old.weights[~exists])
            assert of_step[:, exists].any(0).all()
        moved += relative_error(new.effective(), old.effective()) > 0.5
        flipped += int(np.sum(np.sign(new.weights) != np.sign(old.weights)))
    assert moved == 2
    assert flipped > 3, "where the sign was kept by structure, not by luck"


@pytest.mark.parametrize("autapses", [False, True])
def test_autapses_in_training(autapses):
    network = eprop.Network(
        [eprop.LIF(2, n_refractory=1), eprop.CurrentLIF(1, tau_i=2.0, n_refractory=1)],
        n_in=6,
        n_out=2,
        w_in=np.full((6, 3), 0.1),
        w_rec=np.full((3, 3), 0.1),
        w_out=np.ones((3, 2)),
        autapses=autapses,
    )
    inputs = np.random.default_rng(0).random((15, 2, 6)) < 0.5

    def loss(trajectory, targets):
        return jnp.sum(trajectory.outputs**2)

    gradient = np.asarray(jax.jit(eprop.grad(loss, eprop.EProp()))(network, inputs, None).w_rec)
    acts = np.asarray(network.layers[0].recurrent.effective())
    assert (np.diag(gradient) != 0).all() == autapses and (np.diag(acts) != 0).all() == autapses
    assert (np.diag(network.w_rec) != 0).all() == autapses, "what is looked at is what acts"
    assert (gradient[~np.eye(3, dtype=bool)] != 0).all()


def test_a_layer_says_which_neurons_have_no_autapses():
    """To Dense synapses given as such, too, where the cells have several currents."""
    recurrent = eprop.Dense(np.ones((5, 11)))
    cells = [eprop.LIF(3), eprop.LSTM(2)]
    layer = eprop.Layer(cells, n_in=1, w_in=np.ones((1, 11)), w_rec=recurrent)
    acts = np.asarray(layer.recurrent.effective())
    expected = {(i, i) for i in range(3)} | {
        (3 + i, 3 + i + 2 * k) for i in (0, 1) for k in range(4)
    }
    assert {(int(i), int(j)) for i, j in np.argwhere(acts == 0)} == expected


# Errors.


def layer(**changes):
    arguments = {"n_in": 4, "key": jax.random.key(0)} | changes
    return lambda: eprop.Layer(arguments.pop("cell", eprop.LIF(3)), **arguments)


@pytest.mark.usefixtures("as_a_user_has_it")
@check(
    {
        "dense, rank": (
            lambda: eprop.Dense(np.ones(3)),
            ValueError,
            ["weights have shape (3,)", "[n_pre, n_post]"],
        ),
        "dense, integers": (
            lambda: eprop.Dense(np.ones((2, 3), int)),
            TypeError,
            ["weights has dtype int64", "weights.astype(jnp.float32)"],
        ),
        "dense, NaN": (
            lambda: eprop.Dense(np.full((2, 3), np.nan)),
            ValueError,
            ["weights of shape (2, 3)", "NaN"],
        ),
        "mask, shape": (
            lambda: eprop.Dense(np.ones((2, 3)), mask=np.ones((3, 2), bool)),
            ValueError,
            ["mask has shape (3, 2)", "(2, 3)"],
        ),
        "mask, dtype": (
            lambda: eprop.Dense(np.ones((2, 3)), mask=np.ones((2, 3))),
            ValueError,
            ["mask", "dtype float64", "boolean"],
        ),
        "signs, shape": (
            lambda: eprop.Dense(np.ones((2, 3)), signs=[1, -1, 1]),
            ValueError,
            ["signs of shape (3,)", "2 presynaptic", "np.where(np.arange(2)"],
        ),
        "signs, zero": (
            lambda: eprop.Sparse(np.ones((2, 1)), np.zeros((2, 1), int), n_pre=2, signs=[1, 0]),
            ValueError,
            ["signs", "+1 or -1"],
        ),
        "sparse, shapes": (
            lambda: eprop.Sparse(np.ones((2, 3)), np.zeros((3, 2), int), n_pre=4),
            ValueError,
            ["(2, 3)", "(3, 2)", "[n_post, fan_in]"],
        ),
        "sparse, dtype of indices": (
            lambda: eprop.Sparse(np.ones((2, 3)), np.zeros((2, 3)), n_pre=4),
            ValueError,
            ["dtype float64", "indices integers"],
        ),
        "sparse, beyond": (
            lambda: eprop.Sparse(np.ones((1, 2)), [[0, 4]], n_pre=4),
            ValueError,
            ["indices go from 0 to 4", "not from 0 to 3"],
        ),
        "sparse, before": (
            lambda: eprop.Sparse(np.ones((1, 2)), [[-1, 0]], n_pre=4),
            ValueError,
            ["indices go from -1 to 0", "not from 0 to 3"],
        ),
        "random, too many": (
            lambda: eprop.Sparse.random(4, 4, 5, key=jax.random.key(0)),
            ValueError,
            ["fan_in = 5", "from 1 to 4"],
        ),
        "random, too many without autapses": (
            lambda: eprop.Sparse.random(4, 4, 4, key=jax.random.key(0), autapses=False),
            ValueError,
            ["fan_in = 4", "from 1 to 3"],
        ),
        "random, none": (
            lambda: eprop.Sparse.random(4, 4, 0, key=jax.random.key(0)),
            ValueError,
            ["fan_in = 0", "at least 1"],
        ),
        "random, autapses of several currents": (
            lambda: eprop.Sparse.random(4, 16, 2, key=jax.random.key(0), autapses=False),
            ValueError,
            ["autapses=False", "n_pre = 4", "n_post = 16", "write Sparse("],
        ),
        "convolution, rank": (
            lambda: eprop.Convolution(np.ones((2, 2, 1)), (4, 4)),
            ValueError,
            ["weights have shape (2, 2, 1)", "[k_height, k_width, c_in, c_out]"],
        ),
        "convolution, padding": (
            lambda: eprop.Convolution(np.ones((2, 2, 1, 1)), (4, 4), padding="full"),
            ValueError,
            ["padding = 'full'", '"SAME" or "VALID"'],
        ),
        "convolution, too small": (
            lambda: eprop.Convolution(np.ones((3, 3, 1, 1)), (2, 5), padding="VALID"),
            ValueError,
            ["2 × 5", "too small", "3 × 3"],
        ),
        "convolution, pooled away": (
            lambda: eprop.Convolution(np.ones((1, 1, 1, 1)), (2, 5), pool=3),
            ValueError,
            ["2 × 5", "pool = 3"],
        ),
        "convolution, stride": (
            lambda: eprop.Convolution(np.ones((1, 1, 1, 1)), (2, 5), stride=0),
            ValueError,
            ["stride = 0", "at least 1"],
        ),
        "layer, w_in": (
            layer(w_in=eprop.Dense(np.ones((4, 2)))),
            ValueError,
            ["w_in", "from 4 neurons to 2 currents", "4 and 3 are needed"],
        ),
        "layer, w_rec": (
            layer(cell=eprop.LSTM(3), w_rec=eprop.Dense(np.ones((3, 3)))),
            ValueError,
            ["w_rec", "from 3 neurons to 3 currents", "3 and 12 are needed"],
        ),
        "layer, n_in": (
            layer(n_in=5, w_in=eprop.Convolution(np.ones((1, 1, 1, 1)), (1, 3))),
            ValueError,
            ["w_in", "from 3 neurons", "5 and 3 are needed"],
        ),
        "layer, matrix": (
            layer(cell=eprop.LSTM(3), w_rec=np.ones((3, 3))),
            ValueError,
            ["w_rec has shape (3, 3)", "(3, 12)"],
        ),
        "layer, no n_in": (layer(n_in=None), TypeError, ["n_in is missing", "n_in=40"]),
        "layer, bias": (layer(bias=np.ones(2)), ValueError, ["bias has shape (2,)", "(3,)"]),
    }
)
def test_errors(given, error, parts):
    assert_raises(given, error, parts)


def test_n_in_is_known_from_synapses():
    assert layer(n_in=None, w_in=eprop.Dense(np.ones((7, 3))))().n_in == 7
