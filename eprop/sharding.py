"""Networks over several devices, where a mesh is set (`jax.set_mesh`): by the names of its axes.

"batch": each device takes its share of the examples through the network. Examples know nothing of
each other, so nothing travels but what is summed over them: the gradient, once it is whole.

"neurons": each device has some neurons of each layer, the synapses that lead to them, and their
traces. The others' spikes come to it at each step, as bits; to all else XLA sees, which is told
where the arrays are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array

BATCH, NEURONS = "batch", "neurons"
"""The names of a mesh's axes."""
EVERYWHERE: Any = PartitionSpec()
"""How an array lies that each device has whole; ..."""
EXAMPLES: Any = PartitionSpec(BATCH)
"""... whose first axis is the examples, ..."""
STEPS: Any = PartitionSpec(None, BATCH)
"""... whose second axis is, after time, ..."""
BLOCKS: Any = PartitionSpec(None, None, BATCH)
"""... or whose third is, after blocks and time; ..."""
SUMMED: Any = "summed"
"""... and one that is to be the sum of all devices'."""


def n_shares() -> int:
    """Into how many shares a batch is divided here."""
    return _size(BATCH)


def n_parts() -> int:
    """Into how many parts the neurons of a layer are divided here."""
    return _size(NEURONS)


def _size(axis: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get(axis, AxisType.Manual) is AxisType.Manual:
        return 1
    if kinds[axis] is AxisType.Explicit:
        sizes, names = tuple(mesh.shape.values()), mesh.axis_names
        raise ValueError(
            f'the mesh\'s axis "{axis}" is explicit: write jax.make_mesh({sizes}, {names}, '
            f"axis_types=(jax.sharding.AxisType.Auto,) * {len(names)})"
        )
    return mesh.shape[axis]


@contextlib.contextmanager
def known_numbers() -> Iterator[None]:
    """Inside, operations on known numbers are done at once, also where a program is traced."""
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())), jax.ensure_compile_time_eval():
        yield


def by_shares(function: Callable[..., Any], given: Any, found: Any, *args: Any) -> Any:
    """`function(*args)`, each device by itself with its share of the examples.

    **Arguments:** `given`, `found`: how the arguments and the results are divided, prefixes of
    their pytrees; where that of the results depends on them, a function of what they are like.
    Results that are `SUMMED` are added up over all shares.

    Raises `ValueError` for a batch that can't be divided.
    """
    n = n_shares()
    if n == 1:
        return function(*args)
    arrays, rest = eqx.partition(args, eqx.is_array)
    shares = jax.tree.map(lambda how, tree: _share(how, tree, n), given, arrays)

    def of_share(*arrays: Any) -> Any:
        return function(*eqx.combine(arrays, rest))

    how = found(jax.eval_shape(of_share, *shares)) if callable(found) else found

    def together(*arrays: Any) -> Any:
        return jax.tree.map(
            lambda how, x: jax.lax.psum(x, BATCH) if how is SUMMED else x, how, of_share(*arrays)
        )

    specs = jax.tree.map(lambda how: EVERYWHERE if how is SUMMED else how, how)
    return jax.shard_map(
        together, in_specs=given, out_specs=specs, axis_names={BATCH}, check_vma=False
    )(*arrays)


def _share(how: PartitionSpec, tree: Any, n: int) -> Any:
    """What each of n devices has of arrays that are so divided: shapes and dtypes."""

    def share(x: Array) -> jax.ShapeDtypeStruct:
        shape = list(x.shape)
        if BATCH in how:
            axis = how.index(BATCH)
            if shape[axis] % n:
                raise ValueError(
                    f"a batch of {shape[axis]} examples can't be divided over the {n} devices of "
                    f'the mesh\'s axis "{BATCH}": give a multiple of {n}, or a mesh of fewer'
                )
            shape[axis] //= n
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree.map(share, tree)


def by_neuron(x: Array) -> Array:
    """An array whose last axis is the neurons, of which each device has its own."""
    n = n_parts()
    if n == 1:
        return x
    if x.shape[-1] % n:
        raise ValueError(
            f"{x.shape[-1]} neurons can't be divided over the {n} devices of the mesh's axis "
            f'"{NEURONS}": give a multiple of {n}, or a mesh of fewer'
        )
    return _placed(x, PartitionSpec(*[None] * (x.ndim - 1), NEURONS))


def everywhere(z: Array, *, is_binary: bool) -> Array:
    """What all neurons send, on each device; if it is 0 or 1 it travels as bits, eight in a byte.

    No gradient passes through bits.
    """
    n_parts_here, n = n_parts(), z.shape[-1]
    if n_parts_here == 1:
        return z
    if not is_binary:
        return _placed(z, EVERYWHERE)
    if n % (8 * n_parts_here):
        raise ValueError(
            f"the spikes of {n} neurons can't be divided into bytes on the {n_parts_here} devices "
            f'of the mesh\'s axis "{NEURONS}": give a multiple of {8 * n_parts_here} neurons'
        )
    weights = jnp.asarray([1 << i for i in range(8)], jnp.uint8)
    bits = by_neuron(z.astype(bool)).reshape(*z.shape[:-1], n // 8, 8).astype(jnp.uint8)
    packed = jnp.sum(bits * weights.reshape(*[1] * z.ndim, 8), axis=-1, dtype=jnp.uint8)
    packed = _placed(by_neuron(packed), EVERYWHERE)
    bits = packed[..., None] & weights.reshape(*[1] * z.ndim, 8)
    return (bits > 0).reshape(z.shape).astype(z.dtype)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _placed(x: Array, how: PartitionSpec) -> Array:
    """The array as it is to lie; compiled, since only a compiled program moves it there."""
    return jax.lax.with_sharding_constraint(x, how)
