"""From new raw data to what a fitted model sees: the normalisation and encoding of its training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bayesify.core.errors import DataError
from bayesify.data.encoding import Encoding
from bayesify.data.examples import Normalise, Splits, is_image_shape
from bayesify.data.readers import folder, npz, table
from bayesify.data.resize import conform
from bayesify.weights.named import dtype_named


@dataclass(frozen=True)
class Intake:
    """Reads new inputs as those of the training data were read.

    Args:
        input_shape: Of one example.
        normalise: From raw inputs to what the model sees.
        encoding: Of the columns of a table, None for other data.
    """

    input_shape: tuple[int, ...]
    normalise: Normalise
    encoding: Encoding | None = None

    @classmethod
    def of(cls, splits: Splits) -> Self:
        """What the training part of `splits` went through."""
        return cls(splits.input_shape, splits.normalise, splits.encoding)

    def read(self, path: str | Path) -> tuple[list[str], Tensor]:
        """New inputs as the model sees them.

        Args:
            path: An `.npz` file with `x` (or `x_test`), a `.csv` file with the feature columns, an
                image, or a folder of images, which are brought to the size of the training images.

        Returns:
            A name for each example, and the inputs (N, *input_shape), float32.

        Raises:
            DataError: the file is missing, unreadable, or does not fit the training data.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; check its name.")
        names, raw = self._raw(path)
        if tuple(raw.shape[1:]) != self.input_shape:
            raise DataError(
                f"{path}: expected examples of shape {self.input_shape}, as in the training data, "
                f"got {tuple(raw.shape[1:])}."
            )
        if raw.is_floating_point() and not raw.isfinite().all():
            raise DataError(f"{path}: expected finite numbers, got NaN or infinity; mend them.")
        return names, self.normalise(raw)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        loc, scale = self.normalise.loc, self.normalise.scale
        return {
            "input_shape": list(self.input_shape),
            "loc": loc.tolist(),
            "scale": scale.tolist(),
            "dtype": str(loc.dtype).removeprefix("torch."),
            "encoding": self.encoding.to_json() if self.encoding else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        dtype = dtype_named(value["dtype"])
        loc, scale = (torch.tensor(value[name], dtype=dtype) for name in ("loc", "scale"))
        encoding = Encoding.from_json(value["encoding"]) if value["encoding"] else None
        return cls(tuple(value["input_shape"]), Normalise(loc, scale), encoding)

    def _raw(self, path: Path) -> tuple[list[str], Tensor]:
        if self.encoding is not None:
            _expect(path, ".csv", "a .csv file with the columns of the training data")
            x = table.read_rows(path, self.encoding)
            return _numbers(x), x
        if path.suffix.lower() == ".npz":
            x = npz.read_inputs(path)
            return _numbers(x), x
        if not is_image_shape(self.input_shape):
            _expect(path, ".npz", "an .npz file with x")
        return self._images(path)

    def _images(self, path: Path) -> tuple[list[str], Tensor]:
        files = folder.image_files(path) if path.is_dir() else [path]
        images = folder.read_images(files, (self.input_shape[1], self.input_shape[2]))
        names = [str(file.relative_to(path)) if path.is_dir() else file.name for file in files]
        return names, conform(images, self.input_shape)


def _expect(path: Path, ending: str, what: str) -> None:
    if path.suffix.lower() != ending:
        raise DataError(f"{path}: expected {what}, got {path.suffix or 'another kind of data'}.")


def _numbers(x: Tensor) -> list[str]:
    return [str(number) for number in range(len(x))]
