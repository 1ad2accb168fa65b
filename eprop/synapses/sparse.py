"""Synapses from a fixed number of presynaptic neurons to each postsynaptic one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from .. import checks
from .abstract import AbstractSynapses, final
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
    autapses: bool = eqx.field(static=True)

    def __init_subclass__(cls, **_: Any):
        raise TypeError(final("Sparse", cls))

    def __init__(
        self,
        weights: ArrayLike,
        indices: ArrayLike,
        *,
        n_pre: int,
        signs: ArrayLike | None = None,
        autapses: bool = True,
    ):
        """**Arguments:**

        - `weights`: w `[n_post, fan_in]`.
        - `indices`: the presynaptic neuron of each synapse, integers of the same shape. A neuron
          that occurs twice in a row has two synapses.
        - `n_pre`: number of presynaptic neurons.
        - `signs`: +1 or -1 for each presynaptic neuron.
        - `autapses`: whether a neuron may have a synapse to itself. If not, as for recurrent
          synapses of cells with one current, `indices` must have none, and rewiring makes none.

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
        self.autapses = checks.switch("autapses", autapses)
        if not autapses:
            _check_squareness(n_pre, len(at))
            itself = (at == np.arange(n_pre)[:, None]).any(1)
            if itself.any():
                raise ValueError(
                    f"neuron {itself.argmax()} has a synapse to itself, with autapses=False: write "
                    f"other indices, or autapses=True"
                )

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
        if not autapses:
            _check_squareness(n_pre, n_post)
        indices = _subsets(rng, n_others, n_post, fan_in)
        if not autapses:
            indices += indices >= np.arange(n_post)[:, None]
        weights = jax.random.normal(for_weights, (n_post, fan_in)) / np.sqrt(fan_in)
        return Sparse(weights, indices, n_pre=n_pre, signs=signs, autapses=autapses)

    @property
    def n_post(self) -> int:
        """Number of postsynaptic currents."""
        return self.weights.shape[0]

    def rewired(
        self, before: "Sparse", key: PRNGKeyArray
    ) -> tuple["Sparse", Bool[Array, "n_post fan_in"]]:
        """DEEP R: each synapse whose weight has crossed zero since `before` goes, another comes.

        The new one begins at zero, in the same place of the arrays. Its presynaptic neuron is
        drawn from all that the postsynaptic one doesn't hear, that of the old one included, each
        equally likely; so the fan-in stays. What it becomes is decided by `signs`, where there
        are, else by its first update: a synapse keeps its sign as long as it lives.

        Returns the synapses, and which of them are new. It is a pure function of arrays, for
        `jax.jit`; its memory goes with the number of synapses.

        Raises `ValueError` if `before` has other shapes, or `fan_in` is more than there are
        neurons to hear.

        Bellec, Kappel, Maass, Legenstein 2018, "Deep rewiring: training very sparse deep networks",
        where the number of synapses is kept in all, not for each neuron, and the sign of each pair
        of neurons is drawn beforehand.
        """
        n_post, fan_in = self.weights.shape
        if before.weights.shape != self.weights.shape:
            raise ValueError(
                f"weights have shape {self.weights.shape}, but before the update they had "
                f"{before.weights.shape}"
            )
        n_others = self.n_pre if self.autapses else self.n_pre - 1
        if fan_in > n_others:
            raise ValueError(
                f"fan_in = {fan_in} is more than the {n_others} neurons that one can hear: "
                f"such synapses can't rewire"
            )
        was, now = jnp.sign(before.weights), jnp.sign(self.weights)
        if self.signs is not None:  # there what is stored at zero acts as what is above it
            was = jnp.where(was < 0, -1, 1).astype(was.dtype)
        new = was * now < 0

        def drawn(key: PRNGKeyArray) -> Int[Array, "n_post fan_in"]:
            others = jax.random.randint(key, (n_post, fan_in), 0, n_others, jnp.int32)
            if self.autapses:
                return others
            itself = jnp.arange(n_post, dtype=jnp.int32)[:, None]
            return jnp.where(others < itself, others, others + 1)

        def redraw(carry):  # what is twice in a row, until nothing is
            indices, key = carry
            key, now = jax.random.split(key)
            return jnp.where(_heard_twice(indices, new), drawn(now), indices), key

        first, later = jax.random.split(key)
        start = (jnp.where(new, drawn(first), self.indices), later)
        indices, _ = jax.lax.while_loop(
            lambda carry: _heard_twice(carry[0], new).any(), redraw, start
        )
        weights = jnp.where(new, jnp.zeros((), self.weights.dtype), self.weights)
        changed = eqx.tree_at(lambda s: (s.weights, s.indices), self, (weights, indices))
        return changed, new

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


def _heard_twice(
    indices: Int[Array, "n_post fan_in"], new: Bool[Array, "n_post fan_in"]
) -> Bool[Array, "n_post fan_in"]:
    """Which of the new synapses come from a neuron that another one of their row comes from.

    Of several new ones all but the first; it doesn't depend on which neurons they are.
    """
    # By neuron, and of one neuron the new ones last; the sort is stable.
    order = jnp.argsort(2 * indices + new.astype(indices.dtype), axis=1)
    heard = jnp.take_along_axis(indices, order, axis=1)
    same = jnp.pad(heard[:, 1:] == heard[:, :-1], ((0, 0), (1, 0)))
    return jnp.put_along_axis(jnp.zeros_like(new), order, same, axis=1, inplace=False) & new


def _check_squareness(n_pre: int, n_post: int) -> None:
    if n_post != n_pre:
        raise ValueError(
            f"autapses=False is for synapses among as many neurons as currents, but n_pre = "
            f"{n_pre} and n_post = {n_post}: write Sparse(weights, indices, n_pre={n_pre})"
        )


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
