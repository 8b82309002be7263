"""Distances of Gaussians in the plane, and groups of them replaced by one.

The squared 2-Wasserstein distance of N(m, A) and N(n, B) (Dowson & Landau 1982) is

    W^2 = |m - n|^2 + tr(A) + tr(B) - 2 tr (A^1/2 B A^1/2)^1/2

and for 2 x 2 matrices the last trace is the square root of tr(A B) + 2 sqrt(det A det B). Written
so, W^2 is a small difference of large numbers where A and B are close. With D = A - B it equals

    W^2 = |m - n|^2 + [ (D_11 - D_22)^2 + 4 D_12^2 + 4 (sqrt det A - sqrt det B)^2 ]
                      / [ tr A + tr B + 2 sqrt( tr(A B) + 2 sqrt(det A det B) ) ]

by a - b = (a^2 - b^2) / (a + b) and det(A - B) = det A + det B - tr A tr B + tr(A B). Here nothing
cancels but the inputs themselves: it is never negative, and zero just where the two are equal.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from bayesify.core.errors import OptionError

BLOCK = 2**14
"""Of how many pairs at a time the intermediate values are held."""


def squared_wasserstein(
    loc: Float[Tensor, "components 2"],
    covariance: Float[Tensor, "components 2 2"],
    other_loc: Float[Tensor, "others 2"] | None = None,
    other_covariance: Float[Tensor, "others 2 2"] | None = None,
) -> Float[Tensor, "components others"]:
    """W^2 of all pairs, in float64 inside.

    Args:
        loc: Means.
        covariance: Symmetric, positive semi-definite.
        other_loc: Means of the others; the same Gaussians when None.
        other_covariance: Given if and only if `other_loc` is.

    Returns:
        In the type of `loc` and in its unit, squared. Of 6,000 by 6,000 it takes 288 MB in float64.

    Raises:
        OptionError: Only one of the others' two arguments is given.

    Example:
        >>> loc = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> spread = torch.stack([torch.eye(2), 4 * torch.eye(2)])  # deviations 1 and 2
        >>> squared_wasserstein(loc, spread).tolist()
        [[0.0, 27.0], [27.0, 0.0]]
    """
    if (other_loc is None) != (other_covariance is None):
        raise OptionError(
            "expected both other_loc and other_covariance or neither, got one; pass both."
        )
    if other_loc is None or other_covariance is None:
        other_loc, other_covariance = loc, covariance
    distances = loc.new_empty(len(loc), len(other_loc))
    rows = max(1, BLOCK // max(1, len(other_loc)))
    for start in range(0, len(loc), rows):
        block = slice(start, start + rows)
        distances[block] = _squared(
            loc[block, None], covariance[block, None], other_loc, other_covariance
        )
    return distances


def squared_wasserstein_pairs(
    loc: Float[Tensor, "components 2"],
    covariance: Float[Tensor, "components 2 2"],
    first: Integer[Tensor, " pairs"],
    second: Integer[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """W^2 of the pairs (first_p, second_p) alone.

    Args:
        loc: Means.
        covariance: Symmetric, positive semi-definite.
        first: Which Gaussian is the one of a pair.
        second: Which is the other.

    Returns:
        In the type and unit of `loc`, as from `squared_wasserstein`.

    Example:
        >>> loc = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> spread = torch.stack([torch.eye(2), 4 * torch.eye(2)])
        >>> squared_wasserstein_pairs(loc, spread, torch.tensor([0]), torch.tensor([1])).tolist()
        [27.0]
    """
    distances = loc.new_empty(len(first))
    for a, b, out in zip(*(each.split(BLOCK) for each in (first, second, distances)), strict=True):
        out.copy_(_squared(loc[a], covariance[a], loc[b], covariance[b]))
    return distances


def merged(
    count: Float[Tensor, " components"] | Integer[Tensor, " components"],
    loc: Float[Tensor, "components 2"],
    covariance: Float[Tensor, "components 2 2"],
    group: Integer[Tensor, " components"],
) -> tuple[Tensor, Float[Tensor, "groups 2"], Float[Tensor, "groups 2 2"]]:
    """Every group of Gaussians as one with the moments of their mixture.

        n = sum_k n_k,    m = sum_k n_k m_k / n,
        S = sum_k n_k (S_k + (m_k - m) (m_k - m)') / n

    So it does not matter in which order, or in how many steps, Gaussians are merged.

    Args:
        count: n_k, how many points each stands for; any positive weights will do.
        loc: m_k.
        covariance: S_k.
        group: Into which of 0 ... G - 1 each one goes.

    Returns:
        n (G,), m (G, 2) and S (G, 2, 2), each in the type that it came in.

    Raises:
        OptionError: A group is negative, or is left without any count.

    Example:
        >>> count, loc = torch.tensor([1, 3]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> n, m, S = merged(count, loc, torch.zeros(2, 2, 2), torch.tensor([0, 0]))
        >>> n.tolist(), m.tolist(), S.tolist()
        ([4], [[3.0, 0.0]], [[[3.0, 0.0], [0.0, 0.0]]])
    """
    if len(group) and group.min() < 0:
        raise OptionError(f"expected groups from 0 on, got {int(group.min())}; count them from 0.")
    groups = int(group.max()) + 1 if len(group) else 0

    def pooled(values: Tensor) -> Tensor:
        zeros = values.new_zeros(groups, *values.shape[1:])
        return zeros.index_add(0, group, values)

    total = pooled(count)
    if not (total > 0).all():
        empty = int((total <= 0).nonzero()[0])
        raise OptionError(
            f"expected a positive count in all of {groups} groups, got none in group {empty}; "
            f"number the groups without gaps (torch.unique, return_inverse=True)."
        )
    share = count.double() / total.double()[group]
    mean = pooled(share[:, None] * loc.double())
    off = loc.double() - mean[group]
    around = covariance.double() + off[:, :, None] * off[:, None, :]
    spread = pooled(share[:, None, None] * around)
    return total, mean.to(loc.dtype), spread.to(covariance.dtype)


def _squared(loc: Tensor, covariance: Tensor, other_loc: Tensor, other: Tensor) -> Tensor:
    """W^2 in float64 of whatever pairs the leading dimensions broadcast to."""
    a, b, c, root = _entries(covariance)
    e, f, g, other_root = _entries(other)
    top = ((a - e) - (c - g)).square() + 4 * ((b - f).square() + (root - other_root).square())
    overlap = (a * e + 2 * b * f + c * g + 2 * root * other_root).clamp(min=0).sqrt()
    bottom = (a + c) + (e + g) + 2 * overlap
    # Both are zero for two points; any positive number makes 0 of that.
    spread = top / bottom.clamp(min=torch.finfo(torch.float64).tiny)
    off = [loc[..., i].double() - other_loc[..., i].double() for i in (0, 1)]
    return off[0].square() + off[1].square() + spread


def _entries(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S_11, S_12, S_22 and the root of the determinant."""
    wide = covariance.double()
    a, b, c = wide[..., 0, 0], wide[..., 0, 1], wide[..., 1, 1]
    return a, b, c, (a * c - b * b).clamp(min=0).sqrt()
