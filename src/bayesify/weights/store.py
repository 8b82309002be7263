"""A dictionary of named tensors that is an `nn.Module`, so that it moves, trains and saves."""

from torch import nn

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Named


class Store(nn.Module):
    """Named tensors as parameters or buffers.

    torch forbids dots in the names of parameters, so `layer.weight` is kept as `layer/weight`.

    Args:
        tensors: What to hold. Not copied.
        trainable: Parameters when true, buffers when false.

    Example:
        >>> import torch
        >>> store = Store({"0.weight": torch.ones(2)}, trainable=True)
        >>> list(store.state_dict()), list(store.named())
        (['0/weight'], ['0.weight'])
    """

    def __init__(self, tensors: Named, *, trainable: bool) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if "/" in name:
                raise UnsupportedModelError(f"weight name {name!r} holds a '/', please rename it.")
            if trainable:
                self.register_parameter(encode(name), nn.Parameter(tensor))
            else:
                self.register_buffer(encode(name), tensor)

    def named(self) -> Named:
        """The tensors by their own names, in the order given."""
        return {decode(name): each for name, each in (self._parameters | self._buffers).items()}  # type: ignore[operator]


def encode(name: str) -> str:
    """A name that torch accepts."""
    return name.replace(".", "/")


def decode(name: str) -> str:
    """The inverse of `encode`."""
    return name.replace("/", ".")


def part(state: Named, field: str) -> Named:
    """The tensors of the store called `field` in a module's state dict, by their own names."""
    prefix = field + "."
    return {
        decode(name.removeprefix(prefix)): each
        for name, each in state.items()
        if name.startswith(prefix)
    }
