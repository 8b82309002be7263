import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesify import Bernoulli, Categorical, MeanField, WeightPosterior
from bayesify.evaluation.robustness.attacks import fgsm
from bayesify.evaluation.robustness.loss_gradient import Slope


@pytest.fixture
def posterior():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    return WeightPosterior(net, MeanField.around(net, scale=0.05), Categorical())


@pytest.fixture
def images(generator):
    return torch.randn(5, 3, 8, 8, generator=generator), torch.arange(5) % 4


def test_the_loss_is_minus_the_log_odds_and_the_slope_its_own(posterior, images):
    x, y = images
    slope = Slope(posterior, y, num_samples=6)
    x.requires_grad_()
    probs = posterior.outputs(x, num_samples=6).softmax(2).mean(0)
    truth = probs.gather(1, y[:, None])[:, 0]
    odds = (truth / (1 - truth)).log()
    torch.testing.assert_close(slope.loss(x), -odds)
    (want,) = torch.autograd.grad(-odds.sum(), x)
    torch.testing.assert_close(slope.gradient(x), want)


def test_labels_that_are_no_classes_have_their_log_probability(generator):
    net = nn.Linear(3, 2)
    posterior = WeightPosterior(net, MeanField.around(net, scale=0.1), Bernoulli())
    x, y = torch.randn(4, 3, generator=generator), torch.tensor([[0.0, 1.0]]).expand(4, 2)
    logits = posterior.outputs(x, num_samples=3)
    each = F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none")
    want = -(-each.sum(2)).exp().mean(0).log()  # of all labels together
    torch.testing.assert_close(Slope(posterior, y, num_samples=3).loss(x), want)


def test_half_of_the_digits_point_the_same_way(posterior, images):
    x, y = images
    full, half = (
        Slope(posterior, y, num_samples=4, precision=each).gradient(x)
        for each in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert not half.equal(full)
    cosine = F.cosine_similarity(full.flatten(1), half.flatten(1))
    assert (cosine > 1 - 2**-8).all()  # its relative error of rounding


def test_only_the_gradient_is_computed_in_half_of_the_digits(posterior, images):
    x, y = images
    full, half = (Slope(posterior, y, num_samples=4, precision=p) for p in ("float32", "bfloat16"))
    assert half.loss(x).equal(full.loss(x))
    assert not torch.is_autocast_enabled("cpu")


def test_an_attack_passes_its_precision_on(posterior, images):
    x, y = images
    for precision in ("float32", "bfloat16"):
        gradient = Slope(posterior, y, num_samples=20, precision=precision).gradient(x)
        got = fgsm(posterior, x, y, eps=0.1, precision=precision)
        torch.testing.assert_close(got, x + 0.1 * gradient.sign())


@pytest.mark.parametrize("likelihood", [Categorical, Bernoulli])
def test_what_is_climbed_is_the_loss_of_the_predictive_by_probit(likelihood, generator):
    net = nn.Linear(3, 2)
    q = MeanField.around(net, scale=2.0)
    posterior = WeightPosterior(net, q, likelihood(), average="probit")
    x = torch.randn(4, 3, generator=generator)
    y = torch.arange(4) % 2 if likelihood is Categorical else torch.ones(4, 2)
    slope = Slope(posterior, y, num_samples=5)
    predictive = posterior.predict(x, num_samples=5)
    probs = predictive.log_prob(y).exp()
    want = (probs / (1 - probs)).log() if likelihood is Categorical else probs.log()
    torch.testing.assert_close(slope.loss(x).detach(), -want, rtol=1e-4, atol=1e-4)
    ahead, behind = (slope.loss(x + each * torch.eye(3)[0]).detach() for each in (0.01, -0.01))
    got = slope.gradient(x)[:, 0]
    torch.testing.assert_close(got, (ahead - behind) / 0.02, rtol=1e-2, atol=1e-2)
