"""Learning from rewards, killed within acting, learning and writing, ends with the same bits."""

import random
import signal

import pytest

from eprop import checkpoints
from tests import killed_rewards
from tests.test_kill import finish, leftovers, start

pytestmark = pytest.mark.slow

KILLS = 20


def rows_of(folder):
    """Of each decision until the checkpoint, which must be whole; none without one."""
    path = folder / "checkpoint.eprop"
    return checkpoints.read_header(path)["metadata"] if path.exists() else []


def test_killed_again_and_again(tmp_path):
    rng = random.Random(1)
    whole, torn, cache = tmp_path / "whole", tmp_path / "torn", tmp_path / "cache"
    finish(start(whole, cache=cache, program="killed_rewards.py"))
    reached, within_write = [0], 0
    for kill in range(KILLS):
        moment = ("acting", "learning", "writing")[kill % 3]
        # decisions, or pieces of files, until then: some checkpoints further, or none
        count = rng.randint(1, 20 if moment == "writing" else 8)
        old = set(leftovers(torn)) if torn.exists() else set()
        process = start(
            torn, moment, str(count), str(rng.uniform(0, 0.01)),
            cache=cache, program="killed_rewards.py",
        )  # fmt: skip
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, (kill, moment, count)
        within_write += bool(set(leftovers(torn)) - old)
        reached.append(len(rows_of(torn)))
    assert reached == sorted(reached) and reached[-1] < killed_rewards.ITERATIONS
    assert len(set(reached)) > 10 and within_write > 2, (reached, within_write)
    finish(start(torn, cache=cache, program="killed_rewards.py"))

    entropy, rate, ends = zip(*rows_of(torn), strict=True)
    assert rate[-1] > 5 and sum(ends) > 5
    assert len(set(entropy)) == killed_rewards.ITERATIONS
    for folder in (whole, torn):
        assert [path.name for path in folder.iterdir()] == ["checkpoint.eprop"]
    written = [(folder / "checkpoint.eprop").read_bytes() for folder in (whole, torn)]
    assert written[0] == written[1]
