"""A recurrent layer of neurons between input synapses and a leaky readout."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, Shaped

from . import checks
from .cells import AbstractCell
from .delays import AbstractDelayLine, RotatingBuffer, delayed
from .sequences import in_blocks, leaky_filter, preceding

Initializer = Callable[[PRNGKeyArray, tuple[int, ...], Any], Array]
"""The signature of `jax.nn.initializers`: `(key, shape, dtype) -> array`."""

fan_in_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
"""The paper's synaptic weights: N(0, 1) / sqrt(number of presynaptic neurons)."""


BLOCK_BYTES = 2**20
"""About how large a float array over the steps of a block, the batch and the neurons may be.

Memory, not arithmetic, sets the time of a pass over a sequence. What is needed for some steps only
is computed for a block of them, as one matrix product, in memory that stays in the cache.
"""


class Trajectory(NamedTuple):
    """All that a network did over a sequence; what a loss is a function of."""

    outputs: Float[Array, "time batch n_out"]
    """y_t, the leaky readout."""
    spikes: Float[Array, "time batch n_rec"]
    """z_t."""
    states: Any
    """s_t, the cell's state with a leading time axis on each field."""


class NetworkState(NamedTuple):
    """What one step of a network hands to the next."""

    cell: Any
    """s_t, the cell's state."""
    spikes: Float[Array, "batch n_rec"]
    """z_t."""
    outputs: Float[Array, "batch n_out"]
    """y_t."""
    past: Float[Array, "batch d_max n_pre"] | None
    """What the synapses were given in the last steps, the oldest first; `None` without delays."""


class Unrolled(NamedTuple):
    """A stretch of a network's run."""

    end: NetworkState
    trajectory: Trajectory
    currents: Float[Array, "time batch n_rec"]
    """I_t."""


class Synapses(NamedTuple):
    """Something for each weight matrix that leads to the neurons."""

    w_in: Any
    w_rec: Any


class Network(eqx.Module):
    """A recurrent spiking network with a leaky readout.

        I_t = x_{t-d} W_in + z_{t-1-d} W_rec            d = 0, or a delay of each presynaptic neuron
        s_t, z_t: the cell's
        y_t = κ y_{t-1} + g z_t W_out + bias            κ = exp(-dt/τ_out); g = 1, or 1 - κ

    Weights are `[pre, post]`. There are no autapses: the diagonal of W_rec is structurally zero,
    whatever is stored there, and so is its gradient.
    """

    cell: AbstractCell
    w_in: Float[Array, "n_in n_rec"]
    w_rec: Float[Array, "n_rec n_rec"]
    w_out: Float[Array, "n_rec n_out"]
    readout_bias: Float[Array, " n_out"] | None
    tau_out: float = eqx.field(static=True)
    scale_readout: bool = eqx.field(static=True)
    delay_in: checks.Parameter = eqx.field(static=True)
    delay_rec: checks.Parameter = eqx.field(static=True)
    delay_line: AbstractDelayLine

    def __init__(
        self,
        cell: AbstractCell,
        *,
        n_in: int,
        n_out: int,
        tau_out: float = 20.0,
        w_in: ArrayLike | Initializer = fan_in_normal,
        w_rec: ArrayLike | Initializer = fan_in_normal,
        w_out: ArrayLike | Initializer = jax.nn.initializers.glorot_uniform(),  # noqa: B008
        readout_bias: ArrayLike | Initializer | None = None,
        scale_readout: bool = False,
        delay_in: ArrayLike = 0.0,
        delay_rec: ArrayLike = 0.0,
        delay_line: AbstractDelayLine = RotatingBuffer(),  # noqa: B008 (immutable)
        key: PRNGKeyArray | None = None,
    ):
        """**Arguments:**

        - `cell`: the recurrent neurons.
        - `n_in`, `n_out`: number of inputs and of readouts.
        - `tau_out`: time constant of the readout τ_out in ms.
        - `w_in`, `w_rec`, `w_out`: weights `[n_in, n_rec]`, `[n_rec, n_rec]`, `[n_rec, n_out]`,
          each an array or an initializer of `jax.nn.initializers`. The paper's by default:
          N(0, 1) / sqrt(n_pre), and Glorot-uniform for the readout.
        - `readout_bias`: an array `[n_out]` or an initializer; `None` for no bias.
        - `scale_readout`: whether spikes enter the readout with gain g = 1 - κ (else g = 1).
        - `delay_in`, `delay_rec`: delays of the synapses of W_in and W_rec in ms, multiples of
          dt: one number, or one for each presynaptic neuron. A recurrent spike takes one step
          anyway; its delay comes on top.
        - `delay_line`: how spikes wait, `RotatingBuffer()` or `ConcatenatedBuffer()`: the same
          numbers, the same gradients.
        - `key`: random key for the initializers; not needed if every weight is an array.

        Raises `ValueError` or `TypeError` for a weight of another shape, of an integer dtype, or
        not finite.
        """
        checks.instance("cell", cell, AbstractCell, "LIF(n)")
        n_in, n_out = checks.positive_int("n_in", n_in), checks.positive_int("n_out", n_out)
        shapes = {
            "w_in": (w_in, (n_in, cell.n)),
            "w_rec": (w_rec, (cell.n, cell.n)),
            "w_out": (w_out, (cell.n, n_out)),
        }
        weights = {}
        for i, (name, (weight, shape)) in enumerate(shapes.items()):
            weights[name] = _weight(name, weight, shape, key, i)
        self.cell = cell
        self.w_in, self.w_out = weights["w_in"], weights["w_out"]
        self.w_rec = without_autapses(weights["w_rec"])
        self.readout_bias = (
            None
            if readout_bias is None
            else _weight("readout_bias", readout_bias, (n_out,), key, len(shapes))
        )
        self.tau_out = checks.duration("tau_out", tau_out)
        self.scale_readout = scale_readout
        self.delay_in = checks.delay("delay_in", delay_in, n_in, cell.dt, "inputs")
        self.delay_rec = checks.delay("delay_rec", delay_rec, cell.n, cell.dt, "neurons")
        self.delay_line = checks.instance(
            "delay_line", delay_line, AbstractDelayLine, "RotatingBuffer()"
        )

    @property
    def n_in(self) -> int:
        """Number of inputs."""
        return self.w_in.shape[0]

    @property
    def n_out(self) -> int:
        """Number of readouts."""
        return self.w_out.shape[1]

    @property
    def kappa(self) -> float:
        """κ, by how much the readout decays in one step."""
        return float(np.exp(-self.cell.dt / self.tau_out))

    @property
    def delays(self) -> Int[np.ndarray, " n_pre"] | None:
        """The delay of each presynaptic neuron in steps; `None` if there are none."""
        of_each = [
            np.broadcast_to(delay, n)
            for delay, n in [(self.delay_in, self.n_in), (self.delay_rec, self.cell.n)]
        ]
        delays = np.round(np.concatenate(of_each) / self.cell.dt).astype(int)
        return delays if delays.any() else None

    @property
    def readout_gain(self) -> float:
        """g, with which a spike enters the readout."""
        return float(-np.expm1(-self.cell.dt / self.tau_out)) if self.scale_readout else 1.0

    def __call__(self, inputs: ArrayLike, stop_z_gradients: bool = False) -> Trajectory:
        """The network's response to `inputs` `[time, batch, n_in]`, from rest.

        `inputs` are booleans, integers or of the weights' dtype. With `stop_z_gradients` the
        gradient of z_{t-1} is stopped where it enters the recurrent current and the reset, so
        that reverse-mode differentiation gives e-prop in place of BPTT.
        """
        network, inputs = self.checked(inputs)
        return _respond(network, inputs, stop_z_gradients)

    def checked(self, inputs: ArrayLike) -> tuple["Network", Array]:
        """The network, and `inputs` as an array; an error that says what to write instead if not.

        Use the network that is returned: where weights are traced, it holds the error.
        """
        n, dtype = self.cell.n, self.w_in.dtype
        inputs = checks.sequence("inputs", inputs, self.n_in, dtype)
        shapes = {
            "w_in": (self.n_in, n),
            "w_rec": (n, n),
            "w_out": (n, self.n_out),
            "readout_bias": (self.n_out,),
        }
        weights = {name: getattr(self, name) for name in shapes if getattr(self, name) is not None}
        for name, weight in weights.items():
            checks.float_array(f"network.{name}", weight, shapes[name], dtype)
        arrays = {"inputs": inputs, **{f"network.{name}": x for name, x in weights.items()}}
        w_in = checks.all_finite(arrays, guarded=self.w_in)
        return eqx.tree_at(lambda net: net.w_in, self, w_in), inputs

    def init(self, batch: int) -> NetworkState:
        """The network at rest, in the dtype of its weights."""
        dtype = self.w_in.dtype
        state = jax.tree.map(
            lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, self.cell.init(batch)
        )
        delays, n = self.delays, self.cell.n
        return NetworkState(
            state,
            spikes=jnp.zeros((batch, n), dtype),
            outputs=jnp.zeros((batch, self.n_out), dtype),
            past=None if delays is None else jnp.zeros((batch, delays.max(), len(delays)), dtype),
        )

    def block_length(self, n_steps: int, batch: int) -> int:
        """How many steps to work on at a time, for their arrays to fit into the cache.

        The arrays are no smaller than the synapses' gradient, which each block is added to, and
        the steps about as many as the longest delay's, whose history each block begins with. A
        divisor of `n_steps`, and if those that fit are far too short the next longer one.
        """
        longest = 1 if self.delays is None else int(self.delays.max())
        itemsize = self.w_in.dtype.itemsize
        synapses_bytes = (self.n_in + self.cell.n) * self.cell.n * itemsize
        fitting = max(BLOCK_BYTES, synapses_bytes) // (batch * self.cell.n * itemsize)
        fitting = max(1, longest, fitting)
        divisors = [length for length in range(1, n_steps + 1) if n_steps % length == 0]
        shorter = max(length for length in divisors if length <= fitting)
        return min(
            (length for length in divisors if length > fitting and 4 * shorter < fitting),
            default=shorter,
        )

    def unroll(
        self,
        start: NetworkState,
        inputs: Shaped[Array, "time batch n_in"],
        *,
        stop_z_gradients: bool,
        perturbation: Float[Array, "time batch n_rec"] | None = None,
    ) -> Unrolled:
        """Continue from `start` under `inputs` (see `checked`).

        `perturbation` is added to each z_t as the network sees it: the derivative with respect
        to it, at zero, is the total derivative dE/dz_t.
        """
        w_rec = without_autapses(self.w_rec)
        x, line, delays = inputs.astype(self.w_in.dtype), None, self.delays
        if delays is not None:
            assert start.past is not None
            past_x, past_z = jnp.split(jnp.moveaxis(start.past, 1, 0), [self.n_in], axis=-1)
            line = self.delay_line.init(past_z)
            x = delayed(jnp.concatenate([past_x, x]), delays[: self.n_in], len(x))

        def step(carry, now):
            state, z_tm1, line = carry
            current, shift = now
            if stop_z_gradients:
                z_tm1, line = jax.lax.stop_gradient((z_tm1, line))
            arriving = z_tm1
            if delays is not None:
                line, arriving = self.delay_line.step(line, z_tm1, delays[self.n_in :])
            current = current + arriving @ w_rec
            state = self.cell.step(state, current, z_tm1)
            z = self.cell.output(state)
            z = z if shift is None else z + shift
            return (state, z, line), (z, state, current)

        (state, z, _), (spikes, states, currents) = jax.lax.scan(
            step, (start.cell, start.spikes, line), (x @ self.w_in, perturbation)
        )
        outputs = self.readout(spikes, start.outputs)
        past = None
        if start.past is not None:
            past = jnp.moveaxis(self._given(start, inputs, spikes)[-start.past.shape[1] :], 0, 1)
        end = NetworkState(state, z, outputs[-1], past)
        return Unrolled(end, Trajectory(outputs, spikes, states), currents)

    def readout(
        self, spikes: Float[Array, "time batch n_rec"], start: Float[Array, "batch n_out"]
    ) -> Float[Array, "time batch n_out"]:
        """y_t of all steps, continuing from `start`."""
        drive = self.readout_gain * (spikes @ self.w_out)
        if self.readout_bias is not None:
            drive = drive + self.readout_bias[None, None]
        return leaky_filter(drive, self.kappa, start)

    def presynaptic(
        self,
        inputs: Shaped[Array, "time batch n_in"],
        start: NetworkState,
        spikes: Float[Array, "time batch n_rec"],
    ) -> Float[Array, "time batch n_pre"]:
        """pre_t, what the synapses see at each step: x_t and z_{t-1} side by side, delayed.

        `start` is the network before the first step. n_pre is n_in + n_rec.
        """
        given, delays = self._given(start, inputs, spikes), self.delays
        return given if delays is None else delayed(given, delays, len(inputs))

    def _given(self, start: NetworkState, inputs: Array, spikes: Array) -> Array:
        """x_t and z_{t-1} without their delays, after those of `start.past`."""
        z_tm1 = preceding(start.spikes, spikes)
        given = jnp.concatenate([inputs.astype(z_tm1.dtype), z_tm1], axis=-1)
        if start.past is None:
            return given
        return jnp.concatenate([jnp.moveaxis(start.past, 1, 0), given])

    @property
    def synapses(self) -> Float[Array, "n_pre n_rec"]:
        """W_in above W_rec, so that I_t = `presynaptic` activity @ `synapses`."""
        return jnp.concatenate([self.w_in, without_autapses(self.w_rec)])

    def split(self, of_synapses: Shaped[Array, "*more n_pre n_post"]) -> Synapses:
        """A quantity of all synapses, such as a gradient, by weight matrix."""
        w_in, w_rec = jnp.split(of_synapses, [self.n_in], axis=-2)
        return Synapses(w_in, w_rec)


@eqx.filter_custom_jvp
def _respond(network: Network, inputs: Array, stop_z_gradients: bool) -> Trajectory:
    """Block by block; spikes wait in memory as one byte each."""
    return _in_turn(network, inputs, stop_z_gradients, one_byte=network.cell.spiking)


@_respond.def_jvp
def _respond_jvp(primals, tangents):
    """What is differentiated keeps its spikes as numbers: a boolean carries no gradient."""

    def respond(network, inputs):
        return _in_turn(network, inputs, stop_z_gradients=primals[-1], one_byte=False)

    return eqx.filter_jvp(respond, primals[:-1], tangents[:-1])


def _in_turn(network: Network, inputs: Array, stop_z_gradients: bool, one_byte: bool) -> Trajectory:
    def block(state, inputs):
        end, run, _ = network.unroll(state, inputs, stop_z_gradients=stop_z_gradients)
        return end, run._replace(spikes=run.spikes > 0) if one_byte else run

    blocks = in_blocks(inputs, network.block_length(*inputs.shape[:2]))
    _, run = jax.lax.scan(block, network.init(inputs.shape[1]), blocks)
    run = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), run)
    return run._replace(spikes=run.spikes.astype(run.outputs.dtype))


def without_autapses(w_rec: Shaped[Array, "*more n n"]) -> Shaped[Array, "*more n n"]:
    """The matrices with their diagonal set to zero."""
    return jnp.where(jnp.eye(w_rec.shape[-1], dtype=bool), jnp.zeros((), w_rec.dtype), w_rec)


def _weight(
    name: str,
    weight: ArrayLike | Initializer,
    shape: tuple[int, ...],
    key: PRNGKeyArray | None,
    index: int,
) -> Array:
    if callable(weight):
        if key is None:
            raise ValueError(
                f"{name} is drawn by an initializer, which needs a random key: "
                f"write Network(..., key=jax.random.key(0))"
            )
        if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
            legacy = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.shape == (2,)
            if not legacy:
                raise TypeError(f"key = {key!r} must be a random key: write jax.random.key(0)")
        weight = weight(jax.random.fold_in(key, index), shape, jnp.result_type(float))
    elif isinstance(weight, str | bool):
        raise TypeError(
            f"{name} = {weight!r} must be an array or an initializer: write "
            f"jax.nn.initializers.zeros, or another of jax.nn.initializers"
        )
    return checks.finite(name, checks.float_array(name, weight, shape))
