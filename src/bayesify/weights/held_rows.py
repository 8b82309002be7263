"""Rows of embedding tables that torch holds fixed, whatever a distribution says about the table.

`nn.Embedding(padding_idx=i)` gives row i no gradient, so that padding adds a constant (zero, as it
is made). A random or moved row would make predictions depend on how far an input was padded. The
law of such a row is that of no weight: networks are called with their own row in its place.

A table that something else reads too, as a tied head does, has no such row: that use trains it.
"""

from collections import Counter
from collections.abc import Collection
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.core.types import Named
from bayesify.weights.structured import StructuredWeight, formed


def held_rows(
    model: nn.Module, names: Collection[str] | None = None
) -> dict[str, tuple[int, Tensor]]:
    """The tables that have such a row, by name in `model.named_parameters()`: its index, and it.

    Args:
        model: The network.
        names: Of the tables that matter; None for all.

    Returns:
        Rows share memory with the model.

    Example:
        >>> held_rows(nn.Sequential(nn.Embedding(5, 2, padding_idx=-1), nn.Linear(2, 3)))
        {'0.weight': (4, tensor([0., 0.]))}
    """
    tables = {
        f"{name}.weight".removeprefix("."): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        and module.padding_idx is not None
        and isinstance(module._parameters.get("weight"), nn.Parameter)
    }
    if not tables:
        return {}
    readers = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    return {
        name: (index, module.weight.detach()[index])
        for name, module in tables.items()
        if readers[id(module.weight)] == 1 and (names is None or name in names)
        for index in [(module.padding_idx or 0) % module.num_embeddings]
    }


def with_held_rows(model: nn.Module, weights: Named) -> Named:
    """`weights` whose tables have the model's own row where it is fixed."""
    held = held_rows(model, weights)
    return weights | {name: HeldRow(weights[name], *where) for name, where in held.items()}


def clear_held_rows_(model: nn.Module, names: Collection[str]) -> None:
    """Set such rows of the tables `names` to zero."""
    for _, row in held_rows(model, names).values():
        row.zero_()


class HeldRow(StructuredWeight):
    """A table with one row in place of its own.

    Args:
        table: Plain, or structured itself, (rows, size).
        position: Of the row.
        row: What stands there, (size).
    """

    table: Tensor
    position: int
    row: Tensor

    def __new__(cls, table: Tensor, position: int, row: Tensor) -> Self:
        """Wrap `table`; the instance shares its memory."""
        with torch._C.DisableTorchFunctionSubclass():
            weight = table.as_subclass(cls)
        weight.table, weight.position, weight.row = table, position, row
        return weight

    def look_up(self, indices: Tensor, padding: int | None) -> Tensor:
        """Rows as the table gives them, but for the fixed one."""
        if isinstance(self.table, StructuredWeight):
            found = self.table.look_up(indices, padding)
        else:
            found = F.embedding(indices, self.table, padding)
        return torch.where(
            (indices == self.position).unsqueeze(-1), self.row.to(found.dtype), found
        )

    def dense(self) -> Tensor:
        """The table as a plain tensor."""
        table = formed(self.table)
        fixed = (torch.arange(len(table), device=table.device) == self.position).unsqueeze(-1)
        return torch.where(fixed, self.row.to(table.dtype), table)
