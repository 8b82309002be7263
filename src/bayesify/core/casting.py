"""Under autocast, what runs at once is computed in the digits of what runs alone.

`torch.autocast` lowers products of matrices, convolutions and attention. Where `torch.vmap` takes
such an operation to pieces (a linear layer with a bias, a convolution), autocast does not see it
any more, and float32 results: predictions would depend on how many samples run at once, and gain
nothing. So inside a vectorised call these operations are cast by hand, before they are taken apart.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

LOWERED = {
    F.linear,
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.addbmm, Tensor.addbmm),
    F.scaled_dot_product_attention,
}
"""Operations that autocast lowers, and that `torch.vmap` hides from it."""


NORMS = {F.batch_norm, F.group_norm}
"""They take lower inputs beside single statistics, but under `torch.vmap` do not."""


@contextmanager
def cast_together() -> Iterator[None]:
    """Inside, `LOWERED` operations take the arguments that autocast would give them, if it is on.

    Example:
        >>> x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), cast_together():
        ...     F.linear(x, weight, bias).dtype
        torch.bfloat16
    """
    if any(torch.is_autocast_enabled(each) for each in _devices()):
        with _Lowering():
            yield
    else:
        yield


def _devices() -> tuple[str, ...]:
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


class _Lowering(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in NORMS and args and args[0].dtype in (torch.bfloat16, torch.float16):
            return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
        if func not in LOWERED:
            return func(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if all(type(each) in (Tensor, nn.Parameter) for each in tensors):
            return func(*tree_map(_lowered, args), **tree_map(_lowered, kwargs))
        with self:  # a weight that acts without being formed: what it computes comes by here
            return func(*args, **kwargs)


def _lowered(value: Any) -> Any:
    if not isinstance(value, Tensor) or not torch.is_autocast_enabled(value.device.type):
        return value
    single = value.is_floating_point() and value.dtype is not torch.float64
    return value.to(torch.get_autocast_dtype(value.device.type)) if single else value
