"""Compiled functions as operations of JAX: XLA calls them, with threads of its own.

An operation works on many items (the examples of a batch, the steps of a sequence), each by itself.
The thread that XLA calls on takes some of them after another, and so does every other of XLA's
threads that is free: none is waited for that has not begun, so nothing can lock up.
"""

import ctypes
import functools
import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np

from .language import INDEX, POINTER, SLOTS, Array, Code, Number

# Offsets in the structures of XLA's C interface, xla/ffi/api/c_api.h, version 0.3.
ARGUMENTS, RESULTS = 72, 112  # of a call: where the tables of its buffers are
DATA, DIMENSIONS = 24, 40  # of a buffer

ENTRY = """
; What the threads of one call share: the next item, how many are done, how many threads hold this,
; how many items there are, how many to take at a time, and the call itself.
%shared = type {{ i64, i64, i64, i64, i64, ptr }}

; What each thread does: some items after another, until there are none left.
define internal void @task(ptr %s) {{
  %n.at = getelementptr %shared, ptr %s, i32 0, i32 3
  %n = load i64, ptr %n.at
  %chunk.at = getelementptr %shared, ptr %s, i32 0, i32 4
  %chunk = load i64, ptr %chunk.at
  br label %take
take:
  %first = atomicrmw add ptr %s, i64 %chunk seq_cst
  %left = icmp slt i64 %first, %n
  br i1 %left, label %some, label %leave
some:  ; the call waits for them, so it is still there
  %call.at = getelementptr %shared, ptr %s, i32 0, i32 5
  %call = load ptr, ptr %call.at
  %next = add i64 %first, %chunk
  %last = call i64 @llvm.smin.i64(i64 %next, i64 %n)
  call void @work(ptr %call, i64 %first, i64 %last)
  %done.at = getelementptr %shared, ptr %s, i32 0, i32 1
  %count = sub i64 %last, %first
  %done = atomicrmw add ptr %done.at, i64 %count seq_cst
  br label %take
leave:  ; the last one turns off the light
  %holders.at = getelementptr %shared, ptr %s, i32 0, i32 2
  %holders = atomicrmw sub ptr %holders.at, i64 1 seq_cst
  %alone = icmp eq i64 %holders, 1
  br i1 %alone, label %free, label %end
free:
  call void @free(ptr %s)
  br label %end
end:
  ret void
}}

; What XLA calls.
define ptr @entry(ptr %call) {{
  %extension.at = getelementptr i8, ptr %call, i64 8
  %extension = load ptr, ptr %extension.at
  %plain = icmp eq ptr %extension, null
  br i1 %plain, label %begin, label %extended
extended:
  %kind.at = getelementptr i8, ptr %extension, i64 8
  %kind = load i32, ptr %kind.at
  %asked = icmp eq i32 %kind, 1
  br i1 %asked, label %answer, label %begin
answer:  ; which version of the interface this is for: 0.3
  %metadata.at = getelementptr i8, ptr %extension, i64 24
  %metadata = load ptr, ptr %metadata.at
  %version = getelementptr i8, ptr %metadata, i64 24
  store i32 0, ptr %version
  %minor = getelementptr i8, ptr %metadata, i64 28
  store i32 3, ptr %minor
  ret ptr null
begin:
  %table.at = getelementptr i8, ptr %call, i64 {table}
  %table = load ptr, ptr %table.at
  %buffer.at = getelementptr ptr, ptr %table, i64 {buffer}
  %buffer = load ptr, ptr %buffer.at
  %sizes.at = getelementptr i8, ptr %buffer, i64 40
  %sizes = load ptr, ptr %sizes.at
  %n.at = getelementptr i64, ptr %sizes, i64 {axis}
  %n = load i64, ptr %n.at
  %size = call i64 @size(ptr %call)
  %grains = sdiv i64 %size, {grain}
  %worth = add i64 %grains, 1
  %few = call i64 @llvm.smin.i64(i64 %worth, i64 %n)
  %little = icmp sle i64 %few, 1
  br i1 %little, label %here, label %many
here:
  call void @work(ptr %call, i64 0, i64 %n)
  ret ptr null

many:
  %api.at = getelementptr i8, ptr %call, i64 16
  %api = load ptr, ptr %api.at
  %context.at = getelementptr i8, ptr %call, i64 24
  %context = load ptr, ptr %context.at

  %threads.at = alloca i64
  store i64 1, ptr %threads.at
  %question = alloca {{ i64, ptr, ptr, ptr }}
  store {{ i64, ptr, ptr, ptr }} {{ i64 32, ptr null, ptr null, ptr null }}, ptr %question
  %question.context = getelementptr i8, ptr %question, i64 16
  store ptr %context, ptr %question.context
  %question.threads = getelementptr i8, ptr %question, i64 24
  store ptr %threads.at, ptr %question.threads
  %count.at = getelementptr i8, ptr %api, i64 144
  %count = load ptr, ptr %count.at
  %none = call ptr %count(ptr %question)  ; an error where XLA has no threads: then there is one
  %told = icmp eq ptr %none, null
  br i1 %told, label %share, label %forget
forget:
  call void @forget(ptr %api, ptr %none)
  store i64 1, ptr %threads.at
  br label %share

share:
  %threads = load i64, ptr %threads.at
  %useful = call i64 @llvm.smin.i64(i64 %threads, i64 %few)
  %others = sub i64 %useful, 1
  %pieces = mul i64 %threads, {pieces}
  %more = add i64 %n, %pieces
  %rounded = sub i64 %more, 1
  %chunk = sdiv i64 %rounded, %pieces
  %s = call ptr @malloc(i64 48)
  %s1 = getelementptr %shared, ptr %s, i32 0, i32 1
  %s2 = getelementptr %shared, ptr %s, i32 0, i32 2
  %s3 = getelementptr %shared, ptr %s, i32 0, i32 3
  %s4 = getelementptr %shared, ptr %s, i32 0, i32 4
  %s5 = getelementptr %shared, ptr %s, i32 0, i32 5
  store i64 0, ptr %s
  store i64 0, ptr %s1
  store i64 2, ptr %s2  ; this thread, which works and then waits
  store i64 %n, ptr %s3
  store i64 %chunk, ptr %s4
  store ptr %call, ptr %s5
  %order = alloca {{ i64, ptr, ptr, ptr, ptr }}
  store {{ i64, ptr, ptr, ptr, ptr }} {{ i64 40, ptr null, ptr null, ptr @task, ptr null }},
        ptr %order
  %order.context = getelementptr i8, ptr %order, i64 16
  store ptr %context, ptr %order.context
  %order.data = getelementptr i8, ptr %order, i64 32
  store ptr %s, ptr %order.data
  %schedule.at = getelementptr i8, ptr %api, i64 136
  %schedule = load ptr, ptr %schedule.at
  br label %ask
ask:
  %i = phi i64 [ 0, %share ], [ %i.next, %asked.one ]
  %enough = icmp sge i64 %i, %others
  br i1 %enough, label %together, label %ask.one
ask.one:
  %held = atomicrmw add ptr %s2, i64 1 seq_cst
  %refused = call ptr %schedule(ptr %order)
  %accepted = icmp eq ptr %refused, null
  br i1 %accepted, label %asked.one, label %give.up
asked.one:
  %i.next = add i64 %i, 1
  br label %ask
give.up:
  call void @forget(ptr %api, ptr %refused)
  %unheld = atomicrmw sub ptr %s2, i64 1 seq_cst
  br label %together
together:
  call void @task(ptr %s)
  br label %wait
wait:
  %done = load atomic i64, ptr %s1 seq_cst, align 8
  %all = icmp sge i64 %done, %n
  br i1 %all, label %end, label %pause
pause:
  %yielded = call i32 @sched_yield()
  br label %wait
end:
  %last.holder = atomicrmw sub ptr %s2, i64 1 seq_cst
  %alone = icmp eq i64 %last.holder, 1
  br i1 %alone, label %free, label %return
free:
  call void @free(ptr %s)
  br label %return
return:
  ret ptr null
}}

; Destroys an error.
define internal void @forget(ptr %api, ptr %error) {{
  %request = alloca {{ i64, ptr, ptr }}
  store {{ i64, ptr, ptr }} {{ i64 24, ptr null, ptr null }}, ptr %request
  %error.at = getelementptr i8, ptr %request, i64 16
  store ptr %error, ptr %error.at
  %destroy.at = getelementptr i8, ptr %api, i64 64
  %destroy = load ptr, ptr %destroy.at
  call void %destroy(ptr %request)
  ret void
}}

; Memory for scratch arrays. What a call gives back waits in a slot for the next: asking the system
; for it each time would take longer than what it is needed for. Its size is written before it.
define internal noalias align 64 ptr @take(ptr %slots, i64 %bytes) noinline {{
  br label %look
look:
  %i = phi i64 [ 0, %0 ], [ %i.next, %next ]
  %slot = getelementptr ptr, ptr %slots, i64 %i
  %found = atomicrmw xchg ptr %slot, ptr null seq_cst
  %none = icmp eq ptr %found, null
  br i1 %none, label %next, label %some
next:
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, {slots}
  br i1 %more, label %look, label %new
some:
  %size = load i64, ptr %found
  %enough = icmp sge i64 %size, %bytes
  br i1 %enough, label %end, label %small
small:
  call void @free(ptr %found)
  br label %new
new:
  %all = add i64 %bytes, 127
  %lines = and i64 %all, -64
  %fresh = call ptr @aligned_alloc(i64 64, i64 %lines)
  store i64 %bytes, ptr %fresh
  br label %end
end:
  %block = phi ptr [ %found, %some ], [ %fresh, %new ]
  %memory = getelementptr i8, ptr %block, i64 64
  ret ptr %memory
}}

define internal void @give(ptr %slots, ptr %memory) noinline {{
  %block = getelementptr i8, ptr %memory, i64 -64
  br label %look
look:
  %i = phi i64 [ 0, %0 ], [ %i.next, %next ]
  %slot = getelementptr ptr, ptr %slots, i64 %i
  %try = cmpxchg ptr %slot, ptr null, ptr %block seq_cst seq_cst
  %empty = extractvalue {{ ptr, i1 }} %try, 1
  br i1 %empty, label %end, label %next
next:
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, {slots}
  br i1 %more, label %look, label %full
full:
  call void @free(ptr %block)
  br label %end
end:
  ret void
}}

declare i64 @llvm.smin.i64(i64, i64)
declare ptr @malloc(i64)
declare ptr @aligned_alloc(i64, i64)
declare void @free(ptr)
declare i32 @sched_yield()
"""
PIECES = 4
GRAIN = 2**15
"""Numbers, given and found, for each thread: to wake one for fewer takes longer than their work."""

Body = Callable[[Code, list[Array], Number, Number], None]


class Operation:
    """A compiled operation of JAX.

    **Arguments:**

    - `name`: to be seen in a program's text.
    - `arguments`, `results`: dtype and number of axes of each array.
    - `items`: `(array, axis)`: the size of which of all these arrays is the number of items.
    - `body`: writes the work on the items from one index to before another.
    - `pieces`: into how many pieces for each thread the items are cut: some may take longer than
      others, but each begins anew.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[tuple[Any, int]],
        results: Sequence[tuple[Any, int]],
        items: tuple[int, int],
        body: Body,
        pieces: int = PIECES,
    ):
        self.results = [np.dtype(dtype) for dtype, _ in results]
        text = _program(name, [*arguments, *results], len(arguments), items, body, pieces)
        self.target = f"eprop_{name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        _register(self.target, text)

    def __call__(
        self,
        *arguments: Any,
        shapes: Sequence[tuple[int, ...]],
        in_place: Mapping[int, int] | None = None,
    ) -> list[jax.Array]:
        """The results, of `shapes`; `in_place` says which argument's memory becomes which's."""
        kinds = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, self.results, strict=True)]
        aliases = {k % len(arguments): of_result for k, of_result in (in_place or {}).items()}
        call = jax.ffi.ffi_call(
            self.target, kinds, vmap_method="sequential", input_output_aliases=aliases
        )
        return list(call(*arguments))


def _program(
    name: str,
    buffers: Sequence[tuple[Any, int]],
    n_arguments: int,
    items: tuple[int, int],
    body: Body,
    pieces: int,
) -> str:
    module = ir.Module(name)
    n_sizes = sum(rank for _, rank in buffers)
    code = Code(module, "body", len(buffers), n_sizes + 2)
    *sizes, first, last = code.integers
    left = iter(sizes)
    arrays = [
        Array(code, pointer, dtype, [next(left) for _ in range(rank)])
        for pointer, (dtype, rank) in zip(code.pointers, buffers, strict=True)
    ]
    body(code, arrays, first, last)
    code.end()

    def function(name: str, of_type: Any, *integers: Any) -> ir.IRBuilder:
        """One that is given the call."""
        written = ir.Function(module, ir.FunctionType(of_type, [POINTER, *integers]), name)
        written.linkage = "internal"
        return ir.IRBuilder(written.append_basic_block())

    def read(builder: ir.IRBuilder, pointer: ir.Value, offset: int, of_type: Any) -> ir.Value:
        at = builder.gep(pointer, [ir.Constant(INDEX, offset)], source_etype=ir.IntType(8))
        return builder.load(at, typ=of_type)

    def buffers_of(builder: ir.IRBuilder) -> tuple[list[ir.Value], list[list[ir.Value]]]:
        """Where the arrays of the call are, and their shapes."""
        pointers, shapes = [], []
        for i, (_, rank) in enumerate(buffers):
            table, k = (ARGUMENTS, i) if i < n_arguments else (RESULTS, i - n_arguments)
            table = read(builder, builder.function.args[0], table, POINTER)
            buffer = read(builder, table, 8 * k, POINTER)
            pointers.append(read(builder, buffer, DATA, POINTER))
            dimensions = read(builder, buffer, DIMENSIONS, POINTER)
            shapes.append([read(builder, dimensions, 8 * axis, INDEX) for axis in range(rank)])
        return pointers, shapes

    work = function("work", ir.VoidType(), INDEX, INDEX)
    pointers, shapes = buffers_of(work)
    work.call(code.function, [*pointers, *itertools.chain(*shapes), *work.function.args[1:]])
    work.ret_void()

    size = function("size", INDEX)
    lengths = [functools.reduce(size.mul, shape) for shape in buffers_of(size)[1]]
    size.ret(functools.reduce(size.add, lengths))

    array, axis = items
    table, k = (ARGUMENTS, array) if array < n_arguments else (RESULTS, array - n_arguments)
    code.function.linkage = "internal"
    entry = ENTRY.format(
        table=table, buffer=k, axis=axis, pieces=pieces, grain=GRAIN, slots=SLOTS.count
    )
    declared = re.compile(r'^declare .*@"(take|give)".*$', re.MULTILINE)  # they are in ENTRY
    return f"{declared.sub('', str(module))}\n{entry}"


# Compilation.

_lock = threading.Lock()
_engines: dict[str, Any] = {}
"""Of each operation what holds its machine code: for as long as the process lives."""


def _register(target: str, text: str) -> None:
    with _lock:
        if target not in _engines:
            engine = _compile(text)
            address = engine.get_function_address("entry")
            capsule = ctypes.pythonapi.PyCapsule_New
            capsule.restype = ctypes.py_object
            capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
            jax.ffi.register_ffi_target(target, capsule(address, None, None), platform="cpu")
            _engines[target] = engine


def _compile(text: str) -> Any:
    """Machine code for the processor at hand, optimised as far as JAX's own programs are."""
    level = 0 if jax.config.read("jax_disable_most_optimizations") else 3
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=level
    )
    # As attributes of each function: by these the vectoriser chooses the width.
    text = re.sub(r"^(define [^{\n]*\))", r"\1 #0", text, flags=re.MULTILINE)
    text += f"""
attributes #0 = {{ nounwind "target-cpu"="{cpu}" "target-features"="{features}"
                   "prefer-vector-width"="512" }}
"""
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = target.triple, str(target.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(level)
    options.loop_vectorization = options.slp_vectorization = level > 0
    options.loop_interleaving = False  # layers are narrow: what is left over would be slow
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return engine
