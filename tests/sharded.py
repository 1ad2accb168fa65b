"""Gradients and trainings on several devices or processes, for `test_sharding`.

    python sharded.py devices FOLDER                    meshes of 2 and 4 of a process's devices
    python sharded.py process FOLDER PORT I RUN ...     process I of two, `in_process`

Numbers are left in FOLDER.
"""

import functools
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
from eprop.compiled import without_kernels
from experiments.benchmarks import travelling

N_STEPS, BATCH, N_IN, N, N_OUT = 24, 8, 6, 32, 2
WINDOW, ITERATIONS, SAVE_EVERY = 8, 6, 2
CASES = {  # whether the recurrent synapses are sparse; the rule
    "dense, reverse": (False, "reverse"),
    "dense, windows": (False, "windows"),
    "sparse, windows, random feedback": (True, "random feedback"),
    "sparse, windows on XLA": (True, "windows on XLA"),
    "sparse, bptt": (True, "bptt"),
}
OF_PARTS = ["dense, reverse", "dense, windows", "sparse, bptt"]
"""Whose neurons are divided, so that they run on XLA."""
MESHES = {  # shape, names, and what is found on it
    "2 shares": ((2,), ("batch",), list(CASES)),
    "4 shares": ((4,), ("batch",), ["dense, reverse"]),
    "2 parts": ((2,), ("neurons",), OF_PARTS),
    "4 parts": ((4,), ("neurons",), ["dense, reverse"]),
    "2 shares, 2 parts": ((2, 2), ("batch", "neurons"), []),
}
ONLINE = ("2 shares", "2 shares, 2 parts")
OF_PROCESSES = {
    "shares of processes": ((2,), ("batch",), ["sparse, windows, random feedback"]),
    "parts of processes": ((2,), ("neurons",), ["dense, reverse"]),
}
SHARES = PartitionSpec(None, "batch")
"""Of the examples, the second axis."""


def make_mesh(shape, names):
    devices = jax.devices()[: np.prod(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


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
    }[name.removesuffix(" on XLA")]
    value_and_grad = eprop.value_and_grad(loss, rule)
    if not name.endswith("on XLA"):
        return jax.jit(value_and_grad)

    def without(*arguments):
        with without_kernels():
            return value_and_grad(*arguments)

    return jax.jit(without)


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
    """All cases on their meshes."""
    counts = {}
    for place, (shape, names, cases) in MESHES.items():
        mesh = make_mesh(shape, names)
        sharding = NamedSharding(mesh, SHARES if "batch" in names else PartitionSpec())
        with jax.set_mesh(mesh):
            batch = jax.device_put(data(), sharding)
            for name in cases:
                counts[f"{name}, {place}"] = find(folder, place, name, batch)
            if place in ONLINE:
                counts |= online(folder, place, batch)
    program = gradient("windows").lower(make_network(sparse=False), *on_two_shares(0)).compile()
    counts["windows, left to XLA"] = travelling(program)
    with jax.set_mesh(make_mesh((2,), ("batch",))):
        train(folder / "fit", on_two_shares, iterations=4)
    (folder / "counts.json").write_text(json.dumps(counts))
    (folder / "errors.json").write_text(json.dumps(errors_of_meshes()))


def find(folder, place, name, batch):
    """Leaves a case's gradient; what travels in its program."""
    sparse, rule = CASES[name]
    arguments = (make_network(sparse=sparse), *batch)
    program = gradient(rule).lower(*arguments).compile()
    found = program(*jax.device_put(arguments, program.input_shardings[0]))
    np.savez(folder / f"{name}, {place}.npz", **numbers(found))
    return travelling(program)


def online(folder, place, batch):
    """Leaves a learner's state after two chunks, between which it is saved and read again."""
    learns = learner(make_network(sparse=False))
    state, _ = learns.run(learns.init(BATCH), batch)
    eprop.checkpoints.save(folder / f"online, {place}.eprop", state)
    state, _ = eprop.checkpoints.load(folder / f"online, {place}.eprop", like=state)
    (traces,) = state.progress.traces.layers[0].synapses["dense"]
    state, _ = learns.run(state, batch)
    np.savez(folder / f"online, {place}.npz", **numbers(state))
    run = jax.jit(functools.partial(eprop.stepping.run, learns))
    program = run.lower(state, (*batch, None)).compile()
    return {
        f"online, {place}": travelling(program),
        f"traces, {place}": traces.filtered.addressable_shards[0].data.shape,
    }


def on_two_shares(iteration):
    return jax.device_put(data(iteration), NamedSharding(make_mesh((2,), ("batch",)), SHARES))


def errors_of_meshes():
    network, (inputs, targets) = make_network(sparse=True), data()
    six = inputs[:, :6], targets[:, :6]
    learns = learner(network)
    with jax.set_mesh(make_mesh((4,), ("batch",))):
        errors = {
            "gradient": said(lambda: gradient("reverse")(network, *six)),
            "online": said(lambda: learns.run(learns.init(6), six)),
            "run": said(lambda: network(six[0])),
        }
    with jax.set_mesh(make_mesh((4,), ("neurons",))):
        twenty = eprop.Network(eprop.LIF(20), n_in=N_IN, n_out=1, key=jax.random.key(0))
        errors["bytes"] = said(lambda: twenty(inputs))
    with jax.set_mesh(make_mesh((3,), ("neurons",))):
        errors["parts"] = said(lambda: network(inputs))
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
    mesh = make_mesh((2,), ("batch",))

    def share(iteration):
        half = slice(BATCH // 2 * index, BATCH // 2 * (index + 1))
        return tuple(x[:, half] for x in data(iteration))

    def shared(iteration):
        sharding = NamedSharding(mesh, SHARES)
        x, y = share(iteration)
        return tuple(jax.make_array_from_process_local_data(sharding, x) for x in (x, y))

    if "gradients" in runs:
        for place, (shape, names, cases) in OF_PROCESSES.items():
            with jax.set_mesh(make_mesh(shape, names)):
                batch = shared(0) if "batch" in names else data()
                for name in cases:
                    sparse, rule = CASES[name]
                    found = gradient(rule)(make_network(sparse=sparse), *batch)
                    np.savez(folder / f"{name}, {place}, {index}.npz", **numbers(found))
        with jax.set_mesh(mesh):
            learns = learner(make_network(sparse=False))
            state, _ = learns.run(learns.init(BATCH), shared(0))
            eprop.checkpoints.save(folder / "online.eprop", state)
            processes.told_by_all("it is there")
            state, _ = eprop.checkpoints.load(folder / "online.eprop", like=state)
            state, _ = learns.run(state, shared(0))
            np.savez(folder / f"online, process {index}.npz", **numbers(state))
    with jax.set_mesh(mesh):
        if "whole" in runs:
            _, rows = train(folder / "whole", shared)
            (folder / f"whole {index}.json").write_text(json.dumps(rows))
        if "errors" in runs:
            errors = errors_in_process(folder, index, share, shared)
            (folder / f"errors {index}.json").write_text(json.dumps(errors))
        if "killed" in runs:
            train(folder / "torn", shared, callbacks=[partial(kill, index)])
        if "rerun" in runs:
            train(folder / "torn", shared)


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
