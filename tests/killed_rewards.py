"""A small run of learning from rewards, for `test_kill_rewards` to kill.

    python killed_rewards.py FOLDER [MOMENT COUNT DELAY]

Decision by decision, in an environment of the host that is saved beside the learner's state. If
told so it kills itself, by SIGKILL, when it comes to a moment for the COUNT-th time: DELAY seconds
into acting or into learning, which go on until then, or with a piece of a file written.
"""

import builtins
import itertools
import os
import signal
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import optax

import eprop
from eprop import checkpoints, files

ITERATIONS, BATCH, STEPS = 60, 3, 4
NETWORK = eprop.Network(
    eprop.ALIF(6, v_th=0.3, beta=0.1), n_in=5, n_out=3, tau_out=5.0, key=jax.random.key(0)
)
LEARNER = eprop.RewardLearner(
    NETWORK,
    eprop.EProp(eprop.AdaptiveFeedback(jax.random.normal(jax.random.key(1), (6, 3)))),
    optax.adam(1e-2),
    discount=0.9,
    steps=STEPS,
    update_every=3,
    entropy_weight=0.01,
    rate_penalty=eprop.RatePenalty(20.0, 1.0),
)


def seen(places, iteration):
    """Spikes of five neurons, each with a place of its own."""
    rng = np.random.default_rng(iteration)
    likely = np.arange(5) == places[:, None]
    return rng.random((STEPS, BATCH, 5)) < np.where(likely, 0.8, 0.2)


def initial():
    """The learner, where each environment is, and what its network has decided there."""
    places = np.zeros(BATCH, np.int32)
    state, actions = LEARNER.act(LEARNER.init(BATCH), seen(places, 0))
    return state, places, actions


class Death:
    """Comes at a moment."""

    def __init__(self, moment=None, count=0, delay=0.0):
        self.moment, self.count, self.delay, self.met = moment, count, delay, 0

    def has_come(self, moment):
        self.met += moment == self.moment
        return moment == self.moment and self.met == self.count

    def within(self, moment, function, *args, **options):
        """What the function returns; never, if this is the moment."""
        if self.has_come(moment):
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            for _ in itertools.count():
                jax.block_until_ready(function(*args, **options)[0].n_decisions)
        return function(*args, **options)


def step(carried, iteration, death):
    """The last decision's outcome, and the next decision. Returns also the mean entropy and rate,
    and how many episodes ended.
    """
    state, places, actions = carried
    moved = places + 2 * np.asarray(actions) - 1
    terminated, truncated = moved == 5, moved == -3
    rewards, after = np.where(terminated, 1.0, -0.1), seen(moved, iteration)
    state, info = death.within(
        "learning", LEARNER.learn, state, rewards, terminated, truncated, after=after
    )
    places = np.where(terminated | truncated, 0, moved).astype(np.int32)
    state, actions = death.within(
        "acting", LEARNER.act, state, seen(places, ITERATIONS + iteration)
    )
    ends = (terminated | truncated).sum()
    row = [float(info.entropy.mean()), float(info.rates.mean()), int(ends)]
    return (state, places, actions), row


class InPieces:
    """A file that is written piece by piece, and may be left so."""

    def __init__(self, file, death):
        self.file, self.death = file, death

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        size = max(1, len(content) // 4)
        for start in range(0, len(content), size):
            self.file.write(content[start : start + size])
            self.file.flush()
            if self.death.has_come("writing"):
                os.kill(os.getpid(), signal.SIGKILL)


def main(folder, *when):
    death = Death(*(of(x) for of, x in zip((str, int, float), when, strict=False)))

    def opened(path, mode):
        file = builtins.open(path, mode)  # noqa: SIM115
        return InPieces(file, death) if mode in ("ab", "wb") else file

    vars(files)["open"] = opened
    path, carried, rows = folder / "checkpoint.eprop", initial(), []
    folder.mkdir(exist_ok=True)
    if path.exists():
        carried, rows = checkpoints.load(path, carried)
    for iteration in range(len(rows) + 1, ITERATIONS + 1):
        carried, row = step(carried, iteration, death)
        rows = [*rows, row]
        if iteration % 2 == 0:
            checkpoints.save(path, carried, rows)


if __name__ == "__main__":
    with eprop.compiled.without_kernels():  # which no cache keeps from one process to the next
        main(Path(sys.argv[1]), *sys.argv[2:])
