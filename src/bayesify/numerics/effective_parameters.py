"""How many parameters data determine, where layers learn side by side from the same data.

A regression posterior with noise s^2 spreads its outputs at the training data by
E|f - mean f|^2 = p s^2, summed over N examples; p is its effective number of parameters
(Spiegelhalter et al. 2002, p_D), and EM's s^2 <- |y - mean f|^2 / N + (p / N) s^2 settles at
|y - mean f|^2 / (N - p) (MacKay 1992), since p < N in a joint regression. Layers that learn side by
side, each from all the data, have spreads that add up, and p can exceed N: then there is no such
noise, and EM grows without end. Of a residual that p parameters fit one after the other, not
jointly, a share (1 - 1 / N)^p = exp(-p / N) is left; so here 1 - exp(-p / N), below 1, takes the
place of p / N. For p well below N the two agree.
"""

import torch
from jaxtyping import Float
from torch import Tensor

TINY = 1e-30


def with_joint_spread(
    outputs: Float[Tensor, "members batch *dims"],
    mean: Float[Tensor, "members batch *dims"],
    precision: Float[Tensor, ""],
) -> Float[Tensor, "members batch *dims"]:
    """Outputs drawn in, member by member, to the spread 1 - exp(-p / N) in units of the noise.

    Args:
        outputs: Of forward passes with noise in the weights.
        mean: Of the mean weights, for the same inputs.
        precision: 1 / s^2.

    Example:
        >>> one = torch.ones(1, 4, 1)
        >>> with_joint_spread(3 * one, one, torch.tensor(1.0)).square().mean().item()  # p / N = 4
        3.963...
    """
    spread = (outputs - mean).to(precision)
    axes = tuple(range(1, spread.ndim))
    share = spread.square().mean(axes, keepdim=True) * precision  # p / N
    scale = (-torch.expm1(-share) / share.clamp_min(TINY)).sqrt()
    return mean + (spread * scale).to(mean)
