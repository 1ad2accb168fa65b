"""What the loss says about each spike: e-prop's learning signals, and the total derivative."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import checks
from .feedback import AbstractFeedback, SymmetricFeedback
from .network import Network, Trajectory

Loss = Callable[[Trajectory, Any], Any]
"""`loss(trajectory, targets) -> scalar`, or `-> (scalar, aux)` with `has_aux=True`."""


class LossDerivatives(NamedTuple):
    """Partial derivatives of the loss with respect to what the network did."""

    outputs: Float[Array, "time batch n_out"]
    """∂E/∂y_t, the error of the readout."""
    spikes: Float[Array, "time batch n_rec"] | None
    """∂E/∂z_t with the outputs held fixed, of a firing-rate penalty, say; `None` if the loss
    does not look at the spikes."""
    states: list[Float[Array, "time batch n_rec"]] | None
    """∂E/∂s_t likewise, of a voltage penalty, say: one array per hidden variable."""


class LearningSignals(NamedTuple):
    """E-prop's two learning signals: dE/dW = Σ_t L_t ē_t + Σ_t (∂E/∂z_t) e_t.

    A loss that looks at the states adds Σ_t (∂E/∂s_t) · ε_t, which is not in here.
    """

    readout: Float[Array, "time batch n_rec"]
    """L_t = B ∂E/∂y_t, which goes with the trace filtered by the readout."""
    direct: Float[Array, "time batch n_rec"]
    """∂E/∂z_t, which goes with the trace itself."""


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


def differentiate_loss(
    loss: Loss, trajectory: Trajectory, targets: Any, has_aux: bool
) -> tuple[Any, Any, LossDerivatives]:
    """`(value, aux, derivatives)` of the loss at a trajectory."""

    def of_trajectory(trajectory):
        return call_loss(loss, trajectory, targets, has_aux)

    (value, aux), derivatives = eqx.filter_value_and_grad(of_trajectory, has_aux=True)(trajectory)
    looked_at = _looked_at(lambda trajectory: of_trajectory(trajectory)[0], trajectory)
    return (
        value,
        aux,
        LossDerivatives(
            derivatives.outputs,
            derivatives.spikes if looked_at.spikes else None,
            jax.tree.leaves(derivatives.states) if any(jax.tree.leaves(looked_at.states)) else None,
        ),
    )


def _looked_at(function: Callable[[Trajectory], Array], trajectory: Trajectory) -> Trajectory:
    """For each leaf of the trajectory, whether the function's result depends on it."""
    jaxpr = jax.make_jaxpr(function)(trajectory).jaxpr
    needed = {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(x) in needed for x in equation.outvars):
            needed |= {id(x) for x in equation.invars}
    leaves = [id(x) in needed for x in jaxpr.invars]
    return jax.tree.unflatten(jax.tree.structure(trajectory), leaves)


def learning_signals(
    network: Network,
    inputs: ArrayLike,
    targets: Any,
    loss: Loss,
    feedback: AbstractFeedback = SymmetricFeedback(),  # noqa: B008 (immutable)
) -> LearningSignals:
    """The learning signals of e-prop with `feedback`, `[time, batch, n_rec]` each.

    `inputs` are `[time, batch, n_in]`; `loss(trajectory, targets)` is called once, on the whole
    sequence.
    """
    trajectory = network(inputs)
    _, _, derivatives = differentiate_loss(loss, trajectory, targets, has_aux=False)
    readout = feedback.learning_signal(network.w_out, derivatives.outputs)
    direct = derivatives.spikes
    return LearningSignals(readout, jnp.zeros_like(readout) if direct is None else direct)


def total_derivative(
    network: Network, inputs: ArrayLike, targets: Any, loss: Loss
) -> Float[Array, "time batch n_rec"]:
    """dE/dz_t: what z_t does to the loss by every way through the network, by reverse mode.

    The ideal learning signal: Σ_t dE/dz_t e_t is the gradient of BPTT (the paper's equation 1),
    where e_t are the `eligibility_traces`, for a loss that doesn't look at the states. An
    influence of the spike on the neuron's own state that its cell keeps (the threshold
    adaptation) is in the trace, and so not in here.
    """
    network, inputs = network.checked(inputs)
    start = network.init(inputs.shape[1])

    def perturbed(perturbation):
        run = network.unroll(start, inputs, stop_z_gradients=False, perturbation=perturbation)
        return call_loss(loss, run.trajectory, targets, has_aux=False)[0]

    shape = (*inputs.shape[:2], network.cell.n)
    return jax.grad(perturbed)(jnp.zeros(shape, network.w_in.dtype))
