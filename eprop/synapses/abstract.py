"""What synapses are: an operator from presynaptic activity to currents, linear in both arguments.

Everything that a learning rule needs follows from three linear functions of a subclass:

    I = currents(w, pre)                     the currents of a step, or of a whole block at once
    I_j = Σ_f spread(w)_fj seen(pre)_fj      the same, synapse by synapse

where w are the `effective` weights. The gradient of a block is the reverse-mode derivative of
`currents`; a trace per synapse is a trace of what it has `seen`; and a sum of such traces becomes
a gradient by the transpose of `spread`, which adds up the synapses that share a weight.
"""

from abc import abstractmethod

import equinox as eqx
import jax
from equinox import AbstractVar
from jaxtyping import Array, Float


def final(name: str, subclass: type) -> str:
    """Why there is no such subclass."""
    return (
        f"{subclass.__name__} can't be a subclass of {name}, whose equations are compiled as they "
        f"are, so that no other methods would be called: derive it from AbstractSynapses"
    )


class AbstractSynapses(eqx.Module):
    """Synapses from `n_pre` presynaptic neurons to `n_post` postsynaptic currents."""

    weights: AbstractVar[Array]
    """What is trained."""
    n_pre: AbstractVar[int]
    n_post: AbstractVar[int]

    @abstractmethod
    def effective(self) -> Float[Array, "..."]:
        """w: the weights as they act, without synapses that don't exist, with their signs."""

    @abstractmethod
    def currents(
        self, w: Float[Array, "..."], pre: Float[Array, "*more n_pre"]
    ) -> Float[Array, "*more n_post"]:
        """The currents under presynaptic activity with any leading axes."""

    @abstractmethod
    def seen(self, pre: Float[Array, "batch n_pre"]) -> Float[Array, "batch fan_in m"]:
        """What each synapse sees, `[batch, fan_in, n_post]`.

        Or once where the synapses of several postsynaptic neurons see the same: `[batch, fan_in,
        m]` if those of the first n_post / m do, those of the next, and so on; `[batch, fan_in, 1]`
        if those of all do.
        """

    @abstractmethod
    def spread(self, w: Float[Array, "..."]) -> Float[Array, "fan_in n_post"]:
        """The weight of each synapse."""

    def collect(self, of_synapses: Float[Array, "fan_in n_post"]) -> Float[Array, "..."]:
        """A sum for each synapse as one for each of the `effective` weights."""
        w = jax.eval_shape(self.effective)
        (collected,) = jax.linear_transpose(self.spread, w)(of_synapses)
        return collected
