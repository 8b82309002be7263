import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.errors import UnsupportedModelError
from bayesify.priors import NormalPrior


def test_the_reference_layer_has_its_published_divergence():
    torch.manual_seed(0)
    loc = {"weight": torch.randn(10, 20) * 0.3, "bias": torch.randn(10) * 0.3}
    sigma = F.softplus(torch.tensor(-2.0))
    q = MeanField(loc, {name: torch.full_like(each, sigma) for name, each in loc.items()})
    assert kl_divergence(q, NormalPrior(1.0)).item() == pytest.approx(338.69385, abs=1e-4)


def test_it_is_the_sum_of_torchs_divergences_weight_by_weight():
    loc = {"a": torch.randn(3, 2).double(), "b": torch.randn(4).double()}
    scale = {name: torch.rand_like(each) + 0.1 for name, each in loc.items()}
    centre = {"a": torch.randn(3, 2).double()}
    widths = {"a": 0.5, "b": 2.0}
    want = sum(
        torch_kl(
            Normal(loc[name], scale[name]),
            Normal(centre.get(name, torch.zeros_like(loc[name])), widths[name]),
        ).sum()
        for name in loc
    )
    got = kl_divergence(MeanField(loc, scale), NormalPrior(widths, loc=centre))
    torch.testing.assert_close(got.detach(), want)


def test_it_is_a_sum_and_not_a_mean():
    one = MeanField({"w": torch.ones(1)}, {"w": torch.full((1,), 0.3)})
    many = MeanField({"w": torch.ones(70)}, {"w": torch.full((70,), 0.3)})
    prior = NormalPrior(1.0)
    torch.testing.assert_close(kl_divergence(many, prior), 70 * kl_divergence(one, prior))


def test_the_prior_itself_is_at_distance_zero():
    loc = {"w": torch.randn(5)}
    q = MeanField(loc, {"w": torch.full((5,), 0.7)})
    assert kl_divergence(q, NormalPrior(0.7, loc=loc)).item() == pytest.approx(0, abs=1e-6)


def test_a_pair_without_closed_form_names_the_known_ones():
    q = Particles.of_models([nn.Linear(2, 1)])
    with pytest.raises(UnsupportedModelError, match=r"KL\(Particles .* \(MeanField, NormalPrior\)"):
        kl_divergence(q, NormalPrior(1.0))
