"""Named tensors: a model's weights and buffers as plain dictionaries.

A tied weight appears once, under the first of its names, as in `model.named_parameters()`;
`torch.func.functional_call` puts a replacement under every one of its names.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.isolation import lock_of
from bayesify.core.types import Named


def weights_of(model: nn.Module) -> Named:
    """Every parameter by name, detached, sharing memory with the model.

    Raises:
        UnsupportedModelError: when the model has no parameters, or some are not yet shaped.
    """
    weights = {}
    for name, weight in _own(model.named_parameters, model):
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise UnsupportedModelError(
                f"weight `{name}` of {type(model).__name__} has no shape yet (lazy module); call "
                f"the model once on a batch before you make it Bayesian."
            )
        weights[name] = weight.detach()
    if not weights:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no parameters, so there is nothing to make Bayesian; "
            f"pass a network with weights."
        )
    return weights


def buffers_of(model: nn.Module) -> Named:
    """Every buffer by name, detached, sharing memory with the model."""
    return {name: buffer.detach() for name, buffer in _own(model.named_buffers, model)}


def _own(tensors: Callable[[], Iterator[tuple[str, Tensor]]], model: nn.Module) -> list[Any]:
    """Of the model, not what another thread's call has put in the place."""
    with lock_of(model):
        return list(tensors())


def copied(named: Named) -> Named:
    """A deep copy."""
    return {name: each.detach().clone() for name, each in named.items()}


def stacked(members: list[Named]) -> Named:
    """M dictionaries with equal keys as one, each tensor with a new leading axis M."""
    return {name: torch.stack([each[name] for each in members]) for name in members[0]}


def count(named: Named) -> int:
    """How many numbers the tensors hold."""
    return sum(each.numel() for each in named.values())


def dtype_named(name: str) -> torch.dtype:
    """The type of numbers that a file calls "float32" or the like.

    Raises:
        ValueError: torch has no such type; nothing else that it holds is looked up.
    """
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"expected a type of numbers such as 'float32', got {name!r}")
    return dtype


def raw_bytes(tensor: Tensor) -> bytes:
    """The numbers as they lie in memory, in order; of any type (numpy has no bfloat16)."""
    plain = tensor.detach().cpu().contiguous().flatten()
    return plain.view(torch.uint8).numpy().tobytes()


def digest(named: Named) -> str:
    """Of names and numbers, in hexadecimal, whatever their order."""
    found = hashlib.sha256()
    for name, each in sorted(named.items()):
        found.update(name.encode())
        found.update(raw_bytes(each))
    return found.hexdigest()


def assign_(model: nn.Module, named: Named) -> None:
    """Write `named` into the model's parameters and buffers of those names, in place."""
    places: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in named.items():
            places[name].copy_(value)
