"""Files are whole or not there; rows are whole or dropped."""

import concurrent.futures
import contextlib
import errno
import os
import threading

import pytest

from eprop import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "file"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        files.write_atomically(path, fail)
    assert caught.value.__notes__ == [
        f"{path} could not be written; what it held before, if anything, is kept"
    ]
    assert path.read_bytes() == b"old" and names(path.parent) == ["file"]


def test_a_file_has_its_name_only_once_it_is_on_disk(tmp_path, monkeypatch):
    path, done = tmp_path / "file", []

    def noted(function):
        def wrapped(*arguments):
            done.append(function.__name__)
            return function(*arguments)

        return wrapped

    monkeypatch.setattr(os, "fsync", noted(os.fsync))
    monkeypatch.setattr(os, "replace", noted(os.replace))
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert done == ["fsync", "replace", "fsync"] and path.read_bytes() == b"new"


def test_leftovers_of_killed_processes_go_with_the_next_write(tmp_path):
    leftovers = [".file.123.part", ".file.99999999-0.part", f".file.{os.getpid()}-0.part"]
    others = [".file.txt.123.part", ".file.part", "file.123.part"]
    for name in leftovers + others:
        (tmp_path / name).write_bytes(b"half")
    files.write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    assert names(tmp_path) == sorted(["file", *others])


def test_rows(tmp_path):
    path = tmp_path / "rows"
    rows = [{"n": n, "x": n / 3} for n in range(3)]
    assert files.read_rows(path) == files.keep_rows(path, 0) == []
    for row in rows:
        files.append_row(path, row)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 3, "x"')
    assert files.read_rows(path) == rows
    assert files.keep_rows(path, 3) == rows and path.read_bytes() == whole
    assert files.keep_rows(path, 1) == rows[:1]
    files.append_row(path, rows[1])
    assert files.read_rows(path) == rows[:2]
    with pytest.raises(ValueError, match=r"rows has 2 whole rows, but 3 are needed"):
        files.keep_rows(path, 3)


@pytest.mark.parametrize(
    ("theirs", "mine", "text"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, ""),
        ({"a": 1, "b": 2}, {"a": 1, "c": 3}, "b = 2 there, None here, c = None there, 3 here"),
        (None, {"a": 1}, "None there, {'a': 1} here"),
    ],
)
def test_differences(theirs, mine, text):
    assert files.differences(theirs, mine) == text


def test_of_two_threads_one_has_a_folder(tmp_path, monkeypatch):
    """Also where the other asks while the first is about to have it."""
    lock, asked = files._lock, threading.Barrier(2, timeout=0.5)

    def slow_lock(folder, path):
        with contextlib.suppress(threading.BrokenBarrierError):
            asked.wait()  # both are here at once, if they can be
        return lock(folder, path)

    monkeypatch.setattr(files, "_lock", slow_lock)
    done = threading.Barrier(2, timeout=60)

    def use(_):
        try:
            with files.in_use(tmp_path):
                done.wait()
            return "had it"
        except RuntimeError as error:
            if isinstance(error, threading.BrokenBarrierError):
                raise
            done.wait()
            return "this process" in str(error)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        found = list(threads.map(use, range(2)))
    assert sorted(found, key=str) == [True, "had it"]
