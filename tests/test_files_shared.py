"""Files that several processes are at, and what is compared of a configuration."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eprop import files
from tests.errors import assert_raises, check

HOLDER = """
import sys, time
from pathlib import Path
from eprop import files
folder = Path(sys.argv[1])
with files.in_use(folder), files._opened_alone(folder / f".file.{sys.argv[2]}.part"):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has a folder in use, and is in the middle of writing `file` there."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "99999999"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_threads_at_one_file(tmp_path):
    """Each writes a file of its own, and the last to end is what is there."""
    begun, go_on = threading.Event(), threading.Event()

    def slowly(file):
        file.write(b"slow" * 1000)
        begun.set()
        assert go_on.wait(60)
        file.write(b"slow" * 1000)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(files.write_atomically, tmp_path / "file", slowly)
        assert begun.wait(60)
        files.write_atomically(tmp_path / "file", lambda file: file.write(b"quick"))
        assert (tmp_path / "file").read_bytes() == b"quick"
        go_on.set()
        slow.result()
    assert (tmp_path / "file").read_bytes() == b"slow" * 2000
    assert names(tmp_path) == ["file"]


class TestInUse:
    def test_by_another_process_until_it_dies(self, holder, tmp_path):
        def enter():
            with files.in_use(tmp_path):
                assert "fit.lock" in names(tmp_path)

        parts = [str(tmp_path), f"in use by process {holder.pid} on ", "folder of its own"]
        assert_raises(enter, RuntimeError, parts)
        assert_raises(enter, RuntimeError, parts)  # the first one took nothing away
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert "fit.lock" in names(tmp_path)  # but nobody holds it
        enter()
        assert names(tmp_path) == [".file.99999999.part"]

    def test_what_another_process_is_writing_stays(self, holder, tmp_path):
        files.write_atomically(tmp_path / "file", lambda file: file.write(b"mine"))
        assert names(tmp_path) == [".file.99999999.part", "file", "fit.lock"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        files.write_atomically(tmp_path / "file", lambda file: file.write(b"mine"))
        assert names(tmp_path) == ["file", "fit.lock"]

    def test_by_this_process(self, tmp_path):
        link = tmp_path / "link"
        (tmp_path / "folder").mkdir()
        link.symlink_to(tmp_path / "folder")
        with files.in_use(tmp_path / "folder"):
            with pytest.raises(RuntimeError, match="in use by this process"), files.in_use(link):
                pass
            assert names(link) == ["fit.lock"]
        with files.in_use(link):
            assert names(link) == ["fit.lock"]
        assert names(link) == []

    def test_is_over_after_an_error(self, tmp_path):
        with pytest.raises(ZeroDivisionError), files.in_use(tmp_path):
            raise ZeroDivisionError
        with files.in_use(tmp_path):
            pass
        assert names(tmp_path) == []

    def test_a_folder_that_cant_be_written(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        with files.in_use(tmp_path):
            assert names(tmp_path) == []

    def test_without_locks(self, tmp_path, monkeypatch):
        """As on Windows: nothing is held, all else is as it was."""
        monkeypatch.setattr(files, "fcntl", None)
        with files.in_use(tmp_path):
            (tmp_path / ".file.123.part").touch()
            files.write_atomically(tmp_path / "file", lambda file: file.write(b"mine"))
        assert names(tmp_path) == ["file"]


@check(
    {
        "no JSON": (
            b'{"n": 1}\n{"n": 2]\n',
            ValueError,
            ["line 2 of", "rows is damaged", '"n": 2]'],
        ),
        "zeros": (b'{"n": 1}\n\0\0\0\n', ValueError, ["line 2 of", "damaged"]),
        "no row": (b'{"n": 1}\n[2]\n', ValueError, ["line 2 of", "b'[2]\\n'", "begin anew"]),
    }
)
def test_damaged_rows(tmp_path, given, error, parts):
    path = tmp_path / "rows"
    path.write_bytes(given)
    assert_raises(lambda: files.read_rows(path), error, parts)
    assert_raises(lambda: files.keep_rows(path, 2), error, parts)
    assert path.read_bytes() == given
    assert files.keep_rows(path, 1) == [{"n": 1}]  # what is cut off may be anything


@dataclasses.dataclass
class Config:
    weights: object = None
    more: object = None


class TestConfigurations:
    def differ(self, theirs, mine):
        return files.differences(files.as_json(theirs), files.as_json(mine))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Config(float("nan"), [1.0, float("nan")]),
            lambda: Config(np.full(3, np.nan), jnp.full(3, jnp.nan)),
            lambda: Config(lambda x: x, optax.adam),
            lambda: Config(Path("a"), {"a": np.float32(0.1), "b": {1, 2}}),
            lambda: Config(object(), np.arange(10_000)),
            lambda: Config(Config(1, 2), {"a": Config(3, 4)}),
        ],
    )
    def test_of_one_run_are_the_same(self, make):
        assert self.differ(make(), make()) == ""

    def test_one_number_in_a_long_array(self):
        for size in (1000, 100_000):
            weights = np.full(size, 0.1)
            other = weights.copy()
            other[size // 2] = np.nextafter(0.1, 1)
            found = self.differ(Config(weights), Config(other))
            assert found and len(found) < 300
            assert self.differ(Config(weights), Config(weights)) == ""
        assert self.differ(Config(np.zeros(10_000)), Config(np.zeros((100, 100))))

    def test_the_place_is_named(self):
        theirs, mine = Config([1, [2, 3]], {"a": {"b": 1}}), Config([1, [2, 4]], {"a": {"b": 1}})
        assert self.differ(theirs, mine) == "weights.1.1 = 3 there, 4 here"
        mine = Config([1, [2, 3]], {"a": {"b": float("nan")}})
        assert self.differ(theirs, mine) == "more.a.b = 1 there, nan here"

    def test_many(self):
        found = self.differ(Config([0] * 100), Config([1] * 100))
        assert found.startswith("weights.0 = 0 there, 1 here, ") and found.endswith("and 95 more")

    def test_functions(self):
        assert "adam' there" in self.differ(Config(optax.adam), Config(optax.sgd))
        schedules = [optax.linear_schedule(1.0, end, 10) for end in (0.0, 0.5)]
        assert "end_value: 0" in self.differ(*map(Config, schedules))
