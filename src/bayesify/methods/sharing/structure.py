"""Which Gaussian stands for which weight: the structure of a shared posterior.

Given a mean-field posterior N(loc_i, scale_i^2) of all weights, in units u_t of their tensors:

1. coordinates x_i = (loc_i / u_t, c log(scale_i / u_t)), with c = sqrt(2) times the median of
   scale / u_t, so that a step in either direction costs about as many nats of KL;
2. a Gaussian mixture of K components on a histogram of all x_i;
3. codes: the component most responsible for x_i. Entries whose Mahalanobis distance to it is
   beyond the 95th percentile of chi^2 with 2 degrees of freedom, 5.991, are blended from the two
   most responsible ones, by their responsibilities (the "ellipse points" of the published method);
4. outliers, which keep a Gaussian of their own: the entries of the highest score, and those few
   whose means lie outside the histogram;
5. the book: for each code the Gaussian of least summed KL(book || N(loc_i, scale_i^2)) over its
   entries. Its precision is the mean of their precisions, its mean weighted by them. (With the mean
   of the variances instead, weights that are known well get the noise of those that are not.)

Neighbours among the Gaussians may be merged at any time: `merging.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Named
from bayesify.distributions.mean_field import magnitudes
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.normal import SHARED_LAWS, SharedNormal
from bayesify.numerics.histogram import GRID, Histogram
from bayesify.numerics.mixture import Mixture, assign

ELLIPSE = 5.991
"""The 95th percentile of chi^2 with 2 degrees of freedom."""

TAIL, FEW = 1e-4, 10**5
"""Part of the weights that the histogram leaves out at each side; none where these are few."""

SAMPLE = 2**18
"""Of how many weights the median scale is taken."""

BLENDED = 0.998
"""A blend with more of its first Gaussian than this is that Gaussian: shares are kept as 255ths."""


@dataclass(frozen=True)
class Source:
    """What is to be shared, tensor by tensor, in units, on the CPU.

    Attributes:
        loc: Means in units, flat, by weight name.
        log_scale: Logarithms of standard deviations in units.
        shapes: Of the tensors.
        unit: Root mean square of each tensor.
        stretch: c, of the second coordinate.
        dtype: Of the weights; here they are in float32.
    """

    loc: Named
    log_scale: Named
    shapes: dict[str, torch.Size]
    unit: Tensor
    stretch: float
    dtype: torch.dtype

    @classmethod
    def of(cls, loc: Named, scale: Named, *, flat: bool = False) -> "Source":
        """Of a posterior's means and standard deviations; `flat` leaves the scales out of account.

        Args:
            loc: Means by name.
            scale: Standard deviations > 0, of the same names and shapes.
            flat: Whether weights are alike that have equal means.
        """
        kinds = {each.dtype for each in loc.values()}
        if len(kinds) > 1:
            raise UnsupportedModelError(
                f"weights that share Gaussians: expected one type, got {sorted(map(str, kinds))}; "
                f"convert the network with `.to(dtype)`, or choose weights of one type by `where`."
            )
        unit = magnitudes(loc)
        means = {n: each.detach().flatten().float().cpu() / unit[n] for n, each in loc.items()}
        logs = {n: (scale[n].detach().flatten().float().cpu() / unit[n]).log() for n in loc}
        stride = max(1, sum(map(len, logs.values())) // SAMPLE)
        some = torch.cat([each[::stride] for each in logs.values()])
        return cls(
            means,
            logs,
            {name: each.shape for name, each in loc.items()},
            torch.tensor(list(unit.values())),
            0.0 if flat else math.sqrt(2) * some.median().exp().item(),
            next(iter(loc.values())).dtype,
        )

    @cached_property
    def histogram(self) -> Histogram:
        """Of the coordinates of all weights."""

        def chunks() -> Iterator[Tensor]:
            return map(self.points, self.loc)

        few = sum(map(len, self.loc.values())) < FEW
        shape = GRID if self.stretch else (2**16, 1)
        return Histogram.of(chunks, shape=shape, tail=0.0 if few else TAIL)

    @cached_property
    def bins(self) -> Named:
        """Which bin of the histogram each weight is in."""
        return {name: self.histogram.bins(self.points(name)) for name in self.loc}

    def points(self, name: str) -> Float[Tensor, "weights 2"]:
        """Coordinates of the weights of one tensor."""
        return torch.stack([self.loc[name], self.stretch * self.log_scale[name]], 1)

    def beyond(self, name: str) -> Tensor:
        """Which weights have means outside the histogram, whose border bins would clip them."""
        grid, loc = self.histogram, self.loc[name]
        low, width = grid.lower[0], grid.width[0]
        return (loc < low - width) | (loc > low + (grid.shape[0] + 1) * width)

    def items(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, mean and log scale of each tensor."""
        for name, loc in self.loc.items():
            yield name, loc, self.log_scale[name]


@dataclass(frozen=True)
class Structure:
    """Which Gaussian stands for which weight.

    Attributes:
        coded: How each tensor refers to the book.
        mixture: The Gaussians, in the coordinates of the source.
    """

    coded: dict[str, CodedTensor]
    mixture: Mixture


def structured(
    source: Source,
    mixture: Mixture,
    outliers: dict[str, Integer[Tensor, " outliers"]],
    *,
    blending: bool,
) -> Structure:
    """Codes of all weights by responsibility, blends among those that are no outliers.

    Args:
        source: What is to be shared.
        mixture: Its Gaussians.
        outliers: Sorted positions by weight name.
        blending: Whether entries far from their Gaussian are blended of two.
    """
    found = assign(mixture, source.histogram.mean)
    far = (found.mahalanobis > ELLIPSE) & (found.first != found.second) & (found.alpha < BLENDED)
    coded = {}
    for name, place in source.bins.items():
        blends = torch.empty(0, dtype=torch.long)
        if blending:
            candidates = far[place]
            candidates[outliers[name]] = False
            blends = candidates.nonzero()[:, 0]
        at = place[blends].long()
        coded[name] = CodedTensor(
            found.first[place].view(source.shapes[name]),
            outliers[name],
            blends,
            found.second[at],
            found.alpha[at],
        )
    return Structure(coded, mixture)


def top(scores: Named, share: float) -> dict[str, Integer[Tensor, " outliers"]]:
    """Sorted positions of the highest scores, `share` of all of them, by weight name."""
    total = sum(len(each) for each in scores.values())
    size = round(share * total)
    if not size:
        return {name: torch.empty(0, dtype=torch.long) for name in scores}
    values, at = torch.cat(list(scores.values())).topk(size, sorted=False)
    del values
    at = at.sort().values
    found, start = {}, 0
    for name, each in scores.items():
        inside = (at >= start) & (at < start + len(each))
        found[name] = at[inside] - start
        start += len(each)
    return found


def quantisation_error(source: Source, q: SharedNormal) -> Named:
    """(loc_i - loc_z)^2 / scale_i^2: twice what the mean of a code costs in nats, by weight."""
    with torch.no_grad():
        return {
            name: (loc - q.loc[q.tensors()[name].codes.flatten().long()]).square()
            * (-2 * log_scale).exp()
            for name, loc, log_scale in source.items()
        }


def booked(source: Source, structure: Structure, law: str) -> SharedNormal:
    """The numbers of the book and of the outliers.

    Under the laws of independent weights by the least summed KL divergence, under the shared ones
    by moments.
    """
    coded, mixture = structure.coded, structure.mixture
    sums = torch.zeros(8, len(mixture.count), dtype=torch.float64)
    by_tensor = []
    for name, loc, log_scale in source.items():
        alone = coded[name].alone()
        codes = coded[name].codes.flatten()[alone].int()
        mean, log = loc[alone].double(), log_scale[alone].double()
        precision = torch.ones_like(log) if law == "fixed" else (-2 * log).exp()
        if law == "per_layer":  # of all entries where none is alone
            known = precision if len(alone) else (-2 * log_scale.double()).exp()
            by_tensor.append(-known.mean().log() / 2)
        terms = [torch.ones_like(mean), precision, precision * mean]
        if law in SHARED_LAWS:
            terms += [mean, log, mean * mean, mean * log, log * log]
        for total, each in zip(sums, terms, strict=False):
            total += torch.bincount(codes, each, minlength=len(total))
    count = sums[0].clamp_min(1)
    centers, used = mixture.loc, sums[0] > 0  # a code of blends alone stays where it was
    old_scale = centers[:, 1] / (source.stretch or 1.0)
    spread = None
    if law in SHARED_LAWS:
        mean, log, mm, ml, ll = sums[3:] / count
        spread = factors(mm - mean**2, ml - mean * log, ll - log**2)
    else:
        mean, log = sums[2] / sums[1].clamp_min(1e-300), -(sums[1] / count).log() / 2
    scale = torch.stack(by_tensor) if by_tensor else torch.where(used, log, old_scale)
    own = [
        torch.cat([each[name][coded[name].outliers.long()] for name in coded])
        for each in (source.loc, source.log_scale)
    ]
    numbers = (
        source.unit,
        torch.where(used, mean, centers[:, 0]),
        torch.zeros_like(mean) if law == "fixed" else scale,
        *own,
    )
    return SharedNormal(
        coded,
        *(each.to(source.dtype) for each in numbers),
        spread=None if spread is None else spread.to(source.dtype),
        law=law,
    )


def factors(a: Tensor, b: Tensor, c: Tensor) -> Float[Tensor, "codes 3"]:
    """Entries (1,1), (2,1), (2,2) of Cholesky factors of [[a, b], [b, c]], semi-definite."""
    first = a.clamp_min(1e-12).sqrt()
    below = b / first
    return torch.stack([first, below, (c - below.square()).clamp_min(1e-12).sqrt()], 1)
