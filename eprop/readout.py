"""The readout: leaky sums of what the neurons send."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from . import checks
from .sequences import leaky_filter
from .weights import Initializer, KeyOf, weight


class Readout(eqx.Module):
    """y_t = κ y_{t-1} + g z_t W_out + bias, with κ = exp(-dt/τ_out) and g = 1 or 1 - κ."""

    weights: Float[Array, "n_seen n_out"]
    bias: Float[Array, " n_out"] | None
    tau: float | None = eqx.field(static=True)
    """τ_out in ms; `None` for no leak: κ = 0."""
    scale: bool = eqx.field(static=True)
    """Whether g = 1 - κ."""
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        n_seen: int,
        n_out: int,
        *,
        weights: ArrayLike | Initializer,
        bias: ArrayLike | Initializer | None,
        tau: float | None,
        scale: bool,
        dt: float,
        key: Any,
    ):
        """**Arguments** as those of `Network`; `n_seen`: number of neurons that it sees."""
        keys = KeyOf(key)
        self.weights = weight("w_out", weights, (n_seen, n_out), keys(2))
        self.bias = None if bias is None else weight("readout_bias", bias, (n_out,), keys(3))
        self.tau = None if tau is None else checks.duration("tau_out", tau)
        if self.tau is not None:
            checks.remembers("tau_out", self.tau, dt)
        self.scale = checks.switch("scale_readout", scale)
        self.dt = dt

    @property
    def n_out(self) -> int:
        """Number of readouts."""
        return self.weights.shape[1]

    @property
    def kappa(self) -> float:
        """κ, the fraction of y that is left after one step."""
        return 0.0 if self.tau is None else float(np.exp(-self.dt / self.tau))

    @property
    def gain(self) -> float:
        """g, with which a spike enters the readout."""
        if self.tau is None or not self.scale:
            return 1.0
        return float(-np.expm1(-self.dt / self.tau))

    def __call__(
        self, drive: Float[Array, "time batch n_out"], start: Float[Array, "batch n_out"]
    ) -> Float[Array, "time batch n_out"]:
        """y_t of all steps under z_t W_out, continuing from `start`."""
        drive = self.gain * drive
        if self.bias is not None:
            drive = drive + self.bias[None, None]
        return drive if self.tau is None else leaky_filter(drive, self.kappa, start)

    def lead_back(
        self, d_outputs: Float[Array, "time batch n_out"]
    ) -> Float[Array, "time batch n_out"]:
        """Σ_{t' >= t} κ^(t'-t) ∂E/∂y_t': the error, led back through the leak."""
        if self.tau is None:
            return d_outputs
        return leaky_filter(d_outputs, self.kappa, jnp.zeros_like(d_outputs[0]), reverse=True)
