"""Tuning of a book of Gaussians by the ELBO, and what happens to its structure between epochs."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.distributions.mean_field import magnitudes
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.methods.sharing.merging import MergeLimits, current, merge
from bayesify.methods.sharing.structure import Source, factors
from bayesify.methods.vi.mean_field import ELBO, prior_in_units
from bayesify.numerics.wasserstein import merged
from bayesify.training.problem import Problem


@dataclass(frozen=True)
class TuningOptions:
    """What `WeightSharing` says about it, under the same names."""

    epochs: int
    lr: float
    scale_lr: float
    prior_scale: float
    prior_loc: str
    temperature: float
    limits: MergeLimits | None


class Tuning(ELBO):
    """Gradient steps on the codebook and the outliers, and what happens between epochs."""

    def __init__(
        self, options: TuningOptions, problem: Problem, source: Source, q: SharedNormal
    ) -> None:
        problem.model.eval().requires_grad_(False)
        start = q.point()
        prior = prior_in_units(start, magnitudes(start), options.prior_scale, options.prior_loc)
        super().__init__(problem, q, prior, temperature=options.temperature)
        self._options, self._source = options, source
        self._gradient, self._steps = torch.zeros_like(q.loc), 0

    @property
    def book(self) -> SharedNormal:
        """The codebook, with the codes of all weights; it is q."""
        return cast(SharedNormal, self.q)

    def direct_(self) -> None:
        """Note the gradient of the means, which decides what is merged."""
        if self.book.loc.grad is not None:
            self._gradient += self.book.loc.grad
            self._steps += 1

    def restructure(self) -> None:
        """Merge. Weights follow their Gaussians, and numbers stay in their places.

        Weights do not choose anew: the book has moved in training, and their own points have not.
        """
        limits, source, q = self._options.limits, self._source, self.book
        if limits is None:
            return
        mixture, codes = current(source, q)
        count, slope = mixture.count, self._gradient.cpu()[codes] / max(1, self._steps)
        mixture, group = merge(mixture, limits, slope)
        first = torch.full((len(mixture.count),), len(codes))
        place = codes[first.scatter_reduce(0, group, torch.arange(len(codes)), "amin")]
        with torch.no_grad():
            if q.is_shared:
                self._pool_spreads(codes, count, group, place)
            q.loc[place] = mixture.loc[:, 0].to(q.loc)
            if q.law != "per_layer":
                q.log_scale[place] = (mixture.loc[:, 1] / source.stretch).to(q.loc)
        new = torch.arange(len(q.loc))
        new[codes] = place[group]
        new = new.to(q.loc.device)
        q.restructure_({name: each.recoded(new) for name, each in q.tensors().items()})
        self._gradient.zero_()
        self._steps = 0

    def _pool_spreads(self, codes: Tensor, count: Tensor, group: Tensor, place: Tensor) -> None:
        """Of the codes that are merged, with the moments of all; other laws have none."""
        q, width = self.book, self.book.spread.shape[1]
        a, b, c = F.pad(q.spread[codes].double().cpu(), (0, 3 - width)).T
        covariance = torch.stack([a * a, a * b, a * b, b * b + c * c], 1).view(-1, 2, 2)
        loc = torch.stack([q.loc[codes], q.log_scale[codes]], 1).double().cpu()
        _, _, s = merged(count, loc, covariance, group)
        several = group.bincount() > 1
        pooled = factors(s[:, 0, 0], s[:, 0, 1], s[:, 1, 1])[several, :width]
        q.spread[place[several]] = pooled.to(q.spread)
