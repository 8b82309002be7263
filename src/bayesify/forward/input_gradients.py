"""Frozen layers at the price of their input gradient alone.

When only some weights are trained, the layers behind them need gradients of their inputs but not of
their weights. torch does that correctly, but on a CPU not at the price it could have:

- a convolution's backward is handed a stand-in for the input that it did not keep, and copies it
  into a full tensor, though the input gradient does not depend on it;
- batch norm in eval mode, whose input gradient is that of `x * scale + shift`, still reduces over
  the whole batch for the gradients of scale and shift.

Inside `frozen_layers()` both are computed as what they are. Measured on ResNet-20: a fifth of an
STF step (benchmarks/README.md). Everything else passes through unchanged.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
"""Convolution -> number of spatial axes."""

BATCH_NORM = inspect.signature(F.batch_norm)


class frozen_layers(TorchFunctionMode):  # noqa: N801 - used as a context, like torch.no_grad
    """Context in which layers with frozen weights compute input gradients only.

    Example:
        >>> layer = torch.nn.Conv2d(1, 2, 3).requires_grad_(False)
        >>> x = torch.ones(1, 1, 4, 4, requires_grad=True)
        >>> with frozen_layers():
        ...     layer(x).sum().backward()
        >>> x.grad.shape
        torch.Size([1, 1, 4, 4])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS:
            return _convolution(func, *args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _convolution(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != weight.ndim or not _frozen(input, weight, bias):
        return func(input, weight, bias, stride, padding, dilation, groups)
    axes = CONVOLUTIONS[func]
    geometry = (_each(stride, axes), _each(padding, axes), _each(dilation, axes), groups)
    return _FrozenConvolution.apply(input, weight, bias, geometry)  # type: ignore[return-value]


def _batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    call = BATCH_NORM.bind(*args, **kwargs)
    call.apply_defaults()
    x, mean, variance, weight, bias, training, _, eps = call.arguments.values()
    if training or mean is None or not _frozen(x, weight, bias):
        return F.batch_norm(*args, **kwargs)
    return _FrozenBatchNorm.apply(x, mean, variance, weight, bias, eps)  # type: ignore[return-value]


class _FrozenBatchNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, in eval mode."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        scale = torch.rsqrt(variance + eps)
        scale = scale if weight is None else scale * weight
        ctx.save_for_backward(scale.view(-1, *[1] * (x.ndim - 2)))
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # type: ignore[override]
        (scale,) = ctx.saved_tensors
        return grads[0] * scale, None, None, None, None, None


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        stride, padding, dilation, groups = geometry
        none = (0,) * len(stride)
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, none, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        none = (0,) * len(stride)
        # The input gradient is linear in `grads` and does not read the input: its memory is never
        # touched, only its shape.
        shape_only = grads[0].new_empty(ctx.shape)
        wanted = [True, False, False]
        result = torch.ops.aten.convolution_backward(
            grads[0],
            shape_only,
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            none,
            groups,
            wanted,
        )
        return result[0], None, None, None


def _frozen(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether a gradient is wanted for x, and for none of the (plain) weights.

    Under autocast torch's own layers are left to cast: the products here take one dtype.
    """
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and type(x) is Tensor
        and x.requires_grad
        and all(w is None or (_plain(w) and not w.requires_grad) for w in weights)
    )


def _plain(weight: Tensor) -> bool:
    return type(weight) in (Tensor, torch.nn.Parameter)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
