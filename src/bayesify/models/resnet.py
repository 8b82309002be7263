"""Residual nets for small images (He et al. 2016, arXiv 1512.03385, section 4.2).

Three stages of n blocks with 16, 32 and 64 channels, 6n + 2 layers in all; shortcuts have no
weights: where a stage halves the image they take every second pixel and add channels of zeros
(option A). Any image size will do, for the last stage is averaged over all positions.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.core.errors import OptionError


def resnet20(input_shape: Sequence[int] = (3, 32, 32), num_outputs: int = 10) -> "ResNet":
    """20 layers; 0.27 million parameters for CIFAR-10.

    Example:
        >>> sum(each.numel() for each in resnet20().parameters())
        269722
    """
    return ResNet(3, input_shape, num_outputs)


def resnet32(input_shape: Sequence[int] = (3, 32, 32), num_outputs: int = 10) -> "ResNet":
    """32 layers; 0.46 million parameters for CIFAR-10."""
    return ResNet(5, input_shape, num_outputs)


def resnet56(input_shape: Sequence[int] = (3, 32, 32), num_outputs: int = 10) -> "ResNet":
    """56 layers; 0.85 million parameters for CIFAR-10."""
    return ResNet(9, input_shape, num_outputs)


class ResNet(nn.Module):
    """Takes images (B, C, H, W), returns (B, num_outputs).

    Args:
        blocks: Residual blocks per stage, n above.
        input_shape: (C, H, W) of one image.
        num_outputs: Width of the last layer.
    """

    def __init__(self, blocks: int, input_shape: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise OptionError(
                f"resnet: expected images of shape (channels, height, width), got "
                f"{tuple(input_shape)}; use mlp for other inputs."
            )
        self.conv1 = Conv3x3(input_shape[0], 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, num_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_outputs) of images (B, C, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)))  # (B, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, H/4, W/4)
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions and a shortcut; halves height and width where it adds channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.new_channels = after - before
        self.conv1 = Conv3x3(before, after, stride=self.stride)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = Conv3x3(after, after)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H/stride, W/stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Every second pixel, and zeros for the new channels, half of them on either side."""
        if not self.new_channels:
            return x
        half = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution without bias, drawn as by He et al. 2015, arXiv 1502.01852, eq. 10."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__(before, after, 3, stride=stride, padding=1, bias=False)

    def reset_parameters(self) -> None:
        """Normal with variance 2 / fan-in."""
        nn.init.kaiming_normal_(self.weight)


def _stage(blocks: int, before: int, after: int) -> nn.Sequential:
    return nn.Sequential(Block(before, after), *(Block(after, after) for _ in range(blocks - 1)))
