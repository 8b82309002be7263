import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn

from bayesify import Gaussian, MeanField, Particles, WeightPosterior, temperature_scaled
from bayesify.core.errors import UnsupportedModelError
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


def test_by_probit_it_is_the_damped_logits_that_are_scaled(overconfident):
    narrow, data = overconfident
    q = MeanField.around(narrow.model, scale=0.5)
    posterior = WeightPosterior(narrow.model, q, Categorical(), average="probit")
    scaled = temperature_scaled(posterior, data)
    logits, t = posterior.predict(data[0]).damped, scaled.likelihood.logit_temperature
    alone = WeightPosterior(narrow.model, Particles.of_models([narrow.model]), Categorical())
    own = temperature_scaled(alone, data).likelihood.logit_temperature
    assert 1 < t < own - 0.3  # some of the excess is damped already
    torch.testing.assert_close(scaled.predict(data[0]).probs, (logits / t).softmax(1))
    assert torch.equal(
        scaled.predict(data[0]).mutual_information(),
        posterior.predict(data[0]).mutual_information(),
    )


def test_logits_far_too_large_are_scaled_by_what_fits_their_exact_probabilities():
    """Probabilities below 1e-38 count in full: the truth is scipy's fit to the logits."""
    generator = torch.Generator().manual_seed(0)
    honest = 3 * torch.randn(10_000, 10, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    net = nn.Linear(10, 10, bias=False)
    net.weight.data = 15 * torch.eye(10)
    posterior = WeightPosterior(net, Particles.of_models([net]), Categorical())
    found = temperature_scaled(posterior, (honest, labels)).likelihood.logit_temperature
    logits, rows = 15 * honest.double().numpy(), np.arange(10_000)

    def loss(log_t):
        fitting = log_softmax(logits / np.exp(log_t), 1)[rows, labels.numpy()].sum()
        return -fitting + log_t**2 / (2 * 0.5**2)

    best = minimize_scalar(loss, bounds=(2, 3), method="bounded", options={"xatol": 1e-9}).x
    assert found == pytest.approx(np.exp(best), rel=1e-4)
    assert found == pytest.approx(15, rel=0.04)


def test_the_posterior_itself_is_not_changed_and_its_weights_are_shared(overconfident):
    posterior, data = overconfident
    scaled = temperature_scaled(posterior, data, num_samples=2)
    assert posterior.likelihood.logit_temperature == 1.0
    assert scaled.q is posterior.q


def test_scaling_what_is_scaled_changes_nothing_more(overconfident):
    posterior, data = overconfident
    once = temperature_scaled(posterior, data, num_samples=2)
    twice = temperature_scaled(once, data, num_samples=2)
    assert twice.likelihood.logit_temperature == once.likelihood.logit_temperature


def test_only_classes_can_be_scaled():
    net = nn.Linear(4, 1)
    posterior = WeightPosterior(net, MeanField.around(net), Gaussian(1.0))
    with pytest.raises(UnsupportedModelError, match="needs a categorical likelihood, got Gaussian"):
        temperature_scaled(posterior, (torch.randn(5, 4), torch.randn(5)))
