"""Firing rates as a neuron can know them while it runs, and a penalty on them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .kernels import faded_spikes


class RatePenalty(NamedTuple):
    """Σ_j (r_j,t - f*)² in (spikes/ms)², added to the loss at each step t.

    r is the running average of each neuron's firing rate that an `OnlineLearner` keeps. What a
    spike does to the average at once counts, what it does to later values of it does not: the
    penalty is known when the spike is. Source: after the reference implementation's `reg_type`
    "online".
    """

    target_rate: float = 10.0
    """f* in Hz."""
    weight: float = 1.0
    """Factor of the penalty (dimensionless)."""

    def of(self, rates: Float[Array, "time n_rec"]) -> Float[Array, ""]:
        """The penalty of some steps, for their running averages in Hz."""
        return self.weight * jnp.sum(((rates - self.target_rate) / 1000) ** 2)


class RunningRates(NamedTuple):
    """Each neuron's firing rate, averaged over the batch and the time that has gone by."""

    rates: Float[Array, " n_rec"]
    """r in Hz."""
    span: Float[Array, ""]
    """The number of steps that they are the average of, at most tau_rate / dt."""


def start_rates(n: int, dtype: Any) -> RunningRates:
    """Of `n` neurons, before the first step."""
    return RunningRates(jnp.zeros(n, dtype), jnp.zeros((), dtype))


def follow(
    before: RunningRates, spikes: Shaped[Array, "time batch n_rec"], *, dt: float, tau: float
) -> RunningRates:
    """r_t = r_{t-1} + (z_t - r_{t-1}) / span_t in Hz, after all steps.

    **Arguments:** `spikes`: as booleans for a compiled program; `dt`: time step in ms; `tau`: time
    constant of the average in ms, beyond which old spikes are forgotten.
    """
    n_steps, dtype, longest = len(spikes), before.rates.dtype, _longest(dt, tau)
    # So many steps count alike, as those before did; each one after that forgets a little.
    n_alike = jnp.clip(jnp.floor(longest - before.span), 0, n_steps)
    span, step = before.span + n_alike, jnp.arange(1, n_steps + 1, dtype=dtype)
    kept = 1 - 1 / longest
    weights = kept ** (n_steps - jnp.maximum(step, n_alike))
    weights = weights / jnp.where(step > n_alike, longest, span)
    of_before = kept ** (n_steps - n_alike) * jnp.where(n_alike > 0, before.span / span, 1)
    if spikes.dtype == bool:
        added = faded_spikes(weights, spikes).mean(0) * (1000 / dt)
    else:
        added = weights @ _now(spikes, dt, dtype)
    rates = of_before * before.rates + added
    return RunningRates(rates, jnp.minimum(before.span + n_steps, longest))


def rates_of_steps(
    before: RunningRates, spikes: Float[Array, "time batch n_rec"], *, dt: float, tau: float
) -> Float[Array, "time n_rec"]:
    """The same after each of the steps, differentiable by z_t alone: r_{t-1} is held."""
    now, longest = _now(spikes, dt, before.rates.dtype), _longest(dt, tau)

    def step(before: RunningRates, seen: Array) -> tuple[RunningRates, RunningRates]:
        span = jnp.minimum(before.span + 1, longest)
        after = RunningRates(before.rates + (seen - before.rates) / span, span)
        return after, after

    held = jax.lax.stop_gradient(now)
    _, (rates, spans) = jax.lax.scan(step, before, held)
    return rates + (now - held) / spans[:, None]


def _now(spikes: Array, dt: float, dtype: Any) -> Float[Array, "time n_rec"]:
    """Each step's rates in Hz."""
    return spikes.astype(dtype).mean(1) * (1000 / dt)


def _longest(dt: float, tau: float) -> float:
    """Steps that are averaged over, at most."""
    return max(1.0, tau / dt)
