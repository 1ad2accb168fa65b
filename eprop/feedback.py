"""Feedback: from the error of the readout to the learning signal of each neuron.

The paper's L_j = Σ_k B_jk ∂E/∂y_k. A feedback sees the error itself, never a gradient that has
been through W_out, so that a random B is the paper's fixed matrix `[n, n_out]`. It has a row for
each neuron: in a network of several layers those of the first layer, then of the next.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import checks
from .network import Network
from .weights import added


class AbstractFeedback(eqx.Module):
    """How the error of the readout is sent back to the neurons."""

    @abstractmethod
    def matrix(self, network: Network) -> Float[Array, "n n_out"]:
        """B, a row for each neuron of all layers."""

    @abstractmethod
    def after_update(
        self, w_out: Float[Array, "n_seen n_out"], update: Float[Array, "n_seen n_out"]
    ) -> tuple[Float[Array, "n_seen n_out"], "AbstractFeedback"]:
        """W_out and the feedback after the optimiser's `update` of W_out."""


class SymmetricFeedback(AbstractFeedback):
    """B = W_out: each neuron hears of the error through its own readout weights."""

    def matrix(self, network: Network) -> Float[Array, "n n_out"]:
        if len(network.w_out) != network.n:
            raise ValueError(
                f"with symmetric feedback the {network.n - len(network.w_out)} neurons of the "
                f"layers that the readout does not see would hear of no error: write "
                f'Network(..., readout_of="all"), or EProp(RandomFeedback(b)) with b of shape '
                f"{(network.n, network.n_out)}"
            )
        return network.w_out

    def after_update(self, w_out, update):
        return added(w_out, update), self


class RandomFeedback(AbstractFeedback):
    """A fixed random B `[n, n_out]`; the paper's is N(0, 1) ("broadcast alignment")."""

    b: Float[Array, "n n_out"]

    def __init__(self, b: ArrayLike):
        self.b = _feedback_matrix(b)

    def matrix(self, network: Network) -> Float[Array, "n n_out"]:
        return _fitting(self.b, network)

    def after_update(self, w_out, update):
        return added(w_out, update), self


class AdaptiveFeedback(AbstractFeedback):
    """A B that starts random and learns: it gets W_out's updates, and both decay.

        B ← (1 - decay) B + ΔW_out,        W_out ← (1 - decay) W_out + ΔW_out

    so that their difference shrinks at every step (Kolen & Pollack 1994; the paper's "adaptive
    e-prop"). Where ΔW_out is all zero, between the updates of `optax.MultiSteps`, say, nothing
    decays. `eprop.apply_updates` does this in place of `optax.apply_updates`. The rule then
    changes at each step, as the network does: make it an argument of the compiled step that
    calls `value_and_grad(loss, rule)`. The readout must see all layers.

    **Arguments:** `b`: B before learning `[n, n_out]`; `decay`: the fraction of the weights
    lost at each update (dimensionless).
    """

    b: Float[Array, "n n_out"]
    decay: float = eqx.field(static=True)

    def __init__(self, b: ArrayLike, decay: float = 1e-2):
        self.b = _feedback_matrix(b)
        self.decay = checks.fraction("decay", decay)

    def matrix(self, network: Network) -> Float[Array, "n n_out"]:
        if len(network.w_out) != network.n:
            raise ValueError(
                f"adaptive feedback follows W_out, which here is of {len(network.w_out)} of the "
                f'{network.n} neurons: write Network(..., readout_of="all")'
            )
        return _fitting(self.b, network)

    def after_update(self, w_out, update):
        is_due = jnp.any(update != 0)  # or weights would fade where an optimiser only gathers

        def decayed(x: Array) -> Array:
            return jnp.where(is_due, jnp.asarray(1 - self.decay, x.dtype) * x, x)

        b, w_out = (added(decayed(x), update) for x in (self.b, w_out))
        return w_out, eqx.tree_at(lambda feedback: feedback.b, self, b)


def _fitting(b: Array, network: Network) -> Array:
    """B in the network's dtype, without a gradient of its own."""
    needed = (network.n, network.n_out)
    if b.shape != needed:
        layers = " + ".join(str(layer.n) for layer in network.layers)
        rows = "" if len(network.layers) == 1 else f", the rows of all layers: {layers}"
        raise ValueError(
            f"the feedback matrix has shape {b.shape}, but this network needs "
            f"[n, n_out] = {needed}{rows}"
        )
    return jax.lax.stop_gradient(b.astype(network.dtype))


def _feedback_matrix(b: ArrayLike) -> Array:
    array = checks.array("b", b)
    if array.ndim != 2:
        raise ValueError(f"b has shape {array.shape}, but [n, n_out] is needed")
    return checks.finite("b", checks.float_array("b", array, array.shape))
