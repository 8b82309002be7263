"""The matrix normal distribution in Cholesky factors, for many members at once.

    W ~ MN(M, P^-1, V),    W (a, b),    P = L L' (a, a),    V = K K' (b, b)

    E[(W - M)_ij (W - M)_kl] = (P^-1)_ik V_jl,    that is    cov vec(W) = V kron P^-1

where vec stacks the *columns* of W, in torch `W.mT.flatten(-2)`. This is the one place that says
so. Every function takes `row_cholesky` L, the lower factor of the *precision* of the rows, because
that is what data add to, and `column_cholesky` K, the lower factor of the *covariance* of the
columns, because that is the noise. With b = 1 and V = 1 it is N(M, P^-1); with P = I and V = s^2 I
the entries are independent with standard deviation s.

Draws are W = M + L^-T E K' with E standard normal: no matrix is inverted.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.numerics.linalg import log_determinant


def draw(
    mean: Float[Tensor, "*members a b"],
    row_cholesky: Float[Tensor, "*members a a"],
    column_cholesky: Float[Tensor, "*#members b b"],
    noise: Float[Tensor, "*draws a b"],
) -> Float[Tensor, "*draws a b"]:
    """M + L^-T E K', a draw from MN(M, P^-1, V) when E is standard normal.

    Args:
        mean: M.
        row_cholesky: L, lower factor of the row precision P.
        column_cholesky: K, lower factor of the column covariance V.
        noise: E, (*members, a, b), or (*samples, *members, a, b) for several draws.

    Example:
        >>> mean, twice = torch.zeros(1, 1), 2 * torch.eye(1)
        >>> draw(mean, twice, torch.eye(1), torch.ones(5, 1, 1)).flatten().tolist()
        [0.5, 0.5, 0.5, 0.5, 0.5]
    """
    samples = noise.shape[: noise.ndim - mean.ndim]
    # Samples become columns, so that one solve serves them all and L is not copied for each.
    stacked = noise.reshape(math.prod(samples), *mean.shape).movedim(0, -2)  # (*members, a, S, b)
    solved = torch.linalg.solve_triangular(row_cholesky.mT, stacked.flatten(-2), upper=True)
    rows = solved.unflatten(-1, stacked.shape[-2:]).movedim(-2, 0)  # (S, *members, a, b)
    return mean + rows.reshape(noise.shape) @ column_cholesky.mT


def log_density(
    w: Float[Tensor, "*draws a b"],
    mean: Float[Tensor, "*members a b"],
    row_cholesky: Float[Tensor, "*members a a"],
    column_cholesky: Float[Tensor, "*#members b b"],
) -> Float[Tensor, "*draws"]:
    """The log density ln MN(w | M, P^-1, V), nats.

        -1/2 [ a b ln 2pi - b ln|P| + a ln|V| + |K^-1 (w - M)' L|^2 ]

    Args:
        w: Where, (*members, a, b), or (*samples, *members, a, b) for several points.
        mean: M.
        row_cholesky: L, lower factor of the row precision P.
        column_cholesky: K, lower factor of the column covariance V.

    Example:
        >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
        >>> log_density(zero, zero, one, one).item()
        -0.918...
    """
    a, b = mean.shape[-2:]
    volume = a * log_determinant(column_cholesky) - b * log_determinant(row_cholesky)
    distance = _distance(w - mean, row_cholesky, column_cholesky)
    return -0.5 * (a * b * math.log(2 * math.pi) + volume + distance)


def kl_divergence(
    mean: Float[Tensor, "*members a b"],
    row_cholesky: Float[Tensor, "*members a a"],
    column_cholesky: Float[Tensor, "*members b b"],
    *,
    prior_mean: Float[Tensor, "*#members a b"],
    prior_row_cholesky: Float[Tensor, "*#members a a"],
    prior_column_cholesky: Float[Tensor, "*#members b b"],
) -> Float[Tensor, "*members"]:
    """KL( MN(M, P^-1, V) || MN(M0, P0^-1, V0) ), nats.

        1/2 [ tr(V0^-1 V) tr(P0 P^-1) + tr(V0^-1 D' P0 D) - a b
              + b (ln|P| - ln|P0|) + a (ln|V0| - ln|V|) ],    D = M - M0

    Args:
        mean: M.
        row_cholesky: L, lower factor of the row precision P.
        column_cholesky: K, lower factor of the column covariance V.
        prior_mean: M0.
        prior_row_cholesky: Lower factor of P0.
        prior_column_cholesky: Lower factor of V0.

    Example:
        >>> q = torch.zeros(2, 1), torch.eye(2), torch.eye(1)
        >>> p = {"prior_row_cholesky": q[1], "prior_column_cholesky": q[2]}
        >>> kl_divergence(*q, prior_mean=torch.ones(2, 1), **p).item()
        1.0
    """
    a, b = mean.shape[-2:]
    rows = torch.linalg.solve_triangular(row_cholesky, prior_row_cholesky, upper=False)
    columns = torch.linalg.solve_triangular(prior_column_cholesky, column_cholesky, upper=False)
    spread = columns.square().sum((-2, -1)) * rows.square().sum((-2, -1))
    distance = _distance(mean - prior_mean, prior_row_cholesky, prior_column_cholesky)
    row_volume = log_determinant(row_cholesky) - log_determinant(prior_row_cholesky)
    column_volume = log_determinant(prior_column_cholesky) - log_determinant(column_cholesky)
    return 0.5 * (spread + distance - a * b + b * row_volume + a * column_volume)


def _distance(moved: Tensor, row_cholesky: Tensor, column_cholesky: Tensor) -> Tensor:
    """tr(V^-1 D' P D) = |K^-1 D' L|^2, the squared Mahalanobis distance."""
    white = torch.linalg.solve_triangular(column_cholesky, moved.mT @ row_cholesky, upper=False)
    return white.square().sum((-2, -1))
