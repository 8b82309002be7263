"""Deep copies of networks, also of those that hold on to what a forward pass computed.

torch copies no tensor that was computed with gradients, and none that `torch.vmap` made and left
behind. Networks keep such tensors all the same: `torch.nn.utils.weight_norm` the weight that it
computes anew before every call, others their last activations. A copy holds their values.
"""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils._pytree import tree_leaves

from bayesify.core.errors import UnsupportedModelError

T = TypeVar("T")


def clone(original: T) -> T:
    """A deep copy of a network, or of anything else.

    Raises:
        UnsupportedModelError: it cannot be copied.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 3)
        >>> layer.last = layer(torch.ones(1, 2))  # torch alone would refuse to copy it
        >>> torch.equal(clone(layer).last, layer.last)
        True
    """
    try:
        return copy.deepcopy(original, values_left(original))
    except Exception as error:  # whatever a copy of the user's objects may raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"a deep copy of {type(original).__name__} fails ({type(error).__name__}: {lines[0]}); "
            f"expected a network that `copy.deepcopy` can copy. Take out what it stores besides "
            f"its weights (locks, open files, generators), or give it a `__deepcopy__`."
        ) from error


def values_left(original: Any) -> dict[int, Any]:
    """A memo for `copy.deepcopy`: copies of the tensors which torch itself would not copy."""
    memo: dict[int, Any] = {}
    for module in original.modules() if isinstance(original, nn.Module) else ():
        for value in tree_leaves({n: each for n, each in vars(module).items() if n != "_modules"}):
            if not isinstance(value, Tensor):
                continue
            plain = value
            while _functorch.is_functorch_wrapped_tensor(plain):
                plain = _functorch.get_unwrapped(plain)
            if plain is not value or not value.is_leaf:
                memo[id(value)] = plain.detach().clone()
    return memo
