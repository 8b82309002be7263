"""Local reparameterisation as a weight (Kingma, Salimans & Welling 2015, arXiv 1506.02557, eq. 6).

For w ~ N(loc, diag(scale^2)) an output that is linear in w is Gaussian given the input,

    z = op(x, loc) + sqrt(op(x^2, scale^2)) * eps,    eps ~ N(0, I) of the shape of z,

so each example (and each output position) sees noise of its own, and gradients vary far less than
with one shared draw of the weight. The marginals are those of weight sampling; the joint law over
examples is not, so this is for training gradients only, never for prediction.
"""

from typing import Any, Self

import torch
from torch import Tensor

from bayesify.numerics.noise import standard_normal
from bayesify.weights.structured import Operation, StructuredWeight

TINY = 1e-16
"""Smallest variance under the square root, whose gradient at zero would be infinite."""


class GaussianWeight(StructuredWeight):
    """An independent Gaussian in the place of a weight; noise is drawn when it acts.

    Args:
        loc: Mean, of the weight's shape.
        scale: Standard deviation, of the same shape.
        generator: Source of the noise; None for torch's global one.
    """

    loc: Tensor
    scale: Tensor
    generator: torch.Generator | None
    _draw: Tensor | None

    def __new__(cls, loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Self:
        """Wrap `loc`; the instance shares its memory."""
        weight = loc.as_subclass(cls)
        weight.loc, weight.scale, weight.generator = loc, scale, generator
        weight._draw = None
        return weight

    def act(self, op: Operation, x: Tensor, bias: Tensor | None) -> Tensor:
        """One noisy output per example; a Gaussian bias adds its own mean and variance."""
        if isinstance(bias, GaussianWeight):
            mean = op(x, self.loc, bias.loc)
            variance = op(x.square(), self.scale.square(), bias.scale.square())
        else:
            mean, variance = op(x, self.loc, bias), op(x.square(), self.scale.square())
        return _Noisy.apply(mean, variance, standard_normal(mean, self.generator))  # type: ignore[return-value]

    def dense(self) -> Tensor:
        """One draw of the weight, the same for every use within a forward pass."""
        if self._draw is None:
            self._draw = self.loc + self.scale * standard_normal(self.loc, self.generator)
        return self._draw


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
