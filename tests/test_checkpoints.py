"""A checkpoint gives back every bit, or is refused."""

import dataclasses
import errno
import gc
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eprop
from eprop import checkpoints
from eprop.checkpoints import CheckpointError
from tests.errors import assert_raises, check


def network(n=4, seed=0):
    return eprop.Network(eprop.LIF(n), n_in=3, n_out=2, key=jax.random.key(seed))


def training(n=4, seed=0):
    rule = eprop.EProp(eprop.AdaptiveFeedback(jax.random.normal(jax.random.key(seed), (n, 2))))
    return eprop.init_training(network(n, seed), rule, optax.adam(1e-3))


def bits(leaf):
    """All that must come back of a leaf."""
    kind = type(leaf).__name__
    if checkpoints.is_key(leaf):
        return kind, str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
    return kind, np.shape(leaf), str(getattr(leaf, "dtype", "")), np.asarray(leaf).tobytes()


LEAVES = {
    "float32": jnp.asarray([1.5, -0.0, jnp.inf, jnp.nan], jnp.float32),
    "float64": jnp.asarray([[1 / 3]]),
    "bfloat16": jnp.asarray([1.5, 3e38], jnp.bfloat16),
    "bfloat16 scalar": jnp.asarray(1.5, jnp.bfloat16),
    "float8": jnp.asarray([0.5, 2.0], jnp.float8_e4m3fn),
    "int4": jnp.asarray([-8, 7], jnp.int4),
    "complex64": jnp.asarray([1 - 2j], jnp.complex64),
    "bool": jnp.asarray([True, False]),
    "empty": jnp.zeros((0, 3)),
    "key": jax.random.key(7),
    "keys": jax.random.split(jax.random.key(7, impl="rbg"), 3),
    "legacy key": jax.random.PRNGKey(7),
    "NumPy": np.arange(6, dtype=">i2").reshape(2, 3).T,
    "NumPy scalar": np.float32(0.1),
    "NumPy bfloat16": np.ones(2, jnp.bfloat16),
    "Python float": 0.1 + 0.2,
    "Python int": -(2**62),
    "Python bool": True,
    "Python complex": 1 - 2j,
}


def emptied(leaf):
    """A leaf of the same kind with other values."""
    if checkpoints.is_key(leaf):
        seeds = jnp.zeros_like(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(seeds, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        return jnp.zeros_like(leaf)
    if isinstance(leaf, np.ndarray):
        return np.zeros_like(leaf)
    return type(leaf)(0)


@pytest.mark.parametrize("name", LEAVES)
def test_every_bit_comes_back(tmp_path, name):
    leaf = LEAVES[name]
    like = emptied(leaf)
    assert bits(like) != bits(leaf) or name == "empty"
    checkpoints.save(tmp_path / "a", {"x": leaf})
    assert bits(checkpoints.load(tmp_path / "a", {"x": like})[0]["x"]) == bits(leaf)


def test_a_training_state_comes_back(tmp_path):
    state = training(seed=1)
    checkpoints.save(tmp_path / "a", state)
    loaded, _ = checkpoints.load(tmp_path / "a", training(seed=0))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert list(map(bits, jax.tree.leaves(loaded))) == list(map(bits, jax.tree.leaves(state)))
    assert not np.array_equal(loaded.network.w_in, training(seed=0).network.w_in)


class WithFunction(eqx.Module):
    weight: jax.Array
    function: object


def test_what_is_no_array_comes_from_like(tmp_path):
    saved, mine = (lambda x: x for _ in range(2))  # two functions of one name
    checkpoints.save(tmp_path / "a", WithFunction(jnp.ones(2), saved))
    loaded, _ = checkpoints.load(tmp_path / "a", WithFunction(jnp.zeros(2), mine))
    assert loaded.function is mine is not saved and loaded.weight.tolist() == [1, 1]


@dataclasses.dataclass
class Config:
    folder: Path = Path("a/b")
    sizes: tuple[int, ...] = (1, 2)


def test_the_header_says_what_is_inside(tmp_path):
    checkpoints.save(tmp_path / "a", {"w": jnp.ones((2, 3)), "n": 1}, Config())
    header = checkpoints.read_header(tmp_path / "a")
    _, loaded = checkpoints.load(tmp_path / "a", {"w": jnp.zeros((2, 3)), "n": 0})
    assert header["metadata"] == loaded == {"folder": "a/b", "sizes": [1, 2]}
    assert header["versions"]["jax"] == jax.__version__
    assert header["versions"]["numpy"] == np.__version__
    assert header["versions"]["eprop"] == eprop.__version__
    assert header["leaves"] == [
        {"path": "n", "shape": [], "dtype": "int"},
        {"path": "w", "shape": [2, 3], "dtype": "float64"},
    ]


def test_one_state_is_one_file(tmp_path):
    for name in ("a", "b"):
        checkpoints.save(tmp_path / name, training())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.usefixtures("as_a_user_has_it")
@check(
    {
        "saved": (
            lambda: checkpoints.save(network(), "network.eprop"),
            TypeError,
            ["path = Network( layers=(", "is no path", 'save("state.eprop", state)'],
        ),
        "loaded": (
            lambda: checkpoints.load(network(), "network.eprop"),
            TypeError,
            ["path = Network(", "is no path", 'load("state.eprop", like=state)'],
        ),
    }
)
def test_swapped_arguments(given, error, parts):
    assert_raises(given, error, parts)


def test_no_pickle(tmp_path):
    given = {"x": np.asarray([object()])}
    assert_raises(
        lambda: checkpoints.save(tmp_path / "a", given), TypeError, ["x = array", "can't be saved"]
    )
    assert not list(tmp_path.iterdir())


class Pair(NamedTuple):
    a: object
    b: object


class TestAnotherState:
    @check(
        {
            "network": (
                (network(4), network(5)),
                CheckpointError,
                [
                    "below.weights of shape (3, 4) and dtype float64",
                    "below.weights of shape (3, 5)",
                ],
            ),
            "training state": (
                (training(4), training(5)),
                CheckpointError,
                ["below.weights of shape (3, 4)", "below.weights of shape (3, 5)"],
            ),
            "dtype": (
                (Pair(np.ones(2), np.ones(2)), Pair(np.ones(2), np.ones(2, np.float32))),
                CheckpointError,
                ["b of shape (2,) and dtype float64", "b of shape (2,) and dtype float32"],
            ),
            "key": (
                (jax.random.key(0), jax.random.key(0, impl="rbg")),
                CheckpointError,
                ["key<fry>", "key<rbg>"],
            ),
            "Python number": ((1, 1.0), CheckpointError, ["dtype int", "dtype float"]),
            "name": (({"a": 1}, {"b": 1}), CheckpointError, ["a of shape", "b of shape"]),
            "fewer leaves": (([1, 2], [1]), CheckpointError, ["it has 1 of", "no more leaves"]),
            "more leaves": (([1], [1, 2]), CheckpointError, ["no more leaves", "state has 1 of"]),
        }
    )
    def test_is_refused(self, tmp_path, given, error, parts):
        saved, like = given
        path = tmp_path / "a"
        checkpoints.save(path, saved)
        assert_raises(lambda: checkpoints.load(path, like), error, [str(path), *parts])
        checkpoints.load(path, saved)

    def test_one_shape_transposed(self, tmp_path):
        """As many numbers, in as many leaves."""
        checkpoints.save(tmp_path / "a", jnp.ones((2, 3)))
        with pytest.raises(CheckpointError, match=r"\(2, 3\).*\(3, 2\)"):
            checkpoints.load(tmp_path / "a", jnp.ones((3, 2)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint, its bytes, and its state."""
    path, state = tmp_path_factory.mktemp("whole") / "a", network()
    checkpoints.save(path, state, {"seed": 0})
    return path.with_name("b"), path.read_bytes(), state


class TestDamage:
    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_one_bit_flipped(self, whole, data):
        path, content, state = whole
        position = data.draw(st.integers(0, 8 * len(content) - 1))
        self.assert_flip_refused(path, content, state, position)

    def test_any_bit_of_the_first_line_flipped(self, whole):
        path, content, state = whole
        for position in range(8 * (content.index(b"\n") + 2)):
            self.assert_flip_refused(path, content, state, position)

    @staticmethod
    def assert_flip_refused(path, content, state, position):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoints.load(path, state)

    @given(st.data())
    @settings(max_examples=200, deadline=None)
    def test_cut_anywhere(self, whole, data):
        path, content, state = whole
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoints.load(path, state)

    def test_unharmed_it_is_read(self, whole):
        path, content, state = whole
        path.write_bytes(content)
        assert checkpoints.load(path, state)[1] == {"seed": 0}

    @check(
        {
            "cut short": (lambda x: x[:-1], CheckpointError, ["damaged", "cut short"]),
            "longer": (lambda x: x + b"\0", CheckpointError, ["damaged", "SHA-256"]),
            "empty": (lambda x: b"", CheckpointError, ["(0 bytes)", "no checkpoint of eprop"]),
            "zeros": (lambda x: bytes(len(x)), CheckpointError, ["no checkpoint of eprop"]),
            "only an archive": (
                lambda x: x[x.index(b"\n") + 1 :],
                CheckpointError,
                ["no checkpoint of eprop", "PK"],
            ),
            "JSON": (lambda x: json.dumps([1]).encode(), CheckpointError, ["begins with b'[1]'"]),
            "of the future": (
                lambda x: x.replace(b"checkpoint 2", b"checkpoint 3"),
                CheckpointError,
                ["format '3'", "reads format '2'"],
            ),
        }
    )
    def test_says_what_is_wrong(self, whole, given, error, parts):
        path, content, state = whole
        path.write_bytes(given(content))
        assert_raises(lambda: checkpoints.load(path, state), error, [str(path), *parts])
        assert_raises(lambda: checkpoints.read_header(path), error, parts)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            checkpoints.load(tmp_path / "nowhere", 1)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, function):
    path = tmp_path / "a"
    checkpoints.save(path, network(seed=1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoints.save(path, network(seed=2))
    assert f"{path} could not be written" in caught.value.__notes__[0]
    assert list(tmp_path.iterdir()) == [path]
    loaded, _ = checkpoints.load(path, network(seed=0))
    np.testing.assert_array_equal(loaded.w_in, network(seed=1).w_in)


def test_a_failed_save_leaves_nothing_to_complain_of(tmp_path, monkeypatch):
    """Where its error is kept in a cycle, Python 3.13 frees what it held in another order."""
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", lambda x: complaints.append(x.exc_value))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    try:
        checkpoints.save(tmp_path / "a", {"w": np.ones(3)})
    except OSError as error:
        error.itself = error
    gc.collect()
    assert not complaints
