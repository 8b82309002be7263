"""What a batch is, and how its pieces are split, moved and counted.

A batch is `(inputs, target)`, or a mapping whose `labels` (or `target`) entry is the target and
whose other entries are the keyword arguments of the model.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from bayesify.errors import DataError
from bayesify.types import Inputs

T = TypeVar("T")

TARGET_KEYS = ("labels", "target")


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """Inputs and target of one batch.

    Raises:
        DataError: when `batch` is neither a pair nor a mapping with a target entry.

    Example:
        >>> inputs, target = split_batch({"ids": torch.ones(2, 3), "labels": torch.tensor([0, 1])})
        >>> list(inputs), target.tolist()
        (['ids'], [0, 1])
    """
    if isinstance(batch, Mapping):
        for key in TARGET_KEYS:
            if key in batch:
                return {name: each for name, each in batch.items() if name != key}, batch[key]
        raise DataError(
            f"expected a mapping batch with a target under {' or '.join(map(repr, TARGET_KEYS))}, "
            f"got the keys {sorted(map(str, batch))}; rename the target's entry."
        )
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
        return (tuple(inputs) if isinstance(inputs, list) else inputs), torch.as_tensor(target)
    got = f"{len(batch)} items" if isinstance(batch, tuple | list) else type(batch).__name__
    raise DataError(
        f"expected a batch (inputs, target) or a mapping with a target entry, got {got}; let the "
        f"data set return pairs, with several inputs as a tuple in the first place."
    )


def to_device(value: T, device: torch.device | str) -> T:
    """The same tensor, tuple or mapping (as a dictionary) with every tensor on `device`."""
    tree = dict(value) if isinstance(value, Mapping) else value
    return tree_map(lambda each: each.to(device) if isinstance(each, Tensor) else each, tree)  # type: ignore[return-value]


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """All tensors inside `inputs`, in order."""
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def batch_size(inputs: Inputs) -> int:
    """B, read off the first tensor.

    Raises:
        DataError: when there is no tensor in `inputs`.
    """
    tensors = tensors_of(inputs)
    if not tensors or tensors[0].ndim == 0:
        raise DataError(f"expected inputs with a batch axis, got {type(inputs).__name__} without.")
    return len(tensors[0])


def first_example(inputs: Inputs) -> Inputs:
    """A batch of one."""
    return rows(inputs, slice(1))


def rows(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """Some examples of a batch: those rows of every tensor whose leading axis is the batch."""
    size = batch_size(inputs)
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return tree_map(lambda each: each[index] if is_batched(each, size) else each, values)


def is_batched(value: Any, size: int) -> bool:
    """Whether it is a tensor whose leading axis is a batch of this size."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
