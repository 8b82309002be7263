import dataclasses

import torch
from torch import nn

from bayesify import MAP, Gaussian, LastLayerVI, MeanFieldVI, fit, last_layer
from bayesify.core.options import from_json, to_json
from bayesify.training.cost import FlopCounter
from zoo import NETS

NOISE, PRIOR, SIZE = 1.0, 0.5, 200


def test_exactly_the_last_layer_is_random():
    net, data = NETS["cnn"].model(), NETS["cnn"].data()
    posterior = fit(net, data, LastLayerVI(pretrain=None, epochs=1))
    assert posterior.q.names == ["5.weight", "5.bias"]
    assert posterior.trainable_parameters == 2 * (16 * 3 + 3)


def test_it_is_mean_field_inference_on_that_layer():
    fields = dataclasses.fields(LastLayerVI)
    options = {each.name: getattr(LastLayerVI(), each.name) for each in fields}
    options |= {"pretrain": MAP(epochs=2), "epochs": 2, "where": last_layer, "temperature": 0.1}
    net, data = NETS["mlp"].model(), NETS["mlp"].data()
    special, general = (
        fit(net, data, kind(**options), seed=2).q for kind in (LastLayerVI, MeanFieldVI)
    )
    for name, each in general.state_dict().items():
        assert torch.equal(each, special.state_dict()[name])


def test_on_fixed_features_it_reaches_the_analytic_optimum():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 2, generator=generator).double()
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        features = net[1](net[0](x))
    y = features @ torch.tensor([[1.0], [-0.5], [0.3], [2.0]]).double()
    y = y + NOISE * torch.randn(SIZE, 1, generator=generator).double()
    method = LastLayerVI(
        pretrain=None,
        epochs=1000,
        lr=0.05,
        scale_lr=0.03,
        prior_scale=PRIOR,
        prior_relative=False,
        prior_loc="zero",
        temperature=1.0,
    )
    posterior = fit(net, (x, y), method, likelihood=Gaussian(NOISE), batch_size=SIZE)
    precision = features.T @ features / NOISE**2 + torch.eye(4).double() / PRIOR**2
    mean = torch.linalg.solve(precision, features.T @ y / NOISE**2)[:, 0]
    loc, scale = posterior.q.loc.named()["2.weight"][0], posterior.q.scale["2.weight"][0]
    conditional = precision.diag().rsqrt()
    torch.testing.assert_close(scale.detach(), conditional, rtol=0.08, atol=0)
    assert ((loc - mean).abs() < 0.15 * conditional).all()


def test_predicting_runs_the_trunk_once_for_all_samples():
    net = nn.Sequential(nn.Linear(50, 100), nn.ReLU(), nn.Linear(100, 2))
    x = torch.randn(16, 50)
    posterior = fit(net, (x, torch.arange(16) % 2), LastLayerVI(pretrain=None, epochs=1))
    posterior.predict(x, num_samples=8)
    with FlopCounter() as counter:
        posterior.predict(x, num_samples=8)
    trunk, head = 2 * 16 * 50 * 100, 2 * 16 * 100 * 2
    assert counter.total == trunk + 8 * head


def test_options_know_their_class():
    text = to_json(LastLayerVI(epochs=3))
    assert text["kind"] == "LastLayerVI"
    assert from_json(text) == LastLayerVI(epochs=3) != MeanFieldVI(epochs=3)
