"""A finite set of M members, each a full setting of the weights, with equal probability 1/M.

One member is a point estimate (MAP); M trained from different starts are a deep ensemble; M under
Stein variational gradient descent are its particles. Members hold the model's buffers too, since
every member needs batch-norm statistics of its own.
"""

from collections.abc import Iterator
from typing import Self

import torch
from torch import nn
from torch.utils._pytree import tree_map

from bayesify.distributions.base import WeightDistribution
from bayesify.types import Named
from bayesify.weights.named import buffers_of, copied, stacked, weights_of
from bayesify.weights.store import Store, part


class Particles(WeightDistribution):
    """M members.

    Args:
        weights: Name -> (M, *shape). Copied.
        buffers: Name -> (M, *shape), changed in place by layers in train mode. Copied.

    Example:
        >>> q = Particles.of_models([nn.Linear(2, 1), nn.Linear(2, 1)])
        >>> q.sample(32)["weight"].shape                       # n is ignored: all M members
        torch.Size([2, 1, 2])
    """

    def __init__(self, weights: Named, buffers: Named) -> None:
        super().__init__()
        self.members = Store(copied(weights), trainable=True)
        self.statistics = Store(copied(buffers), trainable=False)

    @classmethod
    def of_models(cls, models: list[nn.Module]) -> Self:
        """The members are the present weights and buffers of `models`, which stay unchanged.

        Weights that the models have frozen (`requires_grad=False`) are held, but not learnt.
        """
        q = cls(
            stacked([weights_of(model) for model in models]),
            stacked([buffers_of(model) for model in models]),
        )
        frozen = {name for name, each in models[0].named_parameters() if not each.requires_grad}
        for name, member in q.members.named().items():
            member.requires_grad_(name not in frozen)
        return q

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        return cls(part(state, "members"), part(state, "statistics"))

    @property
    def names(self) -> list[str]:
        """Names of all weights and buffers."""
        return list(self._all())

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Named:
        """All M members: name -> (M, *shape). `n` and `generator` do not matter."""
        return self._all()

    def size(self, n: int) -> int:
        """M."""
        return len(next(iter(self.members.parameters())))

    def draws(
        self, n: int, chunk_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[Named]:
        """The members in slices; slices share memory, so that buffers are updated in place."""
        everything = self._all()
        for start in range(0, self.size(n), chunk_size):
            stop = start + chunk_size
            yield tree_map(lambda each, a=start, b=stop: each[a:b], everything)

    def weights(self, draw_one: Named) -> Named:
        """A member is in the weights' own coordinates already."""
        return draw_one

    def point(self) -> Named:
        """The mean over members; integer buffers, which only count, are those of the first."""
        return {
            name: (each.mean(0) if each.is_floating_point() else each[0]).detach()
            for name, each in self._all().items()
        }

    def _all(self) -> Named:
        return self.members.named() | self.statistics.named()
