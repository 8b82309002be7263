"""Multivariate Bayesian linear regression in natural parameters, for many members at once.

Rows H (n, a) of features (a bias is a constant feature, the caller's business) explain rows
T (n, b) of targets through weights W (a, b):

    p(T | H, W) = MN(H W, I, V)      rows independent, V (b, b) the noise covariance of a row
    p(W)        = MN(M0, P0^-1, V)   conjugate: the columns vary as the noise does
    p(W | T, H) = MN(M, P^-1, V),    P = P0 + H'H,    P M = P0 M0 + H'T

(MN and its vec convention: `matrix_normal.py`.) P is the `precision` and P M the `shift`; both are
sums, of a term of the prior and a term of each batch, so batches are added, and forgotten, as pairs
(precision, shift). V is not among them: neither P nor M depends on it.

The precision form is kept because it stays positive definite under any number of updates, with
eigenvalues at least those of P0; running updates of the covariance lose that to rounding.

Cost per member: n a (a + b) for the terms, a^3 / 3 for the factor, a^2 b for the mean.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.numerics.linalg import cholesky, log_determinant


class NaturalParameters(NamedTuple):
    """A Gaussian over W, or a term of one: what is added when evidence is added."""

    precision: Float[Tensor, "*members a a"]
    shift: Float[Tensor, "*members a b"]
    """precision @ mean; for a term of the data H'T."""


def prior(
    mean: Float[Tensor, "*members a b"], precision: float | Float[Tensor, "*#members"]
) -> NaturalParameters:
    """MN(mean, I / precision, V): the same precision for all rows, one number or one per member.

    Example:
        >>> prior(torch.ones(2, 1), 4.0)
        NaturalParameters(precision=tensor([[4., 0.],
                [0., 4.]]), shift=tensor([[4.],
                [4.]]))
    """
    tau = _per_member(precision, mean)[..., None, None]
    return NaturalParameters(tau * _identity(mean.shape[-2], mean), tau * mean)


def data_terms(
    features: Float[Tensor, "*members n a"],
    targets: Float[Tensor, "*members n b"],
    *,
    weight: float = 1.0,
) -> NaturalParameters:
    """What n rows add to the natural parameters: weight * H'H and weight * H'T.

    Args:
        features: H.
        targets: T.
        weight: How many rows each of these stands for: N / B for a batch of B out of N examples.

    Example:
        >>> data_terms(torch.ones(3, 1), torch.ones(3, 1), weight=2.0).shift
        tensor([[6.]])
    """
    return NaturalParameters(
        weight * (features.mT @ features),
        weight * (features.mT @ targets),
    )


def add(a: NaturalParameters, b: NaturalParameters) -> NaturalParameters:
    """The sum: the product of the two densities.

    Example:
        >>> rows = data_terms(torch.ones(3, 1), torch.ones(3, 1))
        >>> add(prior(torch.zeros(1, 1), 1.0), rows).precision
        tensor([[4.]])
    """
    return NaturalParameters(a.precision + b.precision, a.shift + b.shift)


def forget(old: NaturalParameters, new: NaturalParameters, rate: float) -> NaturalParameters:
    """(1 - rate) old + rate new: an exponential moving average of data terms.

    A batch that is k steps old counts rate (1 - rate)^k, which sums to 1. So terms of B rows with
    weight N / B hold the evidence of N rows at any rate; the rate decides out of how many batches:
    the noise is that of the plain mean of 2 / rate - 1 of them. Without the weight the average
    holds the evidence of B rows, and the sum (1 - rate) old + new that of B / rate.

    Only terms of the data belong here; the prior is added afterwards and is not forgotten.

    Example:
        >>> old, new = prior(torch.zeros(1, 1), 1.0), prior(torch.ones(1, 1), 3.0)
        >>> forget(old, new, 0.5)
        NaturalParameters(precision=tensor([[2.]]), shift=tensor([[1.5000]]))
    """
    return NaturalParameters(
        old.precision.lerp(new.precision, rate),
        old.shift.lerp(new.shift, rate),
    )


def posterior(
    parameters: NaturalParameters, *, name: str = "regression"
) -> tuple[Float[Tensor, "*members a b"], Float[Tensor, "*members a a"]]:
    """Mean M and lower Cholesky factor of the precision P.

    Both are computed in float64, whatever comes in, because P is a Gram matrix and has the square
    of the condition number of the features; they have the type of `parameters`.

    Args:
        parameters: Prior and data, added.
        name: Of the layer, for the message.

    Raises:
        NotPositiveDefiniteError: when P is not positive definite, or not finite.

    Example:
        >>> rows = data_terms(torch.ones(3, 1), torch.ones(3, 1))
        >>> mean, lower = posterior(add(prior(torch.zeros(1, 1), 1.0), rows))
        >>> mean.item(), lower.item()
        (0.75, 2.0)
    """
    lower = cholesky(parameters.precision.double(), name=f"posterior precision of {name}")
    mean = torch.cholesky_solve(parameters.shift.double(), lower)
    return mean.to(parameters.shift.dtype), lower.to(parameters.precision.dtype)


def natural_gradient_step(
    mean: Float[Tensor, "*members a b"],
    gradient: Float[Tensor, "*members a b"],
    cholesky: Float[Tensor, "*members a a"],
    *,
    rate: float,
) -> Float[Tensor, "*members a b"]:
    """M - rate * P^-1 gradient: a step preconditioned by the posterior covariance of the rows.

    Let G (B, b) be gradients at H M and the pseudo-targets T = H M - G V. If M is the posterior
    mean of the average so far, then the mean after

        S <- forget(S, data_terms(H, T, weight=N / B), rate)

    equals this step, with P the *new* precision and

        gradient = (N / B) H' G V + P0 (M - M0).

    So the rate of forgetting is a learning rate, and the mean can move while P is kept for some
    steps: the fixed point, gradient = 0, does not depend on P.

    Args:
        mean: M.
        gradient: As above; of the negative log posterior, times V from the right.
        cholesky: Lower factor of P.
        rate: Step size; 1 goes to the optimum of a quadratic.

    Example:
        >>> mean, gradient, lower = torch.ones(1, 1), torch.ones(1, 1), torch.tensor([[2.0]])
        >>> natural_gradient_step(mean, gradient, lower, rate=1.0).item()
        0.75
    """
    return mean - rate * torch.cholesky_solve(gradient, cholesky)


def leverage(
    cholesky: Float[Tensor, "*members a a"], features: Float[Tensor, "*members n a"]
) -> Float[Tensor, "*members n"]:
    """The leverage h' P^-1 h = |L^-1 h|^2 of each row h, by one triangular solve.

    The posterior of W'h is N(M'h, leverage * V); a new target has covariance (1 + leverage) V.

    Example:
        >>> leverage(torch.tensor([[2.0]]), torch.tensor([[1.0], [4.0]])).tolist()
        [0.25, 4.0]
    """
    return torch.linalg.solve_triangular(cholesky, features.mT, upper=False).square().sum(-2)


def log_evidence(
    features: Float[Tensor, "*members n a"],
    targets: Float[Tensor, "*members n b"],
    *,
    prior_precision: float | Float[Tensor, "*#members"],
    noise_covariance: Float[Tensor, "*#members b b"],
    prior_mean: Float[Tensor, "*#members a b"] | None = None,
) -> Float[Tensor, "*members"]:
    """The log evidence ln p(T | H), nats, with W integrated out; computed in float64.

        -1/2 [ n b ln 2pi + n ln|V| + b (ln|P| - a ln tau) + tr(V^-1 (R'R + tau D'D)) ],
        R = T - H M,    D = M - M0

    R'R + tau D'D equals the residuals of the prior mean weighted by (I + HH' / tau)^-1, without
    a difference of two large numbers.

    Args:
        features: H.
        targets: T.
        prior_precision: tau, in units of V: the prior covariance of a row of W is V / tau. Prior
            weights of variance s0^2 beside a noise of variance s^2 mean tau = s^2 / s0^2.
        noise_covariance: V.
        prior_mean: M0; None for 0.

    Example:
        >>> one = torch.ones(1, 1)
        >>> log_evidence(one, one, prior_precision=1.0, noise_covariance=one).item()  # N(1 | 0, 2)
        -1.515...
    """
    h, t = features.double(), targets.double()
    (n, a), b = h.shape[-2:], t.shape[-1]
    start = h.new_zeros(a, b) if prior_mean is None else prior_mean.double()
    start = start.expand(*h.shape[:-2], a, b)
    tau = _per_member(prior_precision, h)
    mean, lower = posterior(add(prior(start, tau), data_terms(h, t)), name="the evidence")
    noise_lower = cholesky(noise_covariance.double(), name="noise covariance")
    residual, moved = t - h @ mean, mean - start
    scatter = residual.mT @ residual + tau[..., None, None] * (moved.mT @ moved)  # (*members, b, b)
    misfit = torch.cholesky_solve(scatter, noise_lower).diagonal(dim1=-2, dim2=-1).sum(-1)
    volume = n * log_determinant(noise_lower) + b * (log_determinant(lower) - a * tau.log())
    return (-0.5 * (n * b * math.log(2 * math.pi) + volume + misfit)).to(features.dtype)


def update_prior_precision(
    mean: Float[Tensor, "*members a b"],
    cholesky: Float[Tensor, "*members a a"],
    column_cholesky: Float[Tensor, "*#members b b"],
    *,
    prior_mean: Float[Tensor, "*#members a b"] | None = None,
) -> Float[Tensor, "*members"]:
    """One step of EM for tau in p(W) = MN(M0, I / tau, V): it never lowers the evidence.

        tau = a b / ( tr(V^-1 (M - M0)'(M - M0)) + b tr(P^-1) )

    Args:
        mean: M, the posterior mean under the old tau.
        cholesky: Lower factor of P, under the old tau.
        column_cholesky: Lower factor of V.
        prior_mean: M0; None for 0.

    Example:
        >>> one = torch.ones(1, 1)
        >>> update_prior_precision(one, one, one).tolist()
        0.5
    """
    a, b = mean.shape[-2:]
    moved = mean if prior_mean is None else mean - prior_mean
    white = torch.linalg.solve_triangular(column_cholesky, moved.mT, upper=False)
    rows = _identity(a, mean).expand(cholesky.shape)
    spread = leverage(cholesky, rows).sum(-1)  # tr(P^-1)
    return a * b / (white.square().sum((-2, -1)) + b * spread)


def _per_member(value: float | Tensor, like: Tensor) -> Tensor:
    """(*members): one number for each member of `like` (*members, rows, columns)."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(like.shape[:-2])


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)
