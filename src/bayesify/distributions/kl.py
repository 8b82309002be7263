"""KL(q || prior) in closed form, by pair of classes. Always a sum over weights, in nats."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Named
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.kronecker_normal import KroneckerNormal
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.priors import NormalPrior, Prior
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.numerics.linalg import log_determinant


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


def has_density(q: WeightDistribution) -> bool:
    """Whether q has a density over all weights it covers, so that its divergences are finite.

    Weights that share a random number, and weights that do not vary, have none; what
    `kl_divergence` gives for them regularises a fit, but is no divergence in the strict sense.
    """
    if isinstance(q, SharedNormal):
        return not q.is_shared and q.law != "fixed"
    if isinstance(q, MatrixNormal):
        return not (q.points.named() or q.statistics.named())
    return True


def _mean_field_normal(q: MeanField, prior: NormalPrior) -> Tensor:
    """sum_j ln(s0/s) + (s^2 + (m - m0)^2) / (2 s0^2) - 1/2."""
    scale = q.scale
    terms = []
    for name, loc in q.loc.named().items():
        ratio = scale[name] / prior.scale_of(name)
        shift = (loc - prior.loc_of(name)) / prior.scale_of(name)
        terms.append((0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum())
    return torch.stack(terms).sum()


def _dense_normal_normal(q: DenseNormal, prior: NormalPrior) -> Tensor:
    """The prior is independent, so of q it asks for variances and the determinant alone."""
    names = q.loc.named()
    sizes = [each.numel() for each in names.values()]
    variance = dict(zip(names, q.variance().split(sizes), strict=True))
    return _gaussian_terms(names, variance, log_determinant(q.factor), prior)


def _kronecker_normal_normal(q: KroneckerNormal, prior: NormalPrior) -> Tensor:
    """As for a dense normal."""
    return _gaussian_terms(q.loc.named(), q.variance(), q.log_determinant(), prior)


def _gaussian_terms(
    loc: Named, variance: Named, log_precision: Tensor, prior: NormalPrior
) -> Tensor:
    """1/2 { sum_j [ (variance_j + (m - m0)_j^2) / s0^2 + ln s0^2 - 1 ] + ln|P| }."""
    terms = [log_precision]
    for name, mean in loc.items():
        shift, scale = mean - prior.loc_of(name), prior.scale_of(name)
        square = (variance[name].sum() + shift.square().sum()) / scale**2
        terms.append(square + mean.numel() * (2 * math.log(scale) - 1))
    return torch.stack(terms).sum() / 2


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


def _shared_normal_normal(q: SharedNormal, prior: NormalPrior) -> Tensor:
    """Sum over the entries of each code at once: n_k KL(N(loc_k, scale_k^2) || prior).

    Where the prior's mean differs from weight to weight, entry by entry. Under the shared laws a
    code is one random number, and its divergence is the mean over its uses; under "shared" the
    expected divergence given (m, s), an upper bound of that of the marginal.
    """
    if q.law == "fixed":
        raise UnsupportedModelError("no KL(fixed weights || prior): they have no density.")
    uses = q.counts.sum(0).clamp_min(1).to(q.loc)
    share = 1 / uses if q.is_shared else torch.ones_like(uses)
    terms = []
    parts = zip(q.tensors().items(), q.unit, q.counts, q.variance_by_code(), strict=True)
    for number, ((name, coded), unit, count, variance) in enumerate(parts):
        width = prior.scale_of(name) / unit
        center = torch.as_tensor(prior.loc_of(name)).to(unit) / unit
        law = q.loc, variance, q.log_scale_by_code(number)
        if center.ndim:
            alone = coded.alone()
            codes = coded.codes.flatten()[alone].int()
            center = center.expand(coded.codes.shape).flatten()
            at = center[alone], center[coded.outliers.long()], center[coded.blends.long()]
            law = tuple(each.index_select(0, codes) for each in law)
            weight = share.index_select(0, codes)
        else:
            at, weight = (center, center, center), share * count
        terms.append((weight * _normal_terms(law, at[0], width)).sum())
        terms.append(_normal_terms(q.own_part(number), at[1], width).sum())
        if not q.is_shared:
            blend = coded.blended(q.loc), coded.blended(variance, power=2)
            terms.append(_normal_terms((*blend, blend[1].log() / 2), at[2], width).sum())
    return torch.stack(terms).sum()


def _normal_terms(law: tuple[Tensor, ...], center: Tensor, width: Tensor) -> Tensor:
    """KL(N(loc, variance) || N(center, width^2)), elementwise, for (loc, variance, log scale)."""
    loc, variance, log_scale = law
    square = (variance + (loc - center).square()) / width.square()
    return 0.5 * (square - 1) - log_scale + width.log()


CLOSED_FORMS: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {
    (DenseNormal, NormalPrior): _dense_normal_normal,
    (KroneckerNormal, NormalPrior): _kronecker_normal_normal,
    (MeanField, NormalPrior): _mean_field_normal,
    (MatrixNormal, NormalPrior): _matrix_normal_normal,
    (SharedNormal, NormalPrior): _shared_normal_normal,
}
