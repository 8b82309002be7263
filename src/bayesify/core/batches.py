"""What a batch is, and how its pieces are split, moved and counted.

A batch is `(inputs, target)`, or a mapping whose `labels` (or `target`) entry is the target and
whose other entries are the keyword arguments of the model. Tensors of the inputs that are as long
as the first one hold a row for each example; all others, and those that are marked, hold something
that the examples have in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map

from bayesify.core.errors import DataError
from bayesify.core.types import Inputs

T = TypeVar("T")

TARGET_KEYS = ("labels", "target")


@dataclass(frozen=True)
class Unbatched:
    """A tensor of the inputs that all examples of a batch have in common, such as a mask (T, T).

    The model is called with the tensor itself. Only a tensor that may happen to be as long as a
    batch needs the mark: one whose length is another than that of the batch is left whole anyway.

    Args:
        value: The tensor, without a batch axis.

    Example:
        >>> x, weight = torch.randn(3, 3), torch.ones(3)
        >>> cut = rows((x, Unbatched(weight)), slice(1))
        >>> [tuple(each.shape) for each in tensors_of(cut)]
        [(1, 3), (3,)]
    """

    value: Tensor


register_pytree_node(
    Unbatched, lambda each: ([each.value], None), lambda values, _: Unbatched(*values)
)


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """Inputs and target of one batch; targets of any integer type, or bool, become int64.

    Raises:
        DataError: when `batch` is neither a pair nor a mapping with a target entry.

    Example:
        >>> inputs, target = split_batch({"ids": torch.ones(2, 3), "labels": torch.tensor([0, 1])})
        >>> list(inputs), target.tolist()
        (['ids'], [0, 1])
    """
    inputs, target = inputs_and_target(batch)
    return inputs, target if target.is_floating_point() or target.is_complex() else target.long()


def inputs_and_target(batch: Any) -> tuple[Inputs, Tensor]:
    """As `split_batch`, with the target in its own type."""
    if isinstance(batch, Mapping):
        for key in TARGET_KEYS:
            if key in batch:
                rest = {name: each for name, each in batch.items() if name != key}
                return rest, torch.as_tensor(batch[key])
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


def bare(inputs: Inputs) -> Inputs:
    """The inputs as the model takes them, without marks."""
    if isinstance(inputs, Tensor):
        return inputs
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    if not any(isinstance(each, Unbatched) for each in tree_leaves(values, is_leaf=_is_marked)):
        return inputs
    return tree_map(
        lambda each: each.value if isinstance(each, Unbatched) else each, values, is_leaf=_is_marked
    )


def batch_size(inputs: Inputs) -> int:
    """B, read off the first tensor that is not marked.

    Raises:
        DataError: when there is no tensor with a batch axis in `inputs`.
    """
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    found = tree_leaves(values, is_leaf=_is_marked)
    first = next((each for each in found if isinstance(each, Tensor)), None)
    if first is None or first.ndim == 0:
        raise DataError(f"expected inputs with a batch axis, got {type(inputs).__name__} without.")
    return len(first)


def first_example(inputs: Inputs) -> Inputs:
    """A batch of one."""
    return rows(inputs, slice(1))


def rows(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """Some examples of a batch: those rows of every tensor whose leading axis is the batch.

    A tensor without a batch axis that is as long as the result is marked in it.
    """
    size = batch_size(inputs)
    left = len(torch.empty(size, 0)[index.cpu() if isinstance(index, Tensor) else index])

    def cut(each: Any) -> Any:
        if is_batched(each, size):
            return each[index]
        return Unbatched(each) if is_batched(each, left) else each

    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return tree_map(cut, values, is_leaf=_is_marked)


def leaves_of(inputs: Inputs) -> list[tuple[Any, bool]]:
    """Everything that the model is given, and whether it has a row for each example."""
    size = batch_size(inputs)
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    found = tree_leaves(values, is_leaf=_is_marked)
    return [
        (each.value, False) if isinstance(each, Unbatched) else (each, is_batched(each, size))
        for each in found
    ]


def batch_axes(inputs: Inputs) -> Any:
    """0 in the place of everything of `bare(inputs)` with a row for each example, else None."""
    size = batch_size(inputs)
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return tree_map(lambda each: 0 if is_batched(each, size) else None, values, is_leaf=_is_marked)


def is_batched(value: Any, size: int) -> bool:
    """Whether it is a tensor, without a mark, whose leading axis is a batch of this size."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size


def _is_marked(value: Any) -> bool:
    return isinstance(value, Unbatched)
