"""A finite set of M members, each a full setting of the weights, with equal probability 1/M.

One member is a point estimate (MAP); M trained from different starts are a deep ensemble; M under
Stein variational gradient descent are its particles. Members hold the model's buffers too, since
every member needs batch-norm statistics of its own.
"""

from collections.abc import Collection, Sequence
from typing import Self

import torch
from torch import nn

from bayesify.core.types import Named
from bayesify.distributions.base import Members
from bayesify.numerics.kernels import Coordinates, DenseCoordinates
from bayesify.weights.named import buffers_of, copied, stacked, weights_of
from bayesify.weights.store import Store, part


class Particles(Members):
    """M members.

    Args:
        weights: Name -> (M, *shape).
        buffers: Name -> (M, *shape), changed in place by layers in train mode.
        frozen: Names of weights that are held, but not learnt.
        copy: Whether weights and buffers are copied, or learnt in the memory that they have.

    Example:
        >>> q = Particles.of_models([nn.Linear(2, 1), nn.Linear(2, 1)])
        >>> q.sample(32)["weight"].shape                       # n is ignored: all M members
        torch.Size([2, 1, 2])
    """

    def __init__(
        self,
        weights: Named,
        buffers: Named,
        *,
        frozen: Collection[str] = (),
        copy: bool = True,
    ) -> None:
        super().__init__()
        own = copied if copy else dict
        self.members = Store(own(weights), trainable=True)
        for name, each in self.members.named().items():
            each.requires_grad_(name not in frozen)
        self.statistics = Store(own(buffers), trainable=False)

    @classmethod
    def of_models(cls, models: list[nn.Module]) -> Self:
        """The members are the present weights and buffers of `models`, which stay unchanged.

        Weights that the models have frozen (`requires_grad=False`) are held, but not learnt.
        """
        return cls(
            stacked([weights_of(model) for model in models]),
            stacked([buffers_of(model) for model in models]),
            frozen=_frozen(models[0]),
        )

    @classmethod
    def sharing(cls, model: nn.Module) -> Self:
        """The one member that `model` is, in its memory: what is learnt changes the model too."""
        weights, buffers = (
            {name: each.data.unsqueeze(0) for name, each in held.items()}  # no view to autograd
            for held in (weights_of(model), buffers_of(model))
        )
        return cls(weights, buffers, frozen=_frozen(model), copy=False)

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        return cls(part(state, "members"), part(state, "statistics"))

    @classmethod
    def joined(cls, parts: Sequence["Particles"]) -> Self:
        """The members of all `parts`, in order."""
        weights, buffers = (
            [getattr(each, field).named() for each in parts] for field in ("members", "statistics")
        )
        return cls(
            {name: torch.cat([each[name] for each in weights]) for name in weights[0]},
            {name: torch.cat([each[name] for each in buffers]) for name in buffers[0]},
            frozen=parts[0].frozen,
        )

    @property
    def frozen(self) -> list[str]:
        """Names of weights that are held, but not learnt."""
        return [n for n, each in self.members.named().items() if not each.requires_grad]

    @property
    def networks(self) -> int:
        """M."""
        return self.size(1)

    @property
    def names(self) -> list[str]:
        """Names of all weights and buffers."""
        return list(self.stacked())

    def stacked(self) -> Named:
        """Name -> (M, *shape)."""
        return self.members.named() | self.statistics.named()

    def with_buffers(self, buffers: Named) -> Self:
        """The same members with these buffers in the place of those they had."""
        own = self.statistics.named() | buffers
        return type(self)(self.members.named(), own, frozen=self.frozen)

    def weights(self, draw_one: Named) -> Named:
        """A member is in the weights' own coordinates already."""
        return draw_one

    def point(self) -> Named:
        """The mean over members; integer buffers, which only count, are those of the first."""
        return {
            name: (each.mean(0) if each.is_floating_point() else each[0]).detach()
            for name, each in self.stacked().items()
        }

    def coordinates(self, space: str = "product") -> list[Coordinates]:
        """What members are compared in, by a kernel: the learnt weights, whatever `space` says."""
        learnt = [each for each in self.members.parameters() if each.requires_grad]
        return [DenseCoordinates(each) for each in learnt]


def _frozen(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_parameters() if not each.requires_grad]
