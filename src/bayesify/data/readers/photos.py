"""Patches of two photographs (a temple, a flower) that come with scikit-learn: foreign data."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

LARGEST = 0.75  # of a photograph's height or width


def patches(size: Sequence[int], *, count: int = 1000, seed: int = 0) -> Tensor:
    """Colour patches (count, 3, height, width), uint8, at random places and of random sizes.

    A patch has the proportions of `size`; before it is brought to `size`, its own is drawn between
    that and three quarters of the photograph, evenly on a logarithmic scale.

    Args:
        size: (height, width).
        count: Number of patches, half from each photograph.
        seed: Decides places and sizes.

    Example:
        >>> patches((8, 8), count=2).shape
        torch.Size([2, 3, 8, 8])
    """
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)
    cut = [_patch(photographs[each % 2], (size[0], size[1]), generator) for each in range(count)]
    return torch.from_numpy(np.stack(cut)).movedim(-1, 1)


def _patch(
    photograph: Image.Image, size: tuple[int, int], generator: torch.Generator
) -> np.ndarray:
    height, width = size
    largest = LARGEST * min(photograph.height / height, photograph.width / width)
    smallest = min(1.0, largest / 2)
    how_large, how_low, how_right = torch.rand(3, generator=generator).tolist()
    enlarge = smallest * (largest / smallest) ** how_large
    top = how_low * (photograph.height - enlarge * height)
    left = how_right * (photograph.width - enlarge * width)
    box = (left, top, left + enlarge * width, top + enlarge * height)
    return np.asarray(photograph.resize((width, height), Image.Resampling.BILINEAR, box=box))
