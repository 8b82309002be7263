"""A small convolutional net: three blocks of convolution, BatchNorm and ReLU, then a linear layer.

The first two blocks halve height and width; the last is averaged over all positions, so any image
of at least 4x4 pixels will do.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from bayesify.core.errors import OptionError


def cnn(input_shape: Sequence[int], num_outputs: int, *, width: int = 16) -> nn.Sequential:
    """Takes images (B, C, H, W), returns (B, num_outputs).

    Args:
        input_shape: (C, H, W) of one image.
        num_outputs: Width of the last layer.
        width: Channels of the first block; doubled by each of the next two.

    Example:
        >>> sum(each.numel() for each in cnn((1, 8, 8), 10).parameters())
        24058
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise OptionError(
            f"cnn: expected images of shape (channels, height, width), at least 4x4, got "
            f"{tuple(input_shape)}; use mlp for other inputs."
        )
    return nn.Sequential(
        OrderedDict(
            block1=_block(input_shape[0], width),
            pool1=nn.MaxPool2d(2),
            block2=_block(width, 2 * width),
            pool2=nn.MaxPool2d(2),
            block3=_block(2 * width, 4 * width),
            mean=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(4 * width, num_outputs),
        )
    )


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(before, after, 3, padding=1, bias=False),  # BatchNorm has the bias
            bn=nn.BatchNorm2d(after),
            relu=nn.ReLU(),
        )
    )
