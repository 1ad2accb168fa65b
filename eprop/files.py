"""Files that are either whole or not there, and files that only grow, a row at a time."""

import dataclasses
import errno
import itertools
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from . import structure

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "fit.lock"
"""The name of the file that is there while a folder is in use."""
LARGEST = 1000
"""Entries of an array that `as_json` writes out; a larger one is told apart by a SHA-256."""


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Lets `write` fill a temporary file beside `path`; it takes the name once it is on disk.

    Whatever happens, `path` holds either what it held before or all that `write` wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.part")
    _being_written.add(temporary.name)
    try:
        with _opened_alone(temporary) as file:
            write(file)
            _sync(file)
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.add_note(f"{path} could not be written; what it held before, if anything, is kept")
        raise
    finally:
        temporary.unlink(missing_ok=True)
        _being_written.discard(temporary.name)


_numbers = itertools.count()
_being_written: set[str] = set()
"""Temporary files of this process, of each of its threads: their locks tell processes apart only,
and to open and close such a file would give up its lock."""


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, what JSON doesn't know as `as_json` does."""
    text = json.dumps(value, indent=2, default=_plain) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def as_json(value: Any) -> Any:
    """`value`, which may be a dataclass, as it comes back from a file of JSON.

    Functions, and other things that JSON doesn't know, become a text that is the same in every
    process; of an array of more than `LARGEST` entries the text says whether it is another.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=_plain))


def _plain(x: Any) -> Any:
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.asdict(x)
    if isinstance(x, np.generic | np.ndarray | jax.Array) and not structure.is_key(x):
        array = np.asarray(x)
        if array.size <= LARGEST and array.dtype.kind in "biuf":
            return array.tolist()
    words = structure.in_words(x)
    if words is not None:
        return words
    if callable(x):
        (name, *inside) = structure.describe(x)
        return [name.value, *map(": ".join, inside)] if inside else name.value
    return re.sub(r" at 0x[0-9a-f]+", "", str(x))


def differences(theirs: Any, mine: Any) -> str:
    """What differs between two configurations from `as_json`, to be read; empty if nothing."""
    found = list(_differences("", theirs, mine))
    more = f", and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more


def _differences(name: str, theirs: Any, mine: Any) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        pairs = {key: (theirs.get(key), mine.get(key)) for key in sorted(mine | theirs)}
    elif isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        pairs = {str(i): pair for i, pair in enumerate(zip(theirs, mine, strict=True))}
    else:
        if json.dumps(theirs) != json.dumps(mine):  # as text NaN is itself
            text = f"{_short(theirs)} there, {_short(mine)} here"
            yield f"{name} = {text}" if name else text
        return
    for key, pair in pairs.items():
        yield from _differences(f"{name}.{key}" if name else key, *pair)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a line of JSON to a file of them."""
    with open(path, "ab") as file:
        file.write(f"{json.dumps(row)}\n".encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, but for a last one that is only half written.

    Raises `ValueError` for a line that is no row.
    """
    return [_row(path, i, line) for i, line in enumerate(_whole_lines(path), start=1)]


def first_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a file of JSON lines, or fewer if there are not as many."""
    return [_row(path, i, line) for i, line in enumerate(_whole_lines(path)[:count], start=1)]


def keep_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a file of JSON lines; whatever comes after them is cut off."""
    rows = first_rows(path, count)
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} whole rows, but {count} are needed")
    size = sum(map(len, _whole_lines(path)[:count]))
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
    return rows


def sync(path: Path) -> None:
    """Returns once what was written to a file is on disk."""
    with open(path, "rb+") as file:
        _sync(file)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Nobody else has `folder` in use meanwhile; what a process that died had is free again.

    Raises `RuntimeError` if somebody has. A folder that can't be written is not held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    name = path.resolve()
    with _one_at_a_time:  # the threads of a process do not lock each other out
        if name in _held:
            raise RuntimeError(_already_in_use(folder, "this process"))
        file = _lock(folder, path)
        if file is not None:
            _held.add(name)
    if file is None:
        yield
        return
    try:
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        _held.discard(name)
        path.unlink(missing_ok=True)
        os.close(file)


def _lock(folder: Path, path: Path) -> int | None:
    while fcntl is not None:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return None
            raise
        if not _hold(file):
            user = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise RuntimeError(_already_in_use(folder, user))
        if _is_at(file, path):
            return file
        os.close(file)  # whoever had it removed it in the meantime
    return None


_one_at_a_time = threading.Lock()
_held: set[Path] = set()
"""What this process holds: locks tell processes apart, not parts of one."""


def _already_in_use(folder: Path, user: str) -> str:
    return f"{folder} is in use by {user}: wait for it to end, or give this run a folder of its own"


def _hold(file: int) -> bool:
    """Whether this process holds a file, from now on to its closing, or the end of the process."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # else: there are no locks here
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _opened_alone(path: Path) -> BinaryIO:
    """A new file that `_remove_leftovers` of other processes leaves alone."""
    while True:
        file = open(path, "wb")  # noqa: SIM115
        if _hold(file.fileno()) and _is_at(file.fileno(), path):
            return file
        file.close()


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(
            f"line {number} of {path} is damaged: {line[:60]!r} is no row of JSON. Use a copy of "
            f"the file, or remove it with the checkpoint beside it to begin anew"
        )
    return row


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with open(path, "rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The new name is on disk too, where a folder can be opened (not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Of processes that were killed while writing `path`."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+(-\d+)?\.part")
    for leftover in path.parent.iterdir():
        if not name.fullmatch(leftover.name) or leftover.name in _being_written:
            continue
        try:
            with open(leftover, "rb+") as file:
                if _hold(file.fileno()):
                    leftover.unlink(missing_ok=True)
        except (FileNotFoundError, PermissionError):  # another process was quicker, or is at it
            continue
