"""What a reader is asked for, and what it hands over before anything is checked or cut."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Self

import torch
from torch import Tensor

from bayesify.core.errors import DataError
from bayesify.data.examples import Normalise

if TYPE_CHECKING:  # pandas is for tables only
    from bayesify.data.encoding import Encoding


@dataclass(frozen=True)
class Request:
    """What the user asked for; a reader uses what concerns it.

    Args:
        path: The file or folder to read; None for sets that come with a package.
        target: Column that holds the target (tables).
        task: "classification", "multilabel" or "regression"; None: decided by the target.
        fold: Which of the given test sets to use (npz with `test_index`).
        image_size: (height, width) that images are brought to; None: they must agree.
    """

    path: Path | None = None
    target: str | None = None
    task: str | None = None
    fold: int | None = None
    image_size: tuple[int, int] | None = None

    @property
    def place(self) -> Path:
        """The path, for readers that are never called without one."""
        if self.path is None:
            raise DataError("expected the path of a file or folder, got none; pass one.")
        return self.path


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it was read.

    Args:
        name: The source.
        x: Raw inputs, (N, ...): images (N, C, H, W) as bytes or in [0, 1], or features.
        y: Targets, (N,) or (N, D).
        test_index: Rows of the test part; None: none was given, and it is still to be cut.
        class_names: If given, `y` holds indices into them.
        task: None: decided by the type of `y`.
        normalise: Published statistics; None: those of the training part.
        measured: Which features to standardise, bool (F,); the others stay as they are. None: all.
        encoding: Of the columns of a table, None for other data.
    """

    name: str
    x: Tensor
    y: Tensor
    test_index: Tensor | None = None
    class_names: tuple[str, ...] = ()
    task: str | None = None
    normalise: Normalise | None = None
    measured: Tensor | None = None
    encoding: Optional["Encoding"] = None

    @classmethod
    def of_parts(
        cls,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        class_names: tuple[str, ...] = (),
        task: str | None = None,
        normalise: Normalise | None = None,
    ) -> Self:
        """From a given training and test part, each `(x, y)`."""
        for part, (x, y) in {"training": train, "test": test}.items():
            if len(x) != len(y):
                raise DataError(
                    f"{name}: expected one target per example, got {len(x)} examples and {len(y)} "
                    f"targets in the {part} part; its files do not belong together."
                )
        if train[0].shape[1:] != test[0].shape[1:]:
            raise DataError(
                f"{name}: expected training and test examples of one shape, got "
                f"{tuple(train[0].shape[1:])} and {tuple(test[0].shape[1:])}; make them equal."
            )
        if train[1].shape[1:] != test[1].shape[1:]:
            raise DataError(
                f"{name}: expected training and test targets of one shape, got "
                f"{tuple(train[1].shape[1:])} and {tuple(test[1].shape[1:])}; make them equal."
            )
        return cls(
            name,
            torch.cat([train[0], test[0]]),
            torch.cat([train[1], test[1]]),
            test_index=len(train[1]) + torch.arange(len(test[1])),
            class_names=class_names,
            task=task,
            normalise=normalise,
        )
