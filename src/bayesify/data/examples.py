"""What a data set is here: three parts of `(x, y)` examples, and the map from raw to model inputs.

Examples stay raw in memory (images as bytes) and are normalised when they are asked for, a whole
batch at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:  # pandas is for tables only
    from bayesify.data.encoding import Encoding


VALIDATION_SHARE = 0.15
"""Of the training examples; what is held out of training where nothing else is asked for."""


@dataclass(frozen=True, eq=False)
class Normalise:
    """The map from raw inputs to what the model sees: `(x - loc) / scale`.

    Raw inputs are images in [0, 1], or bytes (uint8), which are divided by 255 first, or features
    as they were measured.

    Args:
        loc: Subtracted; broadcastable to one example, e.g. (C, 1, 1) for images.
        scale: Divided by; same shape, positive.

    Example:
        >>> normalise = Normalise(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> normalise(torch.tensor([[5.0]])), normalise.inverse(torch.tensor([[2.0]]))
        (tensor([[2.]]), tensor([[5.]]))
    """

    loc: Tensor
    scale: Tensor

    def __call__(self, raw: Tensor) -> Tensor:
        """Raw inputs (B, ...) as the model sees them, float32."""
        raw = unit(raw)
        return ((raw - self.loc.to(raw.device)) / self.scale.to(raw.device)).float()

    def inverse(self, x: Tensor) -> Tensor:
        """From what the model sees back to raw inputs: images in [0, 1], or measured features."""
        return x * self.scale.to(x.device) + self.loc.to(x.device)


@dataclass(frozen=True, eq=False)
class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Pairs `(x, y)`: `x` float32 as the model sees it, `y` as the likelihood reads it.

    Args:
        x: Raw inputs of all examples, (N, ...).
        y: Targets: int64 (N,), or float32 (N, L) or (N, D).
        normalise: From raw inputs to what the model sees.
        augment: Applied to a batch of raw images in [0, 1] before they are normalised.
    """

    x: Tensor
    y: Tensor
    normalise: Normalise
    augment: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """One example, or a whole batch for a list of indices, as in `TensorDataset`."""
        if not isinstance(index, int):
            return self.batch(torch.as_tensor(index))
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Several examples at once; torch's DataLoader asks for a batch this way."""
        x, y = self.batch(torch.as_tensor(indices))
        return list(zip(x, y, strict=True))

    def plain(self) -> "Examples":
        """The same examples without augmentation."""
        return replace(self, augment=None)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The examples `indices` (B,), stacked: x (B, ...) and y (B, ...)."""
        x = self.x[indices]
        if self.augment is not None:
            x = self.augment(unit(x))
        return self.normalise(x), self.y[indices]


@dataclass(frozen=True, eq=False)
class Splits:
    """Train, validation and test parts of one data set, with what a model needs to know of them.

    Validation is cut from the training part; all statistics come from the training part that is
    left. For regression, targets are standardised with `target_loc` and `target_scale`.

    Args:
        name: The source it was read from.
        task: "classification", "multilabel" or "regression".
        train: Examples; y is int64 (B,) classes, float32 (B, L) of 0 and 1, or float32 (B, D).
        validation: Same, for choosing options; empty where none was asked for.
        test: Same, for the final figures only.
        input_shape: Of one example, e.g. (1, 8, 8) or (13,).
        num_outputs: Number of classes, labels or target dimensions.
        class_names: Of the classes or labels; () for regression.
        normalise: From raw inputs to what the model sees; later data pass through it too.
        target_loc: Mean of the training targets, (D,), for regression.
        target_scale: Their standard deviation, (D,), for regression.
        encoding: How the columns of a table became features, None for other data.
    """

    name: str
    task: str
    train: Examples
    validation: Examples
    test: Examples
    input_shape: tuple[int, ...]
    num_outputs: int
    class_names: tuple[str, ...]
    normalise: Normalise
    target_loc: Tensor | None = None
    target_scale: Tensor | None = None
    encoding: Optional["Encoding"] = None

    @property
    def is_image(self) -> bool:
        """Whether an example has the shape (1 or 3 channels, height, width)."""
        return is_image_shape(self.input_shape)


def is_image_shape(shape: Sequence[int]) -> bool:
    """Whether `shape` is that of one image: (1 or 3 channels, height, width).

    >>> is_image_shape((3, 32, 32)), is_image_shape((13,))
    (True, False)
    """
    return len(shape) == 3 and shape[0] in (1, 3)


def unit(raw: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; everything else as it is."""
    return raw.float() / 255 if raw.dtype == torch.uint8 else raw
