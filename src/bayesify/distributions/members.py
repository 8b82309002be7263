"""A finite set of M members with equal probability 1/M."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch.utils._pytree import tree_leaves, tree_map

from bayesify.core.types import Draw, Named
from bayesify.distributions.base import WeightDistribution


class Members(WeightDistribution):
    """Abstract: a draw is always all M members, whatever the number of samples asked for."""

    @abstractmethod
    def stacked(self) -> Draw:
        """All members, a pytree with leading axis M that shares memory with the distribution."""

    @abstractmethod
    def with_buffers(self, buffers: Named) -> Self:
        """The same members with these buffers (M, *shape) in the place of those they had."""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Draw:
        """All M members. `n` and `generator` do not matter."""
        return self.stacked()

    def size(self, n: int) -> int:
        """M."""
        return len(tree_leaves(self.stacked())[0])

    def draws(
        self, n: int, chunk_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[Draw]:
        """The members in slices; slices share memory, so that buffers are updated in place."""
        everything = self.stacked()
        for start in range(0, self.size(n), chunk_size):
            stop = start + chunk_size
            yield tree_map(lambda each, a=start, b=stop: each[a:b], everything)
