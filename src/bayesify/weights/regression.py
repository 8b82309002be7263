"""A layer whose weights are matrix normal, with noise of each row's or each example's own.

For W~ ~ MN(M, P^-1, V) and the rows h of features that one example gives, the outputs are

    z = h W~ = h M + u E C^T,    u = L^-1 h,  E ~ N(0, I) of shape (a, b),  P = L L^T,  V = C C^T,

one E for all rows of an example. What may differ within the batch is said by its `NoiseScope`:

    ROW      z | h ~ N(h M, |u|^2 V), so z = h M + |u| C eps with eps of each row's own
             (Kingma, Salimans & Welling 2015, arXiv 1506.02557)
    EXAMPLE  z = h M + r_b * ((s_b * u) E) C^T with random signs of each example's own, for which
             r s^T * E has the law of E (Wen et al. 2018, arXiv 1803.04386)
    BATCH    one E

At prediction all examples see the same draws.
"""

from typing import Self

import torch
from torch import Tensor

from bayesify.numerics.linear_regression import leverage
from bayesify.numerics.matrix_normal import draw
from bayesify.numerics.noise import signs, standard_normal
from bayesify.tracing.linear_maps import LinearMap
from bayesify.weights.gaussian import TINY
from bayesify.weights.noise_scope import NoiseScope, OtherUseError
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
        scope: What shares a draw. The caller knows the forward pass (`noise_scopes`).

    Raises:
        OtherUseError: a use that the scope does not cover.
    """

    loc: Tensor
    row: Tensor
    column: Tensor
    linear_map: LinearMap
    constant: bool
    generator: torch.Generator | None
    scope: NoiseScope
    _noise: Tensor | None
    _signs: tuple[Tensor, Tensor] | None
    _used: bool

    def __new__(
        cls,
        loc: Tensor,
        row: Tensor,
        column: Tensor,
        linear_map: LinearMap,
        *,
        constant: bool,
        generator: torch.Generator | None = None,
        scope: NoiseScope = NoiseScope.BATCH,
    ) -> Self:
        """Wrap `loc`; the instance shares its memory."""
        weight = loc.as_subclass(cls)
        weight.loc, weight.row, weight.column = loc, row, column
        weight.linear_map, weight.constant, weight.generator = linear_map, constant, generator
        weight.scope, weight._noise, weight._signs, weight._used = scope, None, None, False
        return weight

    def act(self, op: Operation, x: Tensor, bias: Tensor | None) -> Tensor:
        """The mean output and noise."""
        mean = op(x, self.loc, bias)
        h = self.linear_map.features(x, constant=self.constant)  # (n, a)
        spread = self._by_row(h, mean) if self.scope is NoiseScope.ROW else self._drawn(h, len(x))
        return mean + self.linear_map.arranged(spread @ self.column.to(spread).mT, mean).to(mean)

    def dense(self) -> Tensor:
        """One draw of the weight alone."""
        matrix = self.loc.flatten(1).mT  # (fan-in, b)
        noise = self._draw()
        around = draw(torch.zeros_like(noise), self.row, self.column, noise)[: len(matrix)]
        return self.loc + around.mT.reshape(self.loc.shape).to(self.loc)

    def _by_row(self, h: Tensor, mean: Tensor) -> Tensor:
        """|u| eps, (n, b)."""
        if self._used or len(h) != len(mean):
            raise OtherUseError
        self._used = True
        scale = leverage(self.row, h.to(self.row)).clamp_min(TINY).sqrt()  # (n,)
        noise = standard_normal(self.linear_map.rows(mean), self.generator)  # (n, b)
        return scale.to(noise).unsqueeze(1) * noise

    def _drawn(self, h: Tensor, examples: int) -> Tensor:
        """U E, (n, b), where examples have signs of their own if the scope lets them."""
        white = torch.linalg.solve_triangular(self.row, h.to(self.row).mT, upper=False).mT
        if self.scope is NoiseScope.BATCH:
            return white @ self._draw()
        given, made = self._flips(examples)
        flipped = white.reshape(examples, -1, white.shape[1]) * given.unsqueeze(1)
        return ((flipped @ self._draw()) * made.unsqueeze(1)).flatten(0, 1)

    def _draw(self) -> Tensor:
        """E, one a forward pass."""
        if self._noise is None:
            size = self.row.new_empty(self.row.shape[0], self.loc.shape[0])
            self._noise = standard_normal(size, self.generator)
        return self._noise

    def _flips(self, examples: int) -> tuple[Tensor, Tensor]:
        """Signs of the features (B, a) and of the outputs (B, b), the same at every use."""
        if self._signs is None:
            a, b = self._draw().shape
            self._signs = (
                signs(self.row.new_empty(examples, a), self.generator),
                signs(self.row.new_empty(examples, b), self.generator),
            )
        if len(self._signs[0]) != examples:
            raise OtherUseError
        return self._signs
