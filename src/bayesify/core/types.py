"""Names for the few shapes of data that travel through the whole library.

Axis letters in comments: S weight samples, M members, B batch, C classes, D output dimensions,
N training examples.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

Named: TypeAlias = dict[str, Tensor]
"""Tensors by name; the names are those of `model.named_parameters()` and `named_buffers()`."""

Draw: TypeAlias = Any
"""A pytree of tensors with leading axis S (or M); only its own distribution looks inside."""

Inputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or keyword arguments."""

Readout: TypeAlias = Callable[[Any], Tensor]
"""Turns what a model returns into the tensor (B, ...) that the likelihood reads."""

Where: TypeAlias = Callable[[nn.Module, Inputs | None], list[str]]
"""Which weights are random: `(model, example inputs) -> names`. See `weights/select.py`."""
