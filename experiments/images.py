"""Labelled images in IDX files, as MNIST and Fashion-MNIST are published, compressed or not."""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts it."""

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Files of images and of labels; `.gz` may follow."""

UNSIGNED_BYTE = 0x08
"""IDX's number for the only type that is read here."""


class Images(NamedTuple):
    """Images and what they show."""

    images: UInt8[np.ndarray, "n height width"]
    """Brightness from 0 to 255."""
    labels: Int[np.ndarray, " n"]
    """Classes from 0."""


def load(folder: Path, part: str) -> Images:
    """The "train" or the "test" images in a folder.

    Raises `FileNotFoundError` where a file is not, `ValueError` for what is damaged or doesn't fit.
    """
    pixels, labels = (_path(folder, name) for name in NAMES[part])
    found = Images(read_idx(pixels, 3), read_idx(labels, 1).astype(np.int32))
    if len(found.images) != len(found.labels):
        raise ValueError(
            f"{pixels} has {len(found.images)} images, but {labels} {len(found.labels)} labels: "
            f"they are not of one set"
        )
    return found


def read_idx(path: Path, n_dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array of bytes in an IDX file: two zeros, type, number of dimensions, each one's size as
    four bytes, the greatest first, and all entries, the last index fastest.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} can't be decompressed ({error}): fetch it again") from None
    magic = bytes([0, 0, UNSIGNED_BYTE, n_dimensions])
    begin = 4 + 4 * n_dimensions
    if len(content) >= 4 and content[:4] != magic:
        raise ValueError(
            f"{path} begins with the bytes {content[:4].hex(' ')}, but an IDX file of unsigned "
            f"bytes in {n_dimensions} dimensions with {magic.hex(' ')}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content[4:begin].ljust(begin - 4), ">u4"))
    if len(content) < begin or len(content) != begin + math.prod(shape):
        told = f"its shape {list(shape)} takes {begin + math.prod(shape)}"
        needed = told if len(content) >= begin else f"its beginning alone takes {begin}"
        raise ValueError(
            f"{path} has {len(content)} bytes (uncompressed), but {needed}: it is cut off or "
            f"damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def _path(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"no {name} or {name}.gz in {folder}: give the folder of the four files by --data. Those "
        f"of Fashion-MNIST come with Debian's package, `apt install dataset-fashion-mnist`, into "
        f"{FASHION_MNIST}, and are at https://github.com/zalandoresearch/fashion-mnist"
    )
