"""What each synapse is credited for when a reward comes: F, and the gradient that it makes.

    F_t = γ F_{t-1} + L_t ē_t               in each example
    dE/dW = Σ_t δ_t F_t                     δ_t: how much better it went than was thought

δ_t is known after the step only and differs by example, so F has a leading axis of examples.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .constant_traces import collect_constants
from .evaluation import Carry, NetworkGradients
from .layer import Layer
from .network import Network
from .signals import LayerGradients
from .traces import Credit, LayerTraces


def with_credit(network: Network, carry: Carry) -> Carry:
    """Traces with an F beside them, that of the time before the first step."""

    def of_layer(traces):
        synapses = {
            kind: [jnp.zeros_like(port.filtered) for port in ports]
            for kind, ports in traces.synapses.items()
        }
        readout = jnp.zeros((*traces.spikes.shape, network.n_out), network.dtype)
        return traces._replace(credit=Credit(synapses, readout))

    bias = jnp.zeros((len(carry.bias), network.n_out), network.dtype)
    return Carry(tuple(of_layer(traces) for traces in carry.layers), carry.bias, bias)


def paid(network: Network, carry: Carry, factors: Float[Array, " batch"]) -> NetworkGradients:
    """Σ_b factor_b F_b, of the `effective` weights. There is none of the cells' constants."""

    def of_layer(layer: Layer, traces: LayerTraces) -> LayerGradients:
        credit = traces.credit
        assert credit is not None
        weights = {
            kind: synapses.collect(
                jnp.concatenate(
                    [jnp.einsum("b,bfj->fj", factors, x) for x in credit.synapses[kind]], axis=1
                )
            )
            for kind, synapses in layer.synapses.items()
        }
        constants = collect_constants(layer, jnp.zeros_like(traces.constants.filtered[0]))
        return LayerGradients(weights, constants, jnp.einsum("b,bjk->jk", factors, credit.readout))

    assert carry.credit is not None
    layers = (of_layer(*pair) for pair in zip(network.layers, carry.layers, strict=True))
    return NetworkGradients(tuple(layers), factors @ carry.credit)
