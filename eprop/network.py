"""Layers one after another, and a leaky readout."""

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Shaped

from . import checkpoints, checks
from .cells import AbstractCell
from .layer import Layer
from .readout import Readout
from .response import Kept, plain_run
from .synapses import Dense, Sparse
from .trajectory import NetworkState, Trajectory, only
from .weights import Initializer, added, random_key


class AbstractRule(eqx.Module):
    """How a network's run is differentiated: what reverse-mode differentiation of it gives."""

    @abstractmethod
    def run(
        self,
        network: "Network",
        start: NetworkState | None,
        inputs: Shaped[Array, "time batch n_in"],
        kept: Kept,
    ) -> tuple[NetworkState, Trajectory]:
        """The network's run from `start`, `None` for rest."""

    @abstractmethod
    def after_update(self, network: "Network", updates: Any) -> tuple["Network", "AbstractRule"]:
        """The network and the rule after the optimiser's `updates`."""


class BPTT(AbstractRule):
    """Backpropagation through time: plain reverse-mode differentiation; the reference.

    With `stop_z_gradients=True` the gradient of z is stopped wherever it passes from one neuron to
    another, in the recurrent current, the reset, and from layer to layer: e-prop with symmetric
    feedback, by autodiff.

        >>> import eprop, jax
        >>> network = eprop.Network(eprop.LIF(9, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(0))
        >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (20, 2, 5))
        >>> def gradient(rule):
        ...     total = lambda network: (network(inputs, rule).outputs ** 2).sum()
        ...     return jax.jit(jax.grad(total))(network).w_rec
        >>> plain, stopped = (gradient(eprop.BPTT(stop)) for stop in (False, True))
        >>> bool(jax.numpy.allclose(stopped, gradient(eprop.EProp()), rtol=1e-3))
        True
        >>> bool(jax.numpy.allclose(stopped, plain, rtol=1e-3))
        False
    """

    stop_z_gradients: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        checks.switch("stop_z_gradients", self.stop_z_gradients)

    def run(self, network, start, inputs, kept):
        start = network.init(inputs.shape[1]) if start is None else start
        return plain_run(network, start, inputs, kept, self.stop_z_gradients)

    def after_update(self, network, updates):
        return added(network, updates), self


class Network(eqx.Module):
    """Recurrent layers of neurons, one after another, with a leaky readout.

        I_t = x_{t-d} W_in + z_{t-1-d} W_rec            d = 0, or a delay of each presynaptic neuron
        s_t, z_t: the cell's
        y_t = κ y_{t-1} + g z_t W_out + bias            κ = exp(-dt/τ_out); g = 1, or 1 - κ

    For a further layer x_t are the spikes of the layer below in the same step. Weights are
    `[pre, post]`.

        >>> import eprop, jax
        >>> key = jax.random.key(0)
        >>> network = eprop.Network(eprop.LIF(30, v_th=0.2), n_in=10, n_out=2, key=key)
        >>> inputs = jax.random.bernoulli(key, 0.2, (50, 4, 10))  # [time, batch, n_in]
        >>> trajectory = network(inputs)
        >>> trajectory.outputs.shape, trajectory.spikes.shape
        ((50, 4, 2), (50, 4, 30))
    """

    layers: tuple[Layer, ...]
    """From the first to the last; of a network of one layer, that one."""
    readout: Readout
    """Leaky sums of what the neurons send."""

    def __init__(
        self,
        cell: AbstractCell | Sequence[AbstractCell] | Sequence[Layer],
        *,
        n_out: int,
        tau_out: float | None = 20.0,
        w_out: ArrayLike | Initializer = jax.nn.initializers.glorot_uniform(),  # noqa: B008
        readout_bias: ArrayLike | Initializer | None = None,
        readout_of: Literal["last", "all"] = "last",
        scale_readout: bool = False,
        key: PRNGKeyArray | None = None,
        **of_layer: Any,
    ):
        """**Arguments:**

        - `cell`: the recurrent neurons of a network of one layer: a cell, or several, populations
          side by side. Or the layers, from the first to the last: `[Layer(...), Layer(...)]`, each
          with the neurons of the one below as its `n_in`.
        - `n_out`: number of readouts.
        - `tau_out`: time constant of the readout τ_out in ms; `None` for a readout without leak.
        - `w_out`: weights `[n_seen, n_out]`, an array or an initializer of `jax.nn.initializers`.
          Glorot-uniform by default, as in the paper.
        - `readout_bias`: an array `[n_out]` or an initializer; `None` for no bias.
        - `readout_of`: whether the readout sees the "last" layer or "all", and so n_seen.
        - `scale_readout`: whether spikes enter the readout with gain g = 1 - κ (else g = 1).
        - `key`: random key for the initializers; not needed if every weight is an array.
        - `of_layer`: of a network of one layer, what `Layer` takes: `n_in`, `w_in`, `w_rec`,
          `bias`, `autapses`, `delay_in`, `delay_rec`, `delay_line`, `dropout`.

        Raises `ValueError` or `TypeError` for a weight of another shape, of an integer dtype, or
        not finite, and for layers that don't fit each other.
        """
        cells: Any = cell
        if isinstance(cells, list | tuple) and any(isinstance(x, Layer) for x in cells):
            if of_layer:
                names = ", ".join(of_layer)
                raise TypeError(f"{names}: give this to the layers, Layer(cell, {names}=...)")
            self.layers = _stacked(cells)
        else:
            self.layers = (Layer(cells, key=key, **of_layer),)
        if readout_of not in ("last", "all"):
            raise ValueError(f'readout_of = {readout_of!r} must be "last" or "all"')
        seen = self.layers if readout_of == "all" else self.layers[-1:]
        self.readout = Readout(
            sum(layer.n for layer in seen),
            checks.positive_int("n_out", n_out),
            weights=w_out,
            bias=readout_bias,
            tau=tau_out,
            scale=scale_readout,
            dt=self.layers[0].neurons.dt,
            key=key,
        )

    # The one-layer form's names. Of any type: gradients are a network too, with `None` for what is
    # not trained.

    @property
    def cell(self) -> AbstractCell:
        """The neurons of a network of one population."""
        layer = only(self.layers, "layers", "network.layers[0].neurons.cells")
        return only(layer.neurons.cells, "populations", "network.layers[0].neurons.cells[0]")

    @property
    def w_in(self) -> Any:
        """The weights of the inputs of a network of one layer, `[n_in, n_post]` if dense."""
        return only(self.layers, "layers", "network.layers[0].below.weights").below.weights

    @property
    def w_rec(self) -> Any:
        """The recurrent weights of a network of one layer, `[n, n_post]` if dense."""
        layer = only(self.layers, "layers", "network.layers[0].recurrent.weights")
        if layer.recurrent is None:
            raise AttributeError("this network has no recurrent synapses")
        return layer.recurrent.weights

    @property
    def w_out(self) -> Any:
        """The weights of the readout, `[n_seen, n_out]`."""
        return self.readout.weights

    @property
    def readout_bias(self) -> Any:
        """The bias of the readout, `[n_out]`, or `None`."""
        return self.readout.bias

    @property
    def n_in(self) -> int:
        """Number of inputs."""
        return self.layers[0].n_in

    @property
    def n(self) -> int:
        """Number of neurons, of all layers."""
        return sum(layer.n for layer in self.layers)

    @property
    def n_out(self) -> int:
        """Number of readouts."""
        return self.readout.n_out

    @property
    def dt(self) -> float:
        """Length of a time step in ms."""
        return self.readout.dt

    @property
    def kappa(self) -> float:
        """κ, the fraction of the readout that is left after one step."""
        return self.readout.kappa

    @property
    def readout_gain(self) -> float:
        """g, with which a spike enters the readout."""
        return self.readout.gain

    @property
    def dtype(self) -> Any:
        """Of weights and states."""
        return self.layers[0].dtype

    # Running.

    def __call__(
        self,
        inputs: ArrayLike,
        rule: AbstractRule = BPTT(),  # noqa: B008 (immutable)
        *,
        key: PRNGKeyArray | None = None,
    ) -> Trajectory:
        """The network's response to `inputs` `[time, batch, n_in]`, from rest.

        **Arguments:**

        - `inputs`: booleans, integers or numbers of the weights' dtype.
        - `rule`: how the run is differentiated, where it is: it changes no number of the response.
          By `BPTT()` reverse-mode differentiation is what it always is. By `EProp(...)` it gives
          the network's weights their e-prop gradient, what comes after the network its exact one,
          and what comes before it r_t W_inᵀ, with e-prop's r_t = dE/dI_t of the first layer.
        - `key`: for dropout; without it nothing is dropped.

        Raises `ValueError` or `TypeError` for inputs or weights that don't fit.
        """
        network, inputs = self.checked(inputs)
        checks.instance("rule", rule, AbstractRule, "EProp() or BPTT()")
        kept = None if key is None else network.draw_dropout(random_key(key), inputs.shape)
        return rule.run(network, None, inputs, kept)[1]

    def run(
        self,
        state: NetworkState,
        inputs: ArrayLike,
        rule: AbstractRule = BPTT(),  # noqa: B008 (immutable)
    ) -> tuple[NetworkState, Trajectory]:
        """Continues from a state: the state after `inputs`, and what happened.

            state = network.init(batch=1)
            state, trajectory = network.run(state, x_t[None])   # one step, `[1, batch, n_in]`

        A sequence in chunks, or step by step, gives what it gives at once. Gradients pass from
        one chunk to the one before by whatever the rule lets through.
        """
        network, inputs = self.checked(inputs)
        checks.instance("state", state, NetworkState, "network.init(batch)")
        checks.instance("rule", rule, AbstractRule, "EProp() or BPTT()")
        batch = state.outputs.shape[0]
        if batch != inputs.shape[1]:
            raise ValueError(
                f"inputs are of {inputs.shape[1]} examples, but the state is of {batch}: "
                f"write network.init({inputs.shape[1]})"
            )
        expected = jax.eval_shape(lambda: self.init(batch))
        if not _alike(state, expected):
            raise ValueError(
                f"the state is of another network: "
                f"{checkpoints.differences(state, self.init(batch)) or 'its structure differs'}. "
                f"Write network.init({batch}), or go on from what run returned"
            )
        return rule.run(network, state, inputs, None)

    def init(self, batch: int) -> NetworkState:
        """The network at rest, in the dtype of its weights."""
        batch = checks.positive_int("batch", batch)
        layers = tuple(layer.init(batch) for layer in self.layers)
        return NetworkState(layers, jnp.zeros((batch, self.n_out), self.dtype))

    def checked(self, inputs: ArrayLike) -> tuple["Network", Array]:
        """The network, and `inputs` as an array; an error that says what to write instead if not.

        Use the network that is returned: where weights are traced, it holds the error.
        """
        inputs = self.fitting(inputs)
        zero = checks.all_finite(self.floats(inputs), guarded=jnp.zeros((), self.dtype))
        return eqx.tree_at(lambda net: net.readout.weights, self, self.w_out + zero), inputs

    def fitting(self, inputs: ArrayLike) -> Array:
        """`inputs` as an array; an error if they or the weights are not what is needed.

        Their values are not looked at.
        """
        weights = {
            f".layers[{i}].{kind}.weights": synapses.weights
            for i, layer in enumerate(self.layers)
            for kind, synapses in layer.kinds.items()
        }
        for path, array in {**weights, ".w_out": self.w_out}.items():
            if not hasattr(array, "shape"):
                raise TypeError(
                    f"{self._name(path)} = {array!r:.80} is no array of weights, so this network "
                    f"can't be run. (Optax calls all that can be called: give it a network of "
                    f"labels by a function, lambda _: labels)"
                )
        inputs = checks.sequence("inputs", inputs, self.n_in, self.dtype)
        for i, layer in enumerate(self.layers):
            n_in = self.n_in if i == 0 else self.layers[i - 1].n
            n_pre = {"below": n_in, "recurrent": layer.n, "bias": 1}
            for kind, synapses in layer.kinds.items():
                self._check_synapses(f".layers[{i}].{kind}", synapses, n_pre[kind], layer)
        n_seen = [self.layers[-1].n, self.n]
        if len(self.w_out) not in n_seen or self.w_out.ndim != 2:
            raise ValueError(
                f"network.w_out has shape {self.w_out.shape}, but {(n_seen[0], self.n_out)} is "
                f"needed here"
            )
        if self.readout_bias is not None:
            checks.float_array("network.readout_bias", self.readout_bias, (self.n_out,))
        for name, array in self.floats().items():
            checks.float_array(name, array, array.shape, self.dtype)
        return inputs

    def floats(self, inputs: Array | None = None) -> dict[str, Any]:
        """What must be finite, by the names that a user knows: inputs, weights, constants."""
        floats = {} if inputs is None else {"inputs": inputs}
        for path, array in jax.tree_util.tree_leaves_with_path(self.layers):
            if eqx.is_inexact_array(array):
                floats[self._name(f".layers{jax.tree_util.keystr(path)}")] = array
        floats["network.w_out"] = self.w_out
        if self.readout_bias is not None:
            floats["network.readout_bias"] = self.readout_bias
        return floats

    def _name(self, path: str) -> str:
        """What a user calls a leaf: `network.w_in`, if there is one layer."""
        if len(self.layers) == 1:
            path = path.replace(".layers[0].below.weights", ".w_in")
            path = path.replace(".layers[0].recurrent.weights", ".w_rec")
        return f"network{path}"

    def _check_synapses(self, path: str, synapses: Any, n_pre: int, layer: Layer) -> None:
        """They may have been replaced, by `equinox.tree_at`, say."""
        name, n_post = self._name(f"{path}.weights"), layer.neurons.n_post
        shape = jnp.shape(synapses.weights)
        if isinstance(synapses, Sparse):
            shape = jnp.shape(synapses.indices)
        elif isinstance(synapses, Dense) and len(shape) != 2:
            shape = (n_pre, n_post)
        checks.float_array(name, synapses.weights, shape)
        if (synapses.n_pre, synapses.n_post) != (n_pre, n_post):
            raise ValueError(
                f"{name} has shape {synapses.weights.shape} and leads from {synapses.n_pre} "
                f"neurons to {synapses.n_post} currents, but {(n_pre, n_post)} is needed here"
            )

    def draw_dropout(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Kept:
        """What dropout leaves of a sequence of `shape`, `[time, batch, n_in]`."""

        def kept(i, layer):
            if layer.dropout is None:
                return None
            return layer.dropout.draw(jax.random.fold_in(key, i), (*shape[:2], layer.n_in))

        return tuple(kept(i, layer) for i, layer in enumerate(self.layers))

    def received(self, index: int, below: Array, kept: Kept) -> Array:
        """What a layer receives of the activity below it: all of it, or what dropout leaves."""
        dropout, mask = self.layers[index].dropout, None if kept is None else kept[index]
        if dropout is None or mask is None:
            return below
        return dropout.apply(below, mask, self.dtype)

    def readout_weights(self) -> Sequence[Float[Array, "n n_out"] | None]:
        """W_out of each layer, `None` for those that the readout doesn't see."""
        if len(self.readout.weights) == self.n:
            return by_layer(self, self.readout.weights)
        return [None] * (len(self.layers) - 1) + [self.readout.weights]


def _alike(state: NetworkState, expected: Any) -> bool:
    """Whether they have the same structure, shapes and dtypes."""

    def kind(x):
        return jnp.shape(x), jnp.result_type(x)

    leaves, structure = jax.tree.flatten(state)
    others, of_others = jax.tree.flatten(expected)
    return structure == of_others and list(map(kind, leaves)) == list(map(kind, others))


def by_layer(network: Network, of_neurons: Shaped[Array, "n *more"]) -> list[Array]:
    """Rows for all neurons, cut into the layers' shares."""
    shares, begin = [], 0
    for layer in network.layers:
        shares.append(of_neurons[begin : begin + layer.n])
        begin += layer.n
    return shares


def _stacked(layers: Sequence[Any]) -> tuple[Layer, ...]:
    for layer in layers:
        checks.instance("layers", layer, Layer, "Layer(cell, n_in=...)")
    for i, (below, layer) in enumerate(itertools.pairwise(layers), start=1):
        if layer.n_in != below.n:
            raise ValueError(
                f"layers[{i}] takes {layer.n_in} inputs, but the layer below it has {below.n} "
                f"neurons: write Layer(..., n_in={below.n})"
            )
        if layer.neurons.dt != below.neurons.dt or layer.dtype != below.dtype:
            raise ValueError(
                f"layers[{i}] has dt = {layer.neurons.dt} ms and dtype {layer.dtype}, the layer "
                f"below it {below.neurons.dt} ms and {below.dtype}: give all layers one"
            )
    return tuple(layers)
