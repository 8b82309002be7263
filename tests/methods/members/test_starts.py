from dataclasses import replace

import pytest
import torch
from torch import nn

from bayesify import Categorical, Ensemble, MeanField, Particles, WeightPosterior, fit
from bayesify.core.errors import OptionError
from bayesify.methods.members.starts import starts
from bayesify.weights.named import buffers_of, weights_of
from zoo import NETS


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def problem(model: nn.Module, trained=None):
    return replace(NETS["mlp"].problem(), model=model, trained=trained)


def test_without_a_pretraining_the_first_is_the_network_and_the_others_are_new():
    model = net()
    weights, buffers = starts(problem(model), 3, set(weights_of(model)))
    own = weights_of(model)["0.weight"]
    assert torch.equal(weights["0.weight"][0], own)
    assert not torch.equal(weights["0.weight"][1], own)
    assert not torch.equal(weights["0.weight"][1], weights["0.weight"][2])
    assert {name: len(each) for name, each in buffers.items()} == dict.fromkeys(buffers, 3)


def test_after_one_each_goes_on_from_a_network_of_its_own():
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    trained = fit(net(), (x, y), Ensemble(members=3, epochs=1))
    weights, buffers = starts(problem(net(), trained), 3, set(weights_of(net())))
    stacked = trained.q.stacked()
    for name, each in (weights | buffers).items():
        assert torch.equal(each, stacked[name])
    weights["0.weight"].zero_()  # they are copies
    assert trained.q.stacked()["0.weight"].any()
    assert set(weights) == set(weights_of(net()))
    assert set(buffers) == set(buffers_of(net()))


def test_networks_must_be_as_many_and_whole_and_agree_in_the_rest():
    model = net()
    two = Particles.of_models([net(), net()])
    around = MeanField.around(model, scale=0.1)
    for q in (two, around):
        trained = WeightPosterior(model, q, Categorical())
        with pytest.raises(OptionError, match=r"expected one that leaves 3 whole networks .* got"):
            starts(problem(model, trained), 3, set(weights_of(model)))
    trained = WeightPosterior(model, two, Categorical())
    with pytest.raises(OptionError, match=r"not learnt after it, 0.weight, 0.bias\. Have all"):
        starts(problem(model, trained), 2, {"2.weight", "2.bias", "1.weight", "1.bias"})
    alike = Particles.of_models([model, model])
    weights, _ = starts(problem(model, WeightPosterior(model, alike, Categorical())), 2, set())
    assert torch.equal(weights["0.weight"][1], model[0].weight)
