"""Damped logits: closed forms, the integral they approximate, and what they are a posterior for."""

import math

import pytest
import torch
from torch import nn

from bayesify import (
    BALI,
    MAP,
    Attacks,
    Bernoulli,
    Categorical,
    Ensemble,
    Gaussian,
    MeanField,
    NormalPrior,
    certify,
    fit,
    load,
    save,
)
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.evaluation.diagnosis.far_away import far_away_limit
from bayesify.evaluation.guarantees.certificates import sampled_risk
from bayesify.evaluation.robustness.curves import robustness
from bayesify.experiments.measure import samples_used
from bayesify.posteriors.linearised import LinearisedPosterior
from bayesify.posteriors.probit import LinearisedProbitPosterior, ProbitPosterior, damped
from bayesify.posteriors.scale import rescaled
from bayesify.posteriors.weight import WeightPosterior


def around(net: nn.Module, scale: float = 0.7) -> MeanField:
    return MeanField.around(net, scale=scale)


def test_the_variance_is_that_of_the_outputs_in_closed_form():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    out = ProbitPosterior(net, around(net), Categorical()).outputs(x, num_samples=20_000)
    variance = 0.49 * (x.square().sum(1, keepdim=True) + 1)  # of every logit: weights and bias
    expected = net(x).detach() / (1 + math.pi / 8 * variance).sqrt()
    torch.testing.assert_close(out.detach(), expected[None], rtol=0.01, atol=1e-3)


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


def test_without_noise_it_is_the_network():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)
    for kind in (ProbitPosterior, LinearisedProbitPosterior):
        out = kind(net, around(net, 1e-9), Categorical()).outputs(x)
        assert out.shape == (1, 5, 3)
        torch.testing.assert_close(out[0], net(x))


def test_more_noise_is_less_confidence_and_never_another_order():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 1), torch.randn(50, 4)
    narrow, wide = (
        ProbitPosterior(net, around(net, scale), Bernoulli()).outputs(x)[0] for scale in (0.1, 3)
    )
    assert (wide.abs() < narrow.abs()).all()
    assert torch.equal(wide.sign(), narrow.sign())


def test_the_linearised_one_damps_by_the_tangents_variance():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)
    q = around(net, 0.5)
    samples = LinearisedPosterior(net, q, Categorical()).outputs(x, num_samples=64).detach()
    mean = net(x).detach()
    expected = damped(mean, (samples - mean).square().mean(0))
    out = LinearisedProbitPosterior(net, q, Categorical()).outputs(x, num_samples=64).detach()
    torch.testing.assert_close(out[0], expected)
    plain = ProbitPosterior(net, q, Categorical()).outputs(x, num_samples=64).detach()
    assert not torch.allclose(plain, out)


def test_it_can_be_attacked_and_does_not_depend_on_chunks():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    posterior = ProbitPosterior(net, around(net), Categorical())
    out = posterior.outputs(x, num_samples=10)
    (slope,) = torch.autograd.grad(out[0, :, 0].sum(), x)
    step = 1e-2 * torch.eye(4)[0]
    ahead, behind = (
        posterior.outputs(x + sign * step, num_samples=10)[0, :, 0] for sign in (1, -1)
    )
    torch.testing.assert_close(slope[:, 0], (ahead - behind).detach() / 0.02, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(posterior.outputs(x, num_samples=10, chunk_size=3), out)


@pytest.mark.parametrize("kind", [ProbitPosterior, LinearisedProbitPosterior])
def test_it_is_saved_and_rescaled_as_what_it_is(kind, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(40, 4)
    y = net(x).argmax(1)  # all right, so noise is too much
    posterior = kind(net, around(net, 9.0), Categorical())
    again = load(save(posterior, tmp_path / "a"), net)
    assert type(again) is kind
    assert torch.equal(again.predict(x).probs, posterior.predict(x).probs)
    fitting = rescaled(posterior, (x, y))
    assert type(fitting) is kind
    assert fitting.q.scale["0.weight"].max() < 9


def test_certificates_are_of_single_weight_samples():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(200, 4)
    y, q = net(x).argmax(1), around(net, 3.0)
    plain = WeightPosterior(net, q, Categorical())
    wrong = (plain.outputs(x, num_samples=500).argmax(2) != y).double().mean().item()
    for kind in (ProbitPosterior, LinearisedProbitPosterior):
        posterior = kind(net, q, Categorical())
        assert sampled_risk(posterior, (x, y), num_samples=500) == pytest.approx(wrong, abs=1e-6)
        prior = NormalPrior(1.0)
        bound = certify(posterior, (x, y), prior=prior, held_out=True, num_samples=500)
        assert (
            bound.bound == certify(plain, (x, y), prior=prior, held_out=True, num_samples=500).bound
        )
    assert wrong > 0.4  # whereas the damped mean hardly errs
    rule = ProbitPosterior(net, q, Categorical()).predict(x).probs.argmax(1)
    assert (rule == y).double().mean() > 0.9


def test_far_away_it_is_judged_by_its_samples_and_a_tangent_not_at_all():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    q = around(net)
    plain, damping = (kind(net, q, Categorical()) for kind in (WeightPosterior, ProbitPosterior))
    torch.testing.assert_close(far_away_limit(damping, x), far_away_limit(plain, x))
    for kind in (LinearisedPosterior, LinearisedProbitPosterior):
        with pytest.raises(UnsupportedModelError, match="whose network itself"):
            far_away_limit(kind(net, q, Categorical()), x)


def test_its_price_counts_the_samples_and_few_are_warned_of():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.rand(8, 4)
    posterior = ProbitPosterior(net, around(net), Categorical())
    assert samples_used(posterior, x, num_samples=16) == 16
    few = Attacks(eps=(0.1,), gradient_samples=2, steps=1)
    with pytest.warns(UserWarning, match="gradient_samples=2 of a stochastic posterior"):
        robustness(posterior, (x, torch.zeros(8).long()), few, box=None)


def test_members_with_counters_of_batch_norm_can_be_damped():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    network = fit(net, (x, y), MAP(epochs=1))
    assert ProbitPosterior.around(network).predict(x).probs.shape == (20, 3)


@pytest.mark.parametrize("kind", [ProbitPosterior, LinearisedPosterior, LinearisedProbitPosterior])
@pytest.mark.parametrize("method", [Ensemble(members=2, epochs=1), BALI(members=2, pretrain=None)])
def test_networks_trained_apart_have_no_point_to_damp_or_linearise_at(method, kind, tmp_path):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    networks = load(save(fit(net, (x, y), method), tmp_path / "saved"), net)
    for point in (lambda: kind.around(networks), networks.point):
        with pytest.raises(OptionError, match=r"got 2 networks .* whose mean is no network"):
            point()


def test_numbers_have_no_logits():
    net = nn.Linear(4, 1)
    with pytest.raises(UnsupportedModelError, match="likelihood of classes, got Gaussian"):
        ProbitPosterior(net, around(net), Gaussian(1.0))
    WeightPosterior(net, around(net), Gaussian(1.0))
