"""Gradients over and over, from four threads on four devices at once: see `test_soak.py`.

Prints the process's memory after a tenth of the calls and after all, and how many were wrong.
"""

import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

import eprop
from eprop.compiled import programs

N_THREADS = 4


def main(n_calls: int) -> None:
    devices = jax.devices()
    assert len(devices) == N_THREADS
    key = jax.random.key(0)
    network = eprop.Network(eprop.ALIF(12, v_th=0.2), n_in=6, n_out=2, key=key)
    assert not isinstance(programs(network.layers[0]), str)
    inputs = jax.random.bernoulli(key, 0.5, (9, 3, 6))

    def loss(trajectory, targets):
        return jnp.mean((trajectory.outputs - targets) ** 2)

    @jax.jit
    def gradients(network, targets):
        of_whole = eprop.value_and_grad(loss, eprop.EProp())(network, inputs, targets)
        of_windows = eprop.value_and_grad(loss, eprop.EProp(window=4))(network, inputs, targets)
        return of_whole, of_windows

    @jax.jit
    def is_same(network, targets, expected):
        pairs = zip(*map(jax.tree.leaves, (gradients(network, targets), expected)), strict=True)
        return jnp.stack([jnp.array_equal(x, y) for x, y in pairs]).all()

    def put_on(device):
        """A problem of its own for each device."""
        targets = jnp.full((9, 3, 2), float(device.id))
        expected = gradients(network, targets)
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(expected))
        return jax.device_put((network, targets, expected), device)

    problems = [put_on(device) for device in devices]
    wrong = [0] * N_THREADS

    def ask(i: int, n: int) -> None:
        wrong[i] += sum(not is_same(*problems[i]) for _ in range(n))

    def ask_all(n: int) -> None:
        threads = [threading.Thread(target=ask, args=(i, n // N_THREADS)) for i in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ask_all(n_calls // 10)
    before = resident()
    ask_all(n_calls - n_calls // 10)
    targets, (_, of_windows) = problems[0][1:]
    others = gradients(network, targets + 1)[0], of_windows
    assert not is_same(network, targets, others)  # a wrong number would be seen
    print(before, resident(), sum(wrong))


def resident() -> int:
    """Bytes of memory that the process holds."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(int(sys.argv[1]))
