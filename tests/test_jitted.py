"""Programs are compiled once, say errors plainly, and go when what they are of goes."""

import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop.jitted import Jitted


def test_what_is_no_array_is_known_and_comes_back():
    traced = []

    def function(x, name, scale):
        traced.append(name)
        return {"y": scale * x["x"], "name": name, "function": x["function"]}, None

    program = Jitted(function)
    x = {"x": jnp.arange(3.0), "function": np.sin}
    (after, nothing) = program(x, "a", 2.0)
    assert after["name"] == "a" and after["function"] is np.sin and nothing is None
    np.testing.assert_array_equal(after["y"], [0, 2, 4])
    program({**x, "x": x["x"] + 1}, "a", 2.0)
    assert traced == ["a"]
    assert program(x, "b", 2.0)[0]["name"] == "b"
    program({**x, "function": np.cos}, "b", 2.0)
    assert traced == ["a", "b", "b"]


def test_it_is_a_function_of_jax():
    program = Jitted(lambda x, power: jnp.sum(x**power))
    x = jnp.arange(1.0, 4.0)
    np.testing.assert_allclose(jax.grad(program)(x, 2), 2 * x)
    np.testing.assert_allclose(jax.jit(lambda x: program(x, 2))(x), 14)
    np.testing.assert_allclose(jax.vmap(lambda x: program(x, 2))(x), x**2)


def test_the_last_arguments_are_given_away():
    program = Jitted(lambda kept, given: (given[0] + kept, given[1]), given_away=1)
    kept, given = jnp.ones(3), (jnp.ones(3), "name")
    after, name = program(kept, given)
    np.testing.assert_array_equal(after, [2, 2, 2])
    assert name == "name" and given[0].is_deleted() and not kept.is_deleted()


def test_an_error_inside_is_one_line(caplog):
    positive = Jitted(lambda x, _: eqx.error_if(x, (x < 0).any(), "x must be positive"))
    assert positive(jnp.ones(2), "name").shape == (2,)
    with pytest.raises(ValueError, match=r"\Ax must be positive\Z"):
        positive(-jnp.ones(2), "name")
    assert not caplog.records


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_an_error_while_it_is_traced_is_as_it_was(kind):
    def refuse(x):
        raise kind("no such x")

    with pytest.raises(kind, match="no such x") as caught:
        Jitted(refuse)(jnp.ones(2))
    assert any(entry.name == "refuse" for entry in caught.traceback)


class Held:
    """Something that a loss holds."""


def network(n_out=1):
    return eprop.Network(eprop.LIF(4, v_th=0.1), n_in=3, n_out=n_out, key=jax.random.key(0))


INPUTS = np.ones((4, 2, 3), bool)
TARGETS = np.ones((4, 2, 1))


def loss_with(held):
    def loss(trajectory, targets):
        assert held is not None
        return jnp.sum((trajectory.outputs - targets) ** 2)

    return loss


def use_jitted(held):
    Jitted(lambda x: (held, x)[1] + 1)(jnp.ones(2))


def use_fit(held):
    sgd = optax.sgd(1e-3)
    eprop.fit(
        eprop.training_step(loss_with(held), sgd),
        eprop.init_training(network(), eprop.EProp(), sgd),
        [(INPUTS, TARGETS)],
        iterations=1,
        progress=False,
    )


def use_stream(held):
    evaluate = eprop.stream_value_and_grad(loss_with(held), eprop.EProp(window=3))
    evaluate(network(), [(INPUTS, TARGETS)])


def use_learner(held):
    learner = eprop.OnlineLearner(network(), loss_with(held), eprop.EProp(), optax.sgd(1e-3))
    state, _ = learner.run(learner.init(2), (INPUTS, TARGETS))
    learner.step(state, INPUTS[0], TARGETS[0])


def use_reward_learner(held):
    sgd = optax.sgd(1e-3)
    optimizer = optax.GradientTransformation(
        lambda parameters: (held, sgd.init(parameters))[1], sgd.update
    )
    learner = eprop.RewardLearner(network(3), eprop.EProp(), optimizer, discount=0.9, steps=4)
    state, _ = learner.act(learner.init(2), INPUTS)
    learner.learn(state, np.ones(2), np.ones(2, bool), np.zeros(2, bool))


def use_filter_jit(held):
    eqx.filter_jit(lambda x: (held, x)[1] + 1)(jnp.ones(2))


def is_kept(use):
    def used():
        held = Held()
        use(held)
        return weakref.ref(held)

    seen = used()
    gc.collect()
    return seen() is not None


@pytest.mark.parametrize("use", [use_jitted, use_fit, use_stream, use_learner, use_reward_learner])
def test_nothing_is_kept_of_what_is_over(use):
    assert not is_kept(use)


def test_filter_jit_keeps_what_it_was_given():
    assert is_kept(use_filter_jit)
