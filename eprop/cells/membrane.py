"""What all leaky integrate-and-fire neurons share: a membrane, a spike, a refractory time."""

from typing import ClassVar

import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array

from ..surrogate import AbstractSurrogate
from .abstract import AbstractCell
from .constants import AbstractConstant, at_start, beside, complement, decay


class AbstractIntegrateAndFire(AbstractCell):
    """Neurons that integrate a current, spike above a threshold, and are silent for a while."""

    tau_v: AbstractVar[AbstractConstant]
    """Membrane time constant τ_v in ms."""
    v_th: AbstractVar[AbstractConstant]
    """Threshold, in units of the membrane potential."""
    v_init: AbstractVar[AbstractConstant]
    """Membrane potential before the first step."""
    n_refractory: AbstractVar[int | tuple[int, ...]]
    """Length of the refractory period in steps, the spike's included."""
    scale_current: AbstractVar[bool]
    surrogate: AbstractVar[AbstractSurrogate]
    spiking: ClassVar[bool] = True

    def integrate(self, v_tm1: Array, current: Array, z_tm1: Array) -> Array:
        """v_t = α v_{t-1} + ζ I_t - v_th z_{t-1}, with α = exp(-dt/τ_v) and ζ = 1 or 1 - α."""
        if self.scale_current:
            current = complement(self.tau_v, self.dt, v_tm1) * current
        reset = beside(self.v_th.value, v_tm1) * z_tm1
        return decay(self.tau_v, self.dt, v_tm1) * v_tm1 + current - reset

    def count_down(self, refractory: Array, z_tm1: Array) -> Array:
        """The steps, this one included, in which a neuron can't spike."""
        length = beside(self.n_refractory, refractory)
        started = length * (z_tm1 > 0).astype(refractory.dtype)
        return jnp.clip(refractory + started - 1, 0, length)

    def spike(self, v: Array, adaptation: Array | float, refractory: Array) -> Array:
        """1 if v > v_th + adaptation and the neuron is not refractory, else 0."""
        threshold = beside(self.v_th.value, v)
        x = (v - threshold - adaptation) / threshold
        return self.surrogate.spike(x, silent=refractory > 0)

    def at_rest(self, batch: int) -> tuple[Array, Array]:
        """V and the refractory counter before the first step, `[batch, n]`."""
        return at_start(self.v_init, batch, self.n), jnp.zeros((batch, self.n), jnp.int32)
