"""Gradients and trainings on several devices or processes, for `test_sharding`.

    python sharded.py devices FOLDER                    meshes of 2 and 4 of a process's devices
    python sharded.py process FOLDER PORT I RUN ...     process I of two, `in_process`

Numbers are left in FOLDER.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eprop
from eprop import processes
from experiments.benchmarks import travelling

N_STEPS, BATCH, N_IN, N, N_OUT = 24, 8, 6, 10, 2
WINDOW, ITERATIONS, SAVE_EVERY = 8, 6, 2
CASES = {  # whether the recurrent synapses are sparse, so that the layer runs on XLA; the rule
    "compiled, reverse": (False, "reverse"),
    "compiled, windows": (False, "windows"),
    "on XLA, windows, random feedback": (True, "random feedback"),
    "bptt": (True, "bptt"),
}


SHARES = PartitionSpec(None, "batch")
"""Of the examples, the second axis."""


def mesh(n):
    return jax.make_mesh((n,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])


def make_network(*, sparse, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    w_rec = {"w_rec": eprop.Sparse.random(N, N, 4, key=keys[1])} if sparse else {}
    cell = eprop.ALIF(N, v_th=0.3, beta=0.1)
    network = eprop.Network(cell, n_in=N_IN, n_out=N_OUT, key=keys[0], **w_rec)
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, network)


def data(iteration=0):
    inputs, targets = jax.random.split(jax.random.fold_in(jax.random.key(1), iteration))
    inputs = jax.random.bernoulli(inputs, 0.3, (N_STEPS, BATCH, N_IN))
    return np.asarray(inputs), np.asarray(jax.random.normal(targets, (N_STEPS, BATCH, N_OUT)))


def loss(trajectory, targets):
    """Of outputs, spikes and states."""
    error = eprop.losses.mean_squared_error(trajectory.outputs, targets)
    return error + trajectory.spikes.mean() + 0.1 * (trajectory.states.v**2).mean()


def of_step(trajectory, targets):
    """A sum over time, a mean over the examples."""
    return jnp.sum((trajectory.outputs - targets) ** 2) / BATCH


def learner(network):
    return eprop.OnlineLearner(
        network,
        of_step,
        eprop.EProp(),
        optax.sgd(1e-2),
        update_every=WINDOW,
        rate_penalty=eprop.RatePenalty(20.0, 0.1),
    )


def gradient(name):
    rule = {
        "reverse": eprop.EProp(),
        "windows": eprop.EProp(window=WINDOW),
        "random feedback": eprop.EProp(
            eprop.RandomFeedback(jnp.linspace(-1, 1, N * N_OUT).reshape(N, N_OUT)), WINDOW
        ),
        "bptt": eprop.BPTT(),
    }[name]
    return jax.jit(eprop.value_and_grad(loss, rule))


def train(folder, batches, *, iterations=ITERATIONS, seed=0, rate=1e-2, **more):
    """A training by `fit`."""
    network = make_network(sparse=True, seed=seed)
    optimizer = optax.adam(rate)
    return eprop.fit(
        eprop.training_step(of_step, optimizer),
        eprop.init_training(network, eprop.EProp(), optimizer),
        batches,
        iterations=iterations,
        evaluate=lambda state, _: {"size": abs(state.network.w_rec).max()},
        evaluate_every=2,
        folder=folder,
        config={"rate": rate},
        save_every=SAVE_EVERY,
        progress=False,
        **more,
    )


def numbers(tree):
    """The numbers of a pytree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): processes.whole(x)
        for path, x in leaves
        if jnp.issubdtype(x.dtype, jnp.number)
    }


def on_devices(folder):
    """All cases on meshes of 2 and 4 devices."""
    counts = {}
    for n in (2, 4):
        with jax.set_mesh(mesh(n)):
            sharding = NamedSharding(mesh(n), SHARES)
            batch = jax.device_put(data(), sharding)
            for name, (sparse, rule) in CASES.items():
                program = gradient(rule).lower(make_network(sparse=sparse), *batch).compile()
                counts[f"{name}, {n}"] = travelling(program)
                found = program(make_network(sparse=sparse), *batch)
                np.savez(folder / f"{name}, {n}.npz", **numbers(found))
            online = learner(make_network(sparse=False))
            state, _ = online.run(online.init(BATCH), batch)
            program = eprop.online._run.lower(online, state, (*batch, None)).lowered.compile()
            counts[f"online, {n}"] = travelling(program)
            eprop.checkpoints.save(folder / f"online-{n}.eprop", state)
            state, _ = eprop.checkpoints.load(folder / f"online-{n}.eprop", like=state)
            traces = state.progress.traces.layers[0].spikes
            assert {x.data.shape for x in traces.addressable_shards} == {(BATCH // n, N)}
            state, _ = online.step(state, batch[0][0], batch[1][0])
            np.savez(folder / f"online, {n}.npz", **numbers(state))
            train(folder / f"fit-{n}", partial(on_mesh, sharding), iterations=4)
    program = gradient("windows").lower(make_network(sparse=False), *batch).compile()
    counts["windows, left to XLA"] = travelling(program)
    (folder / "counts.json").write_text(json.dumps(counts))
    (folder / "errors.json").write_text(json.dumps(errors_of_meshes()))


def on_mesh(sharding, iteration):
    return jax.device_put(data(iteration), sharding)


def errors_of_meshes():
    network, (inputs, targets) = make_network(sparse=True), data()
    six = inputs[:, :6], targets[:, :6]
    online = learner(network)
    with jax.set_mesh(mesh(4)):
        errors = {
            "gradient": said(lambda: gradient("reverse")(network, *six)),
            "online": said(lambda: online.run(online.init(6), six)),
            "run": said(lambda: network(six[0])),
        }
    with jax.set_mesh(jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2])):
        return errors | {"explicit": said(lambda: network(inputs))}


def said(call):
    try:
        call()
    except (ValueError, RuntimeError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def in_process(folder, index, runs):
    """What each of two processes does, one after another."""
    together = mesh(jax.device_count())
    sharding = NamedSharding(together, SHARES)

    def share(iteration):
        half = slice(BATCH // 2 * index, BATCH // 2 * (index + 1))
        return tuple(x[:, half] for x in data(iteration))

    def shared(iteration):
        x, y = share(iteration)
        return tuple(jax.make_array_from_process_local_data(sharding, x) for x in (x, y))

    with jax.set_mesh(together):
        for run in runs:
            if run == "gradients":
                gradients_in_process(folder, index, shared(0))
            elif run == "errors":
                errors = errors_in_process(folder, index, share, shared)
                (folder / f"errors {index}.json").write_text(json.dumps(errors))
            elif run == "killed":
                train(folder / "torn", shared, callbacks=[partial(kill, index)])
            else:
                _, rows = train(folder / ("torn" if run == "rerun" else run), shared)
                (folder / f"{run} {index}.json").write_text(json.dumps(rows))


def gradients_in_process(folder, index, batch):
    for name, (sparse, rule) in CASES.items():
        found = gradient(rule)(make_network(sparse=sparse), *batch)
        np.savez(folder / f"{name}, process {index}.npz", **numbers(found))
    online = learner(make_network(sparse=False))
    state, _ = online.run(online.init(BATCH), batch)
    eprop.checkpoints.save(folder / "online.eprop", state)
    processes.told_by_all("it is there")
    state, _ = eprop.checkpoints.load(folder / "online.eprop", like=state)
    state, _ = online.run(state, batch)
    np.savez(folder / f"online, process {index}.npz", **numbers(state))


def kill(index, iteration, state, row):
    if index == 1 and iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def errors_in_process(folder, index, share, shared):
    def fails(iteration):
        if index == 1:
            raise ValueError("the data are gone")
        return shared(iteration)

    def not_finite(iteration):
        inputs, targets = shared(iteration)
        return inputs, targets * jnp.nan

    return {
        "seed": said(lambda: train(folder / "seed", shared, seed=index)),
        "rate": said(lambda: train(folder / "rate", shared, rate=0.1 + index)),
        "share": said(lambda: train(folder / "share", share)),
        "fails": said(lambda: train(folder / "fails", fails)),
        "not finite": said(lambda: train(folder / "not finite", not_finite)),
    }


def main(kind, folder, *more):
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    if kind == "devices":
        on_devices(Path(folder))
        return
    port, index, *runs = more
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"localhost:{port}",
        2,
        int(index),
        heartbeat_timeout_seconds=10,
        shutdown_timeout_seconds=10,
    )
    in_process(Path(folder), int(index), runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
