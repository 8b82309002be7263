"""Copy to tests/methods/test_<name>.py. The conformance suites need nothing from you."""

import torch
from torch import nn

import bayesify


def test_posterior_of_linear_regression_is_the_known_one(generator):
    x = torch.randn(50, 3, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(50, 1, generator=generator)
    net = nn.Linear(3, 1, bias=False)
    precision = x.T @ x / 0.1**2 + torch.eye(3)
    mean = torch.linalg.solve(precision, x.T @ y / 0.1**2).T
    posterior = bayesify.fit(net, (x, y), bayesify.MAP(), likelihood=bayesify.Gaussian(0.1))
    torch.testing.assert_close(posterior.point()["weight"], mean, atol=1e-2, rtol=1e-2)
