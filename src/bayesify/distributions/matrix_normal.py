"""Matrix-normal layers: every layer's weights and bias one Gaussian with Kronecker covariance.

    W~ = [weight, bias]^T ~ MN(M, P^-1, V)      cov vec(W~) = V (x) P^-1,   P = L L^T,  V = C C^T
    W~ = M + L^-T E C^T,                        E of independent standard normals

W~ has shape (a, b): a features (fan-in, and 1 for a bias), b outputs. Layers are independent. With
K > 1 members it is the mixture of K such laws with equal weights, sampled in turn (sample i is of
member i mod K), so that any number of samples is spread evenly. Weights that are no layers (norms'
gains) and buffers are points, one setting per member.
Source: Gupta & Nagar 1999, Matrix Variate Distributions, chapter 2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import ShapeError
from bayesify.core.types import Named
from bayesify.distributions.base import WeightDistribution
from bayesify.numerics.matrix_normal import draw
from bayesify.numerics.noise import standard_normal_rows
from bayesify.weights.named import copied
from bayesify.weights.store import Store, part


@dataclass(frozen=True)
class Layer:
    """Names of a layer's weight and bias; the bias is None where the law does not hold one."""

    weight: str
    bias: str | None

    @property
    def names(self) -> list[str]:
        """Weight first."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class MatrixNormal(WeightDistribution):
    """Independent matrix-normal layers, or a mixture of K settings of them.

    Args:
        loc: Means by name, (K, *shape of the weight); a bias stands right behind its
            weight. Copied.
        row: By weight name, lower Cholesky factor L of the row precision P, (K, a, a); a is
            fan-in, plus one where the next name in `loc` is the layer's bias.
        column: By weight name, lower Cholesky factor C of the column covariance V, (K, b, b).
        points: Other weights, (K, *shape), which do not vary within a member.
        buffers: Buffers, (K, *shape).
        prior_precision: By weight name, tau of the prior MN(0, I / tau, V), (K,); kept so that
            learning can go on. May be empty.

    Example:
        >>> q = MatrixNormal(
        ...     {"weight": torch.zeros(1, 2, 3), "bias": torch.zeros(1, 2)},
        ...     row={"weight": torch.eye(4)[None]},
        ...     column={"weight": torch.eye(2)[None]},
        ... )
        >>> {name: tuple(each.shape) for name, each in q.sample(5).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}
    """

    def __init__(
        self,
        loc: Named,
        row: Named,
        column: Named,
        *,
        points: Named | None = None,
        buffers: Named | None = None,
        prior_precision: Named | None = None,
    ) -> None:
        super().__init__()
        self.layers = _layers(loc, row, column)
        _check_members(loc, row, column, points or {}, buffers or {}, prior_precision or {})
        self.loc = Store(copied(loc), trainable=True)
        self.row = Store(_in_rows(row), trainable=True)
        self.column = Store(_in_rows(column), trainable=True)
        self.points = Store(copied(points or {}), trainable=True)
        self.statistics = Store(copied(buffers or {}), trainable=False)
        self.prior_precision = Store(copied(prior_precision or {}), trainable=False)

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        return cls(
            part(state, "loc"),
            part(state, "row"),
            part(state, "column"),
            points=part(state, "points"),
            buffers=part(state, "statistics"),
            prior_precision=part(state, "prior_precision"),
        )

    @property
    def names(self) -> list[str]:
        """Names of the layers' weights and biases, of the other weights, and of the buffers."""
        return [*self.loc.named(), *self.points.named(), *self.statistics.named()]

    @property
    def members(self) -> int:
        """K."""
        return len(next(iter(self.loc.parameters())))

    @property
    def networks(self) -> int:
        """K, as each begins at a network of its own."""
        return self.members

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Named:
        """N samples: name -> (n, *shape)."""
        return self._sample(0, n, generator)

    def draws(
        self, n: int, chunk_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[Named]:
        """The samples of `sample(n)` in chunks."""
        for start in range(0, n, chunk_size):
            yield self._sample(start, min(chunk_size, n - start), generator)

    def weights(self, draw_one: Named) -> Named:
        """A sample is in the weights' own coordinates already."""
        return draw_one

    def point(self) -> Named:
        """The means; with several members the mean of theirs."""
        loc, points = self.loc.named(), self.points.named()
        fixed = {n: e for n, e in self.statistics.named().items() if not e.is_floating_point()}
        varying = loc | points | self.statistics.named()
        return {
            name: (each[0] if name in fixed else each.mean(0)).detach()
            for name, each in varying.items()
        }

    def _sample(self, start: int, n: int, generator: torch.Generator | None) -> Named:
        """Samples number start to start + n."""
        loc, row, column = self.loc.named(), self.row.named(), self.column.named()
        shapes = [
            (row[each.weight].shape[-1], column[each.weight].shape[-1]) for each in self.layers
        ]
        first = row[self.layers[0].weight]
        noise = standard_normal_rows(n, sum(a * b for a, b in shapes), first, generator)
        pieces = noise.split([a * b for a, b in shapes], dim=1)
        member = torch.arange(start, start + n, device=first.device) % self.members
        sampled: Named = {}
        for layer, piece, shape in zip(self.layers, pieces, shapes, strict=True):
            around = self._around(layer, piece.reshape(n, *shape), start)  # (n, a, b)
            weight = loc[layer.weight]
            flat = around if layer.bias is None else around[:, :-1]
            shift = flat.mT.reshape(n, *weight.shape[1:])
            sampled[layer.weight] = _of(weight, member) + shift.to(weight)
            if layer.bias is not None:
                bias = loc[layer.bias]
                sampled[layer.bias] = _of(bias, member) + around[:, -1].to(bias)
        kept = self.points.named() | self.statistics.named()
        return sampled | {name: _of(each, member) for name, each in kept.items()}

    def _around(self, layer: Layer, noise: Tensor, start: int) -> Tensor:
        """Zero-mean samples (n, a, b). One solve per member, for all its samples at once."""
        row, column = self.row.named()[layer.weight], self.column.named()[layer.weight]
        (n, a, b), k = noise.shape, self.members
        before = start % k
        rounds = -(-(before + n) // k)  # each gives every member one sample
        filled = F.pad(noise, (0, 0, 0, 0, before, rounds * k - before - n))
        around = draw(row.new_zeros(k, a, b), row, column, filled.view(rounds, k, a, b))
        return around.reshape(rounds * k, a, b)[before : before + n]


def _of(members: Tensor, index: Tensor) -> Tensor:
    """Row `index` of the members, (n, ...); not copied where there is one member alone."""
    return members.expand(len(index), *members.shape[1:]) if len(members) == 1 else members[index]


def _in_rows(factors: Named) -> Named:
    """A copy in the order that files hold.

    A Cholesky factor comes in columns, and products of one in another order may differ in their
    last bit, by the machine.
    """
    kept = torch.contiguous_format
    return {name: each.detach().clone(memory_format=kept) for name, each in factors.items()}


def _layers(loc: Named, row: Named, column: Named) -> list[Layer]:
    """Which names of `loc` form a layer.

    Raises:
        ShapeError: names or shapes do not belong together.
    """
    if list(row) != list(column):
        raise ShapeError(
            f"expected row and column factors for the same weights, got {list(row)} "
            f"and {list(column)}."
        )
    names, layers = iter(loc), []
    for weight in row:
        if next(names, None) != weight:
            raise ShapeError(
                f"expected the weights {list(row)} in loc, each with its bias behind "
                f"it, got {list(loc)}."
            )
        shape = loc[weight].shape
        a, b = row[weight].shape[-1], column[weight].shape[-1]
        fan_in = shape[2:].numel()
        if b != shape[1] or a - fan_in not in (0, 1):
            raise ShapeError(
                f"{weight!r} {tuple(shape)}: expected a row factor of {fan_in} (or {fan_in + 1} "
                f"with a bias) and a column factor of {shape[1]}, got {a} and {b}."
            )
        bias = next(names, None) if a > fan_in else None
        if a > fan_in and (bias is None or loc[bias].shape != shape[:2]):
            got = None if bias is None else f"{bias!r} {tuple(loc[bias].shape)}"
            raise ShapeError(
                f"{weight!r} {tuple(shape)}: expected its bias {tuple(shape[:2])} behind it, as "
                f"its row factor is of {a} features, one more than its fan-in; got {got}."
            )
        layers.append(Layer(weight, bias))
    if not layers:
        raise ShapeError("expected at least one weight with a row and a column factor, got none.")
    if left := list(names):
        raise ShapeError(f"{left} in loc belong to no layer; give other weights as points.")
    return layers


def _check_members(loc: Named, row: Named, column: Named, *rest: Named) -> None:
    """Everything has K members, and factors are square.

    Raises:
        ShapeError: something has not.
    """
    k = len(next(iter(loc.values())))
    for kind, named in (("row", row), ("column", column)):
        for name, each in named.items():
            size = each.shape[-1]
            if each.shape != (k, size, size):
                raise ShapeError(
                    f"{kind} factor of {name!r}: expected the shape {(k, size, size)}, got "
                    f"{tuple(each.shape)}."
                )
    for name, each in [pair for named in (loc, *rest) for pair in named.items()]:
        if each.shape[:1] != (k,):
            raise ShapeError(
                f"{name!r}: expected {k} members in front, as of the first weight, got "
                f"{tuple(each.shape)}."
            )
