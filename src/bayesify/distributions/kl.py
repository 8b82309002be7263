"""KL(q || prior) in closed form, by pair of classes. Always a sum over weights, in nats."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.errors import UnsupportedModelError
from bayesify.numerics.linalg import log_determinant
from bayesify.priors import NormalPrior, Prior


def kl_divergence(q: WeightDistribution, prior: Prior) -> Float[Tensor, ""]:
    """KL(q || prior), summed over all weights of q, nats; differentiable in q's parameters.

    Raises:
        UnsupportedModelError: when no closed form is known for the pair.

    Example:
        >>> q = MeanField({"w": torch.zeros(3)}, {"w": torch.ones(3)})
        >>> kl_divergence(q, NormalPrior(1.0)).item()
        0.0
    """
    pair = (type(q), type(prior))
    if pair not in CLOSED_FORMS:
        known = ", ".join(f"({a.__name__}, {b.__name__})" for a, b in CLOSED_FORMS)
        raise UnsupportedModelError(
            f"no closed form of KL({pair[0].__name__} || {pair[1].__name__}); known pairs: {known}."
        )
    return CLOSED_FORMS[pair](q, prior)


def _mean_field_normal(q: MeanField, prior: NormalPrior) -> Tensor:
    """sum_j ln(s0/s) + (s^2 + (m - m0)^2) / (2 s0^2) - 1/2."""
    scale = q.scale
    terms = []
    for name, loc in q.loc.named().items():
        ratio = scale[name] / prior.scale_of(name)
        shift = (loc - prior.loc_of(name)) / prior.scale_of(name)
        terms.append((0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum())
    return torch.stack(terms).sum()


def _matrix_normal_normal(q: MatrixNormal, prior: NormalPrior) -> Tensor:
    """The prior is independent, so it asks for variances and determinants of q alone.

    Points have no density and are left out. Per layer

    1/2 [ sum_ij ( ((P^-1)_ii V_jj + (M - m0)_ij^2) / s0_ij^2 + ln s0_ij^2 - 1 )
          + b ln|P| - a ln|V| ].
    """
    if q.members > 1:
        raise UnsupportedModelError(
            f"no closed form of KL(mixture of {q.members} || prior); one member has one."
        )
    loc = q.loc.named()
    terms = []
    for layer in q.layers:
        row, column = q.row.named()[layer.weight][0], q.column.named()[layer.weight][0]
        a, b = len(row), len(column)
        spread = torch.linalg.solve_triangular(row, torch.eye(a).to(row), upper=False)
        variance = column.square().sum(1)[:, None] * spread.square().sum(0)  # (b, a)
        width = loc[layer.weight][0].flatten(1).shape[1]
        terms.append((b * log_determinant(row) - a * log_determinant(column) - a * b) / 2)
        for name, part in zip(layer.names, variance.split([width, a - width], 1), strict=False):
            shift, scale = (loc[name][0] - prior.loc_of(name)).reshape(b, -1), prior.scale_of(name)
            terms.append(
                (part + shift.square()).sum() / (2 * scale**2) + part.numel() * math.log(scale)
            )
    return torch.stack(terms).sum()


CLOSED_FORMS: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {
    (MeanField, NormalPrior): _mean_field_normal,
    (MatrixNormal, NormalPrior): _matrix_normal_normal,
}
