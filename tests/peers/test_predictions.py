"""Our predictions against posteriors' diagonal Gaussian, sampled and pushed through by vmap."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import bayesify

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    posteriors = pytest.importorskip("posteriors")
    torchopt = pytest.importorskip("torchopt")

pytestmark = pytest.mark.peers
LOG_SCALE = -2.0


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def state(net):
    means = {name: each.detach().clone() for name, each in net.named_parameters()}
    transform = posteriors.vi.diag.build(
        lambda weights, batch: (torch.tensor(0.0), None),
        torchopt.adam(lr=1e-3),
        init_log_sds=LOG_SCALE,
    )
    return transform.init(means)


def test_the_same_weights_give_the_same_probabilities(net, state):
    x = torch.randn(7, 4)
    weights = dict(posteriors.vi.diag.sample(state, (64,)))
    theirs = vmap(lambda each: functional_call(net, each, (x,)))(weights)
    ours = bayesify.WeightPosterior(net, bayesify.Particles(weights, {}), bayesify.Categorical())
    predictive = ours.predict(x)
    torch.testing.assert_close(predictive.logits, theirs)
    torch.testing.assert_close(predictive.probs, theirs.softmax(2).mean(0))


def test_the_same_means_and_scales_give_the_same_moments(net, state):
    """Of the logits, within five standard errors of samples drawn independently."""
    number, x = 20_000, torch.randn(3, 4)
    q = bayesify.MeanField(
        dict(state.params),
        {name: each.exp() for name, each in dict(state.log_sd_diag).items()},
    )
    ours = bayesify.WeightPosterior(net, q, bayesify.Categorical()).predict(x, num_samples=number)
    weights = dict(posteriors.vi.diag.sample(state, (number,)))
    theirs = vmap(lambda each: functional_call(net, each, (x,)))(weights)
    variance = theirs.var(0)
    error = (2 * variance / number).sqrt()  # of the difference of two means
    assert ((ours.logits.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert ((ours.logits.var(0) / variance - 1).abs() < 5 * (4 / number) ** 0.5).all()
