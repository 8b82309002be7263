import dataclasses

import torch
from torch import nn

from bayesify import MAP, STF, MeanFieldVI, first_layer, fit
from bayesify.core.options import from_json, to_json
from zoo import NETS


def test_exactly_the_first_layer_is_random():
    for net, names in {"cnn": ["0.weight"], "mapping": ["embed.weight"]}.items():
        method = STF(pretrain=None, epochs=1)
        posterior = fit(NETS[net].model(), NETS[net].data(), method)
        assert posterior.q.names == names
        size = posterior.model.get_parameter(names[0]).numel()
        assert posterior.trainable_parameters == 2 * size


def test_it_is_mean_field_inference_on_that_layer():
    options = {each.name: getattr(STF(), each.name) for each in dataclasses.fields(STF)} | {
        "pretrain": MAP(epochs=2),
        "epochs": 2,
        "where": first_layer,
        "temperature": 0.1,
    }
    net, data = NETS["mlp"].model(), NETS["mlp"].data()
    special, general = (fit(net, data, kind(**options), seed=2).q for kind in (STF, MeanFieldVI))
    for name, each in general.state_dict().items():
        assert torch.equal(each, special.state_dict()[name])


def test_the_second_phase_changes_the_first_layer_alone():
    net, data = NETS["cnn"].model(), NETS["cnn"].data()
    trained = fit(net, data, MAP(epochs=2), seed=3).point()
    posterior = fit(net, data, STF(pretrain=MAP(epochs=2), epochs=2), seed=3)
    base = posterior.base()
    assert set(base) == set(trained) - {"0.weight"}
    assert all(torch.equal(each, trained[name]) for name, each in base.items())
    assert not torch.equal(posterior.point()["0.weight"], trained["0.weight"])


def test_samples_differ_through_the_first_layer():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(32, 4)
    posterior = fit(net, (x, torch.randint(3, (32,))), STF(pretrain=None, epochs=1))
    draw = posterior.q.sample(2)
    assert set(draw) == {"0.weight", "0.bias"}
    assert posterior.predict(x).mutual_information().max() > 0


def test_options_know_their_class():
    text = to_json(STF(epochs=3))
    assert text["kind"] == "STF"
    assert from_json(text) == STF(epochs=3) != MeanFieldVI(epochs=3)
