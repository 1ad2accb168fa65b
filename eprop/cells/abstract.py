"""What a neuron is: how it steps under its input currents, and what it sends.

A cell knows neither weights nor the network. Its `step` is the paper's M,

    s_t = M(s_{t-1}, I_t, z_{t-1}),        z_t = output(s_t),

and draws the line that e-prop needs: what a neuron takes from its own `state` is the neuron's
and keeps its gradient; what comes in by `current` and `z_tm1` has been through the network, and
e-prop stops its gradient there.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float


class Jacobians(NamedTuple):
    """A neuron's own derivatives at one time step; d is the number of its hidden variables.

    `state[k, l]` is D = ∂s^k_t/∂s^l_{t-1}, `current[k]` is b = ∂s^k_t/∂I_t and `output[k]` is
    c = ∂z_t/∂s^k_t, each with one entry per example and neuron. Of a cell with several currents
    `current` has an axis for them, behind the first.
    """

    state: Float[Array, "d d batch n"]
    current: Float[Array, "d *currents batch n"]
    output: Float[Array, "d batch n"]


class AbstractCell(eqx.Module):
    """A population of `n` neurons of one kind, elementwise over neurons.

    Subclass it with `init`, `step` and `output`; e-prop for the new neuron follows from these.

    The state is a NamedTuple of arrays `[batch, n]`. Its floating-point fields are the hidden
    variables that eligibility vectors follow; integer and boolean fields (a refractory counter)
    are carried along without a gradient. Floating-point arrays among the cell's own fields are
    trained; one whose last axis is `n` holds numbers of single neurons, any other is shared.
    """

    n: AbstractVar[int]
    dt: AbstractVar[float]
    """Length of a time step in ms."""
    spiking: ClassVar[bool] = False
    """Whether the output is always 0 or 1, so each spike can be stored in one byte."""
    n_currents: ClassVar[int] = 1
    """Input currents of a neuron. Each has synapses of its own."""

    @abstractmethod
    def init(self, batch: int) -> Any:
        """The state before the first step, a NamedTuple of arrays `[batch, n]`."""

    @abstractmethod
    def step(self, state: Any, current: Array, z_tm1: Array) -> Any:
        """The state at t from the state at t - 1.

        **Arguments:** `state`: as from `init`; `current`: I_t from the synapses, `[batch, n]`, or
        `[n_currents, batch, n]` if there are several; `z_tm1`: z_{t-1} `[batch, n]`, the neuron's
        last output as the network has it. Use it for a reset, whose gradient e-prop leaves out.
        For an influence of the neuron's own spike whose gradient e-prop keeps (a threshold
        adaptation) use `self.output(state)`.
        """

    @abstractmethod
    def output(self, state: Any) -> Array:
        """z_t `[batch, n]`, what the neuron sends: its spike, by a surrogate's `spike`."""

    def jacobians(self, state_tm1: Any, current: Array, z_tm1: Array | None = None) -> Jacobians:
        """D, b and c of the step from `state_tm1` under `current`, of `step`'s shape.

        By forward differentiation of `step` and `output`, in units of the state's own fields.
        `z_tm1` is the last output as the network has it, `output(state_tm1)` by default.
        """
        if z_tm1 is None:
            z_tm1 = jax.lax.stop_gradient(self.output(state_tm1))
        by_state, by_current = self.linear_step(state_tm1, current, z_tm1)
        state = self.step(state_tm1, current, z_tm1)
        b = jnp.stack([jnp.stack(row) for row in by_current])
        return Jacobians(
            state=jnp.stack([jnp.stack(row) for row in by_state]),
            current=b[:, 0] if self.n_currents == 1 else b,
            output=jnp.stack(derivatives(self.output, state)),
        )

    def linear_step(
        self, state_tm1: Any, current: Array, z_tm1: Array
    ) -> tuple[list[list[Array]], list[list[Array]]]:
        """The rows of D and those of b, one entry per current, each entry an array `[batch, n]`."""

        def of_currents(currents):
            current = currents[0] if self.n_currents == 1 else jnp.stack(currents)
            return hidden_variables(self.step(state_tm1, current, z_tm1))

        currents = [current] if self.n_currents == 1 else list(current)
        by_state = derivatives(lambda s: hidden_variables(self.step(s, current, z_tm1)), state_tm1)
        by_current = derivatives(of_currents, currents)
        return _rows(by_state), _rows(by_current)


def _rows(columns: list[list[Array]]) -> list[list[Array]]:
    return [list(row) for row in zip(*columns, strict=True)]


def derivatives(function: Callable[[Any], Any], at: Any) -> list[Any]:
    """The derivatives of an elementwise `function` along each floating-point leaf of `at`."""
    floats, rest = eqx.partition(at, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(floats)

    def along(k):
        tangents = [jnp.full_like(x, float(k == i)) for i, x in enumerate(leaves)]
        return jax.jvp(
            lambda *leaves: function(eqx.combine(structure.unflatten(leaves), rest)),
            tuple(leaves),
            tuple(tangents),
        )[1]

    return [along(k) for k in range(len(leaves))]


def hidden_variables(state: Any) -> list[Array]:
    """The floating-point fields of a cell's state, in their order: its hidden variables."""
    return jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
