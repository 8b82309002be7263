import math

import pytest
import torch
from torch import nn

from bayesify import MAP, Gaussian, fit


def test_a_linear_model_becomes_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator).double()
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.3 * torch.randn(50, generator=generator)
    noise, prior = 0.5, 0.4
    method = MAP(epochs=800, lr=0.05, prior_scale=prior)
    net = nn.Linear(3, 1).double()
    posterior = fit(net, (x, y), method, likelihood=Gaussian(noise), batch_size=50)
    ones = torch.cat([x, torch.ones(50, 1).double()], 1)
    gram = ones.T @ ones + torch.eye(4).double() * (noise / prior) ** 2
    want = torch.linalg.solve(gram, ones.T @ y)
    point = posterior.point()
    got = torch.cat([point["weight"][0], point["bias"]])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_learnt_noise_reaches_the_residual_and_has_no_prior():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator)
    y = x[:, 0] + 0.05 * torch.randn(200, generator=generator)
    method = MAP(epochs=300, lr=0.05, prior_scale=0.5)
    posterior = fit(nn.Linear(2, 1), (x, y), method, likelihood="gaussian", batch_size=200)
    predictive = posterior.predict(x)
    residual = (y - predictive.mean[:, 0]).square().mean().sqrt()
    assert predictive.scale.item() == pytest.approx(residual.item(), rel=0.02)
    assert abs(math.log(residual)) > 2  # far from the start, where a prior would hold it


def test_it_is_one_sample_around_the_trained_weights():
    x = torch.randn(64, 4)
    posterior = fit(nn.Linear(4, 3), (x, torch.randint(3, (64,))), MAP(epochs=1))
    outputs = posterior.outputs(x, num_samples=9)
    want = torch.nn.functional.linear(x, *posterior.point().values())
    torch.testing.assert_close(outputs[0].detach(), want)
    assert posterior.predict(x).mutual_information().max() < 1e-6


def test_the_rate_falls_to_nothing():
    x, y = torch.randn(64, 4), torch.randint(2, (64,))
    first = fit(nn.Linear(4, 2), (x, y), MAP(epochs=40, lr=0.1))
    losses = [entry["loss"] for entry in first.record.history]
    assert losses[-1] < losses[0]
    assert abs(losses[-1] - losses[-2]) < 1e-3
