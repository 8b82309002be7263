"""CIFAR-10 from its python version, six files that are Python pickles.

A pickle can run any code when it is opened. These are opened by an unpickler that admits nothing
but the three names that numpy needs to rebuild an array, and refuses the file otherwise.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesify.core.errors import DataError
from bayesify.data.examples import Normalise
from bayesify.data.raw import Raw, Request

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

NORMALISE = Normalise(
    torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1),
)
"""The statistics of ImageNet, which published CIFAR ResNets use."""

_REBUILD = np.empty(0).__reduce__()[0]  # numpy's function that a pickled array names
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
}


def read(request: Request) -> Raw:
    """Images (60000, 3, 32, 32) as bytes; the last 10,000 are the test part."""
    batches = [read_batch(request.place / f"data_batch_{number}") for number in range(1, 6)]
    images, labels = zip(*batches, strict=True)
    return Raw.of_parts(
        "cifar10",
        (torch.cat(images), torch.cat(labels)),
        read_batch(request.place / "test_batch"),
        class_names=CLASSES,
        normalise=NORMALISE,
    )


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32), uint8, and labels (n,), int64, of one file.

    Raises:
        DataError: Truncated, no such pickle, or one that names more than arrays.
    """
    batch = _unpickle(path)
    data = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    if not _is_batch(data, labels):
        raise DataError(
            f"{path}: expected a CIFAR-10 batch, a mapping with 'data' (n, 3072) of bytes and n "
            "'labels', got something else; fetch the python version of the archive again."
        )
    return torch.tensor(data).reshape(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


class ArraysOnly(pickle.Unpickler):
    """Opens pickles made of plain values and numpy arrays; refuses every other name."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What a pickle names, if it is on the short list."""
        if (module_name, global_name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return _ADMITTED[module_name, global_name]


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return ArraysOnly(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(
            f"{path}: expected a CIFAR-10 batch, got a truncated or foreign pickle ({error}); "
            "fetch the python version of the archive again."
        ) from error


def _is_batch(data: Any, labels: Any) -> bool:
    return (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.shape[1:] == (3072,)
        and isinstance(labels, list)
        and len(labels) == len(data)
        and all(isinstance(label, int) for label in labels)
    )
