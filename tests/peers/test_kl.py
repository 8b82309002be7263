"""Our KL against torchbayesian's, which is exact and a sum over weights."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bayesify

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bnn = pytest.importorskip("torchbayesian.bnn")

pytestmark = pytest.mark.peers
RHO = -2.0


@pytest.fixture
def means():
    torch.manual_seed(0)
    return {"weight": torch.randn(10, 20) * 0.3, "bias": torch.randn(10) * 0.3}


def ours(means, prior_scale):
    scale = {name: F.softplus(torch.full_like(each, RHO)) for name, each in means.items()}
    q = bayesify.MeanField(means, scale)
    return q, bayesify.kl_divergence(q, bayesify.NormalPrior(prior_scale))


def theirs(means, prior_scale):
    net = bnn.BayesianModule(nn.Linear(20, 10), prior=("NORMAL", {"mu": 0.0, "sigma": prior_scale}))
    learnt = dict(net.named_parameters())
    for name, value in learnt.items():
        with torch.no_grad():
            value.fill_(RHO) if name.endswith("rho") else value.copy_(means[name.split(".")[-3]])
    return learnt, net.kl_divergence()


def test_the_divergence_of_a_linear_layer_in_nats(means):
    assert ours(means, 1.0)[1].item() == pytest.approx(338.69385, abs=1e-4)
    assert theirs(means, 1.0)[1].item() == pytest.approx(338.69385, abs=1e-4)


@pytest.mark.parametrize("prior_scale", [0.1, 1.0, 3.0])
def test_the_divergence_and_its_gradients_are_theirs(means, prior_scale):
    q, kl = ours(means, prior_scale)
    learnt, their_kl = theirs(means, prior_scale)
    torch.testing.assert_close(kl, their_kl)
    kl.backward()
    their_kl.backward()
    for name in means:
        mine = {"mu": q.loc.named()[name].grad, "rho": q.rho.named()[name].grad}
        for part, gradient in mine.items():
            (other,) = [e.grad for n, e in learnt.items() if n.split(".")[-3::2] == [name, part]]
            torch.testing.assert_close(gradient, other)
