"""Losses: plain functions of parts of a trajectory, to be added up in a loss of one's own.

    def loss(trajectory, targets):
        error = losses.mean_squared_error(trajectory.outputs, targets)
        return error + 300 * losses.firing_rate_penalty(trajectory.spikes, 10.0, dt=1.0)

A mask `[time]` or `[time, batch]` says which steps count, or by which weight: all by default, and
of recordings of different lengths those that `eprop.pad` hands back. Steps with a mask of 0 don't
count: outputs and targets may be anything there, NaN or a label that is no class, and neither value
nor gradient sees them. Where no step counts at all there is no mean: an error, or under `jax.jit` 0
with a gradient of 0.

Means over time are taken over the steps at hand. Where the loss sees a piece of a sequence at a
time (`stream_value_and_grad`, `OnlineLearner`), give the whole sequence's number of steps as
`n_steps`: the values of the pieces then add up to the mean over the sequence.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from . import checks
from .checks import Parameter

__all__ = [
    "actor_critic",
    "firing_rate_penalty",
    "mean_squared_error",
    "running_rate_penalty",
    "softmax_cross_entropy",
    "voltage_penalty",
]


def mean_squared_error(
    outputs: Float[Array, "time batch n_out"],
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    n_steps: float | None = None,
) -> Float[Array, ""]:
    """Mean over time, batch and readouts of (y - y*)².

        >>> import eprop, jax.numpy as jnp
        >>> outputs, targets = jnp.zeros((3, 1, 1)), jnp.array([1.0, 2.0, 9.0])[:, None, None]
        >>> float(eprop.losses.mean_squared_error(outputs, targets, mask=jnp.array([1, 1, 0])))
        2.5

    **Arguments:** `targets`: y*, of the outputs' shape `[time, batch, n_out]`; `mask`: `[time]`
    or `[time, batch]`, the steps that count, or their weights (all by default); `n_steps`: the
    number of steps that the mean is over (those that count by default).
    """
    outputs = _of_steps("outputs", outputs)
    targets = checks.real_array("targets", targets, outputs.dtype)
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets have shape {targets.shape}, but the outputs {outputs.shape}: "
            f"write jnp.broadcast_to(targets, outputs.shape) if one target is meant for all"
        )
    weights = _weights(mask, outputs)
    error = jnp.where(weights[..., None] > 0, outputs - targets, jnp.zeros((), outputs.dtype))
    return _mean(jnp.mean(jnp.square(error), axis=-1), weights, n_steps)


def softmax_cross_entropy(
    outputs: Float[Array, "time batch n_out"],
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    n_steps: float | None = None,
) -> Float[Array, ""]:
    """Mean over time and batch of -log softmax(y)[label]; NaN for a label that is no class.

        >>> import eprop, jax.numpy as jnp
        >>> outputs = jnp.zeros((3, 2, 4))  # [time, batch, n_classes]
        >>> round(float(eprop.losses.softmax_cross_entropy(outputs, jnp.array([0, 3]))), 3)  # ln 4
        1.386

    **Arguments:**

    - `labels`: classes as integers, `[batch]`, or `[time, batch]` if they vary in time.
    - `mask`: `[time]` or `[time, batch]`, the steps that count, or their weights (all by default).
    - `class_weights`: `[n_classes]`, how much a step of each class counts: the mean is
      Σ w l / Σ w, with w the weight of the step's label times its mask.
    - `n_steps`: the number of steps that the mean is over, Σ w l / (n_steps · batch).
    """
    outputs = _of_steps("outputs", outputs)
    n_classes, zero = outputs.shape[-1], jnp.zeros((), outputs.dtype)
    weights = _weights(mask, outputs)
    labels = _labels(labels, outputs, weights)
    exists = (labels >= 0) & (labels < n_classes)
    counts = weights > 0
    chosen = jax.nn.one_hot(labels, n_classes, dtype=outputs.dtype)
    seen = jnp.where(counts[..., None], outputs, zero)
    surprise = -jnp.sum(chosen * jax.nn.log_softmax(seen), axis=-1)
    surprise = jnp.where(counts & ~exists, jnp.nan, surprise)
    if class_weights is not None:
        of_class = _not_negative("class_weights", class_weights, outputs.dtype)
        if of_class.shape != (n_classes,):
            raise ValueError(
                f"class_weights have shape {of_class.shape}, but one for each of the {n_classes} "
                f"classes is needed: {(n_classes,)}"
            )
        weights = weights * jnp.where(exists, chosen @ of_class, jnp.ones((), outputs.dtype))
    return _mean(surprise, weights, n_steps)


def _labels(
    labels: ArrayLike, outputs: Array, weights: Float[Array, "time batch"], name: str = "labels"
) -> Int[Array, "time batch"]:
    """Labels of each step; an error where they are no classes and count, if that is known."""
    known = checks.known(labels)  # in all its bits: JAX may cut them off
    labels = checks.array(name, labels) if known is None else known
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name} have dtype {labels.dtype}, but must be integers, class indices: of "
            f"names write np.unique(names, return_inverse=True)[1], of one-hot rows rows.argmax(-1)"
        )
    if labels.shape not in (outputs.shape[:2], outputs.shape[1:2]):
        raise ValueError(
            f"{name} have shape {labels.shape}, but outputs of shape {outputs.shape} need "
            f"[batch] = {outputs.shape[1:2]} or [time, batch] = {outputs.shape[:2]}"
        )
    n_classes = outputs.shape[-1]
    if isinstance(labels, jax.core.Tracer):
        if labels.dtype.itemsize < 4:  # whose numbers may be too few for the classes
            labels = labels.astype(jnp.int32)
        return jnp.broadcast_to(labels, outputs.shape[:2])
    labels = np.broadcast_to(np.asarray(labels), outputs.shape[:2])
    exists = (labels >= 0) & (labels < n_classes)
    if not isinstance(weights, jax.core.Tracer):
        wrong = labels[~exists & (np.asarray(weights) > 0)]
        if wrong.size:
            raise ValueError(
                f"{name} go from {labels.min()} to {labels.max()}, but with {n_classes} readouts "
                f"they must be 0 to {n_classes - 1}: give steps that have none a mask of 0"
            )
    return jnp.asarray(np.where(exists, labels, -1), jnp.int32)


def firing_rate_penalty(
    spikes: Float[Array, "time batch n_rec"],
    target_rate: ArrayLike | Parameter,
    mask: ArrayLike | None = None,
    *,
    dt: float,
) -> Float[Array, ""]:
    """Σ_j (f_j - f*)² in (spikes/ms)², f_j neuron j's firing rate over the batch and time.

        >>> import eprop, jax.numpy as jnp
        >>> spikes = jnp.zeros((100, 1, 1)).at[::10].set(1.0)  # 100 Hz, if a step takes 1 ms
        >>> round(float(eprop.losses.firing_rate_penalty(spikes, 20.0, dt=1.0)), 4)  # 0.08²
        0.0064

    **Arguments:** `target_rate`: f* in Hz, one or one per neuron; `mask`: `[time]` or
    `[time, batch]`, the steps that count, or their weights (all by default); `dt`: time step in ms.

    The rates are those of the steps at hand. The square of a mean is no sum over time, so where the
    loss sees a window at a time this is another penalty: on each window's rates, one after another.
    Source: the reference implementation, `reg_type` "simple".
    """
    spikes = _of_steps("spikes", spikes)
    weights = _weights(mask, spikes)
    counted = jnp.sum(weights[..., None] * spikes, axis=(0, 1))
    return _rate_error(counted / (_count(weights) * checks.positive("dt", dt)), target_rate)


def running_rate_penalty(
    spikes: Float[Array, "time batch n_rec"],
    target_rate: ArrayLike | Parameter,
    mask: ArrayLike | None = None,
    *,
    dt: float,
) -> Float[Array, ""]:
    """Mean over time of Σ_j (f_j,t - f*)² in (spikes/ms)², with f_j,t the rate up to step t.

    As `firing_rate_penalty`, but of the average that a neuron could keep while it runs: over the
    batch and the steps so far (of the window, where the loss sees one at a time). Source: after
    the reference implementation's `reg_type` "online", which lays the examples of a batch end to
    end.
    """
    spikes = _of_steps("spikes", spikes)
    weights = _weights(mask, spikes)
    counted = jnp.cumsum(jnp.sum(weights[..., None] * spikes, axis=1), axis=0)
    of_steps = weights.sum(1)  # [time]
    so_far = jnp.cumsum(of_steps)
    so_far = jnp.where(so_far > 0, so_far, jnp.ones_like(so_far))[:, None]
    errors = _rate_error(counted / (so_far * checks.positive("dt", dt)), target_rate)
    return jnp.sum(of_steps * errors) / _count(weights)


def _rate_error(
    rates: Float[Array, "*time n_rec"], target_rate: ArrayLike | Parameter
) -> Float[Array, "*time"]:
    target = _not_negative("target_rate", target_rate, rates.dtype) / 1000
    if target.shape not in ((), rates.shape[-1:]):
        raise ValueError(
            f"target_rate has shape {target.shape}: give one number in Hz, or one for each of the "
            f"{rates.shape[-1]} neurons"
        )
    return jnp.sum(jnp.square(rates - jnp.broadcast_to(target, rates.shape)), axis=-1)


def voltage_penalty(
    v: Float[Array, "time batch n_rec"],
    threshold: ArrayLike | Parameter,
    mask: ArrayLike | None = None,
    *,
    n_steps: float | None = None,
) -> Float[Array, ""]:
    """Mean over time and batch of Σ_j (relu((v - A) / A)² + relu((-v - A) / A)²).

    **Arguments:** `v`: membrane potentials; `threshold`: A in the potential's units, a number,
    one per neuron, or `[time, batch, n_rec]` (v_th + β a of an adaptive neuron); `mask`, `n_steps`:
    as for `mean_squared_error`.

    It is zero while -A <= v <= A.
    """
    v = _of_steps("v", v)
    known, threshold = checks.known(threshold), checks.real_array("threshold", threshold, v.dtype)
    if known is not None and not np.all(known > 0):
        raise ValueError(
            f"threshold of shape {known.shape} goes down to {known.min()}: it must be positive"
        )
    if threshold.ndim == 1 and threshold.shape != v.shape[-1:]:
        raise ValueError(
            f"threshold has shape {threshold.shape}: give one number, or one for each of the "
            f"{v.shape[-1]} neurons"
        )
    threshold = jnp.broadcast_to(threshold, v.shape)
    weights = _weights(mask, v)
    counts = weights[..., None] > 0
    v = jnp.where(counts, v, jnp.zeros((), v.dtype))
    threshold = jnp.where(counts, threshold, jnp.ones((), v.dtype))
    excess = jax.nn.relu(jnp.abs(v) - threshold) / threshold
    return _mean(jnp.square(excess).sum(-1), weights, n_steps)


def actor_critic(
    outputs: Float[Array, "time batch n_out"],
    actions: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    *,
    discount: float,
    every: int = 1,
    value_weight: float = 1.0,
    entropy_weight: float = 0.0,
    next_values: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Of decisions and their rewards, summed over the decisions and averaged over the batch:

        -A_t log π_t(a_t) + ½ C_V (R_t - V_t)² - c H(π_t),        A_t = R_t - V_t held fixed

        π = softmax of all outputs but the last, which is the value V
        R_t = r_t + γ R_{t+1}, held fixed too. After a decision that ended its episode R_{t+1} is 0
        if the episode was over (terminated), and if it was only broken off (truncated), as where
        the decisions end, the value V of what would have followed.

    There is a decision after each `every` steps, by the outputs of the last of them. Its e-prop
    gradient is that of equation (5) of Bellec et al. 2020 (Methods, "reward-based e-prop"), δ_t
    times the filtered L_t ē_t, summed over t.

    **Arguments:** by decision, `[decision, batch]`, and as many decisions as there are `actions`:

    - `actions`: a_t, integers from 0 to n_out - 2; NaN comes of others under `jax.jit`.
    - `rewards`: r_t.
    - `terminated`, `truncated`: booleans, how episodes end.
    - `discount`: γ, 0 to 1, from one decision to the next.
    - `every`: steps from one decision to the next.
    - `value_weight`, `entropy_weight`: C_V and c.
    - `next_values`: the values of what would have followed each decision; only those where an
      episode was truncated and of the last decision are looked at. By default they are the
      outputs' own, one decision later, so that the outputs need `every` further steps, unless all
      decisions at the end are terminal.
    - `mask`: decisions that count, or their weights (all by default): what comes between one
      episode's end and the next one's beginning does not.
    """
    every, outputs = checks.positive_int("every", every), checks.array("outputs", outputs)
    value_weight = _weight("value_weight", value_weight)
    entropy_weight = _weight("entropy_weight", entropy_weight)
    rewards = checks.real_array("rewards", rewards, outputs.dtype)
    (n, *_), (n_steps, *_) = (*rewards.shape, 0), (*outputs.shape, 0)
    shape = (n, *outputs.shape[1:2])
    fits = n_steps in (n * every, (n + 1) * every) and outputs.ndim == 3 and n > 0
    if rewards.shape != shape or not fits:
        raise ValueError(
            f"rewards have shape {rewards.shape} and outputs {outputs.shape}: with a decision "
            f"after each every = {every} steps give rewards [decision, batch], and outputs of all "
            f"their steps, or of one more decision's"
        )
    batch, n_actions, zero = shape[1], outputs.shape[-1] - 1, jnp.zeros((), outputs.dtype)
    if n_actions < 1:
        raise ValueError(
            f"outputs of shape {outputs.shape} need two readouts: actions, and a value"
        )
    ended = {"terminated": terminated, "truncated": truncated}
    terminated, truncated = (
        checks.booleans(name, x, shape, "[decision, batch]") for name, x in ended.items()
    )
    seen = outputs[every - 1 :: every]
    logits, values = seen[:n, :, :-1], seen[:, :, -1]
    weights = _weights(mask, logits)
    rewards = _finite_where("rewards", rewards, weights)
    if np.shape(actions) != shape:
        raise ValueError(f"actions have shape {np.shape(actions)}, but {shape} is needed")
    actions = _labels(actions, logits, weights, "actions")

    held = jax.lax.stop_gradient(values)
    if next_values is not None:
        following = checks.real_array("next_values", next_values, outputs.dtype)
        if following.shape != shape:
            raise ValueError(f"next_values have shape {following.shape}, but {shape} is needed")
        following = jax.lax.stop_gradient(following)
    elif len(held) > n:
        following = held[1:]
    else:
        if not isinstance(terminated, jax.core.Tracer) and not terminated[-1].all():
            raise ValueError(
                "the last decision ends no episode, so what follows it has a value: give the "
                f"outputs of {every} further steps, or next_values"
            )
        following = jnp.concatenate([held[1:], jnp.full_like(held[:1], jnp.nan)])
    truncated |= jnp.arange(n)[:, None] == n - 1
    if next_values is not None:
        looked_at = jnp.where(truncated & ~terminated, weights, jnp.zeros_like(weights))
        _finite_where("next_values", following, looked_at)
    returns = _returns(rewards, terminated, truncated, following, _discount(discount))

    counts = weights > 0
    log_policy = jax.nn.log_softmax(jnp.where(counts[..., None], logits, zero))
    chosen = jax.nn.one_hot(actions, n_actions, dtype=outputs.dtype)
    values = jnp.where(counts, values[:n], zero)
    returns = jnp.where(counts, returns, zero)
    exists = (actions >= 0) & (actions < n_actions)
    returns = jnp.where(counts & ~exists, jnp.nan, returns)
    advantages = returns - jax.lax.stop_gradient(values)
    per_decision = (
        -advantages * jnp.sum(chosen * log_policy, -1)
        + value_weight / 2 * jnp.square(returns - values)
        + entropy_weight * jnp.sum(jnp.exp(log_policy) * log_policy, -1)
    )
    return jnp.sum(weights * per_decision) / batch


def _returns(
    rewards: Float[Array, "decision batch"],
    terminated: Array,
    truncated: Array,
    next_values: Float[Array, "decision batch"],
    discount: ArrayLike,
) -> Float[Array, "decision batch"]:
    """R_t = r_t + γ (0 after the end of an episode, V where it was broken off, R_{t+1} else)."""

    def step(return_tp1, now):
        reward, is_over, is_cut, value = now
        following = jnp.where(is_cut, value, return_tp1)
        return_t = reward + discount * jnp.where(is_over, jnp.zeros_like(value), following)
        return return_t, return_t

    start = jnp.zeros_like(rewards[0])
    of_steps = (rewards, terminated, truncated, next_values)
    return jax.lax.scan(step, start, of_steps, reverse=True)[1]


def _discount(value: Any) -> Any:
    if isinstance(value, jax.core.Tracer):
        return value
    return checks.between("discount", value, 0, 1)


def _weight(name: str, value: Any) -> Any:
    return value if isinstance(value, jax.core.Tracer) else checks.not_negative(name, value)


def _finite_where(name: str, array: Array, weights: Array) -> Array:
    """`array`, with 0 where it doesn't count; `ValueError` for NaN where it does, if known."""
    counts = weights > 0
    array = jnp.where(counts, array, jnp.zeros_like(array))
    if not isinstance(array, jax.core.Tracer):
        checks.finite(name, array)
    return array


def _of_steps(name: str, value: Any) -> Float[Array, "time batch n"]:
    """An array of three axes: of two, time and batch would be taken for each other's."""
    array = checks.array(name, value)
    if array.ndim != 3:
        raise ValueError(
            f"{name} have shape {array.shape}, but [time, batch, n] is needed: with a batch of one "
            f"write {name}[:, None], and with one step {name}[None]"
        )
    return array


def _weights(mask: ArrayLike | None, outputs: Array) -> Float[Array, "time batch"]:
    """How much each step counts."""
    shape = outputs.shape[:2]
    if mask is None:
        return jnp.ones(shape, outputs.dtype)
    mask = _not_negative("mask", mask, outputs.dtype)
    if mask.shape not in (shape, shape[:1]):
        raise ValueError(
            f"mask has shape {mask.shape}, but [time] = {shape[:1]} or [time, batch] = {shape} is "
            f"needed"
        )
    return jnp.broadcast_to(mask if mask.ndim == 2 else mask[:, None], shape)


def _not_negative(name: str, value: Any, dtype: Any) -> Array:
    """An array of numbers that are not negative; where they are traced, that is not checked."""
    array, known = checks.real_array(name, value, dtype), checks.known(value)
    if known is not None and not np.all((known >= 0) & np.isfinite(known)):
        raise ValueError(
            f"{name} of shape {known.shape} goes from {known.min()} to {known.max()}: it must be "
            f"finite, and at least 0"
        )
    return array


def _mean(
    per_step: Float[Array, "time batch"],
    weights: Float[Array, "time batch"],
    n_steps: float | None,
) -> Float[Array, ""]:
    """Mean over the batch and the steps that count."""
    total = jnp.sum(weights * per_step)
    if n_steps is None:
        return total / _count(weights)
    return total / (checks.positive("n_steps", n_steps) * weights.shape[1])


def _count(weights: Float[Array, "time batch"]) -> Float[Array, ""]:
    """How many steps count, by their weights; 1 in place of none, where they are traced."""
    count = weights.sum()
    if isinstance(count, jax.core.Tracer):
        return jnp.where(count > 0, count, jnp.ones_like(count))
    if count == 0:
        raise ValueError(
            f"no step counts: the mask is 0 for all {weights.size} steps, or the weights of their "
            f"classes are. Leave this batch out, or say n_steps for a sum over time"
        )
    return count
