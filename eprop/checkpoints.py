"""Checkpoints: the arrays of any pytree in one file, which is either whole or refused.

    eprop checkpoint 2 <SHA-256 of all that follows>
    an archive of NumPy arrays (.npz, without pickle): one per leaf, and a header in JSON

The header has the versions of eprop, JAX and NumPy, what the caller said about the state
(`metadata`), of each leaf its path, shape and dtype, and of all else in the state (`structure`:
classes, static fields, functions) what it is, in words.
"""

import hashlib
import io
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import checks, files, processes, structure
from .structure import Field, is_key, is_saved
from .version import __version__

__all__ = ["CheckpointError", "load", "read_header", "save"]

MAGIC = b"eprop checkpoint "
VERSION = b"2"
HEADER = "header"
"""The header's name in the archive; the leaves are named by their number."""


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or holds another state than is asked for."""


class Leaf(NamedTuple):
    """What a state's leaf is like, but for its values."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.path} of shape {self.shape} and dtype {self.dtype}"


def save(path: Path | str, state: Any, metadata: Any = None) -> None:
    """Writes the arrays and numbers of `state`, whole or not at all.

        >>> import eprop, jax
        >>> def build(key):
        ...     return eprop.Network(eprop.LIF(9), n_in=5, n_out=1, key=jax.random.key(key))
        >>> network = build(0)
        >>> eprop.checkpoints.save("network.eprop", network, metadata={"classes": 3})
        >>> loaded, metadata = eprop.checkpoints.load("network.eprop", like=build(1))
        >>> bool((loaded.w_rec == network.w_rec).all()), metadata
        (True, {'classes': 3})

    **Arguments:**

    - `path`: the file; the one that it replaces is kept until this one is on disk.
    - `state`: any pytree: networks, optimiser states, random keys, NumPy arrays, numbers. All
      else in it, static fields and functions, is not saved but described, to be compared.
    - `metadata`: what is to be known about the state, such as a configuration: anything that JSON
      can hold, or a dataclass of it.

    Of several processes (`jax.distributed`) the first one writes; all call this.
    """
    path = checks.path("path", path, 'save("state.eprop", state)')
    header = {
        "versions": {"eprop": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "metadata": files.as_json(metadata),
        "leaves": [leaf._asdict() for leaf in describe(state)],
        "structure": structure.describe(state),
    }
    arrays = {str(i): _plain(name, leaf) for i, (name, leaf) in enumerate(_leaves(state))}
    if not processes.is_first():
        return
    archive = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(archive, allow_pickle=False, **{HEADER: text}, **arrays)
    with archive.getbuffer() as content:

        def write(file):
            file.write(_first_line(content))
            file.write(content)

        files.write_atomically(path, write)


def load(path: Path | str, like: Any) -> tuple[Any, Any]:
    """`(state, metadata)` of a checkpoint.

    `like` is a state of the same structure, such as the one that training began with: all that is
    no array or number comes from it. What doesn't fit it is refused, by name:

        >>> import eprop, jax
        >>> def build(v_th):
        ...     key = jax.random.key(0)
        ...     return eprop.Network(eprop.LIF(9, v_th=v_th), n_in=5, n_out=1, key=key)
        >>> eprop.checkpoints.save("network.eprop", build(0.3))
        >>> eprop.checkpoints.load("network.eprop", build(0.5))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        eprop.checkpoints.CheckpointError: network.eprop is of another state: ...v_th...

    Arrays come to the devices that those of `like` are on, whichever they were saved from.

    Raises `CheckpointError` for a file that is damaged or no checkpoint, and where it is of another
    state than `like`: other classes, static fields, functions (by their name and what they close
    over), or leaves of another shape or dtype.
    """
    path = checks.path("path", path, 'load("state.eprop", like=state)')
    header, arrays = _read(path)
    fields = [Field(*x) for x in header["structure"]]
    leaves = [Leaf(x["path"], tuple(x["shape"]), x["dtype"]) for x in header["leaves"]]
    if found := _differences(fields, leaves, like):
        remedy = (
            "Give as `like` all that was saved, and nothing around it"
            if found.startswith("its class")
            else "Build the state with the configuration of the checkpoint (see "
            "eprop.checkpoints.read_header)"
        )
        raise CheckpointError(f"{path} is of another state: {found}. {remedy}, or use another file")
    loaded = iter(arrays)
    state = jax.tree.map(lambda x: _like(x, next(loaded)) if is_saved(x) else x, like)
    return state, header["metadata"]


def read_header(path: Path | str) -> dict[str, Any]:
    """A checkpoint's versions, metadata, leaves and structure, of a file that is whole.

    Raises `CheckpointError` for a file that is damaged or no checkpoint.
    """
    return _read(Path(path))[0]


def describe(state: Any) -> list[Leaf]:
    """The leaves of `state` that are saved, in their order."""
    return [Leaf(name, np.shape(leaf), _dtype(leaf)) for name, leaf in _leaves(state)]


def first_difference(
    theirs: list[Leaf], mine: list[Leaf]
) -> tuple[Leaf | None, Leaf | None] | None:
    """The first pair of leaves that are not alike, if any; `None` in it for one that is missing."""
    pairs = zip_longest(theirs, mine)
    return next((pair for pair in pairs if pair[0] != pair[1]), None)


def differences(theirs: Any, mine: Any) -> str:
    """What differs between two states but for their numbers, to be read; empty if nothing does."""
    return _differences(structure.describe(theirs), describe(theirs), mine)


def _differences(fields: list[Field], leaves: list[Leaf], mine: Any) -> str:
    found = [structure.first_difference(fields, structure.describe(mine))]
    if difference := first_difference(leaves, describe(mine)):
        there, here = (leaf or "no more leaves" for leaf in difference)
        found.append(f"it has {there} where this state has {here}")
    return "; ".join(filter(None, found))


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    content = path.read_bytes()
    first, _, archive = content.partition(b"\n")
    if not first.startswith(MAGIC):
        raise CheckpointError(
            f"{path} ({len(content)} bytes) is no checkpoint of eprop: "
            f"it begins with {first[:40]!r}, not {MAGIC!r}"
        )
    version = first[len(MAGIC) :].partition(b" ")[0]
    if content[: len(first) + 1] != _first_line(archive):
        if version != VERSION:
            raise CheckpointError(
                f"{path} is a checkpoint of format {version.decode(errors='replace')!r}, or "
                f"damaged: this version of eprop reads format {VERSION.decode()!r}"
            )
        raise CheckpointError(
            f"{path} ({len(content)} bytes) is damaged: what it holds does not have the SHA-256 "
            f"that its first line says, so it was cut short or changed. Use a copy, or remove it "
            f"to begin anew"
        )
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        header = json.loads(arrays[HEADER].tobytes())
        return header, [arrays[str(i)] for i in range(len(header["leaves"]))]


def _first_line(archive: bytes | memoryview) -> bytes:
    return b"%s%s %s\n" % (MAGIC, VERSION, hashlib.sha256(archive).hexdigest().encode())


def _leaves(state: Any) -> list[tuple[str, Any]]:
    """The leaves that are saved, each with its path, such as "network.w_rec"."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in found
        if is_saved(leaf)
    ]


def _dtype(leaf: Any) -> str:
    """That of an array, or the kind of a Python number."""
    return str(getattr(leaf, "dtype", type(leaf).__name__))


def _plain(name: str, leaf: Any) -> np.ndarray:
    """A leaf's numbers, or their bits as integers where the dtype is not one of NumPy's own."""
    array = processes.whole(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    if array.dtype.hasobject:
        raise TypeError(f"{name} = {leaf!r} can't be saved: make it an array of numbers")
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.isbuiltin == 2 else array


def _like(leaf: Any, array: np.ndarray) -> Any:
    """What was saved, as the kind of thing that `leaf` is."""
    if is_key(leaf):  # on one device: all of them take it from there
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    if not hasattr(leaf, "dtype"):
        return type(leaf)(array.item())
    array = array.view(leaf.dtype)
    if isinstance(leaf, jax.Array):
        is_spread = len(leaf.sharding.device_set) > 1
        return processes.placed(array, leaf) if is_spread else jnp.asarray(array)
    return array if isinstance(leaf, np.ndarray) else array[()]
