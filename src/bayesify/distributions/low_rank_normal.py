"""Gaussian whose covariance is a diagonal and a low-rank part, in equal shares.

    q(w) = N(loc, [diag(diagonal^2) + D^T D / (K - 1)] / 2)
    w    = loc + diagonal z1 / sqrt(2) + D^T z2 / sqrt(2 (K - 1)),    z1, z2 of independent N(0, 1)

D (K, numbers) holds K deviations from the mean. One z2 of K numbers is for all tensors of a sample,
so that weights of different layers vary together, as the deviations do.
Source: Maddox et al. 2019, arXiv 1902.02476, equation 1. The diagonal is kept as standard
deviations, not as variances: in half types the square of a small one would be zero.
"""

import math
from typing import Self

import torch

from bayesify.core.errors import OptionError, ShapeError
from bayesify.core.types import Named
from bayesify.distributions.base import Located, check_factor, learnt_as
from bayesify.numerics.noise import standard_normal_rows
from bayesify.weights.named import copied
from bayesify.weights.store import Store, part


class LowRankNormal(Located):
    """A Gaussian over the named weights in `loc`, jointly over all tensors.

    Args:
        loc: Means, in the shapes of the weights. Copied.
        diagonal: Square roots of the diagonal part, 0 or above, of the same names and shapes.
        deviations: K >= 2 deviations from the mean, name -> (K, *shape).

    Raises:
        ShapeError: names or shapes do not belong together, or K is below 2.
        OptionError: a number of the diagonal below 0, or not finite.

    Example:
        >>> loc = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
        >>> diagonal = {name: torch.ones_like(each) for name, each in loc.items()}
        >>> deviations = {"weight": torch.randn(5, 2, 3), "bias": torch.randn(5, 2)}
        >>> q = LowRankNormal(loc, diagonal, deviations)
        >>> q.rank, q.sample(4)["weight"].shape
        (5, torch.Size([4, 2, 3]))
    """

    def __init__(self, loc: Named, diagonal: Named, deviations: Named) -> None:
        super().__init__(loc)
        for field, named in (("diagonal", diagonal), ("deviations", deviations)):
            if set(named) != set(loc):
                raise ShapeError(f"{field}: expected names {list(loc)}, got {list(named)}.")
        rank = len(next(iter(deviations.values())))
        if rank < 2:
            raise ShapeError(
                f"deviations: expected at least 2, of which K - 1 are free, got {rank}; add "
                f"deviations of zero where there is no low-rank part."
            )
        for name, mean in loc.items():
            wide, shape = diagonal[name], tuple(mean.shape)
            for field, each, expected in (
                ("diagonal", wide, shape),
                ("deviations", deviations[name], (rank, *shape)),
            ):
                if each.shape != expected:
                    raise ShapeError(
                        f"{field} of {name!r}: expected the shape {expected}, got "
                        f"{tuple(each.shape)}."
                    )
            if not bool(((wide >= 0) & wide.isfinite()).all()):
                raise OptionError(f"diagonal of {name!r}: expected finite numbers of 0 or above.")
        self.diagonal = Store(copied({name: diagonal[name] for name in loc}), trainable=True)
        self.deviations = Store(copied({name: deviations[name] for name in loc}), trainable=True)

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        return cls(*(part(state, field) for field in ("loc", "diagonal", "deviations")))

    @property
    def rank(self) -> int:
        """K, the number of deviations."""
        return len(next(iter(self.deviations.parameters())))

    @property
    def scale(self) -> Named:
        """Standard deviations of both parts together, in the shapes of the weights."""
        share, deviations = 1 / (self.rank - 1), self.deviations.named()
        return {
            name: ((each.square() + share * deviations[name].square().sum(0)) / 2).sqrt()
            for name, each in self.diagonal.named().items()
        }

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Named:
        """N reparametrised samples: name -> (n, *shape)."""
        loc, diagonal, deviations = (
            each.named() for each in (self.loc, self.diagonal, self.deviations)
        )
        rank, sizes = self.rank, [each.numel() for each in loc.values()]
        first = next(iter(loc.values()))
        noise = standard_normal_rows(n, sum(sizes) + rank, first, generator)
        *own, common = noise.split([*sizes, rank], dim=1)  # (n, size) each, (n, K)
        common = common / math.sqrt(2 * (rank - 1))
        sampled: Named = {}
        for (name, mean), eps in zip(loc.items(), own, strict=True):
            together = common.to(mean.dtype) @ deviations[name].reshape(rank, -1)  # (n, size)
            alone = diagonal[name] * eps.view(n, *mean.shape).to(mean.dtype) / math.sqrt(2)
            sampled[name] = mean + alone + together.view(n, *mean.shape)
        return sampled

    def scaled(self, factor: float) -> Self:
        """The same means, with every standard deviation multiplied by `factor`.

        Raises:
            OptionError: when `factor` is not a finite number above 0.

        Example:
            >>> ones = {"w": torch.ones(1)}
            >>> q = LowRankNormal(ones, ones, {"w": torch.ones(2, 1)})
            >>> [round(each.scale["w"].item(), 2) for each in (q, q.scaled(2.0))]
            [1.22, 2.45]
        """
        check_factor(factor)
        diagonal, deviations = (
            {name: factor * each for name, each in held.named().items()}
            for held in (self.diagonal, self.deviations)
        )
        return learnt_as(self, type(self)(self.loc.named(), diagonal, deviations))
