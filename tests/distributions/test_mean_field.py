import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesify import first_layer
from bayesify.core.errors import OptionError, ShapeError, UnsupportedModelError
from bayesify.distributions.mean_field import MeanField, inverse_softplus, magnitudes
from bayesify.weights.gaussian import GaussianWeight
from zoo import NETS


def test_it_is_centred_on_the_models_weights():
    model = nn.Linear(3, 2)
    q = MeanField.around(model, scale=0.2)
    assert torch.equal(q.loc.named()["weight"], model.weight)
    torch.testing.assert_close(q.scale["bias"], torch.full((2,), 0.2))


def test_relative_scales_are_in_units_of_each_tensor():
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 3))
    with torch.no_grad():
        model[1].weight.mul_(100)
    q = MeanField.around(model, scale=0.1, relative=True)
    for name in ("0.weight", "1.weight"):
        rms = model.get_parameter(name).square().mean().sqrt()
        torch.testing.assert_close(q.scale[name].mean(), 0.1 * rms)


def test_a_tensor_of_zeros_takes_the_magnitude_of_all():
    unit = magnitudes({"w": torch.full((3,), 2.0), "b": torch.zeros(1)})
    assert unit == {"w": 2.0, "b": pytest.approx(math.sqrt(12 / 4))}
    assert magnitudes({"w": torch.zeros(3)}) == {"w": 1.0}


def test_only_chosen_weights_are_random():
    model = NETS["transformer"].model()
    q = MeanField.around(model, where=first_layer, example=NETS["transformer"].inputs(2))
    assert q.names == ["embed.weight", "embed.bias"]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(OptionError, match="expected a standard deviation above 0"):
        MeanField.around(nn.Linear(2, 2), scale=scale)
    with pytest.raises(OptionError, match="scale of 'w': expected standard deviations above 0"):
        MeanField({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, scale])})


def test_means_and_scales_must_belong_together():
    with pytest.raises(ShapeError, match=r"scale of 'w': expected the shape \(2,\)"):
        MeanField({"w": torch.zeros(2)}, {"w": torch.ones(3)})
    with pytest.raises(ShapeError, match=r"expected a scale for each of \['w'\], got \['v'\]"):
        MeanField({"w": torch.zeros(2)}, {"v": torch.ones(2)})


def test_a_selector_is_no_name_and_must_choose_something():
    with pytest.raises(OptionError, match="where='first_layer': expected a selector"):
        MeanField.around(nn.Linear(2, 2), where="first_layer")
    with pytest.raises(OptionError, match="chose no weight of Linear"):
        MeanField.around(nn.Linear(2, 2), where=lambda model, example: [])
    with pytest.raises(UnsupportedModelError, match="no parameters"):
        MeanField.around(nn.ReLU())


def test_tiny_scales_survive_a_round_trip_through_the_state():
    q = MeanField({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    with torch.no_grad():
        q.rho.named()["w"].fill_(-200.0)  # softplus underflows to zero
    again = MeanField.from_state(q.state_dict())
    assert torch.equal(again.rho.named()["w"], q.rho.named()["w"])


def test_local_weights_are_gaussian_weights_of_its_moments():
    q = MeanField.around(nn.Linear(3, 2), scale=0.3)
    local = q.local_weights()
    assert all(isinstance(each, GaussianWeight) for each in local.values())
    torch.testing.assert_close(local["bias"].scale, q.scale["bias"])


def test_means_and_scales_have_rates_of_their_own():
    q = MeanField.around(nn.Linear(3, 2))
    means, scales = q.parameter_groups(lr=0.1, scale_lr=0.2)
    assert [each is mine for each, mine in zip(means["params"], q.loc.parameters(), strict=True)]
    assert (means["lr"], scales["lr"], len(scales["params"])) == (0.1, 0.2, 2)
    torch.optim.SGD(q.parameter_groups(lr=0.1, scale_lr=0.2))


@pytest.mark.parametrize("value", [1e-12, 1e-6, 0.1, 1.0, 30.0, 1e4])
def test_inverse_softplus_inverts_over_many_orders(value):
    rho = inverse_softplus(torch.tensor(value))
    torch.testing.assert_close(F.softplus(rho), torch.tensor(value), rtol=1e-5, atol=0)


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1.0, 7.0, 1e4])
def test_scaled_multiplies_every_standard_deviation(factor):
    q = MeanField.around(NETS["mlp"].model(), scale=0.3)
    q.loc.requires_grad_(False)
    again = q.scaled(factor)
    for name, each in again.scale.items():
        torch.testing.assert_close(each, factor * q.scale[name], rtol=1e-4, atol=0)
        assert torch.equal(again.loc.named()[name], q.loc.named()[name])
    assert [e.requires_grad for e in again.parameters()] == [
        e.requires_grad for e in q.parameters()
    ]
    torch.testing.assert_close(q.scale["0.bias"], torch.full((8,), 0.3))


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(OptionError, match="expected a finite number above 0"):
        MeanField.around(nn.Linear(2, 2)).scaled(factor)
