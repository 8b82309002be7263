"""q(w): a distribution over some named weights of one model."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from bayesify.core.errors import OptionError
from bayesify.core.types import Draw, Named
from bayesify.weights.named import copied
from bayesify.weights.noise_scope import Scopes
from bayesify.weights.store import Store

Q = TypeVar("Q", bound="WeightDistribution")


class WeightDistribution(nn.Module, ABC):
    """A distribution over named weights. Its parameters are what is learnt.

    A *draw* holds n samples of the weights in the distribution's own coordinates, as a pytree of
    tensors with leading axis n. Only `weights` looks inside: it turns one sample (a draw without
    the leading axis) into tensors by weight name, which `torch.func.functional_call` takes.
    """

    @classmethod
    @abstractmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""

    @classmethod
    def from_stored(cls, stored: Named) -> Self:
        """The distribution whose `stored()` is `stored`.

        Raises:
            LoadError: it is no such thing.
        """
        return cls.from_state(stored)

    def stored(self) -> Named:
        """What a file holds: the state, in as few bytes as it takes."""
        return self.state_dict()

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the weights (and buffers) that this distribution sets."""

    @property
    def perturbed(self) -> list[str]:
        """Those of `names` whose value is read from the model and changed, not replaced."""
        return []

    def attach_(self, weights: Named) -> None:
        """Take the values of the perturbed weights from here; memory is shared, not copied."""

    @abstractmethod
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Draw:
        """N samples, differentiable in the parameters. The first k of n are those of `sample(k)`.

        A finite set of members ignores n and gives all of them.
        """

    @abstractmethod
    def weights(self, draw_one: Draw) -> Named:
        """One sample as the tensors the model is called with."""

    @abstractmethod
    def point(self) -> Named:
        """The single best setting of the weights: the mean, or the mean of the members."""

    @property
    def networks(self) -> int:
        """How many networks, each trained for itself, `point` is the mean of; usually one."""
        return 1

    def tally(self) -> dict[str, int]:
        """What there is to count in its structure, by name; nothing for most."""
        return {}

    def size(self, n: int) -> int:
        """How many samples `sample(n)` gives."""
        return n

    def draws(
        self, n: int, chunk_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[Draw]:
        """The samples of `sample(n)` in chunks, so that not all need to be in memory."""
        for start in range(0, n, chunk_size):
            yield self.sample(min(chunk_size, n - start), generator=generator)

    def local_weights(
        self, *, generator: torch.Generator | None = None, scopes: Scopes | None = None
    ) -> Named:
        """Weights for one training step; noise may differ between the examples of the batch.

        Each example sees the law of a weight sample. Distributions that know how to draw by row or
        by example return structured weights here; others give one ordinary sample.

        Args:
            generator: Source of the noise.
            scopes: What may share a draw, by name, as `noise_scopes` finds it; None for one draw
                of every weight, which is right for any forward pass.
        """
        draw = self.sample(1, generator=generator)
        return self.weights(tree_map(lambda each: each[0], draw))


class Located(WeightDistribution):
    """Abstract: Gaussian marginals around a mean `loc`, in the weights' own coordinates.

    Args:
        loc: Means, in the shapes of the weights. Copied.
    """

    def __init__(self, loc: Named) -> None:
        super().__init__()
        self.loc = Store(copied(loc), trainable=True)

    @property
    @abstractmethod
    def scale(self) -> Named:
        """Standard deviations by name, in the shapes of the weights."""

    @property
    def names(self) -> list[str]:
        """Names of the random weights."""
        return list(self.loc.named())

    def weights(self, draw_one: Named) -> Named:
        """A sample is in the weights' own coordinates already."""
        return draw_one

    def point(self) -> Named:
        """The means."""
        return {name: each.detach() for name, each in self.loc.named().items()}


class Members(WeightDistribution):
    """Abstract: M members of probability 1/M; a draw is all of them, whatever is asked for."""

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


@runtime_checkable
class Scalable(Protocol):
    """A distribution whose noise can be made wider or narrower as a whole."""

    def scaled(self, factor: float) -> Self:
        """The same distribution with every standard deviation multiplied by `factor` > 0.

        Means, and what is held by a trainer (`requires_grad=False`), stay as they are.
        """
        ...


def check_one_network(q: WeightDistribution, who: str) -> None:
    """Raise `OptionError` when the point of q is the mean of networks that were trained apart.

    Args:
        q: A distribution.
        who: What needs the point.
    """
    if q.networks > 1:
        raise OptionError(
            f"{who}: expected a distribution around one network, got {q.networks} networks that "
            f"were trained each for itself ({type(q).__name__}), whose mean is no network; average "
            f"their predictions (a plain bayesify.WeightPosterior), or fit one, as bayesify.MAP "
            f"does."
        )


def check_factor(factor: float) -> None:
    """Of `scaled`: raise `OptionError` unless it is a finite number above 0."""
    if not 0 < factor < math.inf:
        raise OptionError(f"factor={factor}: expected a finite number above 0.")


def learnt_as(old: Q, new: Q) -> Q:
    """`new`, whose parameters want a gradient where those of `old`, of the same kind, do."""
    for each, before in zip(new.parameters(), old.parameters(), strict=True):
        each.requires_grad_(before.requires_grad)
    return new
