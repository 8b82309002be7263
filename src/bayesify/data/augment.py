"""Random crops and flips of training images, as published CIFAR nets are trained.

Images are padded with black in [0, 1], *before* they are normalised, and every image of a batch
gets its own offset and its own flip. Randomness comes from torch's global generator, which a
DataLoader seeds in each of its workers.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import DataError, OptionError
from bayesify.data.examples import Splits


def augmented(splits: Splits, *, padding: int = 4, flip: bool = True) -> Splits:
    """The same splits, whose training images are randomly cropped and flipped at every visit.

    Args:
        splits: Of images.
        padding: Black pixels put on every side before an image is cut back to its size.
        flip: Whether half of the images are mirrored left to right.

    Example:
        >>> from bayesify.data import splits
        >>> crops = augmented(splits("digits"), padding=1, flip=False)
        >>> crops.train[0][0].shape
        torch.Size([1, 8, 8])
    """
    if not splits.is_image:
        raise DataError(
            f"augmented: expected images (1 or 3 channels, height, width), got inputs of shape "
            f"{splits.input_shape} ({splits.name}); train on them as they are."
        )
    if padding < 0:
        raise OptionError(f"padding={padding}: expected at least 0; pass 0 for no crops.")
    return replace(splits, train=replace(splits.train, augment=CropAndFlip(padding, flip)))


@dataclass(frozen=True)
class CropAndFlip:
    """Pads with black, cuts back at random, mirrors at random; images (B, C, H, W) in [0, 1]."""

    padding: int = 4
    flip: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """Same shape, one offset and one coin per image."""
        images = crop(images, self.padding)
        if not self.flip:
            return images
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        return torch.where(mirrored, images.flip(-1), images)


def crop(images: Tensor, padding: int) -> Tensor:
    """Cut images (B, C, H, W), padded with `padding` black pixels, back to their size at random."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, count, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)  # (B, H), (B, W)
    image = torch.arange(count)[:, None, None]
    cut = padded[image, :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return cut.movedim(-1, 1)
