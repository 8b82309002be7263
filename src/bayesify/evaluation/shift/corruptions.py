"""Common corruptions of images, five severities each: what cameras, sensors and files do to them.

Source: Hendrycks and Dietterich 2019, arXiv 1903.12261, section 4.1; the severities are the ones
their CIFAR-10-C was made with (github.com/hendrycks/robustness, make_cifar_c.py). Left out are
weather (frost, snow, fog, spatter), which needs pictures of its own or is no formula, and glass
blur.

The libraries that offer these functions bring OpenCV, numba and scikit-image (imagecorruptions) or
a whole vision library (kornia) with them, so they are built on torch, scipy.ndimage and Pillow.

Ours, not the paper's:
    - nothing but JPEG is rounded to bytes;
    - lengths in pixels hold up to a shorter side of 64 and grow in proportion to it beyond; those
      of `elastic_transform` are shares of the side at any size, as published;
    - blurs repeat the pixels at the edge; `motion_blur` and `zoom_blur` interpolate between pixels
      instead of rounding to whole ones;
    - `elastic_transform` moves every pixel once, by its affine map and displacement together.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.evaluation.shift.draws import Draws

Images = Float[Tensor, "batch channels height width"]

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One family: a function and its parameter at each of the five severities.

    Args:
        apply: `(images, parameter, draws) -> images`, which may leave [0, 1].
        parameters: One for each severity.
        channels: Numbers of channels it changes.
    """

    apply: Callable[[Images, Any, Draws], Tensor]
    parameters: tuple[Any, ...]
    channels: tuple[int, ...] = (1, 3)

    def __call__(self, images: Images, severity: int, draws: Draws) -> Tensor:
        """The corrupted images, unchecked and unclipped; see `corrupt`."""
        return self.apply(images, self.parameters[severity - 1], draws)


def corrupt(
    images: Shaped[Tensor, "batch channels height width"],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    start: int = 0,
) -> Images:
    """Images with one of the `CORRUPTIONS`; the same for the same arguments, on any device.

    Args:
        images: Floating point, in [0, 1], with 1 or 3 (RGB) channels; left as they are.
        name: One of `families_for(channels)`.
        severity: From 1, mild, to 5.
        seed: Of the noise.
        start: Position of the first image in the data. Noise depends on (seed, name, severity,
            position), so data may be corrupted in batches of any size.

    Returns:
        float32 in [0, 1], same shape and device.

    Raises:
        ShapeError: these are no images of 1 or 3 channels, or there are none.
        DataError: values outside [0, 1], or not of a floating-point type.
        OptionError: unknown name, one that does nothing to grey images, or another severity.

    Example:
        >>> grey = torch.full((2, 1, 8, 8), 0.5)
        >>> corrupt(grey, "brightness", 3).unique()
        tensor([0.6500])
        >>> noisy = corrupt(grey, "gaussian_noise", 5)
        >>> torch.equal(noisy[1:], corrupt(grey[1:], "gaussian_noise", 5, start=1))
        True
    """
    _check_images(images)
    check_family(name, images.shape[1])
    if not isinstance(severity, int) or severity not in SEVERITIES:
        raise OptionError(f"severity={severity!r}: expected a whole number from 1 to 5.")
    if start < 0:
        raise OptionError(f"start={start}: expected the position of the first image, 0 or more.")
    draws = Draws(seed, name, severity, start)
    corrupted = CORRUPTIONS[name](images.detach().cpu().float(), severity, draws)
    return corrupted.float().clamp(0, 1).to(images.device)


def families_for(channels: int) -> tuple[str, ...]:
    """Names of the corruptions that change images with so many channels.

    Example:
        >>> set(families_for(3)) - set(families_for(1))
        {'saturate'}
    """
    return tuple(name for name, each in CORRUPTIONS.items() if channels in each.channels)


def check_family(name: str, channels: int) -> None:
    """Raise `OptionError` unless `name` is a corruption of images with so many channels."""
    if name not in families_for(channels):
        raise OptionError(
            f"corruption {name!r}: expected one for images with {channels} channel(s): "
            f"{', '.join(families_for(channels))}."
        )


# ---------------------------------------------------------------------------------------- noise


def _gaussian_noise(images: Images, sd: float, draws: Draws) -> Tensor:
    return images + sd * draws.normal(images.shape)


def _shot_noise(images: Images, photons: float, draws: Draws) -> Tensor:
    """Counts of light, `photons` of them for white: variance x / photons."""
    return draws.poisson(images * photons) / photons


def _impulse_noise(images: Images, share: float, draws: Draws) -> Tensor:
    """Values (not pixels) that turn black or white, half of the share each."""
    uniform = draws.uniform(images.shape)
    images = torch.where(uniform < share / 2, 0.0, images)
    return torch.where(uniform >= 1 - share / 2, 1.0, images)


def _speckle_noise(images: Images, sd: float, draws: Draws) -> Tensor:
    return images * (1 + sd * draws.normal(images.shape))


# ----------------------------------------------------------------------------------------- blur


def _gaussian_blur(images: Images, sd: float, _: Draws) -> Tensor:
    sd = sd * _scale(images)
    return torch.from_numpy(gaussian_filter(images.numpy(), sd, mode="nearest", axes=(2, 3)))


def _defocus_blur(images: Images, parameter: tuple[float, float], _: Draws) -> Tensor:
    """Convolution with a disk (radius, sd): all pixels within the radius, softened."""
    radius, sd = (each * _scale(images) for each in parameter)
    softening = math.ceil(_scale(images))
    reach = math.ceil(radius) + softening
    offsets = np.arange(-reach, reach + 1)
    disk = np.hypot(offsets[:, None], offsets) <= radius
    kernel = gaussian_filter(disk / disk.sum(), sd, radius=softening, mode="constant")
    padded = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1).unsqueeze(1)
    blurred = F.conv2d(padded, torch.from_numpy(kernel).float()[None, None])
    return blurred.reshape(images.shape)


def _motion_blur(images: Images, sd: float, draws: Draws) -> Tensor:
    """A half-Gaussian trail in a direction from -45 to 45 degrees, another for each image.

    Published trails end after 12 to 18 pixels, where nothing is left of them; so severities 3 and
    4, which differ in that length alone, are one up to the angles. Ours end after four sd.
    """
    sd = sd * _scale(images)
    angle = (draws.uniform(torch.Size((len(images), 1, 1))) - 0.5) * math.pi / 2
    rows, columns = _pixels(images)
    along = torch.arange(math.ceil(4 * sd) + 1)
    weights = torch.exp(-0.5 * (along / sd).square())
    blurred = torch.zeros_like(images)
    for step, weight in zip(along.tolist(), (weights / weights.sum()).tolist(), strict=True):
        at = rows + step * angle.sin(), columns + step * angle.cos()
        blurred += weight * _interpolate(images, *at, "border")
    return blurred


def _zoom_blur(images: Images, steps: int, _: Draws) -> Tensor:
    """Mean of the image and its magnifications by 1, 1.01, ..., 1 + steps / 100."""
    height, width = images.shape[2:]
    total = images.clone()
    for step in range(steps + 1):
        zoom = 1 + step / 100
        total += _magnify(height, zoom) @ images @ _magnify(width, zoom).T
    return total / (steps + 2)


# ----------------------------------------------------------------------------------- photometric


def _brightness(images: Images, added: float, _: Draws) -> Tensor:
    """Added to V of (hue, saturation, V): colours keep their proportions, V = max(R, G, B)."""
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp_min(_TINY), brighter)


def _contrast(images: Images, factor: float, _: Draws) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def _saturate(images: Images, parameter: tuple[float, float], _: Draws) -> Tensor:
    """S of (hue, S, value) becomes factor S + added, at most 1; grey has the hue of red, by rule.

    With d = (max - colour) / (max - min) for each channel, colour = value (1 - S d).
    """
    factor, added = parameter
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    saturation = (value - least) / value.clamp_min(_TINY)
    red = torch.tensor([0.0, 1.0, 1.0]).reshape(3, 1, 1)
    depth = torch.where(value > least, (value - images) / (value - least).clamp_min(_TINY), red)
    return value * (1 - (factor * saturation + added).clamp(0, 1) * depth)


# --------------------------------------------------------------------------------------- digital


def _jpeg_compression(images: Images, quality: int, _: Draws) -> Tensor:
    pixels = (images * 255).round().byte().movedim(1, -1).squeeze(-1).numpy()
    decoded = torch.from_numpy(np.stack([_through_jpeg(each, quality) for each in pixels]))
    return (decoded.float() / 255).reshape(images.movedim(1, -1).shape).movedim(-1, 1)


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _pixelate(images: Images, share: float, _: Draws) -> Tensor:
    """Every pixel becomes the mean of its block; int(share * side) blocks to a side."""
    height, width = images.shape[2:]
    return _block_means(height, share) @ images @ _block_means(width, share).T


def _elastic_transform(images: Images, parameter: tuple[float, ...], draws: Draws) -> Tensor:
    """A random affine map and a smooth random displacement, lengths as shares of the side.

    The affine map moves three corners of a square, each coordinate by up to `corners`; the
    displacement is `strength` times uniform noise in [-1, 1] smoothed with sd `smoothness`.
    """
    strength, smoothness, corners = (each * min(images.shape[2:]) for each in parameter)
    count, _, height, width = images.shape
    drawn = 2 * draws.uniform(torch.Size((count, 6 + 2 * height * width))) - 1
    field = drawn[:, 6:].reshape(count, 2, height, width).numpy()
    smooth = gaussian_filter(field, smoothness, mode="reflect", truncate=3, axes=(2, 3))
    moved = torch.stack(_pixels(images), -1) + strength * torch.from_numpy(smooth).movedim(1, -1)

    half = min(height, width) / 3
    square = torch.tensor([[half, half], [half, -half], [-half, -half]])
    square = square + torch.tensor([height - 1, width - 1]) / 2
    there = square + corners * drawn[:, :6].reshape(count, 3, 2)
    affine = torch.linalg.solve(_with_ones(there), square.expand(count, 3, 2))  # back to the square
    rows, columns = (_with_ones(moved.flatten(1, 2)) @ affine).unbind(-1)
    at = rows.reshape(count, height, width), columns.reshape(count, height, width)
    return _interpolate(images, *at, "reflection")


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Corruption(_speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian_blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": Corruption(
        _defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
    ),
    "motion_blur": Corruption(_motion_blur, (1.0, 1.5, 2.0, 2.0, 2.5)),
    "zoom_blur": Corruption(_zoom_blur, (6, 11, 15, 20, 25)),
    "brightness": Corruption(_brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": Corruption(_contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    "saturate": Corruption(
        _saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)), channels=(3,)
    ),
    "jpeg_compression": Corruption(_jpeg_compression, (80, 65, 58, 50, 40)),
    "pixelate": Corruption(_pixelate, (0.95, 0.90, 0.85, 0.75, 0.65)),
    "elastic_transform": Corruption(
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
}
"""Every family by name. The severities of `saturate` (from pale to gaudy) and `elastic_transform`
(from skewed to rippled) are as published, and not in order of squared error."""

_TINY = 1e-12


def _scale(images: Images) -> float:
    """By how much lengths in pixels grow with the image."""
    return max(1.0, min(images.shape[2:]) / 64)


def _pixels(images: Images) -> tuple[Tensor, Tensor]:
    """Row (H, W) and column (H, W) of every pixel."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in images.shape[2:])
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return grid[0], grid[1]


def _interpolate(images: Images, rows: Tensor, columns: Tensor, beyond: str) -> Tensor:
    """The images at these rows and columns (B, H, W), bilinear."""
    height, width = images.shape[2:]
    at = 2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1
    return F.grid_sample(images, torch.stack(at, -1), padding_mode=beyond, align_corners=True)


def _magnify(side: int, zoom: float) -> Float[Tensor, "side side"]:
    """Linear interpolation, as a matrix, at the pixels' places moved towards the middle."""
    pixel, middle = torch.arange(side), (side - 1) / 2
    at = middle + (pixel - middle) / zoom
    return (1 - (at[:, None] - pixel).abs()).clamp_min(0)


def _block_means(side: int, share: float) -> Float[Tensor, "side side"]:
    """Means over the blocks as a matrix; a pixel is of the block that its centre lies in."""
    blocks = max(1, int(share * side))
    block = ((torch.arange(side, dtype=torch.float64) + 0.5) * blocks / side).long()
    together = (block[:, None] == block).float()
    return together / together.sum(1, keepdim=True)


def _with_ones(points: Float[Tensor, "batch points 2"]) -> Float[Tensor, "batch points 3"]:
    return F.pad(points, (0, 1), value=1.0)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ShapeError(
            f"expected images (batch, 1 or 3 channels, height, width), at least one, got "
            f"{tuple(images.shape)}; only images can be corrupted."
        )
    if not images.is_floating_point():
        raise DataError(f"expected images of floats in [0, 1], got {images.dtype}; divide by 255.")
    least, most = float(images.min()), float(images.max())
    if not (least >= 0 and most <= 1):
        raise DataError(
            f"expected images in [0, 1], got values from {least:.4g} to {most:.4g}; corrupt raw "
            f"images, before they are normalised (`Normalise.inverse` goes back)."
        )
