"""What members do to each other's gradients: Stein variational gradient descent, and clipping.

Liu & Wang 2016, arXiv 1608.04471, eq. 8; the arithmetic is in `numerics/svgd.py`. On the library's
scale, gradients g_j are of the loss per example, -(1/N) log p(w_j | D), so

    g_i  <-  1/M sum_j [ k(w_j, w_i) g_j  -  (T / N) grad_{w_j} k(w_j, w_i) ]

T = 1 targets the posterior of what is learnt, for low-rank members that of their factors. Since the
repulsion is divided by N it is tiny on data of real size; a loss that is a mean with an undivided
repulsion, as often seen, means T = N. All members must have seen the same batch, since the kernel
mixes their gradients.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.particles import Particles
from bayesify.numerics.svgd import svgd_direction


@torch.no_grad()
def svgd_(
    q: Particles | LowRankParticles,
    *,
    num_data: int,
    temperature: float = 1.0,
    kernel: str = "product",
) -> None:
    """Replace the gradients of q's parameters by the direction of SVGD, in place.

    Call it between `backward()` and the optimiser's step.

    Args:
        q: Members; their `.grad` is that of the sum of the members' losses per example, the prior
            included.
        num_data: Training examples N.
        temperature: T, of the repulsion.
        kernel: What low-rank members are compared by: "product", their factors and the products of
            these, or "factor", the factors alone. Full members are compared in their weights.

    Example:
        >>> from bayesify.training.objective import member_losses
        >>> from bayesify.likelihoods import Categorical
        >>> net = torch.nn.Linear(4, 3)
        >>> q = LowRankParticles.around(net, members=3, rank=1, noise=0.1)
        >>> x, y = torch.randn(8, 4), torch.randint(3, (8,))
        >>> member_losses(net, q, Categorical(), x, y).sum().backward()
        >>> svgd_(q, num_data=8)
    """
    blocks = q.coordinates(kernel)
    directions = svgd_direction(
        blocks,
        [tuple(_gradient(each) for each in block.tensors) for block in blocks],
        repulsion=temperature / num_data,
    )
    for block, direction in zip(blocks, directions, strict=True):
        for each, found in zip(block.tensors, direction, strict=True):
            each.grad = found.to(each.dtype)


@torch.no_grad()
def clip_members_(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale each member's gradient down to a norm of at most `limit`, in place.

    A norm over all members at once would let one of them slow the others.

    Args:
        parameters: (M, ...) with `.grad`, all of one set of members.
        limit: Largest norm over all coordinates of a member.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    if not gradients:
        return
    squares = torch.stack([_rows(each).float().square().sum(1) for each in gradients]).sum(0)
    shrink = (limit / squares.sqrt().clamp_min(1e-30)).clamp_max(1.0)  # (M,)
    for each in gradients:
        each.mul_(shrink.to(each.dtype).view(-1, *[1] * (each.ndim - 1)))


def _rows(each: Tensor) -> Tensor:
    """(M, coordinates), also of a weight that is a single number, (M,)."""
    return each.reshape(len(each), -1)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
