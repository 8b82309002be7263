"""The user's own arrays in an `.npz` file.

Either `x_train, y_train, x_test, y_test`, or `x, y`, optionally with `test_index` (K, n): the rows
of the test part for each of K folds. Inputs are images (N, H, W), (N, C, H, W) or (N, H, W, C) as
bytes, images (N, C, H, W) of floats in [0, 1], or features (N, ...).
"""

import zipfile
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesify.core.errors import DataError, OptionError
from bayesify.data.raw import Raw, Request

PARTS = ("x_train", "y_train", "x_test", "y_test")


def read(request: Request) -> Raw:
    """The arrays as they are; images get their channels in front."""
    name, arrays = str(request.place), _arrays(request.place)
    if all(part in arrays for part in PARTS):
        if request.fold is not None:
            raise OptionError(
                f"{name} brings its own test part: expected no fold, got {request.fold}."
            )
        x_train, y_train, x_test, y_test = (arrays[part] for part in PARTS)
        train, test = (_inputs(x_train), _targets(y_train)), (_inputs(x_test), _targets(y_test))
        return Raw.of_parts(name, train, test, task=request.task)
    if not {"x", "y"} <= set(arrays):
        raise DataError(
            f"{name}: expected the arrays {', '.join(PARTS)}, or x and y, got "
            f"{', '.join(arrays) or 'none'}; save it with numpy.savez(path, x=..., y=...)."
        )
    test_index = _test_index(request, arrays)
    x, y = _inputs(arrays["x"]), _targets(arrays["y"])
    return Raw(name, x, y, test_index=test_index, task=request.task)


def read_inputs(path: Path) -> Tensor:
    """The inputs `x` (or `x_test`) of a file, to be predicted."""
    arrays = _arrays(path)
    for name in ("x", "x_test"):
        if name in arrays:
            return _inputs(arrays[name])
    raise DataError(
        f"{path}: expected the array x, got {', '.join(arrays) or 'none'}; save it with "
        "numpy.savez(path, x=...)."
    )


def num_folds(path: Path) -> int:
    """How many rows `test_index` has; 0 where there is none."""
    arrays = _arrays(path, only=("test_index",))
    return len(np.atleast_2d(arrays["test_index"])) if arrays else 0


def _arrays(path: Path, only: Container[str] | None = None) -> Mapping[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = [name for name in archive.files if only is None or name in only]
            arrays = {name: archive[name] for name in wanted}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: expected an .npz file of plain arrays, got a damaged or foreign one "
            f"({error}); save it with numpy.savez(path, x=..., y=...)."
        ) from error
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: expected numbers, got {name!r} of type {array.dtype}; "
                "encode it as numbers."
            )
    return arrays


def _inputs(x: np.ndarray) -> Tensor:
    tensor = _tensor(x)
    if tensor.dtype == torch.uint8 and tensor.ndim == 3:
        return tensor.unsqueeze(1)
    if tensor.dtype == torch.uint8 and tensor.ndim == 4 and _channels_last(tensor.shape):
        return tensor.movedim(-1, 1).contiguous()
    if tensor.dtype == torch.uint8 and tensor.ndim != 4:
        return tensor.double()  # bytes that are no image are features
    return tensor if tensor.ndim > 1 else tensor.unsqueeze(1)


def _targets(y: np.ndarray) -> Tensor:
    tensor = _tensor(y)
    if tensor.is_floating_point():
        return tensor
    return tensor.long()


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)  # torch computes little with wider unsigned integers
    native = array.astype(array.dtype.newbyteorder("="))
    if native.dtype == np.longdouble:
        native = native.astype(np.float64)
    return torch.tensor(native)


def _channels_last(shape: torch.Size) -> bool:
    return shape[-1] in (1, 3) and shape[1] not in (1, 3)


def _test_index(request: Request, arrays: Mapping[str, np.ndarray]) -> Tensor | None:
    name, rows = str(request.place), len(arrays["x"])
    if "test_index" not in arrays:
        if request.fold is not None:
            raise OptionError(
                f"{name} has no test_index: expected no fold, got {request.fold}; leave it out."
            )
        return None
    folds = np.atleast_2d(arrays["test_index"])
    fold = request.fold or 0
    if not 0 <= fold < len(folds):
        raise OptionError(
            f"{name}: expected a fold from 0 to {len(folds) - 1}, got {fold}; choose one of them."
        )
    index = folds[fold]
    if index.dtype.kind not in "iu" or ((index < 0) | (index >= rows)).any():
        raise DataError(
            f"{name}: expected test_index to hold rows from 0 to {rows - 1}, got others in fold "
            f"{fold}; mend it."
        )
    return torch.tensor(index.astype(np.int64))
