"""A multi-layer perceptron: flatten, then linear layers with ReLU between them."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    hidden: Sequence[int] = (64, 64),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Takes inputs (B, *input_shape), returns (B, num_outputs).

    Args:
        input_shape: Of one example; it is flattened.
        num_outputs: Width of the last layer.
        hidden: Widths of the layers before.
        dropout: Share of the hidden units that are dropped, behind each ReLU; 0: no such layers.

    Example:
        >>> [name for name, _ in mlp((1, 8, 8), 10, hidden=(32,)).named_parameters()]
        ['linear1.weight', 'linear1.bias', 'linear2.weight', 'linear2.bias']
    """
    widths = [math.prod(input_shape), *hidden, num_outputs]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (before, after) in enumerate(pairwise(widths), start=1):
        layers[f"linear{number}"] = nn.Linear(before, after)
        if number <= len(hidden):  # none after the last layer
            layers[f"relu{number}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
    return nn.Sequential(layers)
