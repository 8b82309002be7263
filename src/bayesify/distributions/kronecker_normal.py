"""Independent Gaussian tensors, each with a Kronecker-factored curvature and a prior.

A tensor of shape (a, ...) is a matrix (a, b); its numbers, row after row, have the precision

    P = (U kron V) diag(u v^T + tau) (U kron V)^T,    U (a, a), V (b, b) orthogonal
    W = M + U [Z / sqrt(u v^T + tau)] V^T,            Z of independent standard normals

U, u and V, v are eigenvectors and eigenvalues of the two Kronecker factors of the curvature, and
tau is the prior's precision, which no Kronecker product could hold exactly. A tensor may have one
factor alone (biases do): P = U diag(u + tau) U^T over all its numbers.
Source: Martens & Grosse 2015, arXiv 1503.05671; Ritter et al. 2018 (ICLR); with the prior in the
eigenbasis Immer et al. 2021, arXiv 2104.04975.
Cost: a^2 + b^2 numbers for the a b of a weight; two products of matrices for each sample.
"""

import math
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.core.errors import OptionError, ShapeError
from bayesify.core.types import Named
from bayesify.distributions.base import Located, check_factor, learnt_as
from bayesify.numerics.noise import standard_normal_rows
from bayesify.weights.named import copied
from bayesify.weights.store import Store, part

FIELDS = ("loc", "left", "left_values", "right", "right_values", "prior")


class KroneckerNormal(Located):
    """Gaussians over the named weights in `loc`, independent between tensors.

    Args:
        loc: Means, in the shapes of the weights. Copied.
        left: By name, eigenvectors U as columns, (a, a). a is the length of the tensor's first
            axis; for a tensor without a right factor, how many numbers it has.
        left_values: By name, eigenvalues u, 0 or above, (a,).
        right: By name, eigenvectors V, (b, b), where a b is the number of numbers; may lack names.
        right_values: By name, eigenvalues v, (b,), of the same names.
        prior: By name, tau > 0, without an axis.

    Raises:
        ShapeError: names or shapes do not belong together.
        OptionError: an eigenvalue below 0, or a prior that is not above 0.

    Example:
        >>> q = KroneckerNormal(
        ...     {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)},
        ...     left={"weight": torch.eye(2), "bias": torch.eye(2)},
        ...     left_values={"weight": torch.ones(2), "bias": torch.ones(2)},
        ...     right={"weight": torch.eye(3)},
        ...     right_values={"weight": torch.ones(3)},
        ...     prior={"weight": torch.tensor(3.0), "bias": torch.tensor(3.0)},
        ... )
        >>> q.scale["bias"].tolist(), q.sample(4)["weight"].shape
        ([0.5, 0.5], torch.Size([4, 2, 3]))
    """

    def __init__(
        self,
        loc: Named,
        left: Named,
        left_values: Named,
        right: Named,
        right_values: Named,
        prior: Named,
    ) -> None:
        super().__init__(loc)
        _check(loc, left, left_values, right, right_values, prior)
        self.left = Store(_in_order(left), trainable=True)
        self.left_values = Store(copied(left_values), trainable=True)
        self.right = Store(_in_order(right), trainable=True)
        self.right_values = Store(copied(right_values), trainable=True)
        self.prior = Store(copied(prior), trainable=True)

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`."""
        return cls(*(part(state, field) for field in FIELDS))

    @property
    def scale(self) -> Named:
        """Standard deviations, in the shapes of the weights."""
        loc = self.loc.named()
        return {
            name: each.sqrt().view(loc[name].shape).to(loc[name])
            for name, each in self.variance().items()
        }

    def spectrum(self) -> Named:
        """Eigenvalues of each tensor's precision, u v^T + tau, (a, b); b = 1 without v."""
        left, right, prior = (
            each.named() for each in (self.left_values, self.right_values, self.prior)
        )
        return {
            name: torch.outer(u, right[name] if name in right else u.new_ones(1)) + prior[name]
            for name, u in left.items()
        }

    def variance(self) -> Named:
        """The diagonal of each tensor's covariance, (a, b)."""
        left, right = self.left.named(), self.right.named()
        variance: Named = {}
        for name, spectrum in self.spectrum().items():
            rows = left[name].square() @ spectrum.reciprocal()  # (a, b)
            variance[name] = rows @ right[name].square().mT if name in right else rows
        return variance

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Named:
        """N reparametrised samples: name -> (n, *shape)."""
        loc, left, right = (each.named() for each in (self.loc, self.left, self.right))
        spectrum = self.spectrum()
        like = next(iter(left.values()))
        sizes = [each.numel() for each in loc.values()]
        noise = standard_normal_rows(n, sum(sizes), like, generator).split(sizes, dim=1)
        sampled: Named = {}
        for (name, mean), each in zip(loc.items(), noise, strict=True):
            precision = spectrum[name]
            around = each.reshape(n, *precision.shape) * precision.rsqrt()  # (n, a, b)
            # one product for each sample, so that it does not depend on how many there are
            around = torch.bmm(left[name].expand(n, -1, -1), around)
            if name in right:
                around = torch.bmm(around, right[name].mT.expand(n, -1, -1))
            sampled[name] = mean + around.reshape(n, *mean.shape).to(mean.dtype)
        return sampled

    def log_determinant(self) -> Float[Tensor, ""]:
        """ln|P|, of all tensors together."""
        return torch.stack([each.log().sum() for each in self.spectrum().values()]).sum()

    def scaled(self, factor: float) -> Self:
        """The same means, with every standard deviation multiplied by `factor`.

        Raises:
            OptionError: when `factor` is not a finite number above 0.

        Example:
            >>> one, eye = {"w": torch.ones(1)}, {"w": torch.eye(1)}
            >>> q = KroneckerNormal(one, eye, one, {}, {}, {"w": torch.tensor(3.0)})
            >>> [each.scale["w"].item() for each in (q, q.scaled(2.0))]
            [0.5, 1.0]
        """
        check_factor(factor)
        held = {field: getattr(self, field).named() for field in FIELDS}
        for field in ("left_values", "prior"):
            held[field] = {name: each / factor**2 for name, each in held[field].items()}
        return learnt_as(self, type(self)(**held))


def _in_order(vectors: Named) -> Named:
    """Copies that lie row after row, as files hold them: products of others differ in a bit."""
    return {name: each.contiguous() for name, each in copied(vectors).items()}


def _check(
    loc: Named, left: Named, left_values: Named, right: Named, right_values: Named, prior: Named
) -> None:
    """Names, shapes and signs; errors as of `KroneckerNormal`."""
    for field, named in (("left", left), ("left_values", left_values), ("prior", prior)):
        if list(named) != list(loc):
            raise ShapeError(f"{field}: expected the names {list(loc)}, got {list(named)}.")
    if set(right) != set(right_values) or not set(right) <= set(loc):
        raise ShapeError(
            f"right and right_values: expected the same names, of {list(loc)}, got {list(right)} "
            f"and {list(right_values)}."
        )
    for name, mean in loc.items():
        a, b = len(left_values[name]), len(right_values[name]) if name in right else 1
        if a * b != mean.numel():
            raise ShapeError(
                f"{name!r} {tuple(mean.shape)}: expected eigenvalues for {mean.numel()} numbers, "
                f"got {a} on the left and {b} on the right."
            )
        for field, each, size in (("left", left, a), ("right", right, b)):
            if name in each and each[name].shape != (size, size):
                raise ShapeError(
                    f"{field} of {name!r}: expected the shape {(size, size)}, got "
                    f"{tuple(each[name].shape)}."
                )
        values = [left_values[name], *([right_values[name]] if name in right else [])]
        if not all(bool(((each >= 0) & each.isfinite()).all()) for each in values):
            raise OptionError(f"eigenvalues of {name!r}: expected finite numbers of 0 or above.")
        if prior[name].ndim or not 0 < prior[name].item() < math.inf:
            raise OptionError(f"prior of {name!r}: expected one finite number above 0.")
