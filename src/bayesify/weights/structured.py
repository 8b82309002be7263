"""A weight that can act on an input without being formed.

A `StructuredWeight` is put in the place of an ordinary weight by `functional_call`. Where the model
multiplies by it (linear, convolution), it acts in its own, faster way; to every other operation it
turns itself into the plain tensor `dense()`. So it is fast where we know a faster way and right
everywhere else: transposed use, attention, tied use.

Only the metadata listed in `METADATA` is answered without `dense()`. Anything else that bypassed
it (`.T`, say) would silently see the underlying tensor instead of the weight.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

Operation = Callable[..., Tensor]
"""`op(x, weight, bias=None)`: F.linear or a convolution with its other options bound."""

ACTING = {
    F.linear,
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}
"""Operations that are linear in the weight, with arguments (input, weight, bias, ...)."""

METADATA = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_nested")
    ),
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, Tensor.__len__),
}
"""What may be answered without forming the weight: facts that its structure does not change."""


class StructuredWeight(Tensor):
    """Abstract by convention (the metaclass of Tensor forbids ABC): finals define two methods."""

    def act(self, op: Operation, x: Tensor, bias: Tensor | None) -> Tensor:
        """`op(x, self, bias)` without forming the weight."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The weight as a plain tensor, (out, in, *kernel)."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in ACTING:
            x, weight, bias, rest, named = _arguments(*args, **kwargs)
            if isinstance(weight, StructuredWeight) and not isinstance(x, StructuredWeight):

                def op(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
                    return func(x, weight, bias, *rest, **named)

                return weight.act(op, x, bias)
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs))


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, StructuredWeight) else value


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Any, ...], dict[str, Any]]:
    return input, weight, bias, rest, named
