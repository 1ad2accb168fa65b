"""What each synapse is credited for when a reward comes: F, and the gradient that it makes.

    F_t = γ F_{t-1} + L_t ē_t               in each example
    dE/dW = Σ_t δ_t F_t                     δ_t: how much better it went than was thought

δ_t is known after the step only and differs by example, so F has a leading axis of examples.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .constant_traces import collect_constants
from .evaluation import Carry, NetworkGradients
from .layer import Layer
from .network import Network
from .signals import LayerGradients
from .synapses import AbstractSynapses
from .traces import Credit, LayerTraces, share_weights


def with_credit(network: Network, carry: Carry) -> Carry:
    """Traces with an F beside them, that of the time before the first step."""

    def of_layer(layer: Layer, traces: LayerTraces) -> LayerTraces:
        def of_kind(kind: str, synapses: AbstractSynapses) -> Any:
            if share_weights(synapses):
                w = jax.eval_shape(synapses.effective)
                return jnp.zeros((len(traces.spikes), *w.shape), w.dtype)
            return [jnp.zeros_like(port.filtered) for port in traces.synapses[kind]]

        synapses = {kind: of_kind(kind, synapses) for kind, synapses in layer.synapses.items()}
        readout = jnp.zeros((*traces.spikes.shape, network.n_out), network.dtype)
        return traces._replace(credit=Credit(synapses, readout))

    bias = jnp.zeros((len(carry.bias), network.n_out), network.dtype)
    layers = (of_layer(*pair) for pair in zip(network.layers, carry.layers, strict=True))
    return Carry(tuple(layers), carry.bias, bias)


def paid(network: Network, carry: Carry, factors: Float[Array, " batch"]) -> NetworkGradients:
    """Σ_b factor_b F_b, of the `effective` weights. There is none of the cells' constants."""

    def of_layer(layer: Layer, traces: LayerTraces) -> LayerGradients:
        credit = traces.credit
        assert credit is not None

        def of_kind(kind: str, synapses: AbstractSynapses) -> Array:
            found = credit.synapses[kind]
            if not isinstance(found, list):
                return jnp.tensordot(factors, found, 1)
            sums = [jnp.einsum("b,bfj->fj", factors, x) for x in found]
            return synapses.collect(jnp.concatenate(sums, axis=1))

        weights = {kind: of_kind(kind, synapses) for kind, synapses in layer.synapses.items()}
        constants = collect_constants(layer, jnp.zeros_like(traces.constants.filtered[0]))
        return LayerGradients(weights, constants, jnp.einsum("b,bjk->jk", factors, credit.readout))

    assert carry.credit is not None
    layers = (of_layer(*pair) for pair in zip(network.layers, carry.layers, strict=True))
    return NetworkGradients(tuple(layers), factors @ carry.credit)
