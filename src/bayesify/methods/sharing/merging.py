"""Neighbouring Gaussians of a shared posterior become one (the "adaptive" part of 2DGBNN).

A pair (k, l) is merged when all of these hold, in the coordinates of the source (`sharing.py`):

    W2^2(N_k, N_l) < tau_d,    |g_k - g_l| <= tau_g,    S_k,11 < tau_v and S_l,11 < tau_v

with g the gradient of the objective with respect to a mean. Looked at are pairs of which one is
among the two nearest means of the other. Each time those merge that are nearest to each other, with
the moments of both (`numerics/wasserstein.py`), until none is left.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from bayesify.distributions.shared.normal import SharedNormal
from bayesify.methods.sharing.structure import Source
from bayesify.numerics.mixture import Mixture
from bayesify.numerics.wasserstein import merged, squared_wasserstein_pairs


@dataclass(frozen=True)
class MergeLimits:
    """Two Gaussians are merged that are below all of these, in the coordinates of the source.

    Attributes:
        distance: Of their squared W2 distance.
        gradient: Of the difference of the objective's gradients with respect to their means.
        variance: Of either one's variance of means.
    """

    distance: float
    gradient: float = math.inf
    variance: float = math.inf


def merge(
    mixture: Mixture, limits: MergeLimits, gradient: Float[Tensor, " codes"] | None = None
) -> tuple[Mixture, Integer[Tensor, " codes"]]:
    """Merge neighbours, each time those that are nearest to each other, until none may be.

    Returns:
        The new mixture, and for every old component which of the new ones it went into.
    """
    group = torch.arange(len(mixture.count))
    slope = torch.zeros(len(group)) if gradient is None else gradient.double().cpu()
    while (pairs := _neighbours(mixture, limits, slope)) is not None:
        first, second = pairs
        label = torch.arange(len(mixture.count)).index_copy(0, second, first)
        label = label.unique(return_inverse=True)[1]
        count, loc, covariance = merged(mixture.count, mixture.loc, mixture.covariance, label)
        slope = torch.zeros(len(count)).to(slope).index_add(0, label, slope)  # of their sum
        mixture, group = Mixture(count / count.sum(), loc, covariance, count), label[group]
    return mixture, group


def current(source: Source, q: SharedNormal) -> tuple[Mixture, Integer[Tensor, " components"]]:
    """The Gaussians of a book that has been trained: its points, and the spread of their entries.

    Returns:
        The mixture, and which codes its components are: those without an entry are left out. A
        blend counts as an entry of its first code.
    """
    size, log_scale = len(q.loc), q.log_scale.detach().double().cpu()
    sums = torch.zeros(6, size, dtype=torch.float64)
    for name, coded in q.tensors().items():
        shared = torch.ones(coded.codes.numel(), dtype=torch.bool)
        shared[coded.outliers.long().cpu()] = False
        x, y = source.points(name)[shared].double().T
        codes = coded.codes.flatten().cpu()[shared].int()
        for total, each in zip(sums, (torch.ones_like(x), x, y, x * x, x * y, y * y), strict=True):
            total += torch.bincount(codes, each, minlength=size)
    used = sums[0].nonzero()[:, 0]
    count = sums[0, used]
    x, y, xx, xy, yy = sums[1:, used] / count
    floor = [width**2 / 12 for width in source.histogram.width]
    entries = xx - x * x + floor[0], xy - x * y, xy - x * y, yy - y * y + floor[1]
    covariance = torch.stack(entries, 1).view(-1, 2, 2)
    second = torch.zeros_like(x) if q.law == "per_layer" else source.stretch * log_scale[used]
    loc = torch.stack([q.loc.detach().double().cpu()[used], second], 1)
    return Mixture(count / count.sum(), loc, covariance, count), used


def _neighbours(
    mixture: Mixture, limits: MergeLimits, slope: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Pairs of components that may be merged and are nearest to each other."""
    from scipy.spatial import KDTree

    size = len(mixture.count)
    if size < 2:
        return None
    near = KDTree(mixture.loc.numpy()).query(mixture.loc.numpy(), min(3, size))[1]
    near = torch.as_tensor(near).view(size, -1)
    own = torch.arange(size)[:, None].expand_as(near)
    pairs = torch.stack([own.minimum(near), own.maximum(near)]).flatten(1)
    first, second = pairs[:, pairs[0] < pairs[1]].unique(dim=1)
    distance = squared_wasserstein_pairs(mixture.loc, mixture.covariance, first, second)
    narrow = mixture.covariance[:, 0, 0] < limits.variance
    allowed = (
        (distance < limits.distance)
        & ((slope[first] - slope[second]).abs() <= limits.gradient)
        & narrow[first]
        & narrow[second]
    )
    order = distance.argsort(stable=True)
    order = order[allowed[order]]  # of two pairs at one distance the first comes first
    first, second, rank = first[order], second[order], torch.arange(len(order))
    best = torch.full((size,), len(order))
    for each in (first, second):
        best = best.scatter_reduce(0, each, rank, "amin")
    mutual = (best[first] == rank) & (best[second] == rank)
    return (first[mutual], second[mutual]) if mutual.any() else None
