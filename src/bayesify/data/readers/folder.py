"""The user's own images: a folder with a folder of images per class.

Either `root/<class>/*.png|jpg|jpeg`, or `root/train/<class>/...` and `root/test/<class>/...`.
Images are read as grey if all of them are, and in colour otherwise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bayesify.core.errors import DataError
from bayesify.data.raw import Raw, Request

ENDINGS = (".png", ".jpg", ".jpeg")
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than eight bits per pixel


class Labelled(NamedTuple):
    """The path of an image, and the index of its class."""

    path: Path
    label: int


def read(request: Request) -> Raw:
    """Images (N, 1 or 3, H, W) as bytes, classes in alphabetic order of their folders."""
    root = request.place
    parted = (root / "train").is_dir() and (root / "test").is_dir()
    first = root / "train" if parted else root
    class_names = tuple(folder.name for folder in _folders(first))
    files = _files(first, class_names)
    num_train = len(files)
    if parted:
        files += _files(root / "test", class_names)
    if not files:
        raise DataError(
            f"{root}: expected a folder of {', '.join(ENDINGS)} images per class, found none; "
            "arrange them as root/<class>/*.png."
        )
    return Raw(
        str(root),
        read_images([file.path for file in files], request.image_size),
        torch.tensor([file.label for file in files]),
        test_index=torch.arange(num_train, len(files)) if parted else None,
        class_names=class_names,
    )


def image_files(root: Path) -> list[Path]:
    """All images in a folder and below it, in order.

    Raises:
        DataError: There is none.
    """
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise DataError(f"{root}: expected {', '.join(ENDINGS)} images, found none.")
    return files


def read_images(paths: Sequence[Path], image_size: tuple[int, int] | None = None) -> Tensor:
    """Images (N, 1 or 3, H, W), uint8.

    Args:
        paths: At least one.
        image_size: (height, width) to bring them to; None: they must agree.

    Raises:
        DataError: An image that cannot be read, or sizes that differ without `image_size`.
    """
    images = [_image(path, image_size) for path in paths]
    size = images[0].shape[:2]
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != size:
            raise DataError(
                f"{path}: expected images of one size, {size[0]}x{size[1]} (height x width) like "
                f"the first, got {image.shape[0]}x{image.shape[1]}; pass image_size=."
            )
    if any(image.shape[2] == 3 for image in images):
        images = [np.broadcast_to(image, (*size, 3)) for image in images]
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).contiguous()


def _folders(root: Path) -> list[Path]:
    folders = (each for each in root.iterdir() if each.is_dir() and each.name[0] != ".")
    return sorted(folders)


def _files(root: Path, class_names: tuple[str, ...]) -> list[Labelled]:
    files = []
    for folder in _folders(root):
        if folder.name not in class_names:
            raise DataError(
                f"{folder}: expected only classes that the training part has, got "
                f"{folder.name!r}; add it there, or remove it here."
            )
        label = class_names.index(folder.name)
        images = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
        files += [Labelled(file, label) for file in images]
    return files


def _image(path: Path, image_size: tuple[int, int] | None) -> np.ndarray:
    try:
        with Image.open(path) as file:
            if file.mode in _DEEP:
                raise DataError(
                    f"{path}: expected eight bits per pixel and channel, got mode {file.mode!r}; "
                    "convert it, or save all images as arrays in an .npz file."
                )
            image = file.convert("L" if file.mode in _GREY else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(
            f"{path}: expected an image, got a truncated or foreign file ({error}); remove it."
        ) from error
    if image_size is not None:
        height, width = image_size
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)  # (H, W, 1 or 3)
