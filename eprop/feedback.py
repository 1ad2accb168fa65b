"""Feedback: from the error of the readout to the learning signal of each neuron.

The paper's L_j = Σ_k B_jk ∂E/∂y_k. A feedback sees the error itself, never a gradient that has
been through W_out, so that a random B is the paper's fixed matrix `[n_rec, n_out]`.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import checks


class AbstractFeedback(eqx.Module):
    """How the error of the readout is sent back to the neurons."""

    @abstractmethod
    def matrix(self, w_out: Float[Array, "n_rec n_out"]) -> Float[Array, "n_rec n_out"]:
        """B."""

    @abstractmethod
    def after_update(
        self, w_out: Float[Array, "n_rec n_out"], update: Float[Array, "n_rec n_out"]
    ) -> tuple[Float[Array, "n_rec n_out"], "AbstractFeedback"]:
        """W_out and the feedback after the optimiser's `update` of W_out."""

    def learning_signal(
        self, w_out: Float[Array, "n_rec n_out"], error: Float[Array, "*time batch n_out"]
    ) -> Float[Array, "*time batch n_rec"]:
        """L_j = Σ_k B_jk error_k."""
        matrix = self.matrix(w_out)
        if matrix.shape != w_out.shape:
            raise ValueError(
                f"the feedback matrix has shape {matrix.shape}, but this network needs "
                f"[n_rec, n_out] = {w_out.shape}, as w_out"
            )
        return error @ matrix.astype(w_out.dtype).T


class SymmetricFeedback(AbstractFeedback):
    """B = W_out: each neuron hears of the error through its own readout weights."""

    def matrix(self, w_out: Float[Array, "n_rec n_out"]) -> Float[Array, "n_rec n_out"]:
        return w_out

    def after_update(self, w_out, update):
        return w_out + update, self


class RandomFeedback(AbstractFeedback):
    """A fixed random B `[n_rec, n_out]`; the paper's is N(0, 1) ("broadcast alignment")."""

    b: Float[Array, "n_rec n_out"]

    def __init__(self, b: ArrayLike):
        self.b = _feedback_matrix(b)

    def matrix(self, w_out: Float[Array, "n_rec n_out"]) -> Float[Array, "n_rec n_out"]:
        return jax.lax.stop_gradient(self.b)

    def after_update(self, w_out, update):
        return w_out + update, self


class AdaptiveFeedback(AbstractFeedback):
    """A B that starts random and learns: it gets W_out's updates, and both decay.

        B ← (1 - decay) B + ΔW_out,        W_out ← (1 - decay) W_out + ΔW_out

    so that their difference shrinks at every step (Kolen & Pollack 1994; the paper's "adaptive
    e-prop"). `eprop.apply_updates` does this in place of `optax.apply_updates`. The rule then
    changes at each step, as the network does: make it an argument of the compiled step that
    calls `value_and_grad(loss, rule)`.

    **Arguments:** `b`: B before learning `[n_rec, n_out]`; `decay`: the fraction of the weights
    lost at each update (dimensionless).
    """

    b: Float[Array, "n_rec n_out"]
    decay: float = eqx.field(static=True)

    def __init__(self, b: ArrayLike, decay: float = 1e-2):
        self.b = _feedback_matrix(b)
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay} must be at least 0 and less than 1")
        self.decay = decay

    def matrix(self, w_out: Float[Array, "n_rec n_out"]) -> Float[Array, "n_rec n_out"]:
        return jax.lax.stop_gradient(self.b)

    def after_update(self, w_out, update):
        b = (1 - self.decay) * self.b + update
        w_out = (1 - self.decay) * w_out + update
        return w_out, eqx.tree_at(lambda feedback: feedback.b, self, b)


def _feedback_matrix(b: ArrayLike) -> Array:
    array = jnp.asarray(b)
    if array.ndim != 2:
        raise ValueError(f"b has shape {array.shape}, but [n_rec, n_out] is needed")
    return checks.finite("b", checks.float_array("b", array, array.shape))
