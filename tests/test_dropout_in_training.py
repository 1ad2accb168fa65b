"""Dropout where a network is trained by `training_step`: a key is asked for, and drawn from."""

import jax
import numpy as np
import optax
import pytest

import eprop

INPUTS, TARGETS = np.ones((6, 2, 3), bool), np.ones((6, 2, 1))


def start(dropout):
    network = eprop.Network(
        eprop.LIF(4, v_th=0.1), n_in=3, n_out=1, dropout=dropout, key=jax.random.key(0)
    )
    return eprop.init_training(network, eprop.EProp(), optax.sgd(0.0))


def loss(trajectory, targets):
    return ((trajectory.outputs - targets) ** 2).sum()


def losses_of(step, state, count=3):
    found = []
    for _ in range(count):
        state, info = step(state, (INPUTS, TARGETS))
        found.append(float(info["loss"]))
    return found


def test_a_key_is_asked_for():
    step = eprop.training_step(loss, optax.sgd(0.0))
    with pytest.raises(ValueError, match=r"dropout, .* key=jax.random.key\(0\)"):
        step(start(eprop.Dropout(0.5)), (INPUTS, TARGETS))


def test_it_is_drawn_anew_at_each_iteration():
    step = jax.jit(eprop.training_step(loss, optax.sgd(0.0), key=jax.random.key(1)))
    found = losses_of(step, start(eprop.Dropout(0.5)))
    assert len(set(found)) == 3
    assert found == losses_of(step, start(eprop.Dropout(0.5)))


def test_nothing_is_drawn_without_dropout():
    step = jax.jit(eprop.training_step(loss, optax.sgd(0.0), key=jax.random.key(1)))
    assert len(set(losses_of(step, start(None)))) == 1
