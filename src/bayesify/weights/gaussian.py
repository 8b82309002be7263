"""A Gaussian in the place of a weight, whose noise differs within the batch as far as it may.

For w ~ N(loc, diag(scale^2)) what an example sees must have the law of one draw of w, jointly over
all its positions and all uses of w; two examples may see different draws. By `NoiseScope`:

    ROW      z = op(x, loc) + sqrt(op(x^2, scale^2)) * eps, eps ~ N(0, I) of the shape of z: the
             exact law of z given the row x, for a weight that meets one row an example once
             (Kingma, Salimans & Welling 2015, arXiv 1506.02557, eq. 6)
    EXAMPLE  z_b = op(x_b, loc) + r_b * op(s_b * x_b, scale * eps), with random signs r_b for its
             outputs and s_b for its inputs: as r s^T * eps has the law of eps, each example sees
             an exact draw (Wen et al. 2018, arXiv 1803.04386, eqs. 3 and 4)
    BATCH    op(x, loc + scale * eps), one draw

For training gradients: at prediction all examples see the same draws.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.types import Named
from bayesify.numerics.noise import signs, standard_normal
from bayesify.weights.noise_scope import NoiseScope, OtherUseError, Scopes
from bayesify.weights.structured import Operation, StructuredWeight, formed

TINY = 1e-16
"""Smallest variance under the square root, whose gradient at zero would be infinite."""


class GaussianWeight(StructuredWeight):
    """An independent Gaussian in the place of a weight; noise is drawn when it acts.

    Args:
        loc: Mean, of the weight's shape.
        scale: Standard deviation, of the same shape.
        generator: Source of the noise; None for torch's global one.
        scope: What shares a draw. The caller knows the forward pass (`noise_scopes`).

    Raises:
        OtherUseError: a use that the scope does not cover.
    """

    loc: Tensor
    scale: Tensor
    generator: torch.Generator | None
    scope: NoiseScope
    _noise: Tensor | None
    _flips: dict[int, Tensor]
    _used: bool

    def __new__(
        cls,
        loc: Tensor,
        scale: Tensor,
        generator: torch.Generator | None = None,
        scope: NoiseScope = NoiseScope.BATCH,
    ) -> Self:
        """Wrap `loc`; the instance shares its memory."""
        weight = loc.as_subclass(cls)
        weight.loc, weight.scale, weight.generator, weight.scope = loc, scale, generator, scope
        weight._noise, weight._flips, weight._used = None, {}, False
        return weight

    def act(self, op: Operation, x: Tensor, bias: Tensor | None) -> Tensor:
        """The output, with noise as the scope says; a bias of the same scope adds its own."""
        beside = bias if isinstance(bias, GaussianWeight) and bias.scope is self.scope else None
        if self.scope is NoiseScope.ROW:
            return self._by_row(op, x, bias, beside)
        if self.scope is NoiseScope.EXAMPLE:
            return self._by_example(op, x, bias, beside)
        return op(x, self.dense(), formed(bias))

    def look_up(self, indices: Tensor, padding: int | None) -> Tensor:
        """Rows of the weight, each example's of a draw of its own where the scope allows it."""
        if self.scope is not NoiseScope.EXAMPLE:
            return super().look_up(indices, padding)
        mean = F.embedding(indices, self.loc, padding)
        noise = F.embedding(indices, self._draw(), padding)
        flipped = self._signs(0, mean).gather(1, indices.reshape(len(indices), -1))
        flipped = flipped.view(*indices.shape, 1)
        return torch.addcmul(mean, flipped * _placed(self._signs(1, mean), mean, -1), noise)

    def dense(self) -> Tensor:
        """One draw of the weight, the same for every use within a forward pass."""
        if self.scope is not NoiseScope.BATCH:
            raise OtherUseError
        return self.loc + self._draw()

    def _by_row(
        self, op: Operation, x: Tensor, bias: Tensor | None, beside: "GaussianWeight | None"
    ) -> Tensor:
        if self._used or x.ndim != 2:
            raise OtherUseError
        self._used = True
        if beside is not None:
            mean = op(x, self.loc, beside.loc)
            variance = op(x.square(), self.scale.square(), beside.scale.square())
        else:
            mean = op(x, self.loc, formed(bias))
            variance = op(x.square(), self.scale.square())
        return _Noisy.apply(mean, variance, standard_normal(mean, self.generator))  # type: ignore[return-value]

    def _by_example(
        self, op: Operation, x: Tensor, bias: Tensor | None, beside: "GaussianWeight | None"
    ) -> Tensor:
        """Inputs lie along axis `given` of the weight, outputs along the other."""
        given = 0 if op.turned else 1
        channel = -1 if op.func in (F.linear, torch.addmm) else 1
        mean = op(x, self.loc, formed(bias) if beside is None else beside.loc)
        inputs = _placed(self._signs(given, x, x.shape[channel]), x, channel)
        outputs = _placed(self._signs(1 - given, mean, mean.shape[channel]), mean, channel)
        noise = op(x * inputs, self._draw(), None if beside is None else beside._draw())
        return torch.addcmul(mean, outputs, noise)

    def _draw(self) -> Tensor:
        """Noise of the scale, one draw a forward pass."""
        if self._noise is None:
            self._noise = self.scale * standard_normal(self.loc, self.generator)
        return self._noise

    def _signs(self, axis: int, like: Tensor, size: int | None = None) -> Tensor:
        """A sign for each example and index along an axis of the weight, (B, size)."""
        shape = (len(like), self.shape[axis] if size is None else size)
        if axis not in self._flips:
            self._flips[axis] = signs(like.new_empty(shape), self.generator)
        if self._flips[axis].shape != shape:
            raise OtherUseError
        return self._flips[axis].to(like.dtype)


def gaussian_weights(
    loc: Named, scale: Named, generator: torch.Generator | None, scopes: Scopes | None
) -> Named:
    """A `GaussianWeight` for each name, with its scope."""
    scopes = scopes or {}
    return {
        name: GaussianWeight(mean, scale[name], generator, scopes.get(name, NoiseScope.BATCH))
        for name, mean in loc.items()
    }


def _placed(signs: Tensor, like: Tensor, axis: int) -> Tensor:
    """(B, size) with its second axis at `axis` of `like`, to be multiplied with it."""
    shape = [1] * like.ndim
    shape[0], shape[axis] = signs.shape
    return signs.view(shape)


class _Noisy(torch.autograd.Function):
    """mean + sqrt(variance) * noise, with half the passes over memory of the composed form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        return torch.addcmul(mean, variance.clamp_min(TINY).sqrt_(), noise)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, variance, noise = inputs
        ctx.save_for_backward(variance, noise)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        variance, noise = ctx.saved_tensors
        half_slope = variance.clamp_min(TINY).rsqrt_().mul_(noise).mul_(0.5)
        return grads[0], half_slope.mul_(grads[0]), None
