"""Long short-term memory units: e-prop for neurons that don't spike, with several currents."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import checks
from .abstract import AbstractCell
from .constants import AbstractConstant, beside, constant


class LSTMState(NamedTuple):
    """State of an `LSTM` population."""

    c: Float[Array, "batch n"]
    """Memory cell."""
    o: Float[Array, "batch n"]
    """The output gate before its sigmoid."""


class LSTM(AbstractCell):
    r"""LSTM units, each with four input currents: i, j, f and o, in this order.

        c_t = σ(f_t + b_f) c_{t-1} + σ(i_t) tanh(j_t)
        h_t = σ(o_t) tanh(c_t)

    Weights that lead to them have 4 n columns: n for i, n for j, n for f, n for o. The network
    needs `autapses=True` for a unit to hear its own h, and a `bias` for the gates to have one.

    With `peepholes` `[3, n]` the gates see the memory as well: p_i c_{t-1}, p_f c_{t-1} and p_o c_t
    are added to i, f and o. They are within the unit, so e-prop of them is exact too.

    Source: Bellec et al. 2020, Supplementary Note 3 ("LSTM"); the reference implementation's
    order of gates, and its b_f = 1.
    """

    n: int = eqx.field(static=True)
    forget_bias: AbstractConstant
    peepholes: Float[Array, "3 n"] | None
    dt: float = eqx.field(static=True)
    n_currents: ClassVar[int] = 4

    def __init__(
        self,
        n: int,
        *,
        forget_bias: Any = 1.0,
        peepholes: Any = None,
        dt: float = 1.0,
    ):
        """**Arguments:**

        - `n`: number of units.
        - `forget_bias`: b_f, one number or one per unit (dimensionless).
        - `peepholes`: weights `[3, n]` of the memory to i, f and o, trained; `None` for none.
        - `dt`: time step in ms.
        """
        self.n, self.dt = checks.positive_int("n", n), checks.duration("dt", dt)
        self.forget_bias = constant("forget_bias", forget_bias, n)
        self.peepholes = (
            None if peepholes is None else checks.float_array("peepholes", peepholes, (3, n))
        )

    def init(self, batch: int) -> LSTMState:
        """An empty memory."""
        zeros = jnp.zeros((batch, self.n))
        return LSTMState(zeros, zeros)

    def step(self, state: LSTMState, current: Array, z_tm1: Array) -> LSTMState:
        i, j, f, o = current
        zero = jnp.zeros((), o.dtype)
        if self.peepholes is None:
            p_i = p_f = p_o = zero
        else:
            p_i, p_f, p_o = self.peepholes.astype(o.dtype)[:, None]  # [1, n] each
        i, f = i + p_i * state.c, f + p_f * state.c
        kept = jax.nn.sigmoid(f + beside(self.forget_bias.value, f)) * state.c
        c = kept + jax.nn.sigmoid(i) * jnp.tanh(j)
        return LSTMState(c, o + p_o * c)

    def output(self, state: LSTMState) -> Array:
        return jax.nn.sigmoid(state.o) * jnp.tanh(state.c)
