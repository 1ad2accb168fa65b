"""What the reverse pass of a layer is given, and what it finds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .delays import delayed
from .layer import Layer, trained_constants


class CreditSignal(NamedTuple):
    """What a stretch of steps adds to F, and what it leaves of F from before."""

    error: Float[Array, "time batch n_out"]
    """Of the readout, times what is left of it at the end: γ^(decisions until then)."""
    decay: float
    """γ^(decisions)."""


class Signals(NamedTuple):
    """What the loss says about each step of a layer."""

    error: Float[Array, "time batch n_out"]
    """The readout's error, to be sent to the neurons by the feedback matrix."""
    spikes: Float[Array, "time batch n"] | None
    """∂E/∂z_t with the outputs held fixed; `None` if the loss does not look at the spikes."""
    states: list[Float[Array, "time batch _"]] | None
    """∂E/∂s_t of each hidden variable, `None` likewise."""
    credit: CreditSignal | None = None
    """Where one learns from rewards."""


class LayerGradients(NamedTuple):
    """dE/dw of a layer."""

    weights: dict[str, Array]
    """Of the weights of `layer.synapses`, as they act."""
    constants: Any
    """Of the cells' own arrays."""
    readout: Float[Array, "n n_out"]
    """Of the weights that lead from here to the readout."""


def zero_gradients(layer: Layer, n_out: int) -> LayerGradients:
    """Where a sum of gradients begins."""
    shapes = jax.eval_shape(
        lambda: (
            {name: synapses.effective() for name, synapses in layer.synapses.items()},
            trained_constants(layer),
        )
    )
    weights, constants = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return LayerGradients(weights, constants, jnp.zeros((layer.n, n_out), layer.dtype))


class Later(NamedTuple):
    """What the reverse pass carries from later steps to earlier ones."""

    costates: list[Float[Array, "batch _"]]
    """λ_t = dE/ds_t of each hidden variable."""
    gradients: LayerGradients
    units: list[list[Float[Array, "batch _"]]]
    """The costates of other functions of the run than the loss: see `reverse`."""


class UnitSignal(NamedTuple):
    """A function of a layer's run to differentiate beside the loss, neuron by neuron."""

    fading: Float[Array, " time"] | Float[Array, "time batch n"] | None
    """Its derivative with respect to each z_t, `[time]` if it is the same for all neurons; `None`
    if it is zero."""
    at_end: list[Float[Array, "batch _"]]
    """Its derivative with respect to each hidden variable at the end."""


class Reversed(NamedTuple):
    """What the reverse pass finds of a stretch of steps."""

    costates: list[Float[Array, "batch _"]]
    """dE/ds of each hidden variable before the first step."""
    gradients: LayerGradients
    below: Float[Array, "known batch n_in"] | None
    """dE/d(activity below), if asked for; with delays also of what was under way before."""
    unit_costates: list[list[Float[Array, "batch _"]]]
    unit_currents: list[Float[Array, "time batch n_post"]]
    """d(unit)/dI_t of each unit signal."""
    currents: Float[Array, "time batch n_post"] | None = None
    """r_t = dE/dI_t, where the gradient of dense synapses that see events is left to be done."""


def before_delay(
    layer: Layer, d_pre: Float[Array, "time batch n_in"]
) -> Float[Array, "known batch n_in"]:
    """dE/d(activity below) from dE/d(what the synapses see of it)."""
    steps = layer.delays.get("below")
    if steps is None:
        return d_pre
    known = jnp.zeros((steps.max() + len(d_pre), *d_pre.shape[1:]), d_pre.dtype)
    _, pullback = jax.vjp(lambda known: delayed(known, steps, len(d_pre)), known)
    return pullback(d_pre)[0]
