"""Losses: plain functions of parts of a trajectory, to be added up in a loss of one's own.

    def loss(trajectory, targets):
        error = losses.mean_squared_error(trajectory.outputs, targets)
        return error + 300 * losses.firing_rate_penalty(trajectory.spikes, 10.0, dt=1.0)

Means over time are taken over the steps at hand. Where the loss sees a piece of a sequence at a
time (`stream_value_and_grad`, `OnlineLearner`), give the whole sequence's number of steps as
`n_steps`: the values of the pieces then add up to the mean over the sequence.
"""

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .checks import Parameter


def mean_squared_error(
    outputs: Float[Array, "time batch n_out"],
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    n_steps: float | None = None,
) -> Float[Array, ""]:
    """Mean over time, batch and readouts of (y - y*)².

    **Arguments:** `targets`: y*, of the outputs' shape `[time, batch, n_out]`; `mask`: `[time]`
    or `[time, batch]`, the steps that count (all by default); `n_steps`: the number of steps that
    the mean is over (those that count by default).
    """
    targets = jnp.asarray(targets, outputs.dtype)
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets have shape {targets.shape}, but the outputs {outputs.shape}: "
            f"write jnp.broadcast_to(targets, outputs.shape) if one target is meant for all"
        )
    return _mean(jnp.mean(jnp.square(outputs - targets), axis=-1), mask, n_steps)


def softmax_cross_entropy(
    outputs: Float[Array, "time batch n_out"],
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    n_steps: float | None = None,
) -> Float[Array, ""]:
    """Mean over time and batch of -log softmax(y)[label]; NaN for a label that is no class.

    **Arguments:** `labels`: classes as integers, `[batch]`, or `[time, batch]` if they vary in
    time; `mask`: `[time]` or `[time, batch]`, the steps that count (all by default); `n_steps`:
    the number of steps that the mean is over (those that count by default).
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels have dtype {labels.dtype}, but must be integers: class indices")
    if labels.shape not in (outputs.shape[:2], outputs.shape[1:2]):
        raise ValueError(
            f"labels have shape {labels.shape}, but outputs of shape {outputs.shape} need "
            f"[batch] = {outputs.shape[1:2]} or [time, batch] = {outputs.shape[:2]}"
        )
    labels, n_classes = jnp.broadcast_to(labels, outputs.shape[:2]), outputs.shape[-1]
    exists = (labels >= 0) & (labels < n_classes)
    if not isinstance(exists, jax.core.Tracer) and not exists.all():
        raise ValueError(
            f"labels go from {labels.min()} to {labels.max()}, but with {n_classes} readouts the "
            f"classes are 0 to {n_classes - 1}"
        )
    chosen = jax.nn.one_hot(labels, n_classes, dtype=outputs.dtype)
    surprise = -jnp.sum(chosen * jax.nn.log_softmax(outputs), axis=-1)
    return _mean(jnp.where(exists, surprise, jnp.nan), mask, n_steps)


def firing_rate_penalty(
    spikes: Float[Array, "time batch n_rec"], target_rate: ArrayLike | Parameter, *, dt: float
) -> Float[Array, ""]:
    """Σ_j (f_j - f*)² in (spikes/ms)², f_j neuron j's firing rate over the batch and time.

    **Arguments:** `target_rate`: f* in Hz, one or one per neuron; `dt`: time step in ms.

    The rates are those of the steps at hand. The square of a mean is no sum over time, so where the
    loss sees a window at a time this is another penalty: on each window's rates, one after another.
    Source: the reference implementation, `reg_type` "simple".
    """
    rates = spikes.mean((0, 1)) / dt
    return _rate_error(rates, target_rate)


def running_rate_penalty(
    spikes: Float[Array, "time batch n_rec"], target_rate: ArrayLike | Parameter, *, dt: float
) -> Float[Array, ""]:
    """Mean over time of Σ_j (f_j,t - f*)² in (spikes/ms)², with f_j,t the rate up to step t.

    As `firing_rate_penalty`, but of the average that a neuron could keep while it runs: over the
    batch and the steps so far (of the window, where the loss sees one at a time). Source: after
    the reference implementation's `reg_type` "online", which lays the examples of a batch end to
    end.
    """
    steps = jnp.arange(1, len(spikes) + 1, dtype=spikes.dtype)
    rates = jnp.cumsum(spikes.mean(1), axis=0) / (steps[:, None] * dt)
    return _rate_error(rates, target_rate) / len(spikes)


def _rate_error(rates: Float[Array, "*time n_rec"], target_rate: ArrayLike | Parameter) -> Array:
    target = jnp.asarray(target_rate, rates.dtype) / 1000
    if target.shape not in ((), rates.shape[-1:]):
        raise ValueError(
            f"target_rate has shape {target.shape}: give one number in Hz, or one for each of the "
            f"{rates.shape[-1]} neurons"
        )
    return jnp.sum(jnp.square(rates - jnp.broadcast_to(target, rates.shape)))


def voltage_penalty(
    v: Float[Array, "time batch n_rec"],
    threshold: ArrayLike | Parameter,
    *,
    n_steps: float | None = None,
) -> Float[Array, ""]:
    """Mean over time and batch of Σ_j (relu((v - A) / A)² + relu((-v - A) / A)²).

    **Arguments:** `v`: membrane potentials; `threshold`: A in the potential's units, a number,
    one per neuron, or `[time, batch, n_rec]` (v_th + β a of an adaptive neuron).

    It is zero while -A <= v <= A.
    """
    threshold = jnp.asarray(threshold, v.dtype)
    if threshold.ndim == 1 and threshold.shape != v.shape[-1:]:
        raise ValueError(
            f"threshold has shape {threshold.shape}: give one number, or one for each of the "
            f"{v.shape[-1]} neurons"
        )
    threshold = jnp.broadcast_to(threshold, v.shape)
    excess = jax.nn.relu(jnp.abs(v) - threshold) / threshold
    return _mean(jnp.square(excess).sum(-1), None, n_steps)


def _mean(
    per_step: Float[Array, "time batch"], mask: ArrayLike | None, n_steps: float | None
) -> Float[Array, ""]:
    """Mean over the batch and the steps that count."""
    weights = jnp.ones_like(per_step)
    if mask is not None:
        mask = jnp.asarray(mask, per_step.dtype)
        if mask.shape not in (per_step.shape, per_step.shape[:1]):
            raise ValueError(
                f"mask has shape {mask.shape}, but [time] = {per_step.shape[:1]} or "
                f"[time, batch] = {per_step.shape} is needed"
            )
        weights = weights * (mask if mask.ndim == 2 else mask[:, None])
    count = weights.sum() if n_steps is None else n_steps * per_step.shape[1]
    return jnp.sum(weights * per_step) / count
