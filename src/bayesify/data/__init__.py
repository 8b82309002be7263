"""Data sets: `splits("digits")`, `splits("yields.csv", target="yield")`, `ood("photos", like=...)`.

Readers are imported when they are asked for, so importing this package costs nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bayesify.core.errors import DataError, OptionError
from bayesify.data.augment import augmented
from bayesify.data.examples import VALIDATION_SHARE, Examples, Normalise, Splits
from bayesify.data.raw import Raw, Request
from bayesify.data.sources import KINDS, SOURCES, find_path, locate, missing

__all__ = [
    "Availability",
    "Examples",
    "Normalise",
    "Splits",
    "augmented",
    "available",
    "load",
    "num_folds",
    "ood",
    "splits",
]

TASKS = ("classification", "multilabel", "regression")
TAKES = {".npz": ("task", "fold"), ".csv": ("task", "target"), "": ("image_size",)}
"""The options that each kind of the user's own data takes."""


class Availability(NamedTuple):
    """Whether a known data set is at hand, and where, or how to get it."""

    name: str
    about: str
    found: bool
    where: str


def splits(
    source: str | Path,
    *,
    data_dir: str | Path | None = None,
    target: str | None = None,
    task: str | None = None,
    seed: int = 0,
    fold: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    validation_share: float = VALIDATION_SHARE,
) -> Splits:
    """Read a data set and cut it into training, validation and test parts.

    Args:
        source: A name that `available` lists, or a path of your own: an `.npz` file (arrays
            `x_train, y_train, x_test, y_test`, or `x, y`), a `.csv` file, or a folder with a
            folder of images per class, possibly below `train` and `test`.
        data_dir: Where to look first.
        target: Column to predict, for a `.csv` file.
        task: "classification", "multilabel" or "regression". By default integers are classes, a
            matrix of 0 and 1 is labels, and floats are for regression; for `.csv` see
            `bayesify.data.readers.table`.
        seed: Decides the validation part, and the test part of your own data if it brings none.
        fold: Which row of `test_index` is the test part, for an `.npz` file that has it;
            None is the first.
        image_size: Height and width that images of a folder are brought to.
        validation_share: How much of what is not for testing is held out of training; with 0
            all of it is trained on, and the validation part is empty.

    Raises:
        DataError: The data are missing or cannot be used.
        OptionError: An option makes no sense, or not for this source.

    Example:
        >>> digits = splits("digits")
        >>> digits.input_shape, digits.num_outputs, len(digits.test)
        ((1, 8, 8), 10, 450)
    """
    if not 0 <= seed < 2**32:
        raise OptionError(f"seed={seed}: expected a whole number from 0 to 2**32 - 1; pass one.")
    check_validation_share(validation_share)
    if str(source) in SOURCES and not SOURCES[str(source)].labelled:
        raise DataError(
            f"{source} has no labels to learn from: expected a labelled set; use it as foreign "
            f"data, with ood({str(source)!r}, like=...)."
        )
    request = Request(None, target, _task(task), fold, _image_size(image_size))
    raw = _read(str(source), request, data_dir)
    cut = _function("bayesify.data.splitting:cut")
    return cut(raw, seed=seed, validation_share=validation_share)


def num_folds(source: str | Path, *, data_dir: str | Path | None = None) -> int:
    """How many test parts a data set brings to choose from by `fold`; 0: there is no choice.

    Args:
        source: As for `splits`.
        data_dir: Where to look first.

    Example:
        >>> num_folds("digits")
        0
    """
    if str(source) in SOURCES:
        return 0
    path = find_path(str(source), data_dir)
    if "fold" not in TAKES.get(_kind(path), ()):
        return 0
    return _function("bayesify.data.readers.npz:num_folds")(path)


def load(source: str | Path, split: str = "train", **same: Any) -> Examples:
    """One part of `splits(source, **same)`: "train", "validation" or "test".

    Example:
        >>> x, y = load("digits", "validation")[0]
        >>> x.shape, y.dtype
        (torch.Size([1, 8, 8]), torch.int64)
    """
    if split not in ("train", "validation", "test"):
        raise OptionError(
            f"split={split!r}: expected 'train', 'validation' or 'test'; pass one of them."
        )
    return getattr(splits(source, **same), split)


def ood(
    source: str | Path,
    like: Splits,
    *,
    data_dir: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Examples:
    """Images of another kind than `like`, in its shape and through its normalisation.

    They are the test part of `source`, or all of it where it brings none. Other sizes are
    interpolated, grey becomes three equal channels, and colour becomes the mean of its channels.

    Args:
        source: As for `splits`; or "photos".
        like: What the model was trained on.
        data_dir: Where to look first.
        image_size: Height and width that images of a folder are brought to before.

    Returns:
        Examples whose y is zero throughout, int64 (N,).

    Raises:
        DataError: `like` or `source` holds no images, or `source` is missing.

    Example:
        >>> len(ood("photos", like=splits("digits")))
        1000
    """
    if not like.is_image:
        raise DataError(
            f"ood: expected a data set of images to be foreign to, got {like.name} with inputs "
            f"of shape {like.input_shape}; foreign data are images so far."
        )
    if str(source) == "photos":
        x = _function(SOURCES["photos"].reader)(like.input_shape[1:])
    else:
        raw = _read(str(source), Request(image_size=_image_size(image_size)), data_dir)
        _function("bayesify.data.splitting:check_inputs")(raw)
        x = raw.x if raw.test_index is None else raw.x[raw.test_index]
    x = _function("bayesify.data.resize:conform")(x, like.input_shape)
    return Examples(x, torch.zeros(len(x), dtype=torch.int64), like.normalise)


def available(data_dir: str | Path | None = None) -> list[Availability]:
    """The data sets known by name, and whether they are at hand.

    Example:
        >>> available()[0].name, available()[0].found
        ('digits', True)
    """
    rows = []
    for name, source in SOURCES.items():
        place = locate(name, data_dir) if source.files else None
        found = place is not None or not source.files
        rows.append(Availability(name, source.about, found, str(place or source.how)))
    return rows


def _read(source: str, request: Request, data_dir: str | Path | None) -> Raw:
    if source in SOURCES:
        return _read_known(source, request, data_dir)
    path = find_path(source, data_dir)
    kind = _kind(path)
    if kind not in KINDS:
        raise DataError(
            f"{path}: expected an .npz or .csv file or a folder of images, got {kind}; "
            "convert it to one of them."
        )
    _refuse_foreign_options(request, str(path), TAKES[kind])
    return _function(KINDS[kind])(replace(request, path=path))


def _kind(path: Path) -> str:
    """A key of `KINDS`, if it is one that we read."""
    return "" if path.is_dir() else path.suffix.lower() or "no ending"


def _read_known(name: str, request: Request, data_dir: str | Path | None) -> Raw:
    _refuse_foreign_options(request, name, ())
    place = locate(name, data_dir)
    if SOURCES[name].files and place is None:
        raise missing(name, data_dir)
    return _function(SOURCES[name].reader)(replace(request, path=place))


def _refuse_foreign_options(request: Request, source: str, takes: tuple[str, ...]) -> None:
    for name in ("target", "task", "fold", "image_size"):
        value = getattr(request, name)
        if value is not None and name not in takes:
            raise OptionError(
                f"{source} takes no {name}: expected {' and '.join(takes) or 'no option'}, got "
                f"{name}={value!r}; leave it out."
            )


def check_validation_share(share: float) -> None:
    """Raise `OptionError` unless a part of that share leaves something to train on."""
    if not 0 <= share < 1:
        raise OptionError(
            f"validation_share={share}: expected a number from 0 to less than 1; 0 holds nothing "
            "out."
        )


def _task(task: str | None) -> str | None:
    if task not in (None, *TASKS):
        raise OptionError(f"task={task!r}: expected one of {', '.join(TASKS)}; pass one of them.")
    return task


def _image_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    pair = (size, size) if isinstance(size, int) else size
    if pair is not None and min(pair) < 1:
        raise OptionError(f"image_size={size}: expected a height and width of at least 1.")
    return pair


def _function(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    return getattr(import_module(module), function)
