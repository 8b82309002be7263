"""Training examples as a method sees them: their batches, pass after pass, and their numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from bayesify.core.types import Inputs

Batches = Callable[[], Iterator[tuple[Inputs, Tensor]]]
"""Gives one pass: inputs and targets of every batch, on the model's device."""


@dataclass(frozen=True)
class TrainingData:
    """What a method may know of the examples, besides the batches that `fit` feeds it with.

    Attributes:
        batches: Gives all training batches in an order of its own, for what needs more passes, or
            a look before the first step.
        num_data: Training examples N: as many as one pass gives.
        steps_per_epoch: Batches in a pass.
        example: Inputs of the first batch.
        smallest: Inputs and target of the smallest batch.
        different: Different examples that the passes give in all: more than N where each pass
            leaves some out.
        is_augmented: Whether the examples change from pass to pass; looks at a few.
    """

    batches: Batches
    num_data: int
    steps_per_epoch: int
    example: Inputs
    smallest: tuple[Inputs, Tensor]
    different: int
    is_augmented: Callable[[], bool] = lambda: False

    @classmethod
    def of(cls, batches: Batches, **known: Any) -> Self:
        """The data of a loop of your own, counted in one pass.

        Args:
            batches: Gives one pass.
            known: Numbers that are not what this pass has, by the names of the attributes.

        Example:
            >>> import torch
            >>> x, y = torch.randn(10, 4), torch.zeros(10)
            >>> data = TrainingData.of(lambda: zip(x.split(4), y.split(4)))
            >>> data.num_data, data.steps_per_epoch, len(data.smallest[1])
            (10, 3, 2)
        """
        seen = list(batches())
        count = sum(len(target) for _, target in seen)
        found: dict[str, Any] = {
            "num_data": count,
            "steps_per_epoch": len(seen),
            "example": seen[0][0],
            "smallest": min(seen, key=lambda batch: len(batch[1])),
            "different": known.get("num_data", count),
        }
        return cls(batches, **(found | known))

    def inputs(self) -> Iterator[Inputs]:
        """The inputs of all batches of a pass."""
        return (inputs for inputs, _ in self.batches())
