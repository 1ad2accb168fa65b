"""Synapses that share their weights between positions: a convolution, after pooling."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .. import checks
from .abstract import AbstractSynapses


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
        currents = jax.lax.conv_general_dilated(
            image,
            w,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return currents.reshape(*pre.shape[:-1], self.n_post)

    def seen(self, pre: Array) -> Array:
        height, width, c_out = self.shape_out
        patches = jax.lax.conv_general_dilated_patches(
            self._pooled(pre),
            self.weights.shape[:2],
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # [batch, height, width, fan_in], the fan_in as (c_in, k_height, k_width)
        patches = patches.reshape(len(pre), height * width, -1).swapaxes(1, 2)
        return jnp.repeat(patches, c_out, axis=-1)

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
