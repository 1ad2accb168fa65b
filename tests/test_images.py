"""Files of labelled images, and what is said of those that can't be read."""

import gzip
import struct

import numpy as np
import pytest

from experiments import images


def idx(array, magic=None):
    """An array of bytes as the content of an IDX file."""
    header = magic or bytes([0, 0, 8, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def folder_of(path, n_images, n_labels, part="train", compressed=True):
    """The files of one part, and what is in them."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (n_images, 4, 3)), rng.integers(0, 10, n_labels)
    path.mkdir(exist_ok=True)
    for name, array in zip(images.NAMES[part], arrays, strict=True):
        if compressed:
            (path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (path / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("part", ["train", "test"])
def test_what_was_written_is_read(tmp_path, part, compressed):
    pixels, labels = folder_of(tmp_path, 7, 7, part, compressed)
    found = images.load(tmp_path, part)
    np.testing.assert_array_equal(found.images, pixels)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.images.dtype == np.uint8 and found.labels.dtype == np.int32


def test_images_and_labels_of_other_counts(tmp_path):
    folder_of(tmp_path, 7, 6)
    with pytest.raises(ValueError, match=r"train-images\S+ has 7 images, but \S+ 6 labels"):
        images.load(tmp_path, "train")


def test_a_folder_without_them_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data.*apt install dataset-fashion-mnist"):
        images.load(tmp_path, "test")
    folder_of(tmp_path, 2, 2)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no train-labels-idx1-ubyte"):
        images.load(tmp_path, "train")


WHOLE = idx(np.arange(24).reshape(4, 3, 2))


@pytest.mark.parametrize("n", [0, 3, 4, 15, 16, len(WHOLE) - 1, len(WHOLE) + 1])
def test_a_file_of_another_length(tmp_path, n):
    (tmp_path / "file").write_bytes((WHOLE + b"\0")[:n])
    with pytest.raises(ValueError, match=rf"file has {n} bytes .* cut off or damaged"):
        images.read_idx(tmp_path / "file", 3)
    (tmp_path / "file").write_bytes(WHOLE)
    assert images.read_idx(tmp_path / "file", 3).shape == (4, 3, 2)


@pytest.mark.parametrize(
    "magic", [b"\0\0\x08\x01", b"\0\0\x0d\x03", b"\x1f\x8b\x08\0", b"<htm"], ids=bytes.hex
)
def test_a_file_of_something_else(tmp_path, magic):
    (tmp_path / "file").write_bytes(magic + WHOLE[4:])
    with pytest.raises(ValueError, match=f"begins with the bytes {magic.hex(' ')}, but .*00 00 08"):
        images.read_idx(tmp_path / "file", 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-9],
        lambda content: content[:20] + bytes([content[20] ^ 255]) + content[21:],
        lambda content: b"no gzip",
    ],
    ids=["cut", "changed", "another"],
)
def test_a_compressed_file_that_is_damaged(tmp_path, damage):
    (tmp_path / "file.gz").write_bytes(damage(gzip.compress(WHOLE)))
    with pytest.raises(ValueError, match=r"file\.gz can't be decompressed .*fetch it again"):
        images.read_idx(tmp_path / "file.gz", 3)


@pytest.mark.skipif(not images.FASHION_MNIST.exists(), reason="dataset-fashion-mnist is missing")
def test_the_published_files():
    for part, n in (("train", 60000), ("test", 10000)):
        found = images.load(images.FASHION_MNIST, part)
        assert found.images.shape == (n, 28, 28) and found.images.max() == 255
        assert np.bincount(found.labels).tolist() == [n // 10] * 10
