import math

import pytest
import torch

from bayesify.numerics.effective_parameters import with_joint_spread


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0, 4.0])
def test_the_spread_is_what_parameters_fitted_one_after_the_other_leave(share, generator):
    """Truth: p parameters fit 1 / N of what is left, one after the other."""
    noise, count = 0.3, 1000
    mean = torch.randn(1, count, 1, generator=generator).double()
    around = torch.randn(1, count, 1, generator=generator).double()
    around *= noise * math.sqrt(share) / around.square().mean().sqrt()
    drawn = with_joint_spread(mean + around, mean, torch.tensor(noise**-2).double())
    left = (1 - 1 / count) ** (share * count)
    assert (drawn - mean).square().mean().item() / noise**2 == pytest.approx(1 - left, rel=2e-3)


def test_members_have_spreads_of_their_own_and_none_stays_none():
    mean = torch.zeros(2, 5, 1)
    outputs = torch.stack([torch.zeros(5, 1), torch.ones(5, 1)])
    drawn = with_joint_spread(outputs, mean, torch.tensor(1.0))
    assert drawn[0].abs().max() == 0
    assert drawn[1, 0].item() == pytest.approx(math.sqrt(1 - math.exp(-1)))
