"""From raw data to checked, normalised training, validation and test parts.

No statistic ever sees the validation or test part.
"""

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from bayesify.core.errors import DataError
from bayesify.data.examples import (
    VALIDATION_SHARE,
    Examples,
    Normalise,
    Splits,
    is_image_shape,
    unit,
)
from bayesify.data.raw import Raw

TEST_SHARE = 0.2


def cut(raw: Raw, *, seed: int, validation_share: float = VALIDATION_SHARE) -> Splits:
    """Check `raw`, cut it in three, and normalise by the statistics of its training part.

    Args:
        raw: As a reader returned it.
        seed: Decides the validation part, and the test part where none was given.
        validation_share: Of the examples that are not for testing; with 0 the part is empty.

    Raises:
        DataError: Empty, not finite, lengths that differ, one class only, too few to cut.
    """
    check_inputs(raw)
    task = raw.task or task_of(raw)
    y, names = encode(raw, task)
    classes = y if task == "classification" else None
    rest, test = _test_part(raw, classes, seed)
    train, validation = rest, rest[:0]
    if validation_share:
        train, validation = hold_out(
            rest, classes, share=validation_share, seed=seed, name=raw.name
        )
    target = None
    if task == "regression":
        target = statistics(y[train])
        y = target(y)
    normalise = raw.normalise or statistics(raw.x[train], raw.measured)
    parts = [Examples(raw.x[index], y[index], normalise) for index in (train, validation, test)]
    return Splits(
        raw.name,
        task,
        *parts,
        input_shape=tuple(raw.x.shape[1:]),
        num_outputs=len(names) if names else y.shape[1],
        class_names=names,
        normalise=normalise,
        target_loc=target.loc.float() if target else None,
        target_scale=target.scale.float() if target else None,
        encoding=raw.encoding,
    )


def check_inputs(raw: Raw) -> None:
    """Raise `DataError` unless there are examples, all finite, with one target each.

    Images are bytes or lie in [0, 1].
    """
    if len(raw.x) == 0 or raw.x[0].numel() == 0:
        raise DataError(f"{raw.name}: expected examples, got none; the data set is empty.")
    if len(raw.x) != len(raw.y):
        raise DataError(
            f"{raw.name}: expected one target per example, got {len(raw.x)} examples and "
            f"{len(raw.y)} targets; make x and y equally long."
        )
    for part, values in {"inputs": raw.x, "targets": raw.y}.items():
        if values.is_floating_point() and not values.isfinite().all():
            row = int((~values.isfinite()).reshape(len(values), -1).any(1).nonzero()[0])
            raise DataError(
                f"{raw.name}: expected finite {part}, got NaN or infinity (first in row {row}); "
                "remove or fill in such rows."
            )
    if is_image_shape(raw.x.shape[1:]) and raw.x.dtype != torch.uint8:
        low, high = raw.x.min().item(), raw.x.max().item()
        if low < 0 or high > 1:
            raise DataError(
                f"{raw.name}: expected images as bytes (uint8) or in [0, 1], got values from "
                f"{low:g} to {high:g}; undo their normalisation, or divide them by 255."
            )


def task_of(raw: Raw) -> str:
    """Integer targets are classes, a matrix of them labels, floats are for regression."""
    if raw.y.is_floating_point():
        return "regression"
    return "classification" if raw.y.ndim == 1 else "multilabel"


def encode(raw: Raw, task: str) -> tuple[Tensor, tuple[str, ...]]:
    """Targets as the likelihood reads them, and the names of the classes or labels.

    Returns:
        int64 (N,) and C names; float32 (N, L) of 0 and 1 and L names; or float64 (N, D) and ().
    """
    encoders = {"classification": _classes, "multilabel": _labels, "regression": _values}
    return encoders[task](raw)


def statistics(x: Tensor, measured: Tensor | None = None) -> Normalise:
    """Mean and standard deviation: per channel of images, per feature otherwise.

    What does not vary is only centred; features that are not `measured` stay as they are.
    """
    x = unit(x)
    x = x if x.is_floating_point() else x.double()
    axes = (0, 2, 3) if is_image_shape(x.shape[1:]) else (0,)
    std, mean = torch.std_mean(x, axes, correction=0, keepdim=True)
    loc, scale = mean[0], torch.where(std[0] > 1e-12 * (1 + mean[0].abs()), std[0], 1.0)
    if measured is not None:
        loc, scale = torch.where(measured, loc, 0.0), torch.where(measured, scale, 1.0)
    return Normalise(loc, scale)


def hold_out(
    index: Tensor, classes: Tensor | None, *, share: float, seed: int, name: str
) -> tuple[Tensor, Tensor]:
    """Cut `share` of the rows `index` off, in equal shares of every class where there are classes.

    Returns:
        The rows that stay and the rows held out, both in ascending order.
    """
    stratify = None if classes is None else classes[index].numpy()
    try:
        kept, held = train_test_split(
            index.numpy(), test_size=share, random_state=seed, stratify=stratify
        )
    except ValueError as error:
        raise DataError(
            f"{name}: cannot hold out {share:.0%} of {len(index)} examples with some of every "
            f"class in both parts ({error}) Give more examples, or merge or drop the rare classes."
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))


def _test_part(raw: Raw, classes: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    everything = torch.arange(len(raw.y))
    if raw.test_index is None:
        return hold_out(everything, classes, share=TEST_SHARE, seed=seed, name=raw.name)
    is_test = torch.zeros(len(raw.y), dtype=torch.bool)
    is_test[raw.test_index] = True
    if is_test.all() or not is_test.any():
        raise DataError(
            f"{raw.name}: expected examples for training and for testing, got "
            f"{int((~is_test).sum())} and {int(is_test.sum())}; neither may be empty."
        )
    return everything[~is_test], everything[is_test]


def _classes(raw: Raw) -> tuple[Tensor, tuple[str, ...]]:
    if raw.y.ndim != 1:
        raise DataError(
            f"{raw.name}: expected one class per example, targets of shape (N,), got "
            f"{tuple(raw.y.shape)}; pass task='multilabel' or 'regression', or mend y."
        )
    if raw.y.is_floating_point() and (raw.y != raw.y.round()).any():
        raise DataError(
            f"{raw.name}: expected whole numbers as classes, got fractions; "
            "pass task='regression', or number the classes."
        )
    values, codes = torch.unique(raw.y.long(), return_inverse=True)
    if len(values) < 2:
        raise DataError(
            f"{raw.name}: expected at least two classes, got one only; "
            "there is nothing to tell apart."
        )
    if not raw.class_names:
        return codes, tuple(str(value) for value in values.tolist())
    if values[0] < 0 or values[-1] >= len(raw.class_names):
        raise DataError(
            f"{raw.name}: expected labels from 0 to {len(raw.class_names) - 1}, got "
            f"{int(values[0])} to {int(values[-1])}; the label file is foreign or damaged."
        )
    return raw.y.long(), raw.class_names


def _labels(raw: Raw) -> tuple[Tensor, tuple[str, ...]]:
    if raw.y.ndim != 2 or not ((raw.y == 0) | (raw.y == 1)).all():
        raise DataError(
            f"{raw.name}: expected labels as a matrix (N, L) of 0 and 1, got shape "
            f"{tuple(raw.y.shape)} with values {raw.y.min():g} to {raw.y.max():g}; "
            "mend y, or pass task='regression'."
        )
    names = raw.class_names or tuple(str(label) for label in range(raw.y.shape[1]))
    return raw.y.float(), names


def _values(raw: Raw) -> tuple[Tensor, tuple[str, ...]]:
    if raw.y.ndim > 2:
        raise DataError(
            f"{raw.name}: expected targets of shape (N,) or (N, D), got {tuple(raw.y.shape)}; "
            "flatten them."
        )
    return raw.y.double().reshape(len(raw.y), -1), ()
