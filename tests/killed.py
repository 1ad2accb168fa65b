"""A small training by `fit`, for `test_kill` to kill: `python killed.py FOLDER slow|fast`.

If slow, files are written in small pieces, and wait before they take their name, so that many of
the moments at which the process can be killed lie within a write.
"""

import builtins
import os
import sys
import time
from pathlib import Path

import jax
import optax

import eprop
from eprop import files

ITERATIONS = 600
NETWORK = eprop.Network(
    eprop.ALIF(6, v_th=0.3, beta=0.1), n_in=5, n_out=2, tau_out=5.0, key=jax.random.key(0)
)
FEEDBACK = eprop.AdaptiveFeedback(jax.random.normal(jax.random.key(1), (6, 2)))
OPTIMIZER = optax.adam(1e-2)


def initial():
    return eprop.init_training(NETWORK, eprop.EProp(FEEDBACK), OPTIMIZER)


@jax.jit
def batch(iteration):
    inputs, targets = jax.random.split(jax.random.fold_in(jax.random.key(2), iteration))
    return jax.random.bernoulli(inputs, 0.3, (12, 4, 5)), jax.random.normal(targets, (12, 4, 2))


def loss(trajectory, targets):
    info = {"rate": trajectory.spikes.mean()}
    return eprop.losses.mean_squared_error(trajectory.outputs, targets), info


class InPieces:
    """A file that is written slowly."""

    def __init__(self, file):
        self.file = file

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
            time.sleep(0.002)


def slowly_opened(path, mode):
    file = builtins.open(path, mode)  # noqa: SIM115
    return InPieces(file) if mode in ("ab", "wb") else file


def slowly_replaced(*paths, replace=os.replace):
    time.sleep(0.005)
    replace(*paths)


def main(folder, speed):
    if speed == "slow":
        vars(files)["open"] = slowly_opened
        os.replace = slowly_replaced
    eprop.fit(
        eprop.training_step(loss, OPTIMIZER, has_aux=True),
        initial(),
        batch,
        iterations=ITERATIONS,
        evaluate=lambda state, _: {"size": abs(state.network.w_rec).max()},
        evaluate_every=3,
        folder=folder,
        config={"seed": 0},
        save_every=2,
        progress=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
