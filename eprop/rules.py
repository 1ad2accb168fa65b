"""E-prop as a rule, and `value_and_grad`, which takes one: the argument to change."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from . import adjoint, checks
from .feedback import AbstractFeedback, SymmetricFeedback
from .network import AbstractRule, Network
from .trajectory import Trajectory
from .weights import added

Loss = Callable[[Trajectory, Any], Any]
"""`loss(trajectory, targets) -> scalar`, or `-> (scalar, aux)` with `has_aux=True`."""


class EProp(AbstractRule):
    """E-prop: eligibility traces, forward in time, times learning signals.

    As the rule of a network's call it decides what reverse-mode differentiation gives:

        >>> import eprop, jax, jax.numpy as jnp
        >>> network = eprop.Network(eprop.LIF(9, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(0))
        >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (20, 2, 5))
        >>> b = jax.random.normal(jax.random.key(2), (9, 1))
        >>> def loss(network):
        ...     rule = eprop.EProp(eprop.RandomFeedback(b))
        ...     return jnp.mean(network(inputs, rule).outputs ** 2)
        >>> gradients = jax.grad(loss)(network)
        >>> gradients.w_in.shape, gradients.w_rec.shape, gradients.w_out.shape
        ((5, 9), (9, 9), (9, 1))

    **Arguments:**

    - `feedback`: how the readout's error reaches the neurons: `SymmetricFeedback()`,
      `RandomFeedback(b)` or `AdaptiveFeedback(b, ...)`, b of shape `[n, n_out]`.
    - `window`: how many steps are evaluated at a time, forward in time, with eligibility traces
      carried from one window to the next; `window=1` is the paper's recursion. It is what streams
      and `OnlineLearner` go by. In a derivative of a whole run, whose loss is known only at its
      end, it serves to see that it makes no difference: `None`, in reverse and all at once, is
      the same gradient for less time and memory, and alone gives one with respect to the inputs.
    """

    feedback: AbstractFeedback = SymmetricFeedback()
    window: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        examples = "SymmetricFeedback() or RandomFeedback(b)"
        checks.instance("feedback", self.feedback, AbstractFeedback, examples)
        if self.window is not None:
            checks.positive_int("window", self.window)

    def run(self, network, start, inputs, kept):
        feedback = jax.lax.stop_gradient(self.feedback)
        start = jax.tree.map(_without_tangent, start)
        return adjoint.run((network, start, inputs), feedback, kept, self.window)

    def after_update(self, network, updates):
        if updates.w_out is None:
            return added(network, updates), self
        w_out, feedback = self.feedback.after_update(network.w_out, updates.w_out)
        network = added(network, updates)
        return (
            eqx.tree_at(lambda net: net.w_out, network, w_out),
            EProp(feedback, self.window),
        )


def _without_tangent(x: Array) -> Array:
    """A counter of a state, which a run that is differentiated hands on as if it had a gradient."""
    return x if eqx.is_inexact_array(x) else x | jnp.zeros_like(x)


def value_and_grad(
    loss: Loss,
    rule: AbstractRule,
    has_aux: bool = False,
    trainable: Any = eqx.is_inexact_array,
) -> Callable[..., tuple[Any, Network]]:
    """A function `(network, inputs, targets) -> (value, gradients)`, as `jax.value_and_grad`.

        >>> import eprop, jax, jax.numpy as jnp
        >>> network = eprop.Network(eprop.LIF(9, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(0))
        >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (20, 2, 5))
        >>> loss = lambda trajectory, y: eprop.losses.mean_squared_error(trajectory.outputs, y)
        >>> evaluate = jax.jit(eprop.value_and_grad(loss, eprop.EProp()))
        >>> value, gradients = evaluate(network, inputs, jnp.ones((20, 2, 1)))
        >>> value.shape, gradients.w_rec.shape
        ((), (9, 9))

    **Arguments:**

    - `loss`: `loss(trajectory, targets) -> scalar`, or `-> (scalar, aux)` with `has_aux=True`,
      and then the function returns `((value, aux), gradients)`. It sees the whole trajectory.
    - `rule`: `EProp(...)` or `BPTT(...)`.
    - `trainable`: what to differentiate by: a predicate on leaves, or a network of booleans, as
      for `equinox.filter`. Every floating-point array by default.

    The function takes `inputs` `[time, batch, n_in]`, any pytree of `targets`, and a random `key`
    for dropout, if there is any. The gradients are a network (`gradients.w_rec`, ...) with `None`
    for what is not trained, as optax wants it beside `equinox.filter(network, trainable)`. It is a
    pure function: `jax.jit` it with what comes after it. It is no more than `jax.value_and_grad`
    of `loss(network(inputs, rule), targets)`: write that where there is more around the network.

    Raises `TypeError` for a loss that is no scalar, `ValueError` or `TypeError` for inputs and
    targets that don't fit.
    """
    checks.function("loss", loss, "loss(trajectory, targets)")
    checks.instance("rule", rule, AbstractRule, "EProp() or BPTT()")
    checks.switch("has_aux", has_aux)
    checks.trainable(trainable)

    def evaluate(
        network: Network, inputs: ArrayLike, targets: Any, key: Any = None
    ) -> tuple[Any, Network]:
        checks.instance("network", network, Network, "evaluate(network, inputs, targets)")
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((network, inputs))):
            network.checked(inputs)  # while the numbers are known: its plain errors
        part = checks.trained(network, trainable)
        frozen = eqx.filter(network, trainable, inverse=True)

        def of_part(part):
            trajectory = eqx.combine(part, frozen)(inputs, rule, key=key)
            return call_loss(loss, trajectory, targets, has_aux)

        (value, aux), gradients = jax.value_and_grad(of_part, has_aux=True)(part)
        return ((value, aux) if has_aux else value), gradients

    return evaluate


def grad(
    loss: Loss,
    rule: AbstractRule,
    has_aux: bool = False,
    trainable: Any = eqx.is_inexact_array,
) -> Callable[..., Any]:
    """As `value_and_grad`, for the gradients alone (with `has_aux=True`: `(gradients, aux)`)."""
    both = value_and_grad(loss, rule, has_aux, trainable)

    def evaluate(network: Network, inputs: ArrayLike, targets: Any, key: Any = None) -> Any:
        value, gradients = both(network, inputs, targets, key)
        return (gradients, value[1]) if has_aux else gradients

    return evaluate


def apply_updates(
    network: Network, updates: Any, rule: AbstractRule
) -> tuple[Network, AbstractRule]:
    """The network and the rule after the optimiser's `updates`, in place of optax's.

    They are added to the weights; `AdaptiveFeedback` learns from them too.
    """
    return rule.after_update(network, updates)


NO_GRADIENT = (
    "the loss lets no gradient back into what the network did, so nothing would be learned: "
    "argmax, comparisons and rounding have none. Write one of eprop.losses, say, and return an "
    "accuracy beside it, with has_aux=True"
)


def call_loss(loss: Loss, trajectory: Trajectory, targets: Any, has_aux: bool) -> tuple[Any, Any]:
    """`(value, aux)` of the loss; `TypeError` unless the value is a floating-point scalar."""
    result = loss(trajectory, targets)
    if has_aux:
        if not isinstance(result, tuple) or len(result) != 2:
            given = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise TypeError(f"with has_aux=True the loss must return (scalar, aux), not {given}")
        value, aux = result
    else:
        value, aux = result, None
        if value is None or isinstance(value, tuple | list | dict):
            raise TypeError(
                f"the loss returned a {type(value).__name__}: it must return a scalar, or "
                f"(scalar, aux) with has_aux=True"
            )
    checks.scalar_loss(value)
    return value, aux
