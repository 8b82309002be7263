"""The Gaussian kernel between M members, and its gradient in the members' own coordinates.

    k(w, w') = exp(-D(w, w') / h),    D the squared Euclidean distance of the weights
    h = median of D over pairs / ln(M + 1)                        (Liu & Wang 2016, section 5)

A layer's members are either plain tensors w_i, or low-rank products s B_i A_i, whose coordinates
are the factors. There D adds the squared distance of the products to those of the factors:

    D_ij  =  s^2 |B_i A_i - B_j A_j|^2  +  |A_i - A_j|^2  +  |B_i - B_j|^2

so that k sees what members predict with, and still tells factors of one product (B R, R^-1 A)
apart. A kernel of the products alone moves all such factors alike, and does not bring the law of
members to the posterior's (tests/methods/members/test_interaction.py, on a product of two numbers).
With k_ij = k(w_i, w_j) and the r x r Gram matrices G^A_ij = A_i A_j' and G^B_ij = B_i' B_j:

    <B_i A_i, B_j A_j>      = sum of the entries of G^A_ij * G^B_ij
    sum_j dk_ij / dw_j      = (2 / h) sum_j k_ij (w_i - w_j)
    sum_j dk_ij / dB_j      = (2 / h) sum_j k_ij [ s^2 (B_i G^A_ij - B_j G^A_jj) + B_i - B_j ]
    sum_j dk_ij / dA_j      = (2 / h) sum_j k_ij [ s^2 (G^B_ji A_i - G^B_jj A_j) + A_i - A_j ]

so no product is formed. For members that are close D is a small difference of large numbers, which
is why it is always summed in float64.

This is the repulsion of Stein variational gradient descent, the gradient in the argument of the
*other* member, for which Stein's identity holds. It is not minus the gradient in the member's own
factors, which always drives products apart but leaves no posterior as it is.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.numerics.noise import single_or_better

ROUNDING = 1e-14
"""Squared distances below this part of the squared lengths they are a difference of are zero.

They would be rounding errors of float64: a bandwidth of such a size would turn noise into forces.
The square root, 1e-7, is what float32 can tell apart.
"""

COLUMNS = 2**18
"""Of how many entries at a time a float64 copy is made."""


def median_bandwidth(distances: Float[Tensor, "members members"]) -> Float[Tensor, ""]:
    """h, the median of the squared distances of all pairs over ln(M + 1).

    Such that the kernels of a member with all others sum to about one. It is 1 where there are no
    pairs, or where the median is zero because members coincide; never zero. Pairs of a member with
    itself do not count, unlike in the authors' code.

    Args:
        distances: Squared, symmetric.

    Example:
        >>> median_bandwidth(torch.tensor([[0.0, 2.0], [2.0, 0.0]])).item()  # 2 / ln 3
        1.82...
    """
    members = len(distances)
    if members == 1:
        return torch.ones_like(distances[0, 0])
    row, column = torch.triu_indices(members, members, offset=1, device=distances.device)
    bandwidth = distances[row, column].quantile(0.5) / math.log(members + 1)
    usable = bandwidth > torch.finfo(bandwidth.dtype).tiny  # 2 / h is finite
    return torch.where(usable, bandwidth, torch.ones_like(bandwidth))


def rbf(
    distances: Float[Tensor, "members members"], bandwidth: float | Tensor
) -> Float[Tensor, "members members"]:
    """The kernel of every pair, k = exp(-D / h).

    Args:
        distances: D, squared.
        bandwidth: h > 0, in the unit of D: not squared again, and without a factor of two.

    Example:
        >>> rbf(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), 2.0)[0].tolist()
        [1.0, 0.36...]
    """
    return torch.exp(-distances / bandwidth)


class Coordinates(Protocol):
    """What the members of one layer are made of."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is moved, each (M, ...)."""
        ...

    def distances(self) -> Float[Tensor, "members members"]:
        """The squared distances of the members' weights; float64, with a zero diagonal."""
        ...

    def repulsion(
        self, kernel: Float[Tensor, "members members"], bandwidth: float | Tensor
    ) -> tuple[Tensor, ...]:
        """sum_j dk_ij / dx_j for every tensor x of `tensors`, in its shape and type.

        Args:
            kernel: k, of the distances of this layer or of the sum over several.
            bandwidth: h that belongs to it, taken as constant.
        """
        ...


@dataclass(frozen=True)
class DenseCoordinates:
    """Members that are plain tensors.

    Attributes:
        values: w, (M, *shape).

    Example:
        >>> DenseCoordinates(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).distances().tolist()
        [[0.0, 25.0], [25.0, 0.0]]
    """

    values: Float[Tensor, "members *shape"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights themselves."""
        return (self.values,)

    def distances(self) -> Float[Tensor, "members members"]:
        """From the Gram matrix of the differences to the first member."""
        flat = self.values.reshape(len(self.values), -1)
        gram = flat.new_zeros(len(flat), len(flat), dtype=torch.float64)
        for part in flat.split(COLUMNS, dim=1):
            moved = _from_first(part.double())
            gram = gram + moved @ moved.mT
        return _distances(gram)

    def repulsion(
        self, kernel: Float[Tensor, "members members"], bandwidth: float | Tensor
    ) -> tuple[Tensor, ...]:
        """(2 / h) L w, with the graph Laplacian L = diag(sum_j k_ij) - k."""
        moved = _from_first(self.values.to(single_or_better(self.values.dtype)))
        laplacian = (2 / bandwidth) * (torch.diag(kernel.sum(1)) - kernel)
        return (torch.tensordot(laplacian.to(moved), moved, 1).to(self.values),)


@dataclass(frozen=True)
class ProductCoordinates:
    """Members that are low-rank products scale * up @ down, which are never formed.

    They are compared by their products and their factors.

    Attributes:
        down: A, (M, r, d).
        up: B, (M, m, r).
        scale: s.

    Example:
        >>> up = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
        >>> ProductCoordinates(torch.ones(2, 1, 4), up, scale=0.5).distances().tolist()
        [[0.0, 4.0], [4.0, 0.0]]
    """

    down: Float[Tensor, "members rank inputs"]
    up: Float[Tensor, "members outputs rank"]
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The factors, `down` first."""
        return self.down, self.up

    def distances(self) -> Float[Tensor, "members members"]:
        """From Gram matrices of the factors."""
        down, up = self._grams()
        traces = (each.diagonal(dim1=-2, dim2=-1).sum(-1) for each in (down, up))
        return _distances(self.scale**2 * (down * up).sum((-2, -1)) + sum(traces))

    def repulsion(
        self, kernel: Float[Tensor, "members members"], bandwidth: float | Tensor
    ) -> tuple[Tensor, ...]:
        """In float64 up to the last step, since the two sums of each factor nearly cancel."""
        k = kernel.double().clone().fill_diagonal_(0)  # a member does not repel itself
        gram_a, gram_b = self._grams()
        down = self._away(k, gram_b, self.down.double())
        up = self._away(k, gram_a, self.up.mT.double()).mT
        return (2 / bandwidth * down).to(self.down), (2 / bandwidth * up).to(self.up)

    def _away(self, kernel: Tensor, gram: Tensor, rows: Tensor) -> Tensor:
        """sum_j k_ij [ s^2 (G_ji X_i - G_jj X_j) + X_i - X_j ], (M, r, n), of the rows X."""
        one = torch.eye(rows.shape[1]).to(rows)
        mixing = self.scale**2 * gram + one  # (M, M, r, r)
        own = torch.einsum("ij,jiab->iab", kernel, mixing)
        others = mixing.diagonal(dim1=0, dim2=1).movedim(-1, 0) @ rows
        return own @ rows - torch.tensordot(kernel, others, 1)

    def _grams(self) -> tuple[Tensor, Tensor]:
        """G^A_ij and G^B_ij, (M, M, r, r), as one matrix product each."""
        return _gram(self.down.double()), _gram(self.up.mT.double())


def _gram(rows: Tensor) -> Tensor:
    """X_i X_j' of all pairs of members, (M, M, r, r), from (M, r, n)."""
    members, rank, _ = rows.shape
    flat = rows.reshape(members * rank, -1)
    return (flat @ flat.mT).reshape(members, rank, members, rank).transpose(1, 2)


def _from_first(values: Tensor) -> Tensor:
    """What members share carries no information and all of the rounding errors.

    Any common point would do. Differences to a member are exact where members are close, and zero
    where they coincide, which those to the mean of all are not.
    """
    return values - values[:1]


def _distances(gram: Tensor) -> Tensor:
    """|x_i - x_j|^2 from the inner products of all pairs."""
    squares = gram.diagonal()
    both = squares[:, None] + squares
    distances = both - gram - gram.mT
    return torch.where(distances > ROUNDING * both, distances, torch.zeros_like(distances))
