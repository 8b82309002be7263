"""A weight that is a shared base plus a low-rank difference (Hu et al. 2021, arXiv 2106.09685).

    W = base + scale * up @ down,    up (m, r),  down (r, d)

where a weight of shape (m, *rest) is read as a matrix (m, d), d = prod(rest). Multiplied, it is two
narrow maps beside that of the base, and is never formed:

    linear        x W^T    = x base^T + scale * (x down^T) up^T
    on the right  x W      = x base   + scale * (x up) down             (weights (in, out))
    convolution   conv(x, W) = conv(x, base) + scale * conv1x1(conv(x, down), up)
    lookup        W[i]     = base[i]  + scale * up[i] down

The narrow convolution has the r rows of `down` as its kernels; in g groups these serve every group,
and the 1x1 convolution after it gives each group its part of `up`, so the sum is exactly W. A
convolution's weight that is no larger than its input is formed nevertheless: that costs little
beside the input, and one convolution is faster than three (1.5 times on a CPU, at 16 to 64
channels; benchmarks/README.md). Many members that differ in `up` and `down` alone share one `base`,
and under `torch.vmap` its product too, unless the weight is formed.
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.weights.structured import Operation, StructuredWeight

POINTWISE = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
"""Convolutions that act by factors, with their spatial axes; transposed ones form the weight."""


class LowRankWeight(StructuredWeight):
    """base + scale * up @ down.

    Args:
        base: The weight that is shared, (m, *rest).
        down: (r, d) with d the product of `rest`. Cast to the type of what it is multiplied with.
        up: (m, r).
        scale: A number.

    Example:
        >>> weight = LowRankWeight(torch.zeros(3, 2), torch.ones(1, 2), torch.ones(3, 1), 0.5)
        >>> F.linear(torch.ones(1, 2), weight)
        tensor([[1., 1., 1.]])
    """

    base: Tensor
    down: Tensor
    up: Tensor
    scale: float | Tensor

    def __new__(cls, base: Tensor, down: Tensor, up: Tensor, scale: float | Tensor = 1.0) -> Self:
        """Wrap `base`; the instance shares its memory."""
        weight = base.as_subclass(cls)
        weight.base, weight.down, weight.up, weight.scale = base, down, up, scale
        return weight

    def act(self, op: Operation, x: Tensor, bias: Tensor | None) -> Tensor:
        """By factors for a matrix product, and for a convolution with a large weight."""
        down, up = self._factors(x.dtype)
        if op.func is F.linear:
            return op(x, self.base, bias) + F.linear(F.linear(x, down), up)
        if op.func is torch.addmm:
            return op(x, self.base, bias) + (x @ up) @ down
        if op.func in POINTWISE and self.base.numel() > x.numel():
            return op(x, self.base, bias) + self._convolved(op, x, down, up)
        return op(x, self.dense(), bias)

    def look_up(self, indices: Tensor, padding: int | None) -> Tensor:
        """The rows that are asked for, and no others."""
        found = F.embedding(indices, self.base, padding)
        down, up = self._factors(found.dtype)
        difference = F.embedding(indices, up, padding) @ down
        if padding is not None:
            kept = (indices != padding).unsqueeze(-1)
            difference = torch.where(kept, difference, difference.detach())
        return found + difference

    def dense(self) -> Tensor:
        """The weight as a plain tensor, in the type of the base."""
        down, up = self._factors(self.base.dtype)
        return self.base + (up @ down).reshape(self.base.shape)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`down`, and `up` times the scale."""
        return self.down.to(dtype), (self.scale * self.up).to(dtype)

    def _convolved(self, op: Operation, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        axes = POINTWISE[op.func]
        kernels = down.reshape(-1, *self.base.shape[1:])  # (r, in / groups, *kernel)
        groups = x.shape[-axes - 1] // self.base.shape[1]
        if groups > 1:
            kernels = kernels.repeat(groups, *[1] * (kernels.ndim - 1))
        narrow = op(x, kernels)  # (B, groups * r, *out)
        return op.func(narrow, up.reshape(*up.shape, *[1] * axes), groups=groups)
