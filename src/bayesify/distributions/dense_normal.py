"""Gaussian with a covariance of any form, jointly over all its tensors.

    q(w) = N(loc, P^-1),    P = L L^T,    w = loc + L^-T z,    z of independent N(0, 1)

P is the precision, which is what curvature adds up to; it is never inverted. L is kept in double
precision: the curvature of a network has eigenvalues from next to nothing to its number of data.
Cost: P (P + 1) / 2 numbers on disk for P weights, twice that in memory; one triangular solve for
all samples.
"""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.errors import LoadError, OptionError, ShapeError
from bayesify.core.types import Named
from bayesify.distributions.base import Located, check_factor, learnt_as
from bayesify.numerics.noise import standard_normal_rows
from bayesify.weights.named import count
from bayesify.weights.store import part


class DenseNormal(Located):
    """A Gaussian over the named weights in `loc`, all of which may vary together.

    Args:
        loc: Means, in the shapes of the weights. Copied.
        factor: Lower Cholesky factor L of the precision of all numbers, tensor after tensor in the
            order of `loc`, (numbers, numbers). Kept in float64.

    Raises:
        ShapeError: the factor has not as many rows and columns as `loc` has numbers.
        OptionError: the factor's diagonal is not above 0, or a number of it is not finite.

    Example:
        >>> q = DenseNormal({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, torch.eye(8))
        >>> q.sample(4)["weight"].shape
        torch.Size([4, 2, 3])
    """

    def __init__(self, loc: Named, factor: Float[Tensor, "rows columns"]) -> None:
        super().__init__(loc)
        size = count(loc)
        if factor.shape != (size, size):
            raise ShapeError(
                f"factor: expected the shape {(size, size)}, a row for each number in "
                f"{list(loc)}, got {tuple(factor.shape)}."
            )
        if not bool((factor.diagonal() > 0).all() and factor.isfinite().all()):
            raise OptionError(
                "factor: expected a lower Cholesky factor, finite and with a diagonal above 0."
            )
        self.factor = nn.Parameter(factor.detach().double().tril().contiguous())

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        return cls(part(state, "loc"), state["factor"])

    @classmethod
    def from_stored(cls, stored: Named) -> Self:
        """The distribution whose `stored()` is `stored`.

        Raises:
            LoadError: the triangle does not belong to the means.
        """
        loc, triangle = part(stored, "loc"), stored["triangle"]
        size = count(loc)
        if len(triangle) != size * (size + 1) // 2:
            raise LoadError(
                f"triangle: expected the {size * (size + 1) // 2} numbers of a factor of {size} "
                f"rows, got {len(triangle)}; save the posterior again."
            )
        factor = triangle.new_zeros(size, size)
        factor[tuple(torch.tril_indices(size, size))] = triangle
        return cls(loc, factor)

    def stored(self) -> Named:
        """The means, and of the factor the numbers on and below its diagonal, row by row."""
        state = self.state_dict()
        factor = state.pop("factor")
        return state | {"triangle": factor[tuple(torch.tril_indices(*factor.shape))]}

    @property
    def covariance(self) -> Float[Tensor, "numbers numbers"]:
        """That of all numbers, in the order of `factor`; for a look at few weights."""
        return torch.cholesky_inverse(self.factor)

    @property
    def scale(self) -> Named:
        """Standard deviations, in the shapes of the weights."""
        return {name: each[0] for name, each in self._split(self.variance().sqrt()[None]).items()}

    def variance(self) -> Float[Tensor, " numbers"]:
        """The diagonal of P^-1 = L^-T L^-1: the squares in the columns of L^-1."""
        eye = torch.eye(len(self.factor)).to(self.factor)
        return torch.linalg.solve_triangular(self.factor, eye, upper=False).square().sum(0)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Named:
        """N reparametrised samples: name -> (n, *shape)."""
        noise = standard_normal_rows(n, len(self.factor), self.factor, generator)
        around = torch.linalg.solve_triangular(self.factor.mT, noise.mT, upper=True).mT
        parts = self._split(around)
        return {name: mean + parts[name] for name, mean in self.loc.named().items()}

    def scaled(self, factor: float) -> Self:
        """The same means, with every standard deviation multiplied by `factor`.

        Raises:
            OptionError: when `factor` is not a finite number above 0.

        Example:
            >>> q = DenseNormal({"w": torch.zeros(2)}, torch.eye(2))
            >>> q.scaled(0.5).scale["w"].tolist()
            [0.5, 0.5]
        """
        check_factor(factor)
        return learnt_as(self, type(self)(self.loc.named(), self.factor / factor))

    def _split(self, rows: Float[Tensor, "n numbers"]) -> Named:
        """By name, (n, *shape), in the dtypes of the weights."""
        loc = self.loc.named()
        pieces = rows.split([each.numel() for each in loc.values()], dim=1)
        return {
            name: each.reshape(len(rows), *mean.shape).to(mean.dtype)
            for (name, mean), each in zip(loc.items(), pieces, strict=True)
        }
