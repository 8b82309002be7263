import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bayesify import MAP, SVGD, Ensemble, Gaussian, fit
from bayesify.core.errors import OptionError, UnsupportedModelError
from zoo import NETS

N, NOISE, PRIOR, MEMBERS = 12, 1.0, 1.0, 25


def line() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 1, generator=generator).double()
    return x, 0.7 * x + NOISE * torch.randn(N, 1, generator=generator).double()


def exact(temperature: float = 1.0) -> tuple[float, float]:
    """Mean and standard deviation of the posterior over the slope, its density to the 1 / T."""
    x, y = line()
    precision = (x.square().sum() / NOISE**2 + 1 / PRIOR**2).item()
    mean = (x * y).sum().item() / NOISE**2 / precision
    return mean, math.sqrt(temperature / precision)


def slopes(method: SVGD | Ensemble) -> Tensor:
    net = nn.Linear(1, 1, bias=False).double()
    posterior = fit(net, line(), method, likelihood=Gaussian(NOISE), batch_size=N)
    return posterior.q.sample(1)["weight"].detach().flatten()


METHOD = SVGD(members=MEMBERS, epochs=300, lr=0.1, prior_scale=PRIOR)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_members_have_the_mean_and_spread_of_the_exact_posterior(temperature):
    """The spread up to a bias of order 1/M, towards less; the mean is exact at the fixed point."""
    mean, sd = exact(temperature)
    found = slopes(replace(METHOD, temperature=temperature))
    assert abs(found.mean().item() - mean) < 0.03 * sd
    assert 0.9 < found.std().item() / sd < 1.02
    ordered = (found.sort().values - mean) / sd
    levels = (torch.arange(MEMBERS).double() + 0.5) / MEMBERS
    normal = torch.distributions.Normal(0.0, 1.0).cdf(ordered)
    assert (normal - levels).abs().max() < 0.08  # all of its distribution function


def test_independent_members_collapse_to_the_mode():
    mean, sd = exact()
    found = slopes(Ensemble(members=MEMBERS, epochs=300, lr=0.1, prior_scale=PRIOR))
    assert abs(found.mean().item() - mean) < 1e-3 * sd
    assert found.std().item() < 1e-3 * sd


def test_without_repulsion_members_collapse_too():
    mean, sd = exact()
    found = slopes(replace(METHOD, temperature=0.0))
    assert abs(found.mean().item() - mean) < 0.1 * sd
    assert found.std().item() < 0.1 * sd


def test_in_function_space_the_spread_is_that_of_the_outputs():
    """Outputs are slope * x, so that t = slope * |x| is all there is to compare and to move.

    With a prior too wide to matter its posterior is normal with the noise's deviation, which is 1.
    """
    x, y = line()
    found = slopes(replace(METHOD, prior_scale=1e3, kernel="function"))
    assert abs(found.mean() - (x * y).sum() / x.square().sum()) < 0.03 / x.norm()
    assert 0.9 < found.std() * x.norm() / NOISE < 1.02


def fitted(method: SVGD | MAP, net: str = "mlp") -> dict[str, Tensor]:
    posterior = fit(NETS[net].model(), NETS[net].data(), method, batch_size=16)
    return {name: each.detach() for name, each in posterior.q.sample(1).items()}


@pytest.mark.parametrize("kernel", ["weights", "function"])
def test_members_start_anew_and_differ(kernel):
    held = fitted(SVGD(members=3, epochs=2, kernel=kernel), "cnn")
    for name, each in held.items():
        if not name.endswith("tracked"):
            assert not torch.equal(each[0], each[1]), name


def test_members_have_statistics_of_their_own():
    held = fitted(SVGD(members=3, epochs=2), "cnn")
    assert held["1.num_batches_tracked"].tolist() == [6, 6, 6]
    assert not torch.equal(held["1.running_mean"][0], held["1.running_mean"][1])


def test_a_strong_repulsion_drives_weights_apart():
    def distance(temperature: float) -> float:
        held = fitted(SVGD(members=3, epochs=20, temperature=temperature))
        return torch.pdist(torch.cat([each.flatten(1) for each in held.values()], 1)).min().item()

    assert distance(4_800.0) > 1.2 * distance(0.0)


def test_frozen_weights_stay_as_they_are():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    posterior = fit(net, NETS["mlp"].data(), SVGD(members=2, epochs=2))
    for member in posterior.q.sample(1)["0.weight"]:
        assert torch.equal(member, net[0].weight)
    assert posterior.trainable_parameters == 2 * 27
    with pytest.raises(UnsupportedModelError, match="frozen"):
        fit(net.requires_grad_(False), NETS["mlp"].data(), SVGD(members=2, epochs=2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, "members=0"),
        ({"kernel": "product"}, "kernel='product'.*'weights', 'function'"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, "lr=0"),
        ({"prior_scale": -1.0}, "prior_scale=-1"),
        ({"clip": 0.0}, "clip=0"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        SVGD(**options)
