"""What a state is, but for its numbers: classes, static fields and functions, in words.

Two states are of one structure where all of it reads the same. Of functions that is the name and
what they close over: `loss.<locals>.of_weight` of the weight 3 is not the one of 4.
"""

import dataclasses
import enum
import functools
import hashlib
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

LONGEST = 200
"""Characters of a value; of a longer one there are the first, and a SHA-256 of all."""
LARGEST = 2**20
"""Entries of an array that a function closes over; of a larger one the numbers are not compared."""


class Field(NamedTuple):
    """One thing that two states must agree on."""

    path: str
    """Such as `network.layers.0.neurons.cells.0.v_th.number`."""
    value: str


def describe(tree: Any) -> list[Field]:
    """The classes of a state's nodes, its static fields, and its leaves that are no numbers."""
    walk = _Walk(code=False)
    walk.visit("", tree, static=False)
    return walk.fields


def describe_function(name: str, function: Any) -> list[Field]:
    """A function by all that can be told: its name, what it closes over, code and constants.

    Code and global numbers and functions are looked at in what is no library's.
    """
    walk = _Walk(code=True)
    walk.visit(name, function, static=True)
    return walk.fields


def describe_classes(x: Any) -> list[Field]:
    """A dataclass and those in its fields by what their classes define: methods, and attributes.

    Of classes of a user's own; a library's don't change while a program runs.
    """
    walk = _Walk(code=True)
    for cls in type(x).__mro__:
        if cls.__module__.partition(".")[0] in ("eprop", "equinox", "abc", "builtins"):
            continue
        for name, value in vars(cls).items():
            value = getattr(value, "fget", getattr(value, "__func__", value))
            if callable(value) or not name.startswith("_"):
                walk.visit(f"{qualified_name(cls)}.{name}", value, static=True)
    inside = [getattr(x, field.name, None) for field in dataclasses.fields(x)]
    of_inside = [describe_classes(child) for child in inside if _is_instance(child)]
    return sum(of_inside, walk.fields)


def _is_instance(x: Any) -> bool:
    return dataclasses.is_dataclass(x) and not isinstance(x, type)


def first_difference(theirs: list[Field], mine: list[Field]) -> str:
    """What differs first, to be read; empty if nothing does."""
    there, here = dict(theirs), dict(mine)
    for path in there | here:
        x, y = there.get(path, "nothing"), here.get(path, "nothing")
        if x != y and not _of_two_pythons(x, y):
            return f"{path or 'its class'} = {x} there, {y} here"
    return ""


def _of_two_pythons(x: str, y: str) -> bool:
    """Whether two values are code of two versions of Python, which says nothing."""
    versions = [re.search(r"\(Python \S+\)$", value) for value in (x, y)]
    return all(versions) and versions[0][0] != versions[1][0]  # pyright: ignore


def is_saved(leaf: Any) -> bool:
    """Whether a leaf is an array or a number."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key, or an array of them."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def qualified_name(x: Any) -> str:
    """`module.name` of a class or function, whatever private module it is from."""
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
    if name is None:
        name = getattr(x, "__name__", type(x).__qualname__)
    if module == "__main__":  # the module that `python -m` runs has a name all the same
        main = sys.modules["__main__"]
        spec, file = (getattr(main, name, None) for name in ("__spec__", "__file__"))
        if spec is not None:
            module = spec.name
        elif file is not None:  # of a script: who imports it has it by this name
            module = Path(file).stem
    parts = [part for part in (module or "").split(".") if not re.match(r"_[^_]", part)]
    return ".".join([part for part in parts if part not in ("", "builtins")] + [name])


def in_words(x: Any, largest: float = float("inf")) -> str | None:
    """A value that has nothing inside but numbers and text; `None` for any other."""
    if isinstance(x, np.generic) and not x.dtype.hasobject:
        x = x.item()
    if isinstance(x, enum.Enum | type):
        name = qualified_name(x if isinstance(x, type) else type(x))
        return f"{name}.{x.name}" if isinstance(x, enum.Enum) else name
    if isinstance(x, float) and x.is_integer() and abs(x) < 2**53:
        return repr(int(x))  # as Python compares: 1.0 is 1
    if x is None or isinstance(x, bool | int | float | complex | str | bytes | slice | range):
        return repr(x)
    if isinstance(x, PurePath | np.dtype):
        return str(x)
    if isinstance(x, jax.tree_util.PyTreeDef):
        return re.sub(r" at 0x[0-9a-f]+", "", str(x))
    if isinstance(x, jax.Array | np.ndarray):
        return _array_in_words(x, largest)
    if type(x) in (dict, tuple, list, set, frozenset):
        items: Any = x.items() if isinstance(x, dict) else x
        words = [in_words(item, largest) for item in items]
        if None in words:
            return None
        in_order = isinstance(x, tuple | list)
        text = ", ".join(map(str, words) if in_order else sorted(map(str, words)))
        return {tuple: f"({text})", list: f"[{text}]"}.get(type(x), f"{{{text}}}")
    return None


def _array_in_words(x: Any, largest: float) -> str:
    text = f"{x.dtype}[{','.join(map(str, x.shape))}]"
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and x.is_deleted()):
        return text
    if x.dtype == object or x.size > largest:
        return text
    numbers = np.asarray(jax.random.key_data(x) if is_key(x) else x)
    return f"{text} of SHA-256 {_hash(numbers.tobytes())}"


class _Walk:
    """Through all that a state consists of, and with `code` all that a function does."""

    def __init__(self, code: bool):
        self.code = code
        self.fields: list[Field] = []
        self.functions: list[types.FunctionType] = []
        """Those seen: a function may call itself."""

    def visit(self, path: str, x: Any, static: bool) -> None:
        if not static and is_saved(x):
            return  # its number is free to change
        children = [] if isinstance(x, type) else list(_children(x))
        words = None
        if static or not children:
            words = in_words(x, LARGEST if self.code else float("inf"))
        if isinstance(x, types.FunctionType):
            self._visit_function(path, x)
        elif words is not None:
            self._add(path, words)
        elif isinstance(x, types.MethodType):
            self._add(path, qualified_name(x))
            self.visit(f"{path}.self", x.__self__, True)
        elif isinstance(x, functools.partial):
            self._add(path, "functools.partial")
            for name in ("func", "args", "keywords"):
                self.visit(f"{path}.{name}", getattr(x, name), True)
        elif children:
            self._add(path, qualified_name(type(x)))
            for name, child, of_class in children:
                self.visit(f"{path}.{name}" if path else name, child, static or of_class)
        elif isinstance(wrapped := getattr(x, "__wrapped__", None), types.FunctionType):
            self.visit(path, wrapped, True)  # jax.jit's
        else:
            self._add(path, qualified_name(x if hasattr(x, "__name__") else type(x)))

    def _visit_function(self, path: str, function: Any) -> None:
        code, wrapped = function.__code__, getattr(function, "__wrapped__", None)
        if wrapped is not None and code.co_filename.startswith("<"):
            return self.visit(path, wrapped, True)  # generated around it, as for checks of types
        self._add(path, qualified_name(function))
        if any(function is seen for seen in self.functions):
            return None
        self.functions.append(function)
        is_users = not code.co_filename.startswith(_LIBRARIES)
        inside: dict[str, Any] = {}
        if is_users or "<" in function.__qualname__ or wrapped is not None:
            inside = dict(_defaults(function)) | dict(_closure(function))
        if self.code and is_users:
            python = "{}.{}".format(*sys.version_info)
            self._add(f"{path}.code", f"{_hash(_code(code, function.__doc__))} (Python {python})")
            names = sorted(_global_names(code) & function.__globals__.keys())
            inside = {name: function.__globals__[name] for name in names} | inside
        for name, value in inside.items():
            if not isinstance(value, type | types.ModuleType):
                self.visit(f"{path}.{name}" if path else name, value, True)
        return None

    def _add(self, path: str, words: str) -> None:
        if len(words) > LONGEST:
            begin = words[: LONGEST // 2]
            words = f"{begin}... ({len(words)} characters of SHA-256 {_hash(words.encode())})"
        self.fields.append(Field(path, words))


def _children(x: Any) -> Iterator[tuple[str, Any, bool]]:
    """What a node has inside: name, value, and whether the value is static.

    Of a dataclass that is what JAX knows nothing of; of others what JAX keeps beside the children.
    """
    if isinstance(x, dict):
        yield from ((str(key), child, False) for key, child in x.items())
        return
    found, structure = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
    is_leaf = len(found) == 1 and found[0][0] == ()
    dynamic = {} if is_leaf else {_key(path): child for path, child in found}
    if _is_instance(x):
        for field in dataclasses.fields(x):
            if hasattr(x, field.name):
                yield field.name, getattr(x, field.name), field.name not in dynamic
        return
    yield from ((name, child, False) for name, child in dynamic.items())
    if not (is_leaf or x is None or isinstance(x, list | tuple)):
        yield "aux", (structure.node_data() or (None, None))[1], True


def _key(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    yield from zip(names[len(names) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def _nested(code: types.CodeType) -> list[types.CodeType]:
    return [x for x in code.co_consts if isinstance(x, types.CodeType)]


def _global_names(code: types.CodeType) -> set[str]:
    return set(code.co_names).union(*map(_global_names, _nested(code)))


def _code(code: types.CodeType, doc: str | None) -> bytes:
    """What a function does, wherever it is written and whatever its docstring says."""
    constants = [
        sorted(map(repr, x)) if isinstance(x, frozenset) else repr(x)
        for x in code.co_consts
        if not isinstance(x, types.CodeType) and x != doc
    ]
    nested = [_code(x, None) for x in _nested(code)]
    return repr((code.co_code, code.co_names, code.co_varnames, constants, nested)).encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


_LIBRARIES = (
    *{sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib", "stdlib")},
    str(Path(__file__).parent) + os.sep,
    "<frozen",
)
"""Where code lies that is no user's own."""
