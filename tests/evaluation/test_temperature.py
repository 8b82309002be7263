import pytest
import torch
from torch import nn

from bayesify import Gaussian, MeanField, WeightPosterior, temperature_scaled
from bayesify.errors import UnsupportedModelError
from bayesify.likelihoods import Categorical


@pytest.fixture
def overconfident() -> tuple[WeightPosterior, tuple[torch.Tensor, torch.Tensor]]:
    """Logits three times too large for the labels, which are drawn from the honest ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 4, generator=generator)
    net = nn.Linear(4, 3)
    honest = net(x).detach()
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    with torch.no_grad():
        for each in net.parameters():
            each.mul_(3)
    posterior = WeightPosterior(net, MeanField.around(net, scale=1e-6), Categorical())
    return posterior, (x, labels)


def test_it_finds_how_much_too_large_the_logits_are(overconfident):
    posterior, data = overconfident
    scaled = temperature_scaled(posterior, data, num_samples=2)
    assert scaled.likelihood.logit_temperature == pytest.approx(3.0, rel=0.15)
    before, after = posterior.predict(data[0]), scaled.predict(data[0])
    assert after.log_prob(data[1]).mean() > before.log_prob(data[1]).mean() + 0.05
    assert torch.equal(after.probs.argmax(1), before.probs.argmax(1))


def test_the_posterior_itself_is_not_changed_and_its_weights_are_shared(overconfident):
    posterior, data = overconfident
    scaled = temperature_scaled(posterior, data, num_samples=2)
    assert posterior.likelihood.logit_temperature == 1.0
    assert scaled.q is posterior.q


def test_scaling_what_is_scaled_changes_nothing_more(overconfident):
    posterior, data = overconfident
    once = temperature_scaled(posterior, data, num_samples=2)
    twice = temperature_scaled(once, data, num_samples=2)
    want = once.likelihood.logit_temperature
    assert twice.likelihood.logit_temperature == pytest.approx(want, rel=1e-2)


def test_only_classes_can_be_scaled():
    net = nn.Linear(4, 1)
    posterior = WeightPosterior(net, MeanField.around(net), Gaussian(1.0))
    with pytest.raises(UnsupportedModelError, match="needs a categorical likelihood, got Gaussian"):
        temperature_scaled(posterior, (torch.randn(5, 4), torch.randn(5)))
