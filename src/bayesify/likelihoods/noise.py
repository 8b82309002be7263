"""Random numbers that do not depend on the device, in enough precision to draw by."""

from collections.abc import Callable

import torch
from torch import Tensor


def noise(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """`torch.rand` or `torch.randn` of the shape, dtype and device of `like`.

    Drawn where the generator lives and then moved, so that one seed gives the same noise on
    every device.
    """
    device = like.device if generator is None else generator.device
    drawn = draw(like.shape, generator=generator, dtype=like.dtype, device=device)
    return drawn.to(like.device)


def single_or_better(like: Tensor) -> torch.dtype:
    """The dtype of `like`, but at least float32: half precision has too few numbers in [0, 1)."""
    return torch.promote_types(like.dtype, torch.float32)
