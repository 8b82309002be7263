"""Mean-field Gaussian: every chosen weight an independent normal.

    q(w) = prod_j N(w_j; loc_j, scale_j^2),    scale_j = softplus(rho_j)

Hinton & van Camp 1993; Blundell et al. 2015 (arXiv 1505.05424), section 3.2.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.core.errors import OptionError, ShapeError
from bayesify.core.types import Inputs, Named, Where
from bayesify.distributions.base import Located, check_factor, learnt_as
from bayesify.numerics.noise import standard_normal_rows
from bayesify.weights.gaussian import gaussian_weights
from bayesify.weights.named import weights_of
from bayesify.weights.noise_scope import Scopes
from bayesify.weights.select import all_weights, chosen
from bayesify.weights.store import Store, part


class MeanField(Located):
    """Independent Gaussians over the named weights in `loc`.

    Args:
        loc: Means, in the shapes of the weights. Copied.
        scale: Standard deviations > 0, tensors of the same names and shapes.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> q = MeanField.around(net, where=lambda model, example: ["0.weight"], scale=0.1)
        >>> q.sample(4)["0.weight"].shape
        torch.Size([4, 3, 2])
    """

    def __init__(self, loc: Named, scale: Named) -> None:
        super().__init__(loc)
        if set(scale) != set(loc):
            raise ShapeError(f"expected a scale for each of {list(loc)}, got {list(scale)}.")
        for name, mean in loc.items():
            if not bool((scale[name] > 0).all()):
                raise OptionError(f"scale of {name!r}: expected standard deviations above 0.")
            if scale[name].shape != mean.shape:
                raise ShapeError(
                    f"scale of {name!r}: expected the shape {tuple(mean.shape)} of its mean, got "
                    f"{tuple(scale[name].shape)}."
                )
        self.rho = Store({n: inverse_softplus(scale[n].detach()) for n in loc}, trainable=True)

    @classmethod
    def around(
        cls,
        model: nn.Module,
        *,
        where: Where = all_weights,
        scale: float = 1e-2,
        relative: bool = False,
        example: Inputs | None = None,
    ) -> Self:
        """Centred on the model's present weights.

        Args:
            model: The network; not changed.
            where: Which of its weights are random.
            scale: Initial standard deviation.
            relative: Whether `scale` is in units of each tensor's own root mean square, so that
                layers of different magnitude start with equal relative noise.
            example: A small batch of inputs, for selectors that ask for the order of execution
                on a model that cannot be traced without.

        Raises:
            OptionError: when `scale` is not positive or `where` chooses nothing.
        """
        if not scale > 0:
            raise OptionError(f"scale={scale}: expected a standard deviation above 0.")
        weights = weights_of(model)
        loc = {name: weights[name] for name in chosen(where, model, example)}
        unit = magnitudes(loc) if relative else dict.fromkeys(loc, 1.0)
        return cls(loc, {n: torch.full_like(loc[n], scale * unit[n]) for n in loc})

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        loc = part(state, "loc")
        q = cls(loc, {name: torch.ones_like(each) for name, each in loc.items()})
        q.load_state_dict(state)  # rho itself: its round trip through softplus is not exact
        return q

    @property
    def scale(self) -> Named:
        """Standard deviations, in the shapes of the weights."""
        return {name: F.softplus(each) for name, each in self.rho.named().items()}

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Named:
        """N reparametrised samples: name -> (n, *shape)."""
        loc, scale = self.loc.named(), self.scale
        first = next(iter(loc.values()))
        noise = standard_normal_rows(
            n, sum(each.numel() for each in loc.values()), first, generator
        )
        eps = noise.split([each.numel() for each in loc.values()], dim=1)
        return {
            name: torch.addcmul(mean, scale[name], each.view(n, *mean.shape).to(mean.dtype))
            for (name, mean), each in zip(loc.items(), eps, strict=True)
        }

    def local_weights(
        self, *, generator: torch.Generator | None = None, scopes: Scopes | None = None
    ) -> Named:
        """Structured weights that draw their noise by row, by example or once, as `scopes` say."""
        return gaussian_weights(self.loc.named(), self.scale, generator, scopes)

    def scaled(self, factor: float) -> Self:
        """The same means, with every standard deviation multiplied by `factor`.

        Raises:
            OptionError: when `factor` is not a finite number above 0.

        Example:
            >>> q = MeanField({"w": torch.zeros(2)}, {"w": torch.ones(2)})
            >>> q.scaled(0.5).scale["w"].tolist()
            [0.5, 0.5]
        """
        check_factor(factor)
        return learnt_as(
            self,
            type(self)(
                self.loc.named(), {name: factor * each for name, each in self.scale.items()}
            ),
        )

    def parameter_groups(self, *, lr: float, scale_lr: float) -> list[dict[str, object]]:
        """Two groups for a torch optimiser: the means, and the scales with a rate of their own.

        With one rate for both, an adaptive optimiser hardly moves rho (a step of `lr` changes a
        small scale by the *factor* 1 + lr), so the scales would keep their start values whatever
        the temperature.
        """
        return [
            {"params": list(self.loc.parameters()), "lr": lr},
            {"params": list(self.rho.parameters()), "lr": scale_lr},
        ]


def magnitudes(weights: Named) -> dict[str, float]:
    """Root mean square of each tensor; for a tensor of zeros (a fresh bias) that of all."""
    rms = {name: each.square().mean().sqrt().item() for name, each in weights.items()}
    total = sum(each.numel() for each in weights.values())
    overall = math.sqrt(sum(rms[n] ** 2 * each.numel() for n, each in weights.items()) / total)
    return {name: each or overall or 1.0 for name, each in rms.items()}


def inverse_softplus(value: Tensor) -> Tensor:
    """The rho with softplus(rho) = value > 0, accurate for small and large values.

    Example:
        >>> F.softplus(inverse_softplus(torch.tensor([0.5, 1.0, 50.0]))).tolist()
        [0.5, 1.0, 50.0]
    """
    return value + torch.log(-torch.expm1(-value))
