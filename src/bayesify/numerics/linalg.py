"""Cholesky factors of many matrices at once, and what is said when one does not exist.

    A = L L',    L lower triangular with a positive diagonal

Leading axes are members. A factorisation that fails is tried once more with a jitter,

    (A + A') / 2 + JITTER * mean_i |A_ii| * I,

for the failing members only: the others keep the factor of what they are. Matrices are never
inverted; whoever needs A^-1 x solves with L.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayesify.core.errors import NotPositiveDefiniteError
from bayesify.numerics.noise import single_or_better

JITTER = 1e-6
"""What the second try adds to the diagonal, as a part of the mean absolute diagonal.

Several rounding errors of float32, so that a Gram matrix that is singular, and indefinite by
rounding alone, is mended; a matrix that is truly indefinite is not.
"""


def cholesky(matrix: Float[Tensor, "*members n n"], *, name: str) -> Float[Tensor, "*members n n"]:
    """Lower Cholesky factors of all members, after at most one jitter.

    Args:
        matrix: Symmetric positive definite matrices, of any float type; the factors have the same.
        name: What the matrix is, for the message: "precision of layer 'fc1'".

    Raises:
        NotPositiveDefiniteError: when a member has no factor even with the jitter.

    Example:
        >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 5.0]]), name="covariance").tolist()
        [[2.0, 0.0], [1.0, 2.0]]
    """
    lower, ok = cholesky_or_flag(matrix)
    if not ok.all():
        raise NotPositiveDefiniteError(_complaint(matrix, ok, name))
    return lower


def cholesky_or_flag(
    matrix: Float[Tensor, "*members n n"],
) -> tuple[Float[Tensor, "*members n n"], Bool[Tensor, "*members"]]:
    """`cholesky` for loops that mend a failing member themselves: it never raises.

    Returns:
        The lower factors, the identity where there is none, and a mask that is False there. A
        member with an entry that is NaN or infinite, also above the diagonal, has no factor.

    Example:
        >>> lower, ok = cholesky_or_flag(torch.tensor([[[4.0]], [[-1.0]]]))
        >>> lower.flatten().tolist(), ok.tolist()
        ([2.0, 1.0], [True, False])
    """
    # Half types have no factorisation of their own.
    wide = matrix.to(single_or_better(matrix.dtype))
    lower, ok = _attempt(wide)
    if not ok.all():
        retried, mended = _attempt(_jittered(wide))
        identity = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
        fallback = torch.where(mended[..., None, None], retried, identity)
        lower, ok = torch.where(ok[..., None, None], lower, fallback), ok | mended
    return lower.to(matrix.dtype), ok


def log_determinant(lower: Float[Tensor, "*members n n"]) -> Float[Tensor, "*members"]:
    """The logarithm of |A|, A = L L', from its factor.

    Example:
        >>> log_determinant(torch.diag(torch.tensor([1.0, 2.0]))).exp().item()
        4.0
    """
    return 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _attempt(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Factors as LAPACK leaves them, and which of them can be used."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    # LAPACK reads one triangle only, and not every backend reports a NaN that it met.
    return lower, (info == 0) & _finite(matrix) & _finite(lower)


def _finite(matrix: Tensor) -> Tensor:
    """Which members have finite entries only; without a mask as large as the matrix."""
    return matrix.amax((-2, -1)).isfinite() & matrix.amin((-2, -1)).isfinite()


def _jittered(matrix: Tensor) -> Tensor:
    size = matrix.diagonal(dim1=-2, dim2=-1).abs().mean(-1)  # (*members)
    shift = JITTER * size[..., None].expand(matrix.shape[:-1])
    return _symmetric(matrix) + torch.diag_embed(shift)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * matrix + 0.5 * matrix.mT


def _complaint(matrix: Tensor, ok: Tensor, name: str) -> str:
    """What is wrong with the first member that failed, and what to do."""
    first = int((~ok).flatten().nonzero()[0])
    bad = matrix.detach().reshape(-1, *matrix.shape[-2:])[first]
    place = f", member {first} of {ok.numel()} (from 0)" if ok.ndim else ""
    strange = int((~bad.isfinite()).sum())
    if strange:
        return (
            f"{name}{place}: expected a positive definite matrix, got one with {strange} of "
            f"{bad.numel()} entries NaN or infinite; check that the inputs are finite, and lower "
            f"the learning rate if training diverged."
        )
    smallest = torch.linalg.eigvalsh(_symmetric(bad.double()))[0].item()
    return (
        f"{name}{place}: expected a positive definite matrix, got one with smallest eigenvalue "
        f"{smallest:.4g}, and {JITTER:g} of its mean diagonal, added once, did not mend it; raise "
        f"the prior precision or the damping, or lower the learning rate."
    )
