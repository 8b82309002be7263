"""Priors over named weights."""

import math
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.errors import OptionError
from bayesify.core.types import Named
from bayesify.weights.named import copied
from bayesify.weights.store import Store


class Prior(Protocol):
    """What a prior must offer."""

    def log_prob(self, weights: Named) -> Float[Tensor, ""]:
        """Log density summed over all weights, nats."""
        ...


class NormalPrior(nn.Module):
    """Independent normals: p(w) = prod_j N(w_j; loc_j, scale_j^2).

    Args:
        scale: Standard deviation, one for all weights or one per name.
        loc: Means by name; zero for names that are absent.

    Example:
        >>> NormalPrior(1.0).log_prob({"w": torch.zeros(2)}).item()      # -log(2 pi)
        -1.837...
    """

    def __init__(self, scale: float | dict[str, float], loc: Named | None = None) -> None:
        super().__init__()
        for each in scale.values() if isinstance(scale, dict) else [scale]:
            if not (each > 0 and math.isfinite(each)):
                raise OptionError(f"prior scale {each}: expected a standard deviation above 0.")
        self.scale = scale
        self.loc = Store(copied(loc or {}), trainable=False)

    def scale_of(self, name: str) -> float:
        """Standard deviation of the weights called `name`."""
        if not isinstance(self.scale, dict):
            return self.scale
        if name not in self.scale:
            raise OptionError(
                f"the prior has no scale for {name!r}: expected one for each random weight, got "
                f"{', '.join(self.scale)}."
            )
        return self.scale[name]

    def loc_of(self, name: str) -> Tensor | float:
        """Mean of the weights called `name`."""
        return self.loc.named().get(name, 0.0)

    def log_prob(self, weights: Named) -> Float[Tensor, ""]:
        """Log density summed over all weights, nats. Leading sample axes are summed over too."""
        terms = [
            -0.5 * ((each - self.loc_of(name)) / self.scale_of(name)).square().sum()
            - each.numel() * math.log(self.scale_of(name) * math.sqrt(2 * math.pi))
            for name, each in weights.items()
        ]
        return torch.stack(terms).sum()
