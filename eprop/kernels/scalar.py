"""A cell's equations on the numbers of one neuron, from the jaxpr of its functions on arrays.

A cell is elementwise over neurons, which are the last axis of all that it works on. So with this
axis left out its jaxpr is a straight line of operations on numbers: those of a small table, and
some that only move numbers about.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import llvmlite.ir as ir
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from .language import TYPES

Scalar: TypeAlias = Any
"""A number of the program that is being written: `language.Number`, or `lanes.Lanes`."""
Writer: TypeAlias = Any
"""What makes its constants: `language.Code`, or `lanes.LanesCode`."""


class NotTranslatable(Exception):
    """What in a cell's equations has no translation."""


def type_of(dtype: Any) -> Any:
    """What a number of a dtype is to LLVM."""
    if np.dtype(dtype) not in TYPES:
        raise NotTranslatable(f"numbers of dtype {np.dtype(dtype)}")
    return TYPES[np.dtype(dtype)]


def _function(name: str) -> Callable[..., Scalar]:
    return lambda x, *others: x.function(name, *others)


def _larger(x: Scalar, y: Scalar) -> Scalar:
    """NaN if either is."""
    above = x > y
    return (above | x.compare("!=", x) if x.is_float else above).choose(x, y)


def _smaller(x: Scalar, y: Scalar) -> Scalar:
    below = x < y
    return (below | x.compare("!=", x) if x.is_float else below).choose(x, y)


def _quotient(x: Scalar, y: Scalar) -> Scalar:
    """By a constant it is a product with its inverse, which is faster: XLA does so, too."""
    if x.is_float and isinstance(y.value, ir.Constant):
        return x * (y.like(1) / y)
    if not x.is_float:  # by 0, and by -1 for the least integer, LLVM may do anything
        raise NotTranslatable("a division of integers")
    return x / y


ELEMENTWISE: dict[str, Callable[..., Scalar]] = {
    "add": lambda x, y: x + y,
    "add_any": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": _quotient,
    "neg": lambda x: -x,
    "square": lambda x: x * x,
    "max": _larger,
    "min": _smaller,
    "clamp": lambda low, x, high: _smaller(_larger(x, low), high),
    "abs": lambda x: x.function("fabs") if x.is_float else (x < 0).choose(-x, x),
    "sign": lambda x: (x > 0).choose(x.like(1), (x < 0).choose(x.like(-1), x)),
    "rsqrt": lambda x: x.like(1) / x.function("sqrt"),
    "logistic": lambda x: x.like(1) / ((-x).function("exp") + 1),
    **{name: _function(name) for name in ("sqrt", "cbrt", "exp", "exp2", "expm1", "erf")},
    **{name: _function(name) for name in ("log", "log1p", "floor", "ceil", "sin", "cos", "tan")},
    **{name: _function(name) for name in ("asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh")},
    "pow": lambda x, y: x.function("pow", y.to(x.type)),
    "eq": lambda x, y: x.compare("==", y),
    "ne": lambda x, y: x.compare("!=", y),
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x.compare("<=", y),
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x.compare(">=", y),
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x: ~x,
    "select_n": lambda which, if_false, if_true: which.choose(if_true, if_false),
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "stop_gradient": lambda x: x,
}
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
Moves = Callable[[list[np.ndarray], Any], list[np.ndarray]]

MOVES: dict[str, Moves] = {
    "reshape": lambda xs, p: [xs[0].reshape(p["new_sizes"])],
    "squeeze": lambda xs, p: [np.squeeze(xs[0], tuple(p["dimensions"]))],
    "expand_dims": lambda xs, p: [np.expand_dims(xs[0], tuple(p["dimensions"]))],
    "transpose": lambda xs, p: [np.transpose(xs[0], p["permutation"])],
    "concatenate": lambda xs, p: [np.concatenate(xs, axis=p["dimension"])],
    "stack": lambda xs, p: [np.stack(xs, axis=p["axis"])],
    "unstack": lambda xs, p: list(np.moveaxis(xs[0], p["axis"], 0)),
    "split": lambda xs, p: np.split(xs[0], np.cumsum(p["sizes"])[:-1], axis=p["axis"]),
    "broadcast_in_dim": lambda xs, p: [
        np.broadcast_to(
            np.expand_dims(
                xs[0], [i for i in range(len(p["shape"])) if i not in p["broadcast_dimensions"]]
            ),
            p["shape"],
        )
    ],
    "slice": lambda xs, p: [xs[0][_slices(p, xs[0].ndim)]],
    "pad": lambda xs, p: [_padded(xs[0], xs[1], p["padding_config"])],
}
"""Operations that move numbers about, as NumPy's."""


def _slices(parameters: Any, ndim: int) -> tuple[slice, ...]:
    begin, end, step = (parameters[x] for x in ("start_indices", "limit_indices", "strides"))
    return tuple(map(slice, begin, end, step or [None] * ndim))


def _padded(x: np.ndarray, value: np.ndarray, config: Any) -> np.ndarray:
    if any(low < 0 or high < 0 or interior for low, high, interior in config):
        raise NotTranslatable("the operation pad, with less than nothing or in between")
    shape = [low + size + high for (low, high, _), size in zip(config, x.shape, strict=True)]
    padded = np.full(shape, value, x.dtype)
    places = zip(config, x.shape, strict=True)
    padded[tuple(slice(low, low + size) for (low, _, _), size in places)] = x
    return padded


class Value(NamedTuple):
    """An array of the jaxpr: its numbers, `Scalar`s with all axes; of neurons the last is 1."""

    numbers: np.ndarray
    of_neurons: bool


Table = Callable[[Any], Scalar]
"""Of an array `[n]` of constants the number of the neuron at hand."""


def evaluate(
    code: Writer, closed: ClosedJaxpr, n: int, arguments: Sequence[Value], table: Table
) -> list[Value]:
    """Writes the operations of a jaxpr of arrays `[..., n]`."""
    return _Translation(code, n, table).run(closed.jaxpr, closed.consts, arguments)


def values_of(arrays: Sequence[Any], numbers: Iterator[Scalar]) -> list[Value]:
    """Arrays like these, `[..., n]`, from the numbers of a neuron, one after another."""
    values = []
    for array in arrays:
        of_neuron = np.empty((*array.shape[:-1], 1), object)
        for index in np.ndindex(of_neuron.shape):
            of_neuron[index] = next(numbers)
        values.append(Value(of_neuron, True))
    return values


def numbers_of(values: Sequence[Value], arrays: Sequence[Any]) -> list[Scalar]:
    """The numbers of a neuron in values that are like these arrays, `[..., n]`."""
    return [
        number
        for value, array in zip(values, arrays, strict=True)
        for number in np.broadcast_to(value.numbers, (*array.shape[:-1], 1)).flat
    ]


class _Translation:
    def __init__(self, code: Writer, n: int, table: Table):
        self.code, self.n, self.table = code, n, table

    def constant(self, x: Any) -> Value:
        is_traced = isinstance(x, jax.core.Tracer)
        x = x if is_traced else np.asarray(x)
        if x.ndim and x.shape[-1] == self.n and (is_traced or (x != x[..., :1]).any()):
            numbers = np.empty((*x.shape[:-1], 1), object)
            for index in np.ndindex(numbers.shape[:-1]):
                numbers[(*index, 0)] = self.table(x[index])
            return Value(numbers, True)
        if is_traced:
            raise NotTranslatable(f"an array of shape {x.shape} that is traced")
        of_neurons = x.ndim > 0 and x.shape[-1] == self.n  # one number for all of them
        x = x[..., :1] if of_neurons else x
        numbers = np.empty(x.shape, object)
        for index in np.ndindex(x.shape):
            numbers[index] = self._number(x[index])
        return Value(numbers, of_neurons)

    def _number(self, x: Any) -> Scalar:
        if x.dtype == jax.dtypes.float0:
            x = np.zeros((), bool)
        return self.code.number(x.item(), type_of(x.dtype))

    def run(self, jaxpr: Jaxpr, constants: Sequence[Any], values: Sequence[Value]) -> list[Value]:
        known = {}

        def read(variable):
            if isinstance(variable, Literal):
                return self.constant(np.asarray(variable.val, jnp.result_type(variable.aval)))
            return known[variable]

        for variable, x in zip(jaxpr.constvars, constants, strict=True):
            if not isinstance(x, jax.core.Tracer):  # NumPy's may be wider than JAX takes them
                x = np.asarray(x, jnp.result_type(variable.aval))
            known[variable] = self.constant(x)
        known.update(zip(jaxpr.invars, values, strict=True))
        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(x) for x in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Value]) -> list[Value]:
        name, parameters = equation.primitive.name, equation.params
        if name in CALLS:
            inner = parameters[CALLS[name]]
            if isinstance(inner, ClosedJaxpr):
                return self.run(inner.jaxpr, inner.consts, values)
            return self.run(inner, [], values)
        if name == "select_n" and (len(values) != 3 or equation.invars[0].aval.dtype != bool):
            raise NotTranslatable("a choice among more than two")
        if name in ELEMENTWISE:
            return [self.each(ELEMENTWISE[name], *values)]
        if name == "integer_pow":
            return [self.each(lambda x: _power(x, parameters["y"]), *values)]
        if name == "convert_element_type":
            wanted = type_of(parameters["new_dtype"])
            return [self.each(lambda x: x.to(wanted), *values)]
        if name == "reduce_sum":  # over axes of length 1, as a derivative has it
            (shape,), axes = [x.aval.shape for x in equation.invars], parameters["axes"]
            if any(shape[axis] != 1 for axis in axes):
                raise NotTranslatable("a sum")
            return self.move("squeeze", {"dimensions": axes}, values, [shape])
        if name in MOVES:
            shapes = [x.aval.shape for x in equation.invars]
            return self.move(name, parameters, values, shapes)
        raise NotTranslatable(f"the operation {name}")

    def each(self, function: Callable[..., Scalar], *values: Value) -> Value:
        arrays = np.broadcast_arrays(*(x.numbers for x in values))
        result = np.empty(arrays[0].shape, object)
        for index in np.ndindex(result.shape):
            result[index] = function(*(x[index] for x in arrays))
        return Value(result, any(x.of_neurons for x in values))

    def move(
        self, name: str, parameters: Any, values: list[Value], shapes: list[tuple[int, ...]]
    ) -> list[Value]:
        """On arrays that say which number of which neuron each entry is: it must be its own."""
        numbers: list[Scalar] = []

        def marked(value: Value, shape: tuple[int, ...]) -> np.ndarray:
            first = len(numbers)
            numbers.extend(value.numbers.flat)
            marks = np.empty(shape, [("number", int), ("neuron", int)])
            marks["number"] = np.arange(first, len(numbers)).reshape(value.numbers.shape)
            marks["neuron"] = np.arange(self.n) if value.of_neurons else -1
            return marks

        def unmarked(marks: np.ndarray) -> Value:
            number, neuron = marks["number"], marks["neuron"]
            if marks.ndim and marks.shape[-1] == self.n:
                own = (neuron == np.arange(self.n)) | (neuron == -1)
                if own.all() and (number == number[..., :1]).all():
                    return Value(_pick(numbers, number[..., :1]), True)
            if (neuron >= 0).any():
                raise NotTranslatable(f"the operation {name}, which does not keep neurons apart")
            return Value(_pick(numbers, number), False)

        arrays = [marked(*pair) for pair in zip(values, shapes, strict=True)]
        return [unmarked(marks) for marks in MOVES[name](arrays, parameters)]


def _pick(numbers: list[Scalar], which: np.ndarray) -> np.ndarray:
    result = np.empty(which.shape, object)
    for index in np.ndindex(which.shape):
        result[index] = numbers[which[index]]
    return result


def _power(x: Scalar, exponent: int) -> Scalar:
    power = x.like(1)
    for _ in range(abs(exponent)):
        power = power * x
    return power if exponent >= 0 else x.like(1) / power
