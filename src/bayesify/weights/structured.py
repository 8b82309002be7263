"""A weight that can act on an input without being formed.

A `StructuredWeight` is put in the place of an ordinary weight by `functional_call`. Where the model
multiplies by it (linear, convolution) or looks rows of it up, it acts in its own, faster way; to
every other operation it turns itself into the plain tensor `dense()`. So it is fast where we know a
faster way and right everywhere else: transposed use, attention, tied use.

Only the metadata listed in `METADATA` is answered without `dense()`. Anything else that bypassed
it (`.T`, say) would silently see the underlying tensor instead of the weight.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Operation:
    """What is linear in the weight, with everything bound but input, weight and bias.

    Attributes:
        func: F.linear, a convolution, or torch.addmm, for a weight (in, out) on the right.
        rest: Its further positional arguments.
        named: Its further arguments by keyword.
    """

    func: Callable[..., Tensor]
    rest: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)

    @property
    def turned(self) -> bool:
        """Whether the weight's first axis is that of its inputs, (in, out, *kernel)."""
        return self.func in TURNED

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply it."""
        if self.func is torch.addmm:
            return x @ weight if bias is None else torch.addmm(bias, x, weight)
        return self.func(x, weight, bias, *self.rest, **self.named)


ACTING = {
    F.linear,
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}
"""Operations that are linear in the weight, with arguments (input, weight, bias, ...)."""

TURNED = {torch.addmm, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
"""Those of them, and the product with a weight on the right, that read a weight (in, out, ...)."""

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

    def look_up(self, indices: Tensor, padding: int | None) -> Tensor:
        """Rows of the weight; those at the index `padding` have no gradient."""
        return F.embedding(indices, self.dense(), padding)

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
            x, weight, bias, rest, named = operands(*args, **kwargs)
            if isinstance(weight, StructuredWeight) and not isinstance(x, StructuredWeight):
                return weight.act(Operation(func, rest, named), x, bias)
        if func is torch.addmm and not kwargs and isinstance(args[2], StructuredWeight):
            bias, x, weight = args
            if not isinstance(x, StructuredWeight) and bias.ndim == 1:
                return weight.act(Operation(func), x, bias)
        if func is F.embedding and is_table(*args, **kwargs):
            return _looked_up(*args, **kwargs)
        return func(*tree_map(formed, args), **tree_map(formed, kwargs))


def formed(value: Any) -> Any:
    """A structured weight as the plain tensor that it stands for; anything else as it is."""
    return value.dense() if isinstance(value, StructuredWeight) else value


def operands(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Any, ...], dict[str, Any]]:
    """Input, weight and bias of an operation in `ACTING`, and its other arguments."""
    return input, weight, bias, rest, named


def is_table(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> bool:
    """Whether rows are looked up, and nothing else is asked for."""
    return max_norm is None and not scale_grad_by_freq and not sparse


def _looked_up(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
) -> Tensor:
    if not isinstance(weight, StructuredWeight):
        return F.embedding(formed(input), weight, padding_idx)
    padding = padding_idx % len(weight) if padding_idx is not None else None
    return weight.look_up(input, padding)
