"""Learning rules, and `value_and_grad`, which takes one: the argument to change to compare them."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from . import checks
from .feedback import AbstractFeedback, SymmetricFeedback
from .learning_signals import Loss, call_loss
from .network import Network, without_autapses
from .recursion import Gradients, step_gradients, zero_gradients
from .traces import Carry, init_carry
from .windowed import sequence_gradients, window_gradients


class AbstractRule(eqx.Module):
    """How the gradient of a loss with respect to a network is found."""

    @abstractmethod
    def gradient(
        self,
        loss: Loss,
        trainable: Network,
        frozen: Network,
        inputs: ArrayLike,
        targets: Any,
        has_aux: bool,
    ) -> tuple[Any, Any, Network]:
        """`(value, aux, gradients)` with respect to the trainable part of the network.

        The two parts are as from `equinox.partition`: `None` where a leaf is in the other.
        """

    @abstractmethod
    def after_update(self, network: Network, updates: Any) -> tuple[Network, "AbstractRule"]:
        """The network and the rule after the optimiser's `updates`."""


class BPTT(AbstractRule):
    """Backpropagation through time, by reverse-mode differentiation; the reference.

    With `stop_z_gradients=True` the gradient of z_{t-1} is stopped where it enters the recurrent
    current and the reset: e-prop with symmetric feedback, by autodiff.
    """

    stop_z_gradients: bool = eqx.field(static=True, default=False)

    def gradient(self, loss, trainable, frozen, inputs, targets, has_aux):
        def of_trainable(trainable):
            network = eqx.combine(trainable, frozen)
            trajectory = network(inputs, stop_z_gradients=self.stop_z_gradients)
            return call_loss(loss, trajectory, targets, has_aux)

        (value, aux), gradients = jax.value_and_grad(of_trainable, has_aux=True)(trainable)
        return value, aux, gradients

    def after_update(self, network, updates):
        return eqx.apply_updates(network, updates), self


class EProp(AbstractRule):
    """E-prop: eligibility traces, forward in time, times learning signals.

    **Arguments:**

    - `feedback`: how the readout's error reaches the neurons: `SymmetricFeedback()`,
      `RandomFeedback(b)` or `AdaptiveFeedback(b, ...)`, b of shape `[n_rec, n_out]`.
    - `window`: how many steps are evaluated at a time; `None` for the whole sequence at once.
      It changes time and memory, never the gradient: a window keeps O(window · n) numbers per
      example, and between windows O(n_pre · n_post). `window=1` is the paper's recursion.

    With a window shorter than the sequence the loss is called on each window and the values are
    added up, so it must be a sum over time: say by `n_steps` of a loss in `eprop.losses` what a
    mean is over. Targets are cut with the inputs, so each leaf needs a leading time axis. What
    the loss returns as auxiliary output gets a leading axis of windows.
    """

    feedback: AbstractFeedback = SymmetricFeedback()
    window: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        examples = "SymmetricFeedback() or RandomFeedback(b)"
        checks.instance("feedback", self.feedback, AbstractFeedback, examples)
        if self.window is not None:
            checks.positive_int("window", self.window)

    def gradient(self, loss, trainable, frozen, inputs, targets, has_aux):
        network = eqx.combine(trainable, frozen)
        network, inputs = network.checked(inputs)
        n_steps, batch = inputs.shape[:2]
        if self.window is None or self.window >= n_steps:
            value, aux, gradients = sequence_gradients(
                loss, self.feedback, network, trainable.cell, inputs, targets, has_aux
            )
            return value, aux, as_network(network, trainable, gradients)
        refuse_cell_parameters(trainable, self.window)
        checks.same_length(targets, n_steps, self.window)

        def step(state, now):
            (carry, total), (inputs, targets) = state, now
            carry, value, aux, gradients = self.advance(
                loss, network, carry, inputs, targets, has_aux
            )
            return (carry, jax.tree.map(jnp.add, total, gradients)), (value, aux)

        start = (init_carry(network, batch), zero_gradients(network))
        (_, total), (values, aux) = by_windows(step, start, (inputs, targets), self.window)
        return values.sum(), aux, as_network(network, trainable, total)

    def advance(
        self,
        loss: Loss,
        network: Network,
        carry: Carry,
        inputs: Array,
        targets: Any,
        has_aux: bool,
    ) -> tuple[Carry, Any, Any, Gradients]:
        """Go on from `carry` (see `init_carry`) under further steps, as one window.

        Returns the carry after them, the loss's value and aux, and their share of the gradient.
        """
        evaluate = step_gradients if len(inputs) == 1 else window_gradients
        return evaluate(loss, self.feedback, network, carry, inputs, targets, has_aux)

    def after_update(self, network, updates):
        if updates.w_out is None:
            return eqx.apply_updates(network, updates), self
        w_out, feedback = self.feedback.after_update(network.w_out, updates.w_out)
        network = eqx.apply_updates(network, updates)
        return (
            eqx.tree_at(lambda net: net.w_out, network, w_out),
            EProp(feedback, self.window),
        )


def value_and_grad(
    loss: Loss,
    rule: AbstractRule,
    has_aux: bool = False,
    trainable: Any = eqx.is_inexact_array,
) -> Callable[[Network, ArrayLike, Any], tuple[Any, Network]]:
    """A function `(network, inputs, targets) -> (value, gradients)`, as `jax.value_and_grad`.

    **Arguments:**

    - `loss`: `loss(trajectory, targets) -> scalar`, or `-> (scalar, aux)` with `has_aux=True`,
      and then the function returns `((value, aux), gradients)`.
    - `rule`: `EProp(...)` or `BPTT(...)`.
    - `trainable`: what to differentiate by: a predicate on leaves, or a network of booleans, as
      for `equinox.filter`. Every floating-point array by default.

    The function takes `inputs` `[time, batch, n_in]` and any pytree of `targets`. The gradients
    are a network (`gradients.w_rec`, ...) with `None` for what is not trained, as optax wants it
    beside `equinox.filter(network, trainable)`. It is a pure function: `jax.jit` it with what
    comes after it.

    Raises `TypeError` for a loss that is no scalar, `ValueError` or `TypeError` for inputs and
    targets that don't fit.
    """
    checks.instance("rule", rule, AbstractRule, "EProp() or BPTT()")

    def evaluate(network: Network, inputs: ArrayLike, targets: Any) -> tuple[Any, Network]:
        part, frozen = eqx.partition(network, trainable)
        value, aux, gradients = rule.gradient(loss, part, frozen, inputs, targets, has_aux)
        return ((value, aux) if has_aux else value), gradients

    return evaluate


def grad(
    loss: Loss,
    rule: AbstractRule,
    has_aux: bool = False,
    trainable: Any = eqx.is_inexact_array,
) -> Callable[[Network, ArrayLike, Any], Any]:
    """As `value_and_grad`, for the gradients alone (with `has_aux=True`: `(gradients, aux)`)."""
    both = value_and_grad(loss, rule, has_aux, trainable)

    def evaluate(network: Network, inputs: ArrayLike, targets: Any) -> Any:
        value, gradients = both(network, inputs, targets)
        return (gradients, value[1]) if has_aux else gradients

    return evaluate


def apply_updates(
    network: Network, updates: Any, rule: AbstractRule
) -> tuple[Network, AbstractRule]:
    """The network and the rule after the optimiser's `updates`, in place of optax's.

    They are added to the weights; `AdaptiveFeedback` learns from them too.
    """
    return rule.after_update(network, updates)


def by_windows(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, sequence: Any, window: int
) -> tuple[Any, Any]:
    """`jax.lax.scan` of `step` over windows of a sequence, the last of which may be shorter."""
    sequence = jax.tree.map(jnp.asarray, sequence)
    n_steps = len(jax.tree.leaves(sequence)[0])
    n_whole = n_steps // window * window
    whole = jax.tree.map(lambda x: x[:n_whole].reshape(-1, window, *x.shape[1:]), sequence)
    state, results = jax.lax.scan(step, state, whole)
    if n_whole < n_steps:
        state, last = step(state, jax.tree.map(lambda x: x[n_whole:], sequence))
        results = jax.tree.map(_append, results, last)
    return state, results


def as_network(network: Network, trainable: Network, gradients: Gradients) -> Network:
    """The gradients of the trainable leaves, in the network's structure."""
    w_in, w_rec = network.split(gradients.synapses)
    everything = eqx.tree_at(
        lambda net: (net.w_in, net.w_rec, net.w_out, net.readout_bias, net.cell),
        trainable,
        (w_in, without_autapses(w_rec), *gradients[1:]),
        is_leaf=lambda x: x is None,
    )
    is_trained = jax.tree.map(lambda x: x is not None, trainable, is_leaf=lambda x: x is None)
    return eqx.filter(everything, is_trained)


def refuse_cell_parameters(trainable: Network, window: int) -> None:
    """`ValueError` if a part of the cell is to be trained window by window."""
    found = jax.tree_util.tree_leaves_with_path(trainable.cell)
    if found:
        names = ", ".join(f"cell{jax.tree_util.keystr(path)}" for path, _ in found)
        raise ValueError(
            f"{names} can be trained with window=None only, not window={window}: leave it out "
            f"of `trainable`, or use EProp(..., window=None)"
        )


def _append(stacked: Array, last: ArrayLike) -> Array:
    last = jnp.asarray(last, stacked.dtype)
    if stacked.shape[1:] != last.shape:
        raise ValueError(
            f"aux of shape {stacked.shape[1:]} has shape {last.shape} in the last, shorter "
            f"window: return sums over time, or use a window that divides the sequence"
        )
    return jnp.concatenate([stacked, last[None]])
