"""Random numbers that do not depend on the device, in enough precision to draw by.

They are drawn where the generator lives and then moved, so that one seed gives the same noise on
every device.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def noise(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """`torch.rand` or `torch.randn` of the shape, dtype and device of `like`."""
    return _drawn(draw, like.shape, like, generator).to(like.device)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) noise of the shape, dtype and device of `like`."""
    return noise(torch.randn, like, generator)


def signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """-1 or 1 with equal chances, of the shape, dtype and device of `like`."""
    device = like.device if generator is None else generator.device
    drawn = torch.randint(2, like.shape, generator=generator, dtype=like.dtype, device=device)
    return drawn.mul_(2).sub_(1).to(like.device)


def standard_normal_rows(
    n: int, size: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """(n, size) standard normal noise, drawn row by row, of the dtype and device of `like`.

    One call per row makes the first k rows of n those of k, so that chunks of samples are the
    samples.
    """
    shape = torch.Size([size])
    rows = [_drawn(torch.randn, shape, like, generator) for _ in range(n)]
    return torch.stack(rows).to(like.device)


def single_or_better(dtype: torch.dtype) -> torch.dtype:
    """At least float32: half types have too few numbers in [0, 1), and no factorisations."""
    return torch.promote_types(dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """In float32 where it is of a half type, whose sums and logarithms have too few digits."""
    return tensor.to(single_or_better(tensor.dtype))


def _drawn(
    draw: Callable[..., Tensor], shape: torch.Size, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    device = like.device if generator is None else generator.device
    return draw(shape, generator=generator, dtype=like.dtype, device=device)
