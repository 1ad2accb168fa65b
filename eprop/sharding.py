"""A batch over several devices: each takes its share of the examples through the network.

Where a mesh is set that has an axis "batch" (`jax.set_mesh`), a run and its derivative are divided
over that axis. Examples know nothing of each other, so nothing travels but what is summed over
them: the gradient, once it is whole.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array

BATCH = "batch"
"""The name of the mesh's axis."""
EVERYWHERE, EXAMPLES, STEPS, BLOCKS = (
    PartitionSpec(*names) for names in ((), (BATCH,), (None, BATCH), (None, None, BATCH))
)
"""Arrays that each device has whole; and those whose examples are along their first, second and
third axis."""
SUMMED = "summed over the examples"


def n_shares() -> int:
    """Into how many shares a batch is divided here."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get(BATCH, AxisType.Manual) is AxisType.Manual:
        return 1
    if kinds[BATCH] is AxisType.Explicit:
        raise ValueError(
            f'the mesh\'s axis "{BATCH}" is explicit: write jax.make_mesh(({mesh.shape[BATCH]},), '
            f'("{BATCH}",), axis_types=(jax.sharding.AxisType.Auto,))'
        )
    return mesh.shape[BATCH]


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
