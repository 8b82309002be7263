"""Bring images to another size and number of channels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import DataError
from bayesify.data.examples import is_image_shape, unit

_CHUNK = 1000  # images in float at a time


def conform(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (N, C, H, W), bytes or in [0, 1], as float32 (N, *shape) in the same range.

    Sizes are interpolated (bilinear, with anti-aliasing); grey becomes equal channels, and colour
    becomes the mean of its channels.

    Example:
        >>> conform(torch.full((2, 3, 6, 6), 255, dtype=torch.uint8), (1, 4, 4)).unique()
        tensor([1.])
    """
    if not is_image_shape(images.shape[1:]):
        raise DataError(
            f"expected images (1 or 3 channels, height, width), got inputs of shape "
            f"{tuple(images.shape[1:])}; foreign data must be images too."
        )
    return torch.cat([_conform(unit(chunk).float(), shape) for chunk in images.split(_CHUNK)])


def _conform(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    channels, size = shape[0], shape[1:]
    if images.shape[1] > channels:
        images = images.mean(1, keepdim=True)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return images.expand(-1, channels, -1, -1)
