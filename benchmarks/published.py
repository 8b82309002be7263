"""A ResNet-20 that others trained, and images that it has and has not seen.

The file of images holds `x_train, y_train, x_test, y_test` of CIFAR-10, as bytes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bayesify
from bayesify.data import Examples
from bayesify.data.readers.cifar import NORMALISE


def resnet20(weights: Path) -> nn.Module:
    """The network."""
    net = bayesify.models.build("resnet20", (3, 32, 32), 10)
    bayesify.models.load_weights(net, weights)
    return net


def examples(held: Any, part: str, augment: Any = None) -> Examples:
    """Images of a part of an opened file, "train" or "test"."""
    x, y = torch.from_numpy(held[f"x_{part}"]), torch.from_numpy(held[f"y_{part}"]).long()
    return Examples(x, y, NORMALISE, augment)


def train_and_half_of_test(images: Path) -> tuple[Examples, Examples]:
    """Its training images, and the first half of its test images; the other half stays unseen."""
    held = np.load(images)
    test = examples(held, "test")
    return examples(held, "train"), some(test, 0, len(test) // 2)


def some(held: Examples, start: int, stop: int) -> Examples:
    """A slice."""
    return replace(held, x=held.x[start:stop], y=held.y[start:stop])
