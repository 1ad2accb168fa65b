"""Numbers, arrays and loops that are written in Python and compiled by LLVM.

    with code.loop(n) as j:
        v[j] = alpha * v[j] + current[j]

writes a loop, once; nothing is computed here. Arrays of one function don't overlap, so LLVM turns
a loop over neurons into vector instructions.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import llvmlite.ir as ir
import numpy as np

POINTER, BOOL, INDEX = ir.PointerType(), ir.IntType(1), ir.IntType(64)
TYPES = {
    np.dtype(np.float32): ir.FloatType(),
    np.dtype(np.float64): ir.DoubleType(),
    np.dtype(np.bool_): BOOL,
    np.dtype(np.int8): ir.IntType(8),
    np.dtype(np.int16): ir.IntType(16),
    np.dtype(np.int32): ir.IntType(32),
    np.dtype(np.int64): INDEX,
}
"""What a number of a dtype is to LLVM. In memory a boolean is a byte."""
SLOTS = ir.ArrayType(POINTER, 64)
"""Where memory for scratch arrays waits between calls: `take` and `give` of `kernels.call`."""
INTRINSICS = ("fabs", "sqrt", "floor", "ceil", "exp", "exp2", "log", "sin", "cos")
"""Functions that LLVM knows by itself."""


class Number:
    """A number of the program that is being written."""

    def __init__(self, code: "Code", value: Any):
        self.code, self.value = code, value

    @property
    def type(self) -> Any:
        return self.value.type

    @property
    def is_float(self) -> bool:
        return isinstance(self.type, ir.FloatType | ir.DoubleType)

    def like(self, x: Any) -> "Number":
        """A Python number of this one's type; another `Number` as it is."""
        return x if isinstance(x, Number) else self.code.number(x, self.type)

    def _operation(self, of_floats: str, of_integers: str, *others: Any) -> "Number":
        write = getattr(self.code.builder, of_floats if self.is_float else of_integers)
        return Number(self.code, write(self.value, *(self.like(x).value for x in others)))

    def __add__(self, other: Any) -> "Number":
        return self._operation("fadd", "add", other)

    def plus_in_any_order(self, other: "Number") -> "Number":
        """A sum of floats of which LLVM may choose the order: a vector of sums, say."""
        total = self.code.builder.fadd(
            self.value,
            other.value,
            flags=("reassoc", "nsz"),  # pyright: ignore[reportCallIssue]
        )
        return Number(self.code, total)

    def __sub__(self, other: Any) -> "Number":
        return self._operation("fsub", "sub", other)

    def __mul__(self, other: Any) -> "Number":
        return self._operation("fmul", "mul", other)

    def __truediv__(self, other: Any) -> "Number":
        return self._operation("fdiv", "sdiv", other)

    def __neg__(self) -> "Number":
        return self._operation("fneg", "neg")

    def __and__(self, other: Any) -> "Number":
        return self._operation("", "and_", other)

    def __or__(self, other: Any) -> "Number":
        return self._operation("", "or_", other)

    def __xor__(self, other: Any) -> "Number":
        return self._operation("", "xor", other)

    def __invert__(self) -> "Number":
        return self._operation("", "not_")

    def compare(self, operator: str, other: Any) -> "Number":
        """A boolean. As everywhere, NaN equals nothing."""
        builder, other = self.code.builder, self.like(other)
        if self.is_float:
            write = builder.fcmp_unordered if operator == "!=" else builder.fcmp_ordered
        else:  # a boolean is a number of one bit, 0 or 1
            write = builder.icmp_unsigned if self.type == BOOL else builder.icmp_signed
        return Number(self.code, write(operator, self.value, other.value))

    def __lt__(self, other: Any) -> "Number":
        return self.compare("<", other)

    def __gt__(self, other: Any) -> "Number":
        return self.compare(">", other)

    def choose(self, if_true: "Number", if_false: "Number") -> "Number":
        """One of two numbers, by this boolean."""
        return Number(
            self.code, self.code.builder.select(self.value, if_true.value, if_false.value)
        )

    def at_least(self, other: Any) -> "Number":
        """The larger of two, neither of them NaN."""
        other = self.like(other)
        return (self > other).choose(self, other)

    def at_most(self, other: Any) -> "Number":
        """The smaller of two, neither of them NaN."""
        other = self.like(other)
        return (self < other).choose(self, other)

    def to(self, wanted: Any) -> "Number":
        """The number in another type."""
        builder, given = self.code.builder, self.type
        if given == wanted:
            return self
        to_float = isinstance(wanted, ir.FloatType | ir.DoubleType)
        if wanted == BOOL:
            return self.compare("!=", 0)
        if self.is_float and to_float:
            write = builder.fpext if isinstance(wanted, ir.DoubleType) else builder.fptrunc
        elif to_float:
            write = builder.uitofp if given == BOOL else builder.sitofp
        elif self.is_float:
            return self._saturated(wanted)
        elif given == BOOL:
            write = builder.zext
        else:
            write = builder.sext if wanted.width > given.width else builder.trunc
        return Number(self.code, write(self.value, wanted))

    def _saturated(self, wanted: ir.IntType) -> "Number":
        """A float as an integer, towards zero: the nearest there is, and 0 for NaN, as in XLA."""
        signature = ir.FunctionType(wanted, [self.type])
        function = self.code.module.declare_intrinsic(
            "llvm.fptosi.sat", [wanted, self.type], signature
        )
        return Number(self.code, self.code.builder.call(function, [self.value]))

    def function(self, name: str, *others: "Number") -> "Number":
        """A mathematical function: "exp", "fabs", "sqrt", "pow", ..., as the C library has it."""
        module, arguments = self.code.module, [self.value, *(x.value for x in others)]
        if name in INTRINSICS:
            function = module.declare_intrinsic(f"llvm.{name}", [self.type])
        else:
            name = name if isinstance(self.type, ir.DoubleType) else f"{name}f"
            signature = ir.FunctionType(self.type, [self.type] * len(arguments))
            function = module.globals.get(name) or ir.Function(module, signature, name)
        return Number(self.code, self.code.builder.call(function, arguments))


class Array:
    """Numbers in memory, row by row."""

    def __init__(self, code: "Code", pointer: ir.Value, dtype: Any, shape: Sequence[Any]):
        self.code, self.pointer, self.dtype = code, pointer, np.dtype(dtype)
        self.shape = [code.index(x) for x in shape]

    @property
    def _in_memory(self) -> Any:
        return ir.IntType(8) if self.dtype == bool else TYPES[self.dtype]

    def _address(self, indices: Any) -> ir.Value:
        indices = indices if isinstance(indices, tuple) else (indices,)
        offset = self.code.index(0)
        for i, size in enumerate(self.shape):
            offset = offset * size
            if i < len(indices):
                offset = offset + self.code.index(indices[i])
        return self.code.builder.gep(self.pointer, [offset.value], source_etype=self._in_memory)

    def part(self, *indices: Any) -> "Array":
        """The array that is left when the first indices are given."""
        return Array(self.code, self._address(indices), self.dtype, self.shape[len(indices) :])

    def between(self, begin: Any, end: Any) -> "Array":
        """Its rows from one to before another."""
        shape = [self.code.index(end) - begin, *self.shape[1:]]
        return Array(self.code, self._address(begin), self.dtype, shape)

    def of_example(self, b: Any) -> "Array":
        """Of `[time, batch, ...]` that of an example, with the strides that time has."""
        n_steps, *others = self.shape
        row = functools.reduce(Number.__mul__, others)
        return Array(self.code, self._address((0, b)), self.dtype, [n_steps, row])

    def when(self, condition: Number, other: "Array") -> "Array":
        """This array if it is so, otherwise another of its shape."""
        pointer = self.code.builder.select(condition.value, self.pointer, other.pointer)
        return Array(self.code, pointer, self.dtype, self.shape)

    def eight(self, index: Any) -> Number:
        """Eight bytes of a row from an index on, as one number."""
        return Number(self.code, self.code.builder.load(self._address(index), align=1, typ=INDEX))

    def __getitem__(self, indices: Any) -> Number:
        value = self.code.builder.load(self._address(indices), typ=self._in_memory)
        number = Number(self.code, value)
        return number.to(BOOL) if self.dtype == bool else number

    def __setitem__(self, indices: Any, number: Number) -> None:
        self.code.builder.store(number.to(self._in_memory).value, self._address(indices))


class Code:
    """A function that is being written: where the next instruction goes."""

    def __init__(self, module: ir.Module, name: str, n_pointers: int, n_integers: int = 0):
        self.module = module
        arguments = [POINTER] * n_pointers + [INDEX] * n_integers
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
        for pointer in self.function.args[:n_pointers]:
            pointer.add_attribute("noalias")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.pointers = self.function.args[:n_pointers]
        self.integers = [Number(self, x) for x in self.function.args[n_pointers:]]
        self._scratch: list[tuple[ir.Value, ir.Value]] = []

    def number(self, x: Any, of_type: Any) -> Number:
        """A constant."""
        is_float = isinstance(of_type, ir.FloatType | ir.DoubleType)
        return Number(self, ir.Constant(of_type, float(x) if is_float else int(x)))

    def index(self, x: Any) -> Number:
        """A whole number to count or to index with."""
        return x if isinstance(x, Number) else self.number(x, INDEX)

    def scratch(self, dtype: Any, *shape: Any) -> Array:
        """An array for as long as the function runs: ask for it before any loop."""
        n_bytes = self.index(np.dtype(dtype).itemsize)
        for length in shape:
            n_bytes = n_bytes * length
        slots = ir.GlobalVariable(self.module, SLOTS, f"slots.{len(self._scratch)}")
        slots.linkage = "internal"
        slots.initializer = ir.Constant(SLOTS, None)  # pyright: ignore[reportAttributeAccessIssue]
        take = self._external("take", POINTER, POINTER, INDEX)
        take.return_value.add_attribute("noalias")
        self._scratch.append((slots, self.builder.call(take, [slots, n_bytes.value])))
        return Array(self, self._scratch[-1][1], dtype, shape)

    def end(self) -> None:
        """The function returns."""
        give = self._external("give", ir.VoidType(), POINTER, POINTER)
        for slots, pointer in self._scratch:
            self.builder.call(give, [slots, pointer])
        self.builder.ret_void()

    def _external(self, name: str, result: Any, *arguments: Any) -> ir.Function:
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    @contextlib.contextmanager
    def loop(self, end: Any, begin: Any = 0) -> Iterator[Number]:
        """For each index from `begin` to before `end`."""
        builder, begin, end = self.builder, self.index(begin), self.index(end)
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        before = builder.block
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(INDEX)
        i.add_incoming(begin.value, before)
        builder.cbranch(builder.icmp_signed("<", i, end.value), body, after)
        builder.position_at_end(body)
        yield Number(self, i)
        i.add_incoming(builder.add(i, ir.Constant(INDEX, 1)), builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    def copy(self, x: Array, y: Array) -> None:
        """A row into another."""
        with self.loop(x.shape[0]) as j:
            y[j] = x[j]

    @contextlib.contextmanager
    def each_byte(self, word: Number) -> Iterator[Number]:
        """For each of eight bytes, of which every one is 0 or 1, that is 1: its number, 0 to 7."""
        builder = self.builder
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        before = builder.block
        builder.branch(head)
        builder.position_at_end(head)
        left = builder.phi(INDEX)
        left.add_incoming(word.value, before)
        builder.cbranch(builder.icmp_signed("!=", left, ir.Constant(INDEX, 0)), body, after)
        builder.position_at_end(body)
        first = builder.cttz(left, ir.Constant(BOOL, True))
        yield Number(self, builder.lshr(first, ir.Constant(INDEX, 3)))
        without = builder.and_(left, builder.sub(left, ir.Constant(INDEX, 1)))
        left.add_incoming(without, builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    @contextlib.contextmanager
    def when(self, condition: Number) -> Iterator[None]:
        """Only if it is so."""
        builder = self.builder
        then, after = (self.function.append_basic_block() for _ in range(2))
        builder.cbranch(condition.value, then, after)
        builder.position_at_end(then)
        yield
        builder.branch(after)
        builder.position_at_end(after)
