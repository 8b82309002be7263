"""Gaussians shared by many weights: a codebook, a code for each weight, outliers of their own.

    w_i = unit_t * u_i,    u_i ~ N(loc_z, scale_z^2),    z = code of weight i of tensor t

"2DGBNN" (Lin et al. 2025, arXiv 2505.17856): an entry of the codebook is a point (loc, log scale),
or a 2-D Gaussian around it; the weights of tensor t are measured in its unit (root mean square), so
that all tensors share one book. Laws, as the published line "w_i ~ sum_k pi_k N(mu_k, Sigma_k)" and
the released code leave open which is meant:

    per_weight   u_i ~ N(loc_z, scale_z^2), each weight for itself: a mean-field posterior in few
                 numbers, which may use local reparameterisation
    per_layer    the same with one scale a tensor, so that codes stand for means alone
    shared_loc   u_k ~ N(loc_k, spread_k,11^2), one number for all weights of a code
    shared       the same with u_k ~ N(m, s^2), (m, log s)_k ~ N((loc, log scale)_k, L_k L_k^T)
    fixed        u_i = loc_z: a quantised network without noise

Outliers are independent under every law; a blend is share * u_z + (1 - share) * u_z', two draws.
Cost: 1 to 2 bytes a weight in memory. To be learnt are two numbers an outlier, and 2 K per_weight
and shared_loc, K + T per_layer, 5 K shared; fixed K and one number an outlier.
"""

import math
from collections.abc import Mapping
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.errors import (
    BayesifyError,
    LoadError,
    OptionError,
    ShapeError,
    UnsupportedModelError,
)
from bayesify.core.types import Named
from bayesify.distributions.base import WeightDistribution, check_factor
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.packed import pack_state, unpack_state
from bayesify.numerics.noise import standard_normal_rows
from bayesify.weights.gaussian import gaussian_weights
from bayesify.weights.noise_scope import Scopes
from bayesify.weights.store import decode, encode

SHARED_LAWS = ("shared_loc", "shared")
LAWS = ("per_weight", "per_layer", *SHARED_LAWS, "fixed")


class SharedNormal(WeightDistribution):
    """Gaussians by code over the named tensors of `coded`.

    Args:
        coded: How each tensor refers to the book, by weight name.
        unit: (T,) scale > 0 of each tensor, in the order of `coded`.
        loc: (K,) means, in units.
        log_scale: (K,) logarithms of standard deviations in units; (T,) under "per_layer".
        own_loc: (O,) means of all outliers, tensor after tensor, in units.
        own_log_scale: (O,) of their standard deviations.
        spread: (K, 3) entries (1,1), (2,1), (2,2) of the Cholesky factors of the 2-D Gaussians,
            which the shared laws read; "shared_loc" reads and keeps the first. Zero if not given.
        law: See above.

    Raises:
        ShapeError: numbers do not match, or a code has no entry in the book.
        OptionError: an unknown law, or a unit of 0.
        UnsupportedModelError: a name with a slash.

    Example:
        >>> coded = {"weight": CodedTensor(torch.tensor([[0, 1, 1]]))}
        >>> book = torch.tensor([-1.0, 2.0])
        >>> q = SharedNormal(coded, torch.ones(1), book, torch.full((2,), -3.0))
        >>> q.point()["weight"]
        tensor([[-1.,  2.,  2.]])
        >>> sum(each.numel() for each in q.parameters())
        4
    """

    unit: Tensor
    law_number: Tensor
    counts: Tensor

    def __init__(
        self,
        coded: Mapping[str, CodedTensor],
        unit: Float[Tensor, " tensors"],
        loc: Float[Tensor, " codes"],
        log_scale: Float[Tensor, " scales"],
        own_loc: Float[Tensor, " outliers"] | None = None,
        own_log_scale: Float[Tensor, " outliers"] | None = None,
        *,
        spread: Float[Tensor, "rows entries"] | None = None,
        law: str = "per_weight",
    ) -> None:
        super().__init__()
        if law not in LAWS:
            raise OptionError(f"law={law!r}: expected one of {', '.join(LAWS)}.")
        if not bool((unit > 0).all()):
            raise OptionError("unit: expected a scale above 0 for every tensor.")
        for name in coded:
            if "/" in name:
                raise UnsupportedModelError(f"weight name {name!r} holds a '/', please rename it.")
        self.law = law
        size, outliers = len(loc), sum(each.own_count for each in coded.values())
        empty = loc.new_empty(0)
        self.coded = nn.ModuleDict({encode(name): each for name, each in coded.items()})
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_scale = nn.Parameter(log_scale.detach().clone())
        self.own_loc = nn.Parameter((empty if own_loc is None else own_loc).detach().clone())
        self.own_log_scale = nn.Parameter(
            (empty if own_log_scale is None else own_log_scale).detach().clone()
        )
        self.register_buffer("unit", unit.detach().clone().to(loc.dtype))
        self.register_buffer("law_number", torch.tensor(LAWS.index(law), dtype=torch.uint8))
        expected = {
            "unit": (self.unit, (len(coded),)),
            "log_scale": (self.log_scale, (len(coded) if law == "per_layer" else size,)),
            "own_loc": (self.own_loc, (outliers,)),
            "own_log_scale": (self.own_log_scale, (outliers,)),
        }
        if self.is_shared:
            spread = loc.new_zeros(size, 3) if spread is None else spread
            kept = spread if law == "shared" else spread[:, :1]
            self.spread = nn.Parameter(kept.detach().clone())
            expected["spread"] = self.spread, (size, 3 if law == "shared" else 1)
        self.log_scale.requires_grad_(law not in ("shared_loc", "fixed"))
        self.own_log_scale.requires_grad_(law != "fixed")
        for name, (each, shape) in expected.items():
            if each.shape != shape:
                raise ShapeError(f"{name}: expected {shape}, got {tuple(each.shape)}.")
        self.register_buffer("counts", self._counted(coded), persistent=False)  # (T, K)

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        tensors: dict[str, Named] = {}
        for name, each in state.items():
            if name.startswith("coded."):
                tensor, field = name.removeprefix("coded.").rsplit(".", 1)
                tensors.setdefault(decode(tensor), {})[field] = each
        plain = {n: e for n, e in state.items() if not n.startswith("coded.")}
        law = LAWS[int(plain.pop("law_number"))]
        return cls({n: CodedTensor(**fields) for n, fields in tensors.items()}, **plain, law=law)

    @classmethod
    def from_stored(cls, stored: Named) -> Self:
        """See `packed_normal`."""
        state = unpack_state(stored)
        try:
            return cls.from_state(state)
        except (BayesifyError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise LoadError(f"a damaged {cls.__name__} ({error}); save it again.") from error

    def stored(self) -> Named:
        """See `packed_normal`."""
        return pack_state(self.state_dict())

    @property
    def is_shared(self) -> bool:
        """Whether the weights of a code are one number in a sample."""
        return self.law in SHARED_LAWS

    @property
    def names(self) -> list[str]:
        """Names of the random weights."""
        return [decode(name) for name in self.coded]

    def tensors(self) -> dict[str, CodedTensor]:
        """How each tensor refers to the book."""
        return {decode(name): each for name, each in self.coded.items()}  # type: ignore[misc]

    def tally(self) -> dict[str, int]:
        """How many Gaussians are shared, and how many weights are outliers or blended."""
        return {
            "gaussians": len(self.loc),
            "outliers": len(self.own_loc),
            "blended": sum(len(each.blends) for each in self.tensors().values()),
        }

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Named:
        """N reparametrised samples: name -> (n, *shape)."""
        if self.law == "fixed":
            return {name: each.expand(n, *each.shape) for name, each in self._means().items()}
        size = sum(each.codes.numel() for each in self.tensors().values())
        if self.is_shared:
            size = self.spread.numel() + len(self.own_loc)
        eps = standard_normal_rows(n, size, self.loc, generator)
        return self._shared_sample(eps) if self.is_shared else self._own_sample(eps)

    def weights(self, draw_one: Named) -> Named:
        """A sample is in the weights' own coordinates already."""
        return draw_one

    @torch.no_grad()
    def point(self) -> Named:
        """The means."""
        return self._means()

    def local_weights(
        self, *, generator: torch.Generator | None = None, scopes: Scopes | None = None
    ) -> Named:
        """Structured weights, as of `MeanField`; one sample where weights share a draw."""
        if self.is_shared or self.law == "fixed":
            return super().local_weights(generator=generator)
        return gaussian_weights(self._means(), self.scale(), generator, scopes)

    def scale(self) -> Named:
        """Standard deviation of every weight, in the shapes of the weights."""
        parts = self._own_variances().split(self._own_counts)
        together = zip(
            self.tensors().items(), self.unit, self.variance_by_code(), parts, strict=True
        )
        return {
            name: coded.gather(variance, part, power=2).sqrt() * unit
            for (name, coded), unit, variance, part in together
        }

    def scaled(self, factor: float) -> "SharedNormal":
        """The same with all standard deviations multiplied by `factor` > 0."""
        check_factor(factor)
        again = self._copy()
        with torch.no_grad():
            again.log_scale += math.log(factor)
            again.own_log_scale += math.log(factor)
            if self.is_shared:
                again.spread[:, 0] *= factor
        return again

    def rounded(self) -> "SharedNormal":
        """With learnt numbers in float16; log scales of outliers in sixteenths, if in range."""
        again = self._copy()
        with torch.no_grad():
            for each in again.parameters():
                each.copy_(each.half())
            steps = (16 * again.own_log_scale).round()
            if not len(steps) or steps.abs().max() < 128:  # what a byte holds
                again.own_log_scale.copy_(steps / 16)
        return again

    def compacted(self) -> "SharedNormal":
        """The same without the codes that no weight has."""
        used = self.counts.sum(0) > 0
        for each in self.tensors().values():
            used[each.codes.flatten()[each.blends.long()].int()] = True
            used[each.second.int()] = True
        used[0] |= not used.any()
        new = (used.cumsum(0) - 1).clamp_min(0)
        by_code = ["loc", "spread", *(["log_scale"] if self.law != "per_layer" else [])]
        numbers = {n: e[used] for n, e in self.named_parameters(recurse=False) if n in by_code}
        return self.replaced({n: e.recoded(new) for n, e in self.tensors().items()}, **numbers)

    def restructure_(self, coded: Mapping[str, CodedTensor]) -> None:
        """Exchange the codes and blends, in place; the outliers must stay which they are.

        Raises:
            ShapeError: other names or other numbers of outliers, or a code beyond the book.
        """
        held, new = ({n: e.own_count for n, e in each.items()} for each in (self.tensors(), coded))
        if list(held.items()) != list(new.items()):
            raise ShapeError(f"expected tensors with outliers {held} in this order, got {new}.")
        self.counts = self._counted(coded)
        self.coded = nn.ModuleDict({encode(name): each for name, each in coded.items()})

    def parameter_groups(self, *, lr: float, scale_lr: float) -> list[dict[str, object]]:
        """Two groups for a torch optimiser: the means, and the scales with a rate of their own."""
        spread = [self.spread] if self.is_shared else []
        return [
            {"params": [self.loc, self.own_loc], "lr": lr},
            {"params": [self.log_scale, self.own_log_scale, *spread], "lr": scale_lr},
        ]

    def replaced(self, coded: Mapping[str, CodedTensor], **numbers: Tensor) -> "SharedNormal":
        """The same law and units with other codes and numbers; those not given stay."""
        held = dict(self.named_parameters(recurse=False))
        again = SharedNormal(coded, **held | {"unit": self.unit} | numbers, law=self.law)
        for name, each in again.named_parameters():
            each.requires_grad_(held[name].requires_grad)
        return again

    def variance_by_code(self) -> Float[Tensor, "tensors codes"]:
        """Variance of one weight of each code in each tensor, in units squared."""
        if self.law == "per_layer":
            return (2 * self.log_scale).exp()[:, None].expand(-1, len(self.loc))
        if self.law == "fixed":
            variance = torch.zeros_like(self.loc)
        elif self.law == "shared_loc":
            variance = self.spread[:, 0].square()
        else:
            variance = (2 * self.log_scale).exp()
        if self.law == "shared":  # E[s^2] of a log-normal scale, and the variance of its mean
            loc, below, across = self.spread.square().unbind(1)
            variance = variance * (2 * (below + across)).exp() + loc
        return variance.expand(len(self.unit), -1)

    def log_scale_by_code(self, tensor: int) -> Float[Tensor, " codes"]:
        """Expected logarithm of the standard deviation that a draw has, in units."""
        if self.law == "shared_loc":
            return self.spread[:, 0].abs().log()
        if self.law == "per_layer":
            return self.log_scale[tensor].expand(len(self.loc))
        return self.log_scale

    def own_part(self, tensor: int) -> tuple[Tensor, Tensor, Tensor]:
        """Means, variances and log scales of the outliers of one tensor, in units."""
        held = self.own_loc, self._own_variances(), self.own_log_scale
        loc, variance, log_scale = (each.split(self._own_counts)[tensor] for each in held)
        return loc, variance, log_scale

    @property
    def _own_counts(self) -> list[int]:
        return [each.own_count for each in self.tensors().values()]

    def _own_variances(self) -> Tensor:
        variance = (2 * self.own_log_scale).exp()
        return torch.zeros_like(variance) if self.law == "fixed" else variance

    def _counted(self, coded: Mapping[str, CodedTensor]) -> Tensor:
        for name, each in coded.items():
            if each.highest >= len(self.loc):
                raise ShapeError(
                    f"coded[{name!r}]: expected codes below {len(self.loc)}, got {each.highest}."
                )
        return torch.stack([each.counts(len(self.loc)) for each in coded.values()])

    def _means(self) -> Named:
        return self._gathered(self.loc, self.own_loc)

    def _gathered(self, book: Tensor, own: Tensor) -> Named:
        parts = own.split(self._own_counts, -1)
        return {
            name: coded.gather(book, part) * unit
            for (name, coded), unit, part in zip(
                self.tensors().items(), self.unit, parts, strict=True
            )
        }

    def _own_sample(self, eps: Tensor) -> Named:
        loc, scale = self._means(), self.scale()
        parts = eps.split([each.numel() for each in loc.values()], 1)
        return {
            name: torch.addcmul(mean, scale[name], each.view(-1, *mean.shape))
            for (name, mean), each in zip(loc.items(), parts, strict=True)
        }

    def _shared_sample(self, eps: Tensor) -> Named:
        """Draws the book (n, K), then gathers."""
        book, own = eps.split([self.spread.numel(), len(self.own_loc)], 1)
        first, *others = book.unflatten(1, (-1, len(self.loc))).unbind(1)  # (n, K) each
        value = self.loc + self.spread[:, 0] * first
        if self.law == "shared":
            second, third = others
            log_scale = self.log_scale + self.spread[:, 1] * first + self.spread[:, 2] * second
            value = value + log_scale.exp() * third
        return self._gathered(value, self.own_loc + self.own_log_scale.exp() * own)

    def _copy(self) -> "SharedNormal":
        return self.replaced({name: each.twin() for name, each in self.tensors().items()})
