"""Sparse networks that rewire while they learn: DEEP R, after each update."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from .network import Network
from .synapses import Sparse
from .training import TrainState
from .weights import random_key


def rewire(state: TrainState, before: TrainState, key: PRNGKeyArray) -> TrainState:
    """DEEP R: each synapse of a `Sparse` that has crossed zero goes, another comes in its place.

        >>> import eprop, jax, jax.numpy as jnp, optax
        >>> key = jax.random.key(0)
        >>> w_rec = eprop.Sparse.random(30, 30, fan_in=3, autapses=False, key=key)
        >>> network = eprop.Network(eprop.LIF(30, v_th=0.2), n_in=5, n_out=1, w_rec=w_rec, key=key)
        >>> loss = lambda trajectory, y: eprop.losses.mean_squared_error(trajectory.outputs, y)
        >>> train = eprop.training_step(loss, optax.sgd(1.0))
        >>> @jax.jit
        ... def step(state, batch):
        ...     after, info = train(state, batch)
        ...     return eprop.rewire(after, state, key), info
        >>> before = eprop.init_training(network, eprop.EProp(), optax.sgd(1.0))
        >>> inputs = jax.random.bernoulli(key, 0.5, (20, 2, 5))
        >>> after, _ = step(before, (inputs, jnp.ones((20, 2, 1))))
        >>> indices = [state.network.layers[0].recurrent.indices for state in (before, after)]
        >>> int((indices[0] != indices[1]).sum()) > 0, indices[1].shape
        (True, (30, 3))

    A pure function, for the `step` of `fit`. It is `Sparse.rewired` for the synapses of all
    layers, from below and recurrent, and the optimiser's moments of a new synapse are zero.

    **Arguments:**

    - `state`: after the update.
    - `before`: before it.
    - `key`: random key; others are drawn from it at each iteration.

    Raises `TypeError` for something else than a `TrainState`, such as the state of an
    `OnlineLearner`, whose eligibility traces are those of the synapses that it began with; and
    `ValueError` for a network without `Sparse` synapses. Compiled, too, it raises where the two
    states are swapped, for that would undo the update.
    """
    for name, given in {"state": state, "before": before}.items():
        if not isinstance(given, TrainState):
            raise TypeError(
                f"{name} is a {type(given).__name__}, but must be a TrainState of init_training "
                f"and training_step: synapses are rewired between sequences, for eligibility "
                f"traces that are carried on are those of the synapses that were there"
            )
    iteration = eqx.error_if(
        state.iteration,
        state.iteration < before.iteration,
        "`state` has done fewer updates than `before`: write rewire(after, before, key)",
    )
    network, optimizer = state.network, state.optimizer
    key, n_rewired = jax.random.fold_in(random_key(key), iteration), 0
    for i, layer in enumerate(network.layers):
        for kind, synapses in layer.kinds.items():
            if isinstance(synapses, Sparse):
                of_kind = functools.partial(_synapses, layer=i, kind=kind)
                key_now, n_rewired = jax.random.fold_in(key, n_rewired), n_rewired + 1
                rewired, new = synapses.rewired(of_kind(before.network), key_now)
                network = eqx.tree_at(of_kind, network, rewired)
                optimizer = _forgotten(optimizer, f".layers[{i}].{kind}.weights", new)
    if not n_rewired:
        raise ValueError(
            "no layer has Sparse synapses, so there are none to rewire: write "
            "w_rec=Sparse.random(n, n, fan_in=10, autapses=False, key=key)"
        )
    return state._replace(network=network, optimizer=optimizer)


def _synapses(network: Network, layer: int, kind: str) -> Any:
    return getattr(network.layers[layer], kind)


def _forgotten(optimizer: Any, weights: str, new: Bool[Array, "n_post fan_in"]) -> Any:
    """The optimiser's state with zeros for the new ones of `weights`, a path in the network.

    What an optimiser keeps of each weight, it keeps as another network.
    """

    def of_leaf(path: Any, x: Any) -> Any:
        if not jax.tree_util.keystr(path).endswith(weights) or jnp.shape(x) != new.shape:
            return x
        return jnp.where(new, jnp.zeros((), x.dtype), x)

    return jax.tree_util.tree_map_with_path(of_leaf, optimizer)
