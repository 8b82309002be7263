"""<Name>: the distribution, in one sentence.

    q(w) = ...

Source: <authors, year, arXiv id, equation>.
"""

from typing import Self

import torch

from bayesify.core.types import Draw, Named
from bayesify.distributions.base import WeightDistribution
from bayesify.weights.named import copied
from bayesify.weights.store import Store, part


class Name(WeightDistribution):
    """What it is a distribution over.

    Args:
        loc: Name -> tensor of the weight's shape. Copied.
    """

    def __init__(self, loc: Named) -> None:
        super().__init__()
        self.loc = Store(copied(loc), trainable=True)

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        return cls(part(state, "loc"))

    @property
    def names(self) -> list[str]:
        """Names of the weights."""
        return list(self.loc.named())

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Draw:
        """Draw n samples, in coordinates of your choice, each tensor with leading axis n.

        Draw row by row: the first k of n samples must be those of `sample(k)`.
        """
        return {name: each.expand(n, *each.shape) for name, each in self.loc.named().items()}

    def weights(self, draw_one: Draw) -> Named:
        """One sample as tensors (or structured weights) by weight name."""
        return draw_one

    def point(self) -> Named:
        """The mean."""
        return {name: each.detach() for name, each in self.loc.named().items()}
