"""Which weights a network multiplies its activations by, and the rows they are multiplied with.

A fully connected layer and a convolution are the same thing, z = h W with one row h per example (or
per position of the output): for a convolution the row is the patch under the kernel. A constant
feature 1 at the end of each row takes the bias in, so that weight and bias are one matrix

    W~ = [weight, bias]^T  of shape (a, b),   a = fan-in (+ 1 with a bias),   b = outputs.

What counts is how a weight is *used* in a forward pass, not which module owns it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bayesify.core.types import Inputs
from bayesify.tracing.trace import watch

AXES = {F.conv1d: 1, F.conv2d: 2}
"""Convolutions that are unfolded into rows, with their spatial axes."""

OPERANDS = ("input", "weight", "bias")
"""First arguments of a linear map and of a convolution."""


@dataclass(frozen=True)
class LinearMap:
    """A weight that acts as a matrix on rows of features.

    Args:
        weight: Its name.
        bias: Name of the bias that is added in the same operation; None without.
        kernel: Extent of a convolution's kernel; () for a fully connected layer.
        stride: Of the convolution, per axis.
        padding: Zeros (before, after) each axis.
        dilation: Per axis.
    """

    weight: str
    bias: str | None = None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()

    def features(self, x: Tensor, *, constant: bool = False) -> Float[Tensor, "rows features"]:
        """One row per example (and position) of what the weight is multiplied with.

        Args:
            x: The input of the operation: (..., fan-in), or (B, C, *spatial).
            constant: Whether a column of ones is added at the end, for the bias.
        """
        rows = self._patches(x) if self.kernel else x.reshape(-1, x.shape[-1])
        return torch.cat([rows, rows.new_ones(len(rows), 1)], 1) if constant else rows

    def rows(self, z: Tensor) -> Float[Tensor, "rows outputs"]:
        """An output of the operation (or its gradient) in the order of `features`."""
        return (z.movedim(1, -1) if self.kernel else z).reshape(-1, self._width(z))

    def arranged(self, rows: Float[Tensor, "rows outputs"], like: Tensor) -> Tensor:
        """The inverse of `rows`: in the shape of the operation's output `like`."""
        if not self.kernel:
            return rows.reshape(like.shape)
        return rows.reshape(len(like), *like.shape[2:], like.shape[1]).movedim(-1, 1)

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "members features out"]:
        """Weights (M, out, *fan-in) and biases (M, out) as W~ (M, a, b)."""
        flat = weight.flatten(2).mT
        return flat if bias is None else torch.cat([flat, bias.unsqueeze(1)], 1)

    def weights(
        self, matrix: Float[Tensor, "members features out"], shape: torch.Size, *, constant: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The inverse of `matrix`; `shape` is that of one member's weight."""
        flat = matrix[:, :-1] if constant else matrix
        weight = flat.mT.reshape(-1, *shape).contiguous()  # as a model's own weights are
        return weight, matrix[:, -1].contiguous() if constant else None

    def _width(self, z: Tensor) -> int:
        return z.shape[1] if self.kernel else z.shape[-1]

    def _patches(self, x: Tensor) -> Tensor:
        x = F.pad(x, [each for pair in reversed(self.padding) for each in pair])
        missing = 2 - len(self.kernel)  # a sequence is an image of height 1
        x = x.reshape(*x.shape[:2], *[1] * missing, *x.shape[2:])
        one = (1,) * missing
        patches = F.unfold(
            x, one + self.kernel, dilation=one + self.dilation, stride=one + self.stride
        )  # (B, C * kernel, positions)
        return patches.mT.reshape(-1, patches.shape[1])


@dataclass(frozen=True)
class Roles:
    """How a forward pass uses the weights of a network.

    Attributes:
        maps: Those it uses as one linear map of activations and in no other way, in order of
            execution.
        others: Every other weight that it reads, with the reason in words.
    """

    maps: tuple[LinearMap, ...]
    others: dict[str, str]


def roles(model: nn.Module, example: Inputs) -> Roles:
    """Run `model` once on `example` in eval mode and see what it does with its weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> found = roles(net, torch.randn(4, 2))
        >>> [each.weight for each in found.maps], list(found.others)
        (['0.weight'], ['1.weight', '1.bias'])
    """
    return watch(model, example, _Recorder).roles()


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in model.named_parameters()}
        self._maps: dict[str, LinearMap] = {}
        self._others: dict[str, str] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        named = list(self._named(tree_leaves((args, kwargs))))
        if named and any(isinstance(each, Tensor) for each in tree_leaves(result)):
            found = self._linear(func, *args, **kwargs)
            if isinstance(found, LinearMap):
                self._note(found)
            else:
                self._refuse(named, found)
        return result

    def roles(self) -> Roles:
        """What was found; a bias that does anything else takes its weight with it."""
        biased = [(each.weight, each.bias) for each in self._maps.values() if each.bias]
        biases = [bias for _, bias in biased]
        for weight, bias in biased:
            if bias in self._others or biases.count(bias) > 1:
                self._refuse((weight, bias), "its bias has another use")
        for weight, bias in biased:
            if weight in self._others:
                self._refuse((bias,), "its weight has another use")
        maps = tuple(each for each in self._maps.values() if each.weight not in self._others)
        return Roles(maps, self._others)

    def _note(self, found: LinearMap) -> None:
        known = self._maps.setdefault(found.weight, found)
        if known != found:
            names = (found.weight, known.bias, found.bias)
            self._refuse([each for each in names if each], "it is used in two different ways")

    def _refuse(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self._others.setdefault(name, reason)

    def _named(self, values: Iterable[Any]) -> Iterable[str]:
        return (self._names[id(each)] for each in values if id(each) in self._names)

    def _linear(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> LinearMap | str:
        """The map that this operation is; in words, why it is none."""
        if func is not F.linear and func not in AXES:
            return f"`{getattr(func, '__name__', func)}` uses it, which is no linear or conv1d/2d"
        given = dict(zip(OPERANDS, args, strict=False)) | kwargs
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        if id(x) in self._names or id(weight) not in self._names:
            return "it is no plain weight of a linear map: computed of others, or itself the input"
        if bias is not None and id(bias) not in self._names:
            return "its bias is computed of other tensors"
        names = self._names[id(weight)], None if bias is None else self._names[id(bias)]
        if func is F.linear:
            return LinearMap(*names)
        options = {name: each for name, each in kwargs.items() if name not in OPERANDS}
        return self._convolution(AXES[func], names, weight, x, *args[3:], **options)

    def _convolution(
        self,
        axes: int,
        names: tuple[str, str | None],
        weight: Tensor,
        x: Tensor,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> LinearMap | str:
        if groups != 1:
            return f"it is a convolution in {groups} groups, which is no single regression"
        if x.ndim != axes + 2:
            return "its convolution has no batch axis"
        kernel, spread = tuple(weight.shape[2:]), _each(dilation, axes)
        return LinearMap(
            *names, kernel, _each(stride, axes), _padding(padding, kernel, spread), spread
        )


def _padding(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((each // 2, math.ceil(each / 2)) for each in totals)
    return tuple((each, each) for each in _each(padding, len(kernel)))


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
