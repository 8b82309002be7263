import pytest
import torch
from torch import nn

from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.distributions.priors import NormalPrior
from bayesify.forward import outputs as forward
from bayesify.likelihoods import Categorical, Gaussian
from bayesify.training.objective import elbo_terms, member_losses, negative_elbo
from zoo import NETS

PRIOR = NormalPrior(0.7)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0, 3.0])
def test_the_loss_is_nll_plus_the_whole_divergence_over_the_data(temperature):
    net, data = NETS["mlp"].model(), NETS["mlp"].data(30)
    q = MeanField.around(net, scale=0.2)
    raw = forward.local_outputs(net, q, data.inputs, 5, generator=seeded())
    nll = nn.functional.cross_entropy(raw.flatten(0, 1), data.target.repeat(5))
    want = nll + temperature * kl_divergence(q, PRIOR) / 1000
    got = negative_elbo(
        net,
        q,
        Categorical(),
        PRIOR,
        data.inputs,
        data.target,
        num_data=1000,
        temperature=temperature,
        num_samples=5,
        generator=seeded(),
    )
    torch.testing.assert_close(got, want)


def test_the_terms_are_named_and_in_nats():
    net, data = NETS["mlp"].model(), NETS["mlp"].data(30)
    q = MeanField.around(net, scale=0.2)
    terms = elbo_terms(
        net, q, Categorical(), PRIOR, data.inputs, data.target, num_data=30, generator=seeded()
    )
    torch.testing.assert_close(terms.kl, kl_divergence(q, PRIOR))
    torch.testing.assert_close(terms.loss, terms.nll + terms.kl / 30)


def test_the_scale_does_not_depend_on_the_batch():
    net, data = NETS["mlp"].model(), NETS["mlp"].data(64)
    q = MeanField.around(net, scale=1e-6)
    whole, half = (
        negative_elbo(
            net, q, Categorical(), PRIOR, data.inputs[:n], data.target[:n], num_data=64
        ).item()
        for n in (64, 32)
    )
    kl = kl_divergence(q, PRIOR).item() / 64
    other = negative_elbo(
        net, q, Categorical(), PRIOR, data.inputs[32:], data.target[32:], num_data=64
    ).item()
    assert whole - kl == pytest.approx((half + other) / 2 - kl, abs=1e-4)


def test_gradients_reach_means_scales_and_a_learnt_noise():
    net, likelihood = nn.Linear(3, 1), Gaussian("learnt")
    q = MeanField.around(net, scale=0.2)
    x, y = torch.randn(20, 3), torch.randn(20)
    negative_elbo(net, q, likelihood, PRIOR, x, y, num_data=20).backward()
    for each in (*q.parameters(), *likelihood.parameters()):
        assert each.grad.abs().sum() > 0


def test_members_have_losses_and_gradients_of_their_own():
    models, data = [NETS["mlp"].model(seed) for seed in range(3)], NETS["mlp"].data(30)
    q = Particles.of_models(models)
    losses = member_losses(models[0], q, Categorical(), data.inputs, data.target)
    alone = [nn.functional.cross_entropy(m(data.inputs), data.target) for m in models]
    torch.testing.assert_close(losses, torch.stack(alone))
    losses.sum().backward()
    for loss in alone:
        loss.backward()
    for name, each in q.members.named().items():
        want = torch.stack([model.get_parameter(name).grad for model in models])
        torch.testing.assert_close(each.grad, want, rtol=1e-4, atol=1e-6)
