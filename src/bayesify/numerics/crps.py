"""Continuous ranked probability score of a mixture of S normal or Student-t distributions.

    crps(F, y) = integral (F(x) - 1{x >= y})^2 dx = E|X - y| - 1/2 E|X - X'|,    X, X' ~ F

0 is best, in the units of y. Source: Gneiting & Raftery 2007, "Strictly Proper Scoring Rules,
Prediction, and Estimation", eqs. 20 and 21. For normal components the second form is closed, since
the difference of two normals is normal (Grimit, Gneiting, Berrocal & Johnson 2006, "The continuous
ranked probability score for circular variables"). With X_i = m_i + s_i Z:

    E|X - y|        = 1/S   sum_i a(y - m_i, s_i),        a(d, s) = E|d + s Z|
    1/2 E|X - X'|   = 1/S^2 sum_i<j a(m_i - m_j, sqrt(s_i^2 + s_j^2)) + 1/S^2 sum_i s_i / sqrt(pi)

The difference of two Student-t variables is of no such kind, and their score is the first form by
Gauss-Legendre quadrature, between quantiles of the components and y: pooled, so that there are
nodes wherever any component grows. Beyond the outermost ones F is 0 or 1 up to 8e-7. Nothing is
subtracted, so that the error is relative to the score: below 1e-5 where the scales are similar, and
below 1e-2 when one component of 32 is a thousand times wider than the others.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.numerics.noise import single_or_better

QUANTILES, ALL_QUANTILES, NODES = 8, 128, 3
"""Of the quadrature: least quantiles per component and in all, and nodes between neighbours."""

OUTERMOST = 14.0
"""Log odds of the outermost quantiles: each tail holds 8e-7."""

KNOTS = 2**14
"""Of the table of the Student-t distribution function, whose error is below 3e-7."""

BLOCK = 2**16
"""Quantiles that are held at once: bounds the memory."""


def mixture_crps(
    loc: Float[Tensor, "samples *batch"],
    scale: Float[Tensor, "..."],
    target: Float[Tensor, "*batch"],
    degrees: float | None = None,
) -> Float[Tensor, "*batch"]:
    """The score of each target under its own mixture of equal weights.

    In single precision at least. Memory is a small multiple of that of `loc`, since pairs of
    components are taken row by row.

    Args:
        loc: Mean of each component.
        scale: Scale factor of each component, broadcastable to `loc`: the standard deviation of a
            normal; of a Student-t sqrt((nu - 2) / nu) times its standard deviation.
        target: What came true.
        degrees: None for normal components, else nu above 1 of Student-t ones. These are computed
            on the CPU, in double precision, and carry no gradient.

    Example:
        >>> one = torch.zeros(1, 1), torch.ones(1), torch.zeros(1)
        >>> round(mixture_crps(*one).item(), 4)                  # (sqrt(2) - 1) / sqrt(pi)
        0.2337
    """
    dtype = single_or_better(loc.dtype)
    loc, scale = loc.to(dtype), scale.to(dtype).expand_as(loc)
    target = target.to(dtype)
    if degrees is None:
        to_target = _normal_distance(target - loc, scale).mean(0)
        return to_target - _normal_spread(loc, scale)
    m, s, y = (each.detach().cpu().double().numpy() for each in (loc, scale, target))
    flat = len(m), y.size
    score = _student_crps(m.reshape(flat), s.reshape(flat), y.reshape(-1), degrees)
    return torch.as_tensor(score.reshape(y.shape)).to(loc)


def _normal_distance(gap: Tensor, scale: Tensor) -> Tensor:
    """E|gap + scale Z|."""
    z = gap.abs() / scale
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    return gap.abs() + 2 * scale * (density - z * torch.special.ndtr(-z)).clamp_min(0)


def _normal_spread(loc: Tensor, scale: Tensor) -> Tensor:
    total = scale.sum(0) / math.sqrt(math.pi)  # half of E|X_i - X'_i|, of each component
    for i in range(1, len(loc)):
        both = torch.hypot(scale[:i], scale[i])
        total = total + _normal_distance(loc[:i] - loc[i], both).sum(0)
    return total / len(loc) ** 2


@lru_cache(maxsize=8)
def _student_table(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Knots from quantile 1e-12 to its mirror, and the distribution function there."""
    from scipy.special import stdtr, stdtrit

    width = math.sqrt(degrees)
    last = math.asinh(-stdtrit(degrees, 1e-12) / width)
    knots = width * np.sinh(np.linspace(-last, last, KNOTS))
    return knots, stdtr(degrees, knots)


def _student_crps(
    loc: np.ndarray, scale: np.ndarray, target: np.ndarray, degrees: float
) -> np.ndarray:
    """The scores of n targets under mixtures whose components are (S, n)."""
    from scipy.special import expit, stdtrit

    samples = len(loc)
    each = max(QUANTILES, math.ceil(ALL_QUANTILES / samples))
    # staggered: components that are alike would have their quantiles in the same few places
    steps = (np.arange(each * samples) + 0.5) / (each * samples)
    inner = stdtrit(degrees, expit(OUTERMOST * (2 * steps - 1))).reshape(each, samples).T
    outer = -stdtrit(degrees, expit(-OUTERMOST))
    score, size = np.empty(len(target)), max(1, BLOCK // inner.size)
    for at in range(0, len(target), size):
        part = slice(at, at + size)
        m, s, y = loc[:, part], scale[:, part], target[part]
        first, last = (m - outer * s).min(0), (m + outer * s).max(0)
        near = y.clip(first, last)
        pooled = m[..., None] + s[..., None] * inner[:, None]  # (S, n, quantiles)
        pooled = pooled.transpose(1, 0, 2).reshape(len(y), inner.size)
        ends = np.sort(np.column_stack([first, pooled, near, last]), 1)
        # F is 0 or 1 between the outermost quantiles and a target beyond them
        score[part] = _quadrature(m, s, near, ends, _student_table(degrees)) + np.abs(y - near)
    return score


def _quadrature(
    loc: np.ndarray,
    scale: np.ndarray,
    target: np.ndarray,
    ends: np.ndarray,
    table: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The integral of (F - 1{x >= target})^2 over the intervals between the (n, ...) `ends`."""
    node, weight = np.polynomial.legendre.leggauss(NODES)
    middle, half = (ends[:, 1:] + ends[:, :-1]) / 2, (ends[:, 1:] - ends[:, :-1]) / 2
    x = middle[..., None] + half[..., None] * node  # (n, intervals, nodes), ascending
    below = np.zeros_like(x)
    for m, s in zip(loc, scale, strict=True):
        below += np.interp((x - m[:, None, None]) / s[:, None, None], *table)
    error = below / len(loc) - (middle >= target[:, None])[..., None]
    return np.einsum("nig,ni,g->n", error**2, half, weight)
