"""Synapses from a fixed number of presynaptic neurons to each postsynaptic one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from .. import checks
from .abstract import AbstractSynapses
from .dense import presynaptic_signs


class Sparse(AbstractSynapses):
    """Weights `[n_post, fan_in]` and where they come from: I_j = Σ_f w_jf pre_index(j, f).

    Memory and time go with the number of synapses. With `signs` Dale's law holds, as for `Dense`.

        >>> import eprop, jax
        >>> key = jax.random.key(0)
        >>> w_rec = eprop.Sparse.random(1000, 1000, fan_in=10, autapses=False, key=key)
        >>> w_rec.weights.shape  # a hundredth of a matrix
        (1000, 10)
    """

    weights: Float[Array, "n_post fan_in"]
    indices: Int[Array, "n_post fan_in"]
    signs: Int[Array, " n_pre"] | None
    n_pre: int = eqx.field(static=True)

    def __init__(
        self,
        weights: ArrayLike,
        indices: ArrayLike,
        *,
        n_pre: int,
        signs: ArrayLike | None = None,
    ):
        """**Arguments:**

        - `weights`: w `[n_post, fan_in]`.
        - `indices`: the presynaptic neuron of each synapse, integers of the same shape. A neuron
          that occurs twice in a row has two synapses.
        - `n_pre`: number of presynaptic neurons.
        - `signs`: +1 or -1 for each presynaptic neuron.

        Raises `ValueError` or `TypeError` for arrays that don't fit.
        """
        self.n_pre = checks.positive_int("n_pre", n_pre)
        array, at = checks.array("weights", weights), np.asarray(indices)
        if array.ndim != 2 or at.shape != array.shape or at.dtype.kind not in "iu":
            raise ValueError(
                f"weights have shape {array.shape} and indices {at.shape} of dtype {at.dtype}: "
                f"both must be [n_post, fan_in], the indices integers"
            )
        if at.size and not (at.min() >= 0 and at.max() < n_pre):
            raise ValueError(f"indices go from {at.min()} to {at.max()}, not from 0 to {n_pre - 1}")
        self.weights = checks.finite("weights", checks.float_array("weights", array, array.shape))
        self.indices = jnp.asarray(at, jnp.int32)
        self.signs = None if signs is None else presynaptic_signs(signs, n_pre)

    @staticmethod
    def random(
        n_pre: int,
        n_post: int,
        fan_in: int,
        *,
        key: PRNGKeyArray,
        autapses: bool = True,
        signs: ArrayLike | None = None,
    ) -> "Sparse":
        """Each postsynaptic neuron hears `fan_in` different neurons, drawn at random.

        The weights are N(0, 1) / sqrt(fan_in). With `autapses=False`, for recurrent synapses of
        cells with one current, none of them is the neuron itself.
        """
        for_indices, for_weights = jax.random.split(key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(for_indices)))
        n_others = n_pre if autapses else n_pre - 1
        if not 1 <= checks.positive_int("fan_in", fan_in) <= n_others:
            raise ValueError(
                f"fan_in = {fan_in} must be from 1 to {n_others}, the neurons there are"
            )
        if not autapses and n_post != n_pre:
            raise ValueError(
                f"autapses=False is for synapses among as many neurons as currents, but n_pre = "
                f"{n_pre} and n_post = {n_post}: write Sparse(weights, indices, n_pre={n_pre})"
            )
        indices = _subsets(rng, n_others, n_post, fan_in)
        if not autapses:
            indices += indices >= np.arange(n_post)[:, None]
        weights = jax.random.normal(for_weights, (n_post, fan_in)) / np.sqrt(fan_in)
        return Sparse(weights, indices, n_pre=n_pre, signs=signs)

    @property
    def n_post(self) -> int:
        """Number of postsynaptic currents."""
        return self.weights.shape[0]

    def effective(self) -> Float[Array, "n_post fan_in"]:
        if self.signs is None:
            return self.weights
        return self.signs.astype(self.weights.dtype)[self.indices] * jnp.abs(self.weights)

    def currents(self, w: Array, pre: Array) -> Array:
        # Step by step, and gathered again for a derivative: as much memory as there are synapses.
        if pre.ndim > 2:
            return jax.lax.map(lambda pre_t: self.currents(w, pre_t), pre)
        return _gathered_sum(w, self.indices, pre)

    def seen(self, pre: Array) -> Array:
        return pre[:, self.indices.T]

    def spread(self, w: Array) -> Array:
        return w.T


@jax.checkpoint
def _gathered_sum(
    w: Float[Array, "n_post fan_in"],
    indices: Int[Array, "n_post fan_in"],
    pre: Float[Array, "*batch n_pre"],
) -> Float[Array, "*batch n_post"]:
    """Σ_f w_jf pre_index(j, f); XLA makes one loop of it, in which nothing gathered is stored."""
    w = w.reshape(*[1] * (pre.ndim - 1), *w.shape)
    return (pre[..., indices] * w).sum(-1)


def _subsets(
    rng: np.random.Generator, n: int, count: int, size: int
) -> Int[np.ndarray, "{count} {size}"]:
    """`count` sets of `size` different numbers from 0 to n - 1, each sorted."""
    if 2 * size > n:
        every = np.broadcast_to(np.arange(n), (count, n))
        return np.sort(rng.permuted(every, axis=1)[:, :size], axis=1)
    drawn = np.sort(rng.integers(n, size=(count, size)), axis=1)
    while True:  # draw again what was drawn twice, until nothing was
        twice = np.zeros(drawn.shape, bool)
        twice[:, 1:] = drawn[:, 1:] == drawn[:, :-1]
        if not twice.any():
            return drawn
        drawn[twice] = rng.integers(n, size=twice.sum())
        drawn.sort(axis=1)
