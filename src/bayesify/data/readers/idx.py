"""IDX files, plain or gzipped: the format of MNIST and of the sets made to replace it.

A file is two zero bytes, a byte for the type of its numbers (8: unsigned bytes, the only one used
by these sets), a byte for the number of axes, the length of each axis as a big-endian 32-bit
number, and the numbers themselves.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from bayesify.core.errors import DataError
from bayesify.data.raw import Raw, Request
from bayesify.data.sources import present

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_mnist(request: Request) -> Raw:
    """MNIST: images (70000, 1, 28, 28) as bytes; the last 10,000 are the test part."""
    return _read("mnist", request.place, tuple("0123456789"))


def read_fashion(request: Request) -> Raw:
    """Fashion-MNIST: images (70000, 1, 28, 28) as bytes; the last 10,000 are the test part."""
    return _read("fashion-mnist", request.place, FASHION)


def read_idx(path: Path, *, axes: int) -> Tensor:
    """The bytes of one IDX file, uint8, with `axes` axes.

    Raises:
        DataError: Not an IDX file of bytes with so many axes, or shorter or longer than it says.
    """
    content = _content(path)
    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise DataError(
            f"{path}: expected an IDX file of bytes with {axes} axes, starting with "
            f"{bytes((0, 0, 8, axes)).hex()}, got {content[:4].hex() or 'nothing'}; fetch it again."
        )
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path}: expected {math.prod(shape)} bytes for shape {shape}, got "
            f"{len(content) - start}; the file is truncated or damaged, fetch it again."
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def _content(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: expected a whole gzip file, got a truncated or damaged one ({error}); "
            "fetch it again."
        ) from error


def _read(name: str, folder: Path, class_names: tuple[str, ...]) -> Raw:
    parts = []
    for part in ("train", "t10k"):
        images, labels = (
            read_idx(_file(folder, f"{part}-{kind}-ubyte"), axes=axes)
            for kind, axes in (("images-idx3", 3), ("labels-idx1", 1))
        )
        parts.append((images.unsqueeze(1), labels.long()))
    return Raw.of_parts(name, *parts, class_names=class_names)


def _file(folder: Path, name: str) -> Path:
    path = present(folder, name)
    if path is None:
        raise DataError(f"{folder}: expected the file {name} (plain or .gz); put it there.")
    return path
