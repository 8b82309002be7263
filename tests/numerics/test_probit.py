import math

import pytest
import torch

from bayesify.numerics.probit import damped


def test_a_sigmoid_of_the_damped_logit_is_nearly_the_average_of_sigmoids():
    nodes, weights = torch.tensor(  # Gauss-Hermite would do; a fine grid is plainer
        [[z, math.exp(-z * z / 2)] for z in torch.linspace(-8, 8, 4001).tolist()],
        dtype=torch.float64,
    ).T
    weights = weights / weights.sum()
    for mean in (-3.0, 0.0, 0.5, 2.0):
        for variance in (0.1, 1.0, 10.0):
            exact = (weights * torch.sigmoid(mean + variance**0.5 * nodes)).sum().item()
            got = torch.sigmoid(damped(torch.tensor(mean), torch.tensor(variance))).item()
            assert got == pytest.approx(exact, abs=0.02)
