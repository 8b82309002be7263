"""Marginal draws of a layer whose weights are matrix normal (Kingma et al. 2015, arXiv 1506.02557).

For W~ ~ MN(M, P^-1, V) and one row h of features, z = h W~ is exactly Gaussian,

    z | h ~ N(h M, |L^-1 h|^2 V),    P = L L^T,  V = C C^T,

so each row sees noise of its own, z = h M + |L^-1 h| C eps, and no weight is drawn. The marginals
are those of weight sampling; the joint law over rows is not, so this is for training only.
"""

from typing import Self

import torch
from torch import Tensor

from bayesify.numerics.linear_regression import leverage
from bayesify.numerics.matrix_normal import draw
from bayesify.numerics.noise import standard_normal
from bayesify.weights.gaussian import TINY
from bayesify.weights.linear_maps import LinearMap
from bayesify.weights.structured import Operation, StructuredWeight


class RegressionWeight(StructuredWeight):
    """A matrix-normal weight; with its bias in the same law where `constant` says so.

    Args:
        loc: Mean of the weight, of its shape (out, *fan-in). The bias is given where it acts: its
            mean.
        row: Lower Cholesky factor of the row precision P, (a, a).
        column: Lower Cholesky factor of the column covariance V, (b, b).
        linear_map: How it acts.
        constant: Whether the last row of W~ is the bias.
        generator: Source of the noise.
    """

    loc: Tensor
    row: Tensor
    column: Tensor
    linear_map: LinearMap
    constant: bool
    generator: torch.Generator | None

    def __new__(
        cls,
        loc: Tensor,
        row: Tensor,
        column: Tensor,
        linear_map: LinearMap,
        *,
        constant: bool,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Wrap `loc`; the instance shares its memory."""
        weight = loc.as_subclass(cls)
        weight.loc, weight.row, weight.column = loc, row, column
        weight.linear_map, weight.constant, weight.generator = linear_map, constant, generator
        return weight

    def act(self, op: Operation, x: Tensor, bias: Tensor | None) -> Tensor:
        """One noisy output per row."""
        mean = op(x, self.loc, bias)
        h = self.linear_map.features(x, constant=self.constant)  # (n, a)
        scale = leverage(self.row, h.to(self.row)).clamp_min(TINY).sqrt()  # (n,)
        noise = standard_normal(self.linear_map.rows(mean), self.generator)  # (n, b)
        spread = scale.to(noise).unsqueeze(1) * (noise @ self.column.to(noise).mT)
        return mean + self.linear_map.arranged(spread, mean)

    def dense(self) -> Tensor:
        """One draw of the weight alone."""
        matrix = self.loc.flatten(1).mT  # (fan-in, b)
        size = self.row.new_empty(len(self.row), matrix.shape[1])
        noise = standard_normal(size, self.generator)
        around = draw(torch.zeros_like(noise), self.row, self.column, noise)[: len(matrix)]
        return self.loc + around.mT.reshape(self.loc.shape).to(self.loc)
