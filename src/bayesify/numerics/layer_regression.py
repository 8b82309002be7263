"""The running posterior of one layer, fitted to pseudo-targets that move with the network.

With rows h_i of features (H, n x a) and gradients g_i of the negative log likelihood with respect
to the layer's outputs z_i (G, n x b), K members in front of everything:

    pseudo-targets     T = H M - G V                            outputs moved against their gradient
    noise              V = (F + delta I)^-1,  F = average of g g^T over labels drawn from the model
    natural parameters P <- (1 - rho) P + rho (w H^T H + tau I)
                       P M likewise with H^T T
    which is           M <- M - rho P^-1 (w H^T G V + tau (M - M0))

The last line is the same update written with M (`linear_regression.natural_gradient_step`; a test
compares them). It stays right when P is factorised only now and then, so it is what runs. w is how
many examples each row stands for (N / B), tau the prior's precision: p(W) = MN(M0, I / tau, V).
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesify.numerics.linalg import cholesky, cholesky_or_flag
from bayesify.numerics.linear_regression import natural_gradient_step, update_prior_precision


@dataclass(frozen=True)
class LayerRegression:
    """A layer's posterior MN(mean, precision^-1, V), float64, with the members in front.

    Attributes:
        mean: M, (K, a, b).
        prior_mean: M0, (K, a, b).
        precision: P, (K, a, a).
        prior_precision: tau, (K,).
        fisher: F, (K, b, b).
        covariance: V, (K, b, b), as of the last refresh.
        row: Lower Cholesky factor of P as of the last refresh, (K, a, a).
        column: Lower Cholesky factor of V, (K, b, b).
    """

    mean: Float[Tensor, "members a b"]
    prior_mean: Float[Tensor, "members a b"]
    precision: Float[Tensor, "members a a"]
    prior_precision: Float[Tensor, " members"]
    fisher: Float[Tensor, "members b b"]
    covariance: Float[Tensor, "members b b"]
    row: Float[Tensor, "members a a"]
    column: Float[Tensor, "members b b"]

    @classmethod
    def start(
        cls,
        mean: Float[Tensor, "members a b"],
        gram: Float[Tensor, "members a a"],
        *,
        prior_precision: float,
        covariance: float,
        name: str = "layer",
    ) -> Self:
        """Around given weights, with the features' second moments that these weights cause.

        Args:
            mean: M, kept until the first update; the prior's mean is zero.
            gram: H^T H of all data under these weights.
            prior_precision: tau > 0.
            covariance: V = covariance * I until the first refresh.
            name: Of the layer, for the error.

        Raises:
            NotPositiveDefiniteError: the features overflow, or are not numbers.
        """
        mean, gram = mean.double(), gram.double()
        members, _, b = mean.shape
        precision = _with_diagonal(gram, prior_precision)
        identity = torch.eye(b).to(gram).repeat(members, 1, 1)
        spread = covariance * identity
        return cls(
            mean=mean,
            prior_mean=torch.zeros_like(mean),
            precision=precision,
            prior_precision=mean.new_full((members,), prior_precision),
            fisher=identity / covariance,
            covariance=spread,
            row=cholesky(precision, name=f"precision of layer {name!r}"),
            column=spread.sqrt(),
        )

    @classmethod
    def of_factors(
        cls,
        mean: Float[Tensor, "members a b"],
        row: Float[Tensor, "members a a"],
        column: Float[Tensor, "members b b"],
        *,
        prior_precision: Float[Tensor, " members"],
        damping: float,
    ) -> Self:
        """From a posterior's own numbers, to go on from there; the prior's mean is zero."""
        mean, row, column = mean.double(), row.double(), column.double()
        covariance = column @ column.mT
        fisher = _with_diagonal(torch.cholesky_inverse(column), -damping)
        return cls(
            mean=mean,
            prior_mean=torch.zeros_like(mean),
            precision=row @ row.mT,
            prior_precision=prior_precision.double(),
            fisher=fisher,
            covariance=covariance,
            row=row,
            column=column,
        )

    def with_fisher(
        self,
        sampled: Float[Tensor, "members n b"],
        *,
        rate: float,
        damping: float,
    ) -> tuple["LayerRegression", Bool[Tensor, " members"]]:
        """V from the gradients of a batch whose labels were drawn from the model.

        Args:
            sampled: The gradients.
            rate: Weight of this batch in the average F.
            damping: delta.

        Returns:
            The layer, and which members' V could be factorised.
        """
        outer = (sampled.mT @ sampled).to(self.fisher).div_(sampled.shape[1])
        fisher = self.fisher.lerp(outer, rate)
        factor, sound = cholesky_or_flag(_with_diagonal(fisher, damping))
        covariance = torch.cholesky_inverse(factor)
        column, also = cholesky_or_flag(covariance)
        return self._with(fisher=fisher, covariance=covariance, column=column), sound & also

    def with_covariance(self, value: float | Tensor) -> Self:
        """V = value * I, for a layer whose noise is known."""
        identity = torch.eye(self.fisher.shape[-1]).to(self.fisher).expand_as(self.fisher)
        variance = torch.as_tensor(value, dtype=self.fisher.dtype, device=self.fisher.device)
        return replace(self, covariance=variance * identity, column=variance.sqrt() * identity)

    def updated(
        self,
        features: Float[Tensor, "members_or_one n a"],
        gradient: Float[Tensor, "members n b"],
        *,
        rate: float,
        weight: float,
        cap: float,
        refresh: bool,
        targets: Float[Tensor, "members n b"] | None = None,
    ) -> tuple["LayerRegression", Bool[Tensor, " members"]]:
        """One update of P and M from a batch.

        Args:
            features: H; a leading axis of 1 where all members see the same.
            gradient: G, of the summed negative log likelihood.
            rate: rho, the share of the old natural parameters that is forgotten.
            weight: w, examples per row.
            cap: Largest absolute value of an element of G V (trust region); infinite for none.
            refresh: Whether P is factorised anew; else the last factor serves.
            targets: T, where they are known; else T = H M - G V, capped.

        Returns:
            The layer, and which members' P could be factorised.
        """
        if targets is None:
            shift = (gradient @ self.covariance.to(gradient)).clamp(-cap, cap)
        else:
            shift = features @ self.mean.to(features) - targets
        gram, pull = (features.mT @ each for each in (features, shift))
        tau = self.prior_precision[:, None]
        data = self.precision.lerp(gram.to(self.precision).mul_(weight), rate)
        precision = _with_diagonal(data, rate * tau)
        row, sound = self.row, torch.ones_like(self.prior_precision, dtype=torch.bool)
        if refresh:
            row, sound = cholesky_or_flag(precision)
        slope = weight * pull.double() + tau[..., None] * (self.mean - self.prior_mean)
        mean = natural_gradient_step(self.mean, slope, row, rate=rate)
        return self._with(precision=precision, mean=mean, row=row), sound

    @property
    def directions(self) -> Float[Tensor, " members"]:
        """tr(F V): how many directions of a row of outputs the data determine, at most b."""
        return (self.fisher * self.covariance).sum((1, 2))

    def with_at_most(self, rows: float | Float[Tensor, " members"], *, least: float) -> Self:
        """The prior's precision, raised while a column has more effective parameters than `rows`.

        Their number is tr(P^-1 w H^T H) = a - tau tr(P^-1) (MacKay 1992). It falls no faster than
        1 / tau, so that tau times the excess never goes too far.

        Args:
            rows: The most, above 0; of each member.
            least: tau where that leaves fewer parameters.
        """
        a = self.precision.shape[-1]
        rows = torch.as_tensor(rows).to(self.prior_precision)
        if bool((a <= rows).all()) and bool((self.prior_precision <= least).all()):
            return self
        identity = torch.eye(a).to(self.row).expand_as(self.row)
        inverse = torch.linalg.solve_triangular(self.row, identity, upper=False)
        tau = self.prior_precision
        count = a - tau * inverse.square().sum((1, 2))
        return self._with_prior_precision((tau * count / rows).clamp_min(least))

    def with_evidence(self, *, rate: float) -> Self:
        """The prior's precision, moved towards the one that the evidence prefers (EM)."""
        wanted = update_prior_precision(
            self.mean, self.row, self.column, prior_mean=self.prior_mean
        )
        return self._with_prior_precision(self.prior_precision.log().lerp(wanted.log(), rate).exp())

    def _with_prior_precision(self, tau: Float[Tensor, " members"]) -> Self:
        precision = _with_diagonal(self.precision, (tau - self.prior_precision)[:, None])
        return replace(self, prior_precision=tau, precision=precision)

    def _with(self, **changes: Tensor) -> Self:
        """Contiguous, as they are after a checkpoint: strides decide how products are rounded."""
        return replace(self, **{name: each.contiguous() for name, each in changes.items()})

    def factorised(self, damping: float) -> dict[str, Tensor]:
        """The matrices that must have Cholesky factors, (K, ., .), by name."""
        return {"precision": self.precision, "damped Fisher": _with_diagonal(self.fisher, damping)}

    def finite(self) -> Bool[Tensor, " members"]:
        """Which members' M and P are finite; V is, where it could be factorised."""
        return torch.isfinite(self.mean.sum((1, 2)) + self.precision.sum((1, 2)))

    def where(self, keep: Bool[Tensor, " members"], other: Self) -> Self:
        """The members of `self` where `keep`, those of `other` elsewhere."""
        names = [each.name for each in fields(self)]
        return type(self)(
            **{
                name: members_where(keep, getattr(self, name), getattr(other, name))
                for name in names
            }
        )


def members_where(keep: Bool[Tensor, " members"], new: Tensor, old: Tensor) -> Tensor:
    """The members of `new` (K, ...) where `keep`, those of `old` elsewhere."""
    return torch.where(keep.view(-1, *[1] * (new.ndim - 1)), new, old)


def _with_diagonal(matrix: Tensor, value: float | Tensor) -> Tensor:
    """The matrix plus value * I; large identities would cost more than the sum."""
    result = matrix.clone()
    result.diagonal(dim1=-2, dim2=-1).add_(value)
    return result
