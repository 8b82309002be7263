"""Networks inside of wrappers that change how they run, not what they compute.

DataParallel, DistributedDataParallel and `torch.compile` hold the network itself, which is taken
out: samples of weights are put into it by names, and run at once. TorchScript and sharded weights
cannot be called with other weights at all.
"""

from collections.abc import Collection

import torch
from torch import distributed, nn

from bayesify.core.clones import clone
from bayesify.core.errors import UnsupportedModelError


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself; parts of it may still be wrapped.

    Raises:
        UnsupportedModelError: it cannot be called with other weights than its own.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> unwrapped(nn.DataParallel(net)) is net
        True
    """
    model = _inner(model)
    for name, module in model.named_modules():
        where = f"`{name}` of {type(model).__name__}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{where} is compiled by TorchScript, which cannot be called with other weights; "
                f"pass the Python module that it was made from, and script what comes out."
            )
        if any("torch.distributed.fsdp" in each.__module__ for each in type(module).__mro__):
            raise UnsupportedModelError(
                f"{where} is wrapped by FSDP, whose weights lie in several processes; pass the "
                f"module before it is wrapped, and fit in one process."
            )
    if distributed.is_available():
        from torch.distributed.tensor import DTensor

        for name, weight in model.named_parameters():
            if isinstance(weight, DTensor):
                raise UnsupportedModelError(
                    f"weight `{name}` of {type(model).__name__} is a DTensor, which lies in "
                    f"several processes; pass the network with whole weights, in one process."
                )
    return model


def bare_copy(model: nn.Module, named: Collection[str]) -> nn.Module:
    """A copy for weights of given names, without the wrappers that `fit` takes off.

    Posteriors of older versions name weights with the wrapper of `torch.compile`, which then stays.

    Raises:
        UnsupportedModelError: it cannot be copied, or called with other weights than its own.
    """
    if any("_orig_mod." in name for name in named):
        return clone(model)
    return unwrap_parts_(clone(unwrapped(model)))


def unwrap_parts_(model: nn.Module) -> nn.Module:
    """Take the wrappers off the parts of a network, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if (inner := _inner(child)) is not child:
                module._modules[name] = inner
    return model


def _inner(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model
