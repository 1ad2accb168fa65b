"""Sparse networks that rewire: what stays, what comes, how likely, and how they learn."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import eprop
from tests.comparison import assert_close, relative_error
from tests.errors import assert_raises, check

N, FAN_IN = 20, 4
KEY = jax.random.key(0)
SIGNS = np.where(np.arange(N) < 14, 1, -1)


def sparse(fan_in=FAN_IN, seed=0, **options):
    options = {"autapses": False} | options
    return eprop.Sparse.random(N, N, fan_in, key=jax.random.key(seed), **options)


def updated(synapses):
    """After an update by which some weights cross zero."""
    update = 0.5 * np.random.default_rng(0).normal(size=synapses.weights.shape)
    return eqx.tree_at(lambda s: s.weights, synapses, synapses.weights + update)


@eqx.filter_jit
def draw(after, before, key=KEY):
    return after.rewired(before, key)


def rewired(before, key=KEY):
    return draw(updated(before), before, key)


def by_hand(before, after):
    """Which synapses have crossed zero, in a loop."""
    crossed = np.zeros(before.weights.shape, bool)
    for at in np.ndindex(*crossed.shape):
        was, now = float(before.weights[at]), float(after.weights[at])
        from_above = was >= 0 if before.signs is not None else was > 0
        crossed[at] = now < 0 if from_above else (was < 0 and now > 0)
    return crossed


# One update.


@pytest.mark.parametrize(
    ("fan_in", "signs"), [(1, None), (FAN_IN, None), (FAN_IN, SIGNS), (N - 1, SIGNS)]
)
def test_what_goes_and_what_stays(fan_in, signs):
    before = sparse(fan_in, signs=signs)
    after = updated(before)
    found, new = draw(after, before)
    np.testing.assert_array_equal(new, by_hand(before, after))
    assert 0.05 < new.mean() < 0.6
    np.testing.assert_array_equal(found.weights, np.where(new, 0, after.weights))
    np.testing.assert_array_equal(found.indices[~new], before.indices[~new])
    if fan_in < N - 1:
        assert (found.indices != before.indices)[new].mean() > 0.5
    for j, row in enumerate(np.asarray(found.indices)):
        assert len(set(row.tolist())) == fan_in and j not in row
        assert row.min() >= 0 and row.max() < N


def test_neurons_may_hear_themselves():
    before = sparse(N, autapses=True)
    found, new = rewired(before)
    assert new.any()  # from whom there is no choice
    np.testing.assert_array_equal(np.sort(found.indices, axis=1), [np.arange(N)] * N)


def test_a_synapse_that_was_there_twice_stays():
    indices = np.tile([3, 3, 5], (N, 1))
    before = eprop.Sparse(np.tile([1.0, 1.0, 1.0], (N, 1)), indices, n_pre=N)
    after = eqx.tree_at(lambda s: s.weights, before, before.weights * jnp.array([[1.0, 1.0, -1.0]]))
    found, new = draw(after, before)
    np.testing.assert_array_equal(new, np.tile([False, False, True], (N, 1)))
    np.testing.assert_array_equal(found.indices[:, :2], 3)
    assert (found.indices[:, 2] != 3).all() and len(set(found.indices[:, 2].tolist())) > 5


def test_the_key_decides_and_compiled_it_is_the_same():
    before = sparse()
    found, _ = rewired(before)
    for again in (rewired(before)[0], updated(before).rewired(before, KEY)[0]):
        np.testing.assert_array_equal(again.indices, found.indices)
    other, _ = rewired(before, jax.random.key(1))
    np.testing.assert_array_equal(other.weights, found.weights)
    assert (other.indices != found.indices).any()


def test_zero_is_no_crossing():
    """A weight that comes to rest there, or begins there, or is not a number."""
    before = eprop.Sparse(np.array([[1.0, 0.0, 0.0, 0.0, 2.0]]), np.arange(5)[None], n_pre=9)
    now = jnp.array([[0.0, 1.0, -1.0, 0.0, jnp.nan]])
    after = eqx.tree_at(lambda s: s.weights, before, now)
    found, new = draw(after, before)
    assert not new.any()
    np.testing.assert_array_equal(found.weights, now)
    with_signs = [
        eprop.Sparse(np.array([w]), np.arange(4)[None], n_pre=9, signs=np.ones(9, int))
        for w in ([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0])
    ]
    _, new = draw(*reversed(with_signs))
    np.testing.assert_array_equal(new, [[False, False, True, False]])
    tiny = eprop.Sparse(np.array([[1e-200]]), np.zeros((1, 1), int), n_pre=9)
    crossed = eqx.tree_at(lambda s: s.weights, tiny, -tiny.weights)
    assert draw(crossed, tiny)[1].all()  # the product of both is -0


# Chance.


def pairs_of(indices):
    """How often each pair of neurons was drawn, `[pairs]`."""
    pairs = list(itertools.combinations(range(12), 2))
    rows = np.sort(np.asarray(indices), axis=1)
    counts = {pair: 0 for pair in pairs}
    for pair in map(tuple, rows.tolist()):
        counts[pair] += 1
    return np.array(list(counts.values()))


def test_new_partners_are_drawn_uniformly():
    """Each pair of the ten neurons that are not heard is as likely, by χ²; a bias is found."""
    n_rows = 9000
    before = eprop.Sparse(np.ones((n_rows, 4)), np.tile([0, 4, 7, 11], (n_rows, 1)), n_pre=12)
    now = jnp.tile(jnp.array([-1.0, 1.0, -1.0, 1.0]), (n_rows, 1))
    found, _ = draw(eqx.tree_at(lambda s: s.weights, before, now), before)
    drawn = found.indices[:, (0, 2)]
    assert not np.isin(drawn, [4, 11]).any()
    counts = pairs_of(drawn)
    free = counts[[not {4, 11} & set(pair) for pair in itertools.combinations(range(12), 2)]]
    assert len(free) == 45 and free.sum() == n_rows
    assert stats.chisquare(free).pvalue > 0.01
    # Who takes the next free neuron where one is taken draws some more often.
    rng, biased = np.random.default_rng(0), []
    for _ in range(n_rows):
        taken = {4, 11}
        for _ in range(2):
            i = rng.integers(12)
            while i in taken:
                i = (i + 1) % 12
            taken.add(i)
        biased.append(sorted(taken - {4, 11}))
    of_biased = pairs_of(biased)
    assert stats.chisquare(of_biased[of_biased > 0]).pvalue < 1e-6


def test_so_are_they_without_autapses_and_for_many_keys_at_once():
    before = sparse(1)
    after = eqx.tree_at(lambda s: s.weights, before, -before.weights)
    keys = jax.random.split(KEY, 2000)
    of_keys = jax.jit(jax.vmap(lambda key: after.rewired(before, key)[0].indices))

    def p_values(drawn):  # of each neuron; if each other one is as likely, they are uniform
        counts = [np.bincount(drawn[:, j], minlength=N) for j in range(N)]
        assert all(of_j[j] == 0 for j, of_j in enumerate(counts))
        return [stats.chisquare(np.delete(of_j, j)).pvalue for j, of_j in enumerate(counts)]

    assert stats.kstest(p_values(np.asarray(of_keys(keys))[..., 0]), "uniform").pvalue > 0.01
    # Who takes the neighbour in place of the neuron itself draws it twice as often.
    biased, itself = np.random.default_rng(0).integers(N, size=(2000, N)), np.arange(N)
    biased = np.where(biased == itself, (itself + 1) % N, biased)
    assert stats.kstest(p_values(biased), "uniform").pvalue < 1e-6


# Dale's law.


def test_signs_are_those_of_the_presynaptic_neurons():
    before = sparse(signs=SIGNS)
    found, new = rewired(before)
    acts = np.asarray(found.effective())
    assert (np.sign(acts[~new]) == SIGNS[found.indices[~new]]).all()
    w, pullback = jax.vjp(lambda s: s.effective(), found)
    (slope,) = pullback(jnp.ones_like(w))
    # A new one can leave zero, on the side of its neuron.
    np.testing.assert_array_equal(slope.weights[new], SIGNS[found.indices[new]])


@pytest.mark.parametrize("kind", [eprop.Dense, eprop.Sparse])
def test_a_weight_of_zero_has_a_gradient_under_signs(kind):
    """On the side of what is above zero, by JAX's derivative of |w|: or no new one ever left it."""
    w = np.array([[0.0, -2.0, 3.0]])
    where = {"indices": np.zeros((1, 3), int), "n_pre": 1} if kind is eprop.Sparse else {}
    synapses = kind(w, signs=np.array([-1]), **where)
    slope = eqx.filter_grad(lambda s: s.effective().sum())(synapses).weights
    np.testing.assert_array_equal(slope, [[-1.0, 1.0, -1.0]])


# In a network.


INPUTS = np.random.default_rng(0).random((30, 3, 5)) < 0.4
TARGETS = np.random.default_rng(1).normal(size=(30, 3, 2))


def loss(trajectory, targets):
    return eprop.losses.mean_squared_error(trajectory.outputs, targets)


def make_network(w_rec, **options):
    cell = eprop.ALIF(N, v_th=0.3, beta=0.1)
    return eprop.Network(cell, n_in=5, n_out=2, w_rec=w_rec, key=KEY, **options)


@pytest.mark.slow
def test_its_gradient_is_that_of_a_matrix_at_these_synapses():
    before = sparse(signs=SIGNS)
    found, new = rewired(before)
    assert new.any()
    # Some steps later the new ones have weights.
    found = eqx.tree_at(lambda s: s.weights, found, jnp.where(new, 0.3, found.weights))
    rows = np.arange(N)[:, None]
    matrix = np.zeros((N, N))
    matrix[found.indices, rows] = found.weights
    dense = make_network(eprop.Dense(matrix, signs=SIGNS))
    evaluate = jax.jit(eprop.grad(loss, eprop.EProp()))
    of_matrix = np.asarray(evaluate(dense, INPUTS, TARGETS).w_rec)
    of_sparse = evaluate(make_network(found), INPUTS, TARGETS).w_rec
    assert dense(INPUTS).spikes.mean() > 0.02 and np.abs(of_sparse).max() > 1e-4
    assert_close(of_sparse, of_matrix[found.indices, rows], 1e-12, "w_rec")
    assert relative_error(of_sparse, of_matrix[before.indices, rows]) > 0.1


OPTIMIZER = optax.chain(optax.add_noise(1e-2, 0.0, 0), optax.adam(0.1))
TRAIN = eprop.training_step(loss, OPTIMIZER)
PLAIN = jax.jit(TRAIN)


def start(**options):
    return eprop.init_training(make_network(sparse(**options)), eprop.EProp(), OPTIMIZER)


@jax.jit
def step(state, batch):
    after, info = TRAIN(state, batch)
    return eprop.rewire(after, state, KEY), info


@pytest.mark.parametrize(
    "signs", [pytest.param(None, marks=pytest.mark.slow), SIGNS], ids=["free", "Dale"]
)
def test_training(signs):
    """At each update the promises hold, and every synapse that stays keeps its sign."""
    state, n_new = start(signs=signs), []
    for _ in range(15):
        before, (state, _) = state, step(state, (INPUTS, TARGETS))
        plain, _ = PLAIN(before, (INPUTS, TARGETS)) if len(n_new) == 3 else (None, None)
        was, now = jax.device_get([x.network.layers[0].recurrent for x in (before, state)])
        changed = now.indices != was.indices
        n_new.append(int(changed.sum()))
        assert (np.sort(now.indices)[:, 1:] > np.sort(now.indices)[:, :-1]).all()
        assert (now.indices != np.arange(N)[:, None]).all()
        assert (now.weights[changed] == 0).all()
        assert (np.sign(was.weights) * np.sign(now.weights) >= 0).all()
        if plain is not None:  # but for what has crossed, it is the plain update
            new = by_hand(was, plain.network.layers[0].recurrent)
            assert new.any()
            assert_close(now.weights, np.where(new, 0, plain.network.w_rec), 1e-12, "weights")
            for moments in ("mu", "nu"):
                at = [getattr(x.optimizer[1][0], moments) for x in (state, plain)]
                assert_close(at[0].w_rec, np.where(new, 0, at[1].w_rec), 1e-12, moments)
                assert_close(at[0].w_in, at[1].w_in, 1e-12, moments)
    assert sum(map(bool, n_new)) > 5 and sum(n_new) > 20


@pytest.mark.slow
def test_a_run_that_is_cut_ends_as_if_it_never_was(tmp_path):
    def interrupt(iteration, *_):
        if iteration == 3:
            raise KeyboardInterrupt

    def fit(folder, **options):
        batches = [(INPUTS, TARGETS)] * 6
        options = {"iterations": 6, "save_every": 2, "progress": False} | options
        return eprop.fit(step, start(), batches, folder=tmp_path / folder, **options)[0]

    whole = fit("whole")
    assert (whole.network.layers[0].recurrent.indices != sparse().indices).any()
    with pytest.raises(KeyboardInterrupt):
        fit("cut", callbacks=[interrupt])
    jax.tree.map(np.testing.assert_array_equal, fit("cut").network, whole.network)


def test_all_layers_and_what_is_not_trained():
    """The second of two is sparse from below too; its recurrent synapses are fixed."""
    below = eprop.Layer(eprop.LIF(N, v_th=0.3), n_in=5, w_rec=sparse(), key=KEY)
    above = eprop.Layer(
        eprop.LIF(N, v_th=0.3), w_in=sparse(autapses=True), w_rec=sparse(seed=3), key=KEY
    )
    network = eprop.Network([below, above], n_out=2, readout_of="all", key=KEY)
    trainable = eqx.tree_at(
        lambda x: x.layers[1].recurrent.weights,
        jax.tree.map(eqx.is_inexact_array, network),
        replace=False,
    )
    optimizer = optax.chain(optax.add_noise(1.0, 0.0, 0), optax.sgd(0.3))
    train = eprop.training_step(loss, optimizer, trainable=trainable)
    before = eprop.init_training(network, eprop.EProp(), optimizer, trainable)
    plain, _ = jax.jit(train)(before, (INPUTS, TARGETS))
    after = eprop.rewire(plain, before, KEY)
    (one,), (two, fixed) = (
        [getattr(layer, kind).indices != getattr(old, kind).indices for kind in kinds]
        for layer, old, kinds in zip(
            after.network.layers,
            network.layers,
            [("recurrent",), ("below", "recurrent")],
            strict=True,
        )
    )
    assert one.any() and two.any() and not fixed.any()


def test_each_kind_of_synapses_and_each_iteration_draws_for_itself():
    """All synapses are the same, and all have crossed zero."""
    kinds = {"w_in": sparse(), "w_rec": sparse()}
    layers = [eprop.Layer(eprop.LIF(N), key=KEY, **kinds) for _ in range(2)]
    network = eprop.Network(layers, n_out=2, key=KEY)
    before = eprop.init_training(network, eprop.EProp(), OPTIMIZER)
    weights, rest = eqx.partition(network, eqx.is_inexact_array)
    negative = jax.tree.map(jnp.negative, weights)
    after = before._replace(network=eqx.combine(negative, rest))

    rewire = jax.jit(lambda state, before: eprop.rewire(state, before, KEY))

    def drawn(state):
        found = rewire(state, before).network.layers
        return [np.asarray(x.indices) for layer in found for x in (layer.below, layer.recurrent)]

    at = [*drawn(after), *drawn(after._replace(iteration=after.iteration + 1))]
    assert len({x.tobytes() for x in at}) == 8
    np.testing.assert_array_equal(drawn(after), at[:4])


# Errors.


@pytest.mark.parametrize("compiled", [False, True])
def test_swapped_states_would_undo_the_update(compiled):
    before = start()
    after = before._replace(iteration=before.iteration + 1)
    rewire = jax.jit(eprop.rewire) if compiled else eprop.rewire
    rewire(after, before, KEY)
    with pytest.raises(
        Exception, match=r"fewer updates than `before`: write rewire\(after, before"
    ):
        jax.block_until_ready(rewire(before, after, KEY))


def of_learner():
    learner = eprop.OnlineLearner(make_network(sparse()), loss, eprop.EProp(), optax.sgd(0.1))
    return learner.init()


@pytest.mark.usefixtures("as_a_user_has_it")
@check(
    {
        "online": (
            lambda: eprop.rewire(of_learner(), of_learner(), KEY),
            TypeError,
            ["state is a LearnerState", "TrainState", "between sequences", "eligibility traces"],
        ),
        "network before": (
            lambda: eprop.rewire(start(), start().network, KEY),
            TypeError,
            ["before is a Network", "TrainState"],
        ),
        "nothing to rewire": (
            lambda: eprop.rewire(
                *2 * [eprop.init_training(make_network(None), eprop.EProp(), OPTIMIZER)], KEY
            ),
            ValueError,
            ["no layer has Sparse", "Sparse.random("],
        ),
        "key": (lambda: eprop.rewire(start(), start(), 0), TypeError, ["key = 0", "random.key(0)"]),
        "another fan-in before": (
            lambda: sparse(3).rewired(sparse(4), KEY),
            ValueError,
            ["shape (20, 3)", "(20, 4)"],
        ),
        "more synapses than neurons": (
            lambda: rewired(eprop.Sparse(np.ones((2, 3)), np.zeros((2, 3), int), n_pre=2)),
            ValueError,
            ["fan_in = 3", "2 neurons"],
        ),
        "autapse": (
            lambda: eprop.Sparse(np.ones((3, 1)), [[1], [1], [0]], n_pre=3, autapses=False),
            ValueError,
            ["neuron 1", "synapse to itself", "autapses=True"],
        ),
        "autapses of several currents": (
            lambda: eprop.Sparse(np.ones((4, 1)), [[1]] * 4, n_pre=2, autapses=False),
            ValueError,
            ["autapses=False", "n_pre = 2", "n_post = 4"],
        ),
    }
)
def test_errors(given, error, parts):
    assert_raises(given, error, parts)
