"""The programs that follow spikes, each by itself, against products of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eprop.kernels import (
    Events,
    event_currents,
    event_product,
    faded_spikes,
    readout_drive,
    readout_gradient,
    wiring,
)
from eprop.kernels.readout import FEW
from tests.comparison import assert_close


class TestEvents:
    @pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
    @pytest.mark.parametrize("n", [1, 7, 8, 9, 31])
    def test_products(self, n, rate):
        rng = np.random.default_rng(n)
        x = jnp.asarray(rng.random((6, 5, n)) < rate)
        rows, start, post = (rng.normal(size=s) for s in ((n, 3), (6, 5, 3), (6, 5, 4)))
        plain = np.asarray(x, float)
        found = event_currents(x, jnp.asarray(rows), jnp.asarray(start))
        assert_close(found, start + plain @ rows, 1e-12)
        total = rng.normal(size=(n, 4))
        found = event_product(Events(x), jnp.asarray(post), 0, jnp.asarray(total))
        assert_close(found, total + np.tensordot(plain, post, axes=((0, 1), (0, 1))), 1e-12)

    @pytest.mark.parametrize("first", [0, 2])
    def test_late_events_are_those_of_the_step_before(self, first):
        rng = np.random.default_rng(first)
        x, before = rng.random((6, 5, 9)) < 0.3, rng.random((5, 9)) < 0.3
        post = rng.normal(size=(4, 5, 3))
        late = Events(jnp.asarray(x), jnp.asarray(before))
        zeros = jnp.zeros((9, 3))
        found = jax.jit(event_product)(late, jnp.asarray(post), first, zeros)
        seen = np.concatenate([before[None], x])[first : first + 4].astype(float)
        assert_close(found, np.tensordot(seen, post, axes=((0, 1), (0, 1))), 1e-12)
        assert not np.allclose(found, np.tensordot(x[first : first + 4], post, ((0, 1), (0, 1))))

    def test_two_in_one_program(self):
        x = jnp.asarray(np.random.default_rng(0).random((50, 40, 30)) < 0.1)
        rows = jnp.asarray(np.random.default_rng(1).normal(size=(30, 20)))
        zeros = jnp.zeros((50, 40, 20))

        @jax.jit
        def both(x):
            return event_currents(x, rows, zeros), event_currents(~x, rows, zeros)

        first, second = both(x)
        assert_close(first + second, jnp.broadcast_to(rows.sum(0), zeros.shape), 1e-12)


class TestReadouts:
    """A few, which look at all neurons, and more, which look for spikes."""

    @pytest.mark.parametrize("n_out", [1, FEW, FEW + 1])
    @pytest.mark.parametrize("n", [1, 8, 31])
    def test_drive_and_gradient(self, n, n_out):
        rng = np.random.default_rng(n)
        z = rng.random((6, 5, n)) < 0.3
        w, start, error = (rng.normal(size=s) for s in ((n, n_out), (6, 5, n_out), (3, 5, n_out)))
        found = readout_drive(jnp.asarray(z), jnp.asarray(w), jnp.asarray(start))
        assert_close(found, start + z @ w, 1e-12)

        total, first = rng.normal(size=(n, n_out)), 2
        given = (jnp.asarray(x) for x in (z, error))
        found = jax.jit(readout_gradient)(*given, first, jnp.asarray(total))
        added = np.tensordot(z[2:5].astype(float), error, axes=((0, 1), (0, 1)))
        assert_close(found, total + added, 1e-12)
        assert not np.allclose(found, total)

    @pytest.mark.parametrize("batch", [1, 5])
    @pytest.mark.parametrize("n_steps", [1, 4, 6])
    def test_faded_spikes(self, n_steps, batch):
        rng = np.random.default_rng(batch)
        z, fading = rng.random((n_steps, batch, 31)) < 0.3, rng.random(n_steps)
        found = faded_spikes(jnp.asarray(fading), jnp.asarray(z))
        assert z.any()
        assert_close(found, np.tensordot(fading, z.astype(float), 1), 1e-12)

    def test_what_a_silent_neuron_would_send_counts_for_nothing(self):
        z = jnp.zeros((3, 2, 9), bool).at[:, :, 0].set(True)
        w = jnp.full((9, 1), jnp.nan).at[0].set(2.0)
        assert (readout_drive(z, w, jnp.zeros((3, 2, 1))) == 2).all()


class TestSparseEvents:
    """Of 9 neurons, of which one leads nowhere and one twice to the same."""

    indices = np.array([[0, 1, 1], [5, 0, 3], [8, 7, 2], [2, 6, 1]])

    @pytest.mark.parametrize("first", [0, 2])
    def test_sums(self, first):
        rng = np.random.default_rng(first)
        found = jax.jit(wiring, static_argnums=1)(jnp.asarray(self.indices), 9)
        x, before = rng.random((6, 5, 9)) < 0.3, rng.random((5, 9)) < 0.3
        post, total = rng.normal(size=(4, 5, 4)), rng.normal(size=(4, 3))
        late = Events(jnp.asarray(x), jnp.asarray(before))
        sums = found.product(late, jnp.asarray(post), first, found.sorted(jnp.asarray(total)))
        seen = np.concatenate([before[None], x])[first : first + 4].astype(float)
        of_synapses = np.einsum("tbjf,tbj->bjf", seen[..., self.indices], post)
        assert_close(found.restored(sums), total + of_synapses.sum(0), 1e-12)
        assert not np.allclose(found.restored(sums), total)

        now = Events(jnp.asarray(x[first : first + 4]))
        seen = x[first : first + 4, ..., self.indices].astype(float)
        of_synapses = np.einsum("tbjf,tbj->bjf", seen, post)
        assert_close(found.restored(found.traces(now, jnp.asarray(post))), of_synapses, 1e-12)

    def test_order(self):
        """By neuron, and of one neuron as they were: so sums are the same wherever they are."""
        found = wiring(jnp.asarray(self.indices), 9)
        order = np.argsort(self.indices.ravel(), kind="stable")
        np.testing.assert_array_equal(found.place, order)
        np.testing.assert_array_equal(found.post, order // 3)
        of_neuron = np.bincount(self.indices.ravel(), minlength=9)
        np.testing.assert_array_equal(found.begins, np.concatenate([[0], np.cumsum(of_neuron)]))
        w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
        np.testing.assert_array_equal(found.restored(found.sorted(w)), w)

    def test_no_memory_but_its_own_is_looked_at(self):
        """Whatever has become of the indices."""
        found = wiring(jnp.asarray([[-1, 10**6]]), 9)
        np.testing.assert_array_equal(found.begins, [0, *[1] * 8, 2])
