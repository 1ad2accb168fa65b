"""Learning rules by the names that figures know them by: `figures.plotting.RULES`."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

import eprop


def make_rule(
    learner: str, b: Float[Array, "n_rec n_out"], decay: float = 0.0
) -> eprop.AbstractRule:
    """The one thing that differs between trainings of one seed.

    `b` is the feedback where it is not symmetric, `decay` the fraction of B and of W_out that
    adaptive feedback loses at each update.
    """
    rules = {
        "bptt": eprop.BPTT(),
        "bptt_stop_z": eprop.BPTT(stop_z_gradients=True),
        "symmetric": eprop.EProp(),
        "random": eprop.EProp(eprop.RandomFeedback(b)),
        "adaptive": eprop.EProp(eprop.AdaptiveFeedback(b, decay)),
    }
    return rules[learner]


def only_readout(network: eprop.Network) -> eprop.Network:
    """What is trained where all else stays as it was drawn ("frozen"), as booleans."""
    return eqx.tree_at(
        lambda network: network.readout,
        jax.tree.map(lambda _: False, network),
        jax.tree.map(lambda _: True, network.readout),
    )
