"""Files that are either whole or not there, and files that only grow, a row at a time."""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Lets `write` fill a temporary file beside `path`; it takes the name once it is on disk.

    Whatever happens, `path` holds either what it held before or all that `write` wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            _sync(file)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.add_note(f"{path} could not be written; what it held before, if anything, is kept")
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON; paths in it become strings."""
    text = json.dumps(value, indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def as_json(value: Any) -> Any:
    """`value`, which may be a dataclass, as it comes back from a file of JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=str))


def differences(theirs: Any, mine: Any) -> str:
    """What differs between two configurations from `as_json`, to be read; empty if nothing."""
    if not (isinstance(theirs, dict) and isinstance(mine, dict)):
        return "" if theirs == mine else f"{theirs!r} there, {mine!r} here"
    changed = sorted(k for k in mine | theirs if mine.get(k) != theirs.get(k))
    return ", ".join(f"{k} = {theirs.get(k)} there, {mine.get(k)} here" for k in changed)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a line of JSON to a file of them."""
    with open(path, "ab") as file:
        file.write(f"{json.dumps(row)}\n".encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, but for a last one that is only half written."""
    return [json.loads(line) for line in _whole_lines(path)]


def keep_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a file of JSON lines; whatever comes after them is cut off."""
    lines = _whole_lines(path)[:count]
    if len(lines) < count:
        raise ValueError(f"{path} has {len(lines)} whole rows, but {count} are needed")
    size = sum(map(len, lines))
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
    return [json.loads(line) for line in lines]


def sync(path: Path) -> None:
    """Returns once what was written to a file is on disk."""
    with open(path, "rb+") as file:
        _sync(file)


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
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+\.part")
    for leftover in path.parent.iterdir():
        if name.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)
