"""The direction of Stein variational gradient descent (Liu & Wang 2016, arXiv 1608.04471, eq. 8).

With g the gradient of the loss per example, -(1/N) grad ln p(w | D), M members descend along

    phi(w_i) = 1/M sum_j [ k(w_j, w_i) g_j - (T/N) grad_{w_j} k(w_j, w_i) ]

which is the paper's direction over -N at temperature T = 1: gradients shared among members that are
close, and a repulsion that keeps these apart. With one member, or without the second term and from
one start, it is gradient descent to a mode. One kernel serves all layers: D is the sum of the
layers' squared distances, that of all weights. Members that are products of factors are moved in
their factors, which are then w: whatever the kernel reads, both terms are gradients with respect to
the factors of member j, so that by Stein's identity the posterior of the factors does not move;
with kernels that tell all factors apart, as those in `numerics/kernels.py` do, no other law stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesify.numerics.kernels import Coordinates, median_bandwidth, rbf
from bayesify.numerics.noise import single_or_better


@torch.no_grad()
def svgd_direction(
    coordinates: Sequence[Coordinates],
    gradients: Sequence[tuple[Tensor, ...]],
    *,
    repulsion: float,
    bandwidth: Tensor | float | None = None,
) -> list[tuple[Tensor, ...]]:
    """What to descend along: phi, for every tensor of every layer.

    Args:
        coordinates: The members, layer by layer.
        gradients: g, of the loss per example, shaped as the layers' `tensors`. Not touched.
        repulsion: T / N.
        bandwidth: h; by the median rule, anew in every call, when None.

    Returns:
        Tensors of the shapes and types of the gradients, without a graph. With M = 1 they equal
        the gradients.

    Example:
        >>> from bayesify.numerics.kernels import DenseCoordinates
        >>> members = torch.tensor([[-1.0], [1.0]])
        >>> flat = [(torch.zeros(2, 1),)]  # nothing but repulsion
        >>> [(phi,)] = svgd_direction([DenseCoordinates(members)], flat, repulsion=1.0)
        >>> (members - phi).flatten().tolist()
        [-1.18..., 1.18...]
    """
    distances = torch.stack([each.distances() for each in coordinates]).sum(0)
    h = median_bandwidth(distances) if bandwidth is None else bandwidth
    kernel = rbf(distances, h)
    return [
        tuple(
            _direction(kernel, gradient, repulsion * away)
            for gradient, away in zip(layer, each.repulsion(kernel, h), strict=True)
        )
        for each, layer in zip(coordinates, gradients, strict=True)
    ]


def _direction(kernel: Tensor, gradient: Tensor, away: Tensor) -> Tensor:
    wide = gradient.to(single_or_better(gradient.dtype))
    shared = torch.tensordot(kernel.to(wide), wide, 1)
    return ((shared - away) / len(kernel)).to(gradient.dtype)
