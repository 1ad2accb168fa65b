"""Numbers of many neurons at once, as arrays of JAX: what a cell's equations are written in here.

`Lanes` is to a program of Pallas what `language.Number` is to one of LLVM.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .language import BOOL, TYPES
from .scalar import NotTranslatable

DTYPES = {of_type: dtype for dtype, of_type in TYPES.items()}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "fabs": jnp.abs,
    "pow": jnp.power,
    **{x: getattr(jnp, x) for x in ("sqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p")},
    **{x: getattr(jnp, x) for x in ("floor", "ceil", "sin", "cos", "tan")},
    **{x: getattr(jnp, x) for x in ("asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh")},
}
COMPARISONS: dict[str, Callable[..., Any]] = {
    "==": jnp.equal, "!=": jnp.not_equal, "<": jnp.less, "<=": jnp.less_equal,
    ">": jnp.greater, ">=": jnp.greater_equal,
}  # fmt: skip


class LanesCode:
    """What makes constants."""

    def number(self, x: Any, of_type: Any) -> "Lanes":
        return Lanes(np.asarray(x, DTYPES[of_type])[()])


class Lanes:
    """A number of each neuron, or one for all."""

    def __init__(self, value: Any):
        self.value = value

    @property
    def type(self) -> Any:
        return TYPES[np.dtype(self.value.dtype)]

    @property
    def is_float(self) -> bool:
        return np.issubdtype(self.value.dtype, np.floating)

    def like(self, x: Any) -> "Lanes":
        """A Python number of this one's type; other `Lanes` as they are."""
        return x if isinstance(x, Lanes) else Lanes(np.asarray(x, self.value.dtype)[()])

    def filled(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The numbers, one for each neuron."""
        return jnp.broadcast_to(jnp.asarray(self.value, dtype), shape)

    def _apply(self, function: Callable[..., Any], *others: Any) -> "Lanes":
        return Lanes(function(self.value, *(self.like(x).value for x in others)))

    def __add__(self, other: Any) -> "Lanes":
        return self._apply(jnp.add, other)

    def __sub__(self, other: Any) -> "Lanes":
        return self._apply(jnp.subtract, other)

    def __mul__(self, other: Any) -> "Lanes":
        return self._apply(jnp.multiply, other)

    def __truediv__(self, other: Any) -> "Lanes":
        return self._apply(jax.lax.div if not self.is_float else jnp.divide, other)

    def __neg__(self) -> "Lanes":
        return self._apply(jnp.negative)

    def __and__(self, other: Any) -> "Lanes":
        return self._apply(jnp.bitwise_and, other)

    def __or__(self, other: Any) -> "Lanes":
        return self._apply(jnp.bitwise_or, other)

    def __xor__(self, other: Any) -> "Lanes":
        return self._apply(jnp.bitwise_xor, other)

    def __invert__(self) -> "Lanes":
        return self._apply(jnp.bitwise_not)

    def __lt__(self, other: Any) -> "Lanes":
        return self.compare("<", other)

    def __gt__(self, other: Any) -> "Lanes":
        return self.compare(">", other)

    def compare(self, operator: str, other: Any) -> "Lanes":
        """Booleans."""
        x, y = self, self.like(other)
        if x.type == BOOL:  # to Triton a number of one bit, with a sign
            x, y = x.to(TYPES[np.dtype(np.int32)]), y.to(TYPES[np.dtype(np.int32)])
        return x._apply(COMPARISONS[operator], y)

    def choose(self, if_true: "Lanes", if_false: "Lanes") -> "Lanes":
        """One of two numbers, by these booleans."""
        return Lanes(jnp.where(self.value, if_true.value, if_false.value))

    def to(self, wanted: Any) -> "Lanes":
        """The numbers in another type."""
        if self.type == wanted:
            return self
        if wanted == BOOL:
            return self.compare("!=", 0)
        return Lanes(self.value.astype(DTYPES[wanted]))

    def function(self, name: str, *others: "Lanes") -> "Lanes":
        """A mathematical function."""
        if name not in FUNCTIONS:
            raise NotTranslatable(f"the function {name}")
        return self._apply(FUNCTIONS[name], *others)
