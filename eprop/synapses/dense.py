"""Synapses from every presynaptic neuron to every postsynaptic one."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .. import checks
from .abstract import AbstractSynapses, final


class Dense(AbstractSynapses):
    """A weight matrix `[n_pre, n_post]`: I = pre W.

    With `signs` Dale's law holds: W_ij = sign_i |w_ij|, whatever an optimiser makes of w.

        >>> import eprop, jax, numpy as np
        >>> w = jax.random.normal(jax.random.key(0), (10, 10))
        >>> dale = eprop.Dense(w, signs=np.repeat([1, -1], [8, 2]))  # two inhibitory neurons
        >>> key = jax.random.key(1)
        >>> network = eprop.Network(eprop.LIF(10), n_in=5, n_out=1, w_rec=dale, key=key)
        >>> effective = network.layers[0].effective()["recurrent"]
        >>> bool((effective[8:] <= 0).all() and (effective[:8] >= 0).all())
        True
    """

    weights: Float[Array, "n_pre n_post"]
    mask: Bool[Array, "n_pre n_post"] | None
    signs: Int[Array, " n_pre"] | None
    without_autapses_of: tuple[tuple[int, int], ...] = eqx.field(static=True)

    def __init_subclass__(cls, **_: Any):
        raise TypeError(final("Dense", cls))

    def __init__(
        self,
        weights: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        signs: ArrayLike | None = None,
        without_autapses_of: tuple[tuple[int, int], ...] = (),
    ):
        """**Arguments:**

        - `weights`: w `[n_pre, n_post]`.
        - `mask`: booleans of the same shape, the synapses that exist (all by default).
        - `signs`: +1 or -1 for each presynaptic neuron, excitatory or inhibitory: the sign of all
          its synapses. By default each synapse may take any.
        - `without_autapses_of`: of recurrent synapses whose neurons have no synapse to themselves
          the populations, as `(n, n_currents)`. A layer fills this in.

        Raises `ValueError` or `TypeError` for arrays that don't fit.
        """
        array = checks.array("weights", weights)
        if array.ndim != 2:
            raise ValueError(f"weights have shape {array.shape}, but [n_pre, n_post] is needed")
        self.weights = checks.finite("weights", checks.float_array("weights", array, array.shape))
        self.mask = None if mask is None else _mask(mask, array.shape)
        self.signs = None if signs is None else presynaptic_signs(signs, array.shape[0])
        self.without_autapses_of = without_autapses_of

    @property
    def n_pre(self) -> int:
        """Number of presynaptic neurons."""
        return self.weights.shape[0]

    @property
    def n_post(self) -> int:
        """Number of postsynaptic currents."""
        return self.weights.shape[1]

    def effective(self) -> Float[Array, "n_pre n_post"]:
        w = self.weights
        if self.signs is not None:
            w = self.signs.astype(w.dtype)[:, None] * jnp.abs(w)
        if self.mask is not None:
            w = jnp.where(self.mask, w, jnp.zeros((), w.dtype))
        if self.without_autapses_of:
            w = jnp.where(_autapses(self.without_autapses_of), jnp.zeros((), w.dtype), w)
        return w

    def acting(self) -> "Dense":
        """Synapses whose weights are these as they act."""
        plain = Dense(np.zeros((0, 0), self.weights.dtype))  # nothing to check in these
        return eqx.tree_at(lambda dense: dense.weights, plain, self.effective())

    def currents(self, w: Array, pre: Array) -> Array:
        # As one matrix: so XLA's derivative by w is as fast as its product.
        return (pre.reshape(-1, w.shape[0]) @ w).reshape(*pre.shape[:-1], w.shape[1])

    def seen(self, pre: Array) -> Array:
        return pre[:, :, None]

    def spread(self, w: Array) -> Array:
        return w


class Joined(AbstractSynapses):
    """Dense synapses onto the same neurons that see different things, as one matrix.

    Their rows are below each other, what they see side by side: one product, and one set of traces.
    """

    parts: tuple[Dense, ...]

    def __init__(self, parts: Sequence[Dense]):
        """**Arguments:** `parts`: at least one, with the same `n_post`."""
        self.parts = tuple(parts)

    @property
    def weights(self) -> Float[Array, "n_pre n_post"]:
        """Those of all parts, stacked."""
        return jnp.concatenate([part.weights for part in self.parts])

    @property
    def n_pre(self) -> int:
        """Number of presynaptic neurons, of all parts."""
        return sum(part.n_pre for part in self.parts)

    @property
    def n_post(self) -> int:
        """Number of postsynaptic currents."""
        return self.parts[0].n_post

    def effective(self) -> Float[Array, "n_pre n_post"]:
        return jnp.concatenate([part.effective() for part in self.parts])

    def currents(self, w: Array, pre: Array) -> Array:
        return self.parts[0].currents(w, pre)

    def seen(self, pre: Array) -> Array:
        return pre[:, :, None]

    def spread(self, w: Array) -> Array:
        return w


def presynaptic_signs(signs: ArrayLike, n_pre: int) -> Array:
    """+1 or -1 of each presynaptic neuron as integers; `ValueError` for anything else."""
    array = np.asarray(signs)
    if array.shape != (n_pre,) or not np.all(np.abs(array) == 1):
        raise ValueError(
            f"signs of shape {array.shape} must be +1 or -1 for each of the {n_pre} presynaptic "
            f"neurons: write np.where(np.arange({n_pre}) < n_excitatory, 1, -1)"
        )
    return jnp.asarray(array, jnp.int8)


def _mask(mask: Any, shape: tuple[int, ...]) -> Array:
    array = checks.array("mask", mask)
    if array.dtype != bool or array.shape != shape:
        raise ValueError(
            f"mask has shape {array.shape} and dtype {array.dtype}, but must be a boolean for each "
            f"weight: {shape}"
        )
    return array


def _autapses(populations: tuple[tuple[int, int], ...]) -> Array:
    """Where a neuron's output leads to one of its own currents, `[n, n_post]`."""
    n = sum(size for size, _ in populations)
    starts = np.cumsum([0, *(size for size, _ in populations)])
    neuron = [
        np.arange(start, start + size)
        for start, (size, n_currents) in zip(starts, populations, strict=False)
        for _ in range(n_currents)
    ]
    return jnp.arange(n)[:, None] == jnp.asarray(np.concatenate(neuron))[None]
