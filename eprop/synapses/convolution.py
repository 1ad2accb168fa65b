"""Synapses that share their weights between positions: a convolution, after pooling."""

import functools
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike, Float

from .. import checks
from .abstract import AbstractSynapses

IMAGES_BYTES = 2**18
"""About how large the images are together that are seen at a time for the derivative by the kernel.

The patches of more don't stay in the cache, and it takes several times as long.
"""


class Convolution(AbstractSynapses):
    """A two-dimensional convolution of presynaptic activity, averaged over tiles first.

    Neurons are numbered row by row, then column by column, then channel by channel: activity
    `[n_pre]` is an image `[height, width, c_in]`, the currents are one `[height', width', c_out]`,
    of `shape_out`.
    """

    weights: Float[Array, "k_height k_width c_in c_out"]
    shape_in: tuple[int, int] = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    padding: Literal["SAME", "VALID"] = eqx.field(static=True)
    pool: int = eqx.field(static=True)

    def __init__(
        self,
        weights: ArrayLike,
        shape_in: tuple[int, int],
        *,
        stride: int = 1,
        padding: Literal["SAME", "VALID"] = "SAME",
        pool: int = 1,
    ):
        """**Arguments:**

        - `weights`: the kernel `[k_height, k_width, c_in, c_out]`.
        - `shape_in`: height and width of the presynaptic image.
        - `stride`: positions from one application of the kernel to the next.
        - `padding`: "SAME" for zeros around the image, "VALID" for none.
        - `pool`: the image is averaged over tiles of `pool` × `pool` positions before; what is
          left over at the right and bottom is not seen.

        Raises `ValueError` or `TypeError` for a kernel that doesn't fit.
        """
        array = checks.array("weights", weights)
        if array.ndim != 4:
            raise ValueError(
                f"weights have shape {array.shape}, but [k_height, k_width, c_in, c_out] is needed"
            )
        if padding not in ("SAME", "VALID"):
            raise ValueError(f'padding = {padding!r} must be "SAME" or "VALID"')
        self.weights = checks.finite("weights", checks.float_array("weights", array, array.shape))
        height, width = (checks.positive_int("shape_in", x) for x in shape_in)
        self.shape_in = (height, width)
        self.stride = checks.positive_int("stride", stride)
        self.padding = padding
        self.pool = checks.positive_int("pool", pool)
        if min(self.shape_out) < 1:
            raise ValueError(
                f"an image of {height} × {width} is too small for pool = {pool} and a kernel of "
                f"{array.shape[0]} × {array.shape[1]}"
            )

    @property
    def shape_out(self) -> tuple[int, int, int]:
        """Height, width and channels of the postsynaptic image."""
        k_height, k_width, _, c_out = self.weights.shape
        pooled = (self.shape_in[0] // self.pool, self.shape_in[1] // self.pool)
        if self.padding == "SAME":
            height, width = (math.ceil(x / self.stride) for x in pooled)
        else:
            ends = (pooled[0] - k_height, pooled[1] - k_width)
            height, width = (x // self.stride + 1 for x in ends)
        return height, width, c_out

    @property
    def n_pre(self) -> int:
        """Number of presynaptic neurons."""
        return math.prod(self.shape_in) * self.weights.shape[2]

    @property
    def n_post(self) -> int:
        """Number of postsynaptic currents."""
        return math.prod(self.shape_out)

    def effective(self) -> Float[Array, "k_height k_width c_in c_out"]:
        return self.weights

    def currents(self, w: Array, pre: Array) -> Array:
        image = self._pooled(pre.reshape(-1, self.n_pre))
        currents = _convolved(w, image, self.stride, self.padding)
        return currents.reshape(*pre.shape[:-1], self.n_post)

    def seen(self, pre: Array) -> Array:
        image = self._pooled(pre)
        height, width, _ = self.shape_out
        k_height, k_width, c_in, _ = self.weights.shape
        if self.padding == "SAME":
            window, strides = (1, k_height, k_width, 1), (1, self.stride, self.stride, 1)
            image = jnp.pad(image, jax.lax.padtype_to_pads(image.shape, window, strides, "SAME"))
        image = image.transpose(0, 3, 1, 2)
        rows = jnp.stack(_shifted(image, k_height, height, self.stride, axis=2), axis=2)
        patches = jnp.stack(_shifted(rows, k_width, width, self.stride, axis=4), axis=3)
        # [batch, c_in, k_height, k_width, height, width]: all channels of a position see the same
        return patches.reshape(len(pre), c_in * k_height * k_width, height * width)

    def spread(self, w: Array) -> Array:
        height, width, c_out = self.shape_out
        return jnp.tile(w.transpose(2, 0, 1, 3).reshape(-1, c_out), (1, height * width))

    def _pooled(self, pre: Float[Array, "batch n_pre"]) -> Float[Array, "batch h w c_in"]:
        (height, width), c_in, pool = self.shape_in, self.weights.shape[2], self.pool
        image = pre.reshape(-1, height, width, c_in)
        if pool == 1:
            return image
        rows, columns = height // pool, width // pool
        tiles = image[:, : rows * pool, : columns * pool]
        return tiles.reshape(-1, rows, pool, columns, pool, c_in).mean((2, 4))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolved(
    w: Float[Array, "k_height k_width c_in c_out"],
    image: Float[Array, "batch height width c_in"],
    stride: int,
    padding: str,
) -> Float[Array, "batch _ _ c_out"]:
    """The convolution, with derivatives that are fast inside of loops, too.

    XLA's fast code on a processor is for axes in the order NHWC, HWIO and NHWC. Outside of loops it
    brings any other into it, inside it doesn't. The transpose of a convolution is one with other
    axes; so derivatives are written here with those whose transpose has that order.
    """
    return jax.lax.conv_general_dilated(
        image, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(_convolved.defjvp, symbolic_zeros=True)
def _convolved_jvp(stride: int, padding: str, primals: Any, tangents: Any) -> Any:
    (w, image), (d_w, d_image) = primals, tangents
    strides = (stride, stride)
    convolved = _convolved(w, image, stride, padding)
    d_convolved = jnp.zeros_like(convolved)
    if not isinstance(d_w, SymbolicZero):
        d_w = d_w.transpose(2, 0, 1, 3)

        def by_w(image: Float[Array, "height width c_in"]) -> Float[Array, "_ _ c_out"]:
            return jax.lax.conv_general_dilated(
                image.transpose(2, 0, 1)[..., None],
                d_w,
                strides,
                padding,
                dimension_numbers=("CHWN", "IHWO", "HWNC"),
            )[:, :, 0]

        n_images = max(1, IMAGES_BYTES * len(image) // image.nbytes)
        d_convolved += jax.lax.map(by_w, image, batch_size=n_images)
    if not isinstance(d_image, SymbolicZero):
        d_convolved += jax.lax.conv_general_dilated(
            d_image,
            w.swapaxes(2, 3),
            strides,
            padding,
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
        )
    return convolved, d_convolved


def _shifted(x: Array, size: int, n: int, stride: int, *, axis: int) -> list[Array]:
    """What is at each of `size` places of a kernel in its `n` positions along an axis."""
    last = stride * (n - 1) + 1
    return [jax.lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)]
