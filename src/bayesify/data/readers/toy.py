"""Two small synthetic sets, drawn from an explicit generator, for examples and tests."""

import math

import torch
from torch import Tensor


def sinc(
    count: int = 200, *, noise: float = 0.05, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Regression with a gap: y = sin(pi x) / (pi x) + noise, x in [-3, -1] or [1, 3].

    A good predictive is unsure in the gap (-1, 1) and outside [-3, 3].

    Args:
        count: Number N of points.
        noise: Standard deviation of the noise.
        generator: Source of randomness; None is torch's global one.

    Returns:
        x (N, 1) and y (N, 1).

    Example:
        >>> x, y = sinc(50, generator=torch.Generator().manual_seed(0))
        >>> bool((x.abs() >= 1).all()), y.shape
        (True, torch.Size([50, 1]))
    """
    side = torch.randint(2, (count, 1), generator=generator) * 2 - 1
    x = side * (1 + 2 * torch.rand(count, 1, generator=generator))
    return x, torch.sinc(x) + noise * torch.randn(count, 1, generator=generator)


def two_moons(
    count: int = 200, *, noise: float = 0.1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Classification: two interleaved half circles of radius 1.

    Args:
        count: Number N of points, half of each class.
        noise: Standard deviation of the noise, in both directions.
        generator: Source of randomness; None is torch's global one.

    Returns:
        x (N, 2) and y (N,), int64.

    Example:
        >>> x, y = two_moons(6, generator=torch.Generator().manual_seed(0))
        >>> x.shape, y.tolist()
        (torch.Size([6, 2]), [0, 1, 0, 1, 0, 1])
    """
    y = torch.arange(count) % 2
    angle = math.pi * torch.rand(count, generator=generator)
    side = 1.0 - 2.0 * y  # the second moon is turned over and moved
    x = torch.stack([y + side * angle.cos(), 0.5 * y + side * angle.sin()], 1)
    return x + noise * torch.randn(count, 2, generator=generator), y
