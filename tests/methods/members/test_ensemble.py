from dataclasses import dataclass

import pytest
import torch
from torch import nn

from bayesify import MAP, Ensemble, OptionError, fit
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.options import from_json, register, to_json
from bayesify.distributions.particles import Particles
from bayesify.forward import outputs as forward
from bayesify.methods.members.fresh import fresh_starts
from bayesify.methods.members.training import Training, train_members
from zoo import NETS


def trained(net: str, starts: list[nn.Module], *, vectorize: bool) -> Particles:
    q = Particles.of_models(starts)
    problem = NETS[net].problem(vectorize=vectorize)
    problem.model.train()
    run = train_members(problem, q, Training(epochs=4, lr=0.01, prior_scale=1.0))
    data = NETS[net].data()
    for step in range(12):
        rows = slice(16 * (step % 3), 16 * (step % 3) + 16)
        run.step(data.inputs[rows], data.target[rows])
    return q


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_members_trained_together_are_those_trained_apart(net):
    starts, x = [NETS[net].model(seed) for seed in range(3)], NETS[net].inputs(20, seed=9)
    model = NETS[net].model().eval()
    before = forward.outputs(model, Particles.of_models(starts), x)
    together = forward.outputs(model, trained(net, starts, vectorize=True), x)
    apart = [forward.outputs(model, trained(net, [s], vectorize=True), x) for s in starts]
    # functions, for a weight that a batch norm makes irrelevant may go anywhere
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-3, atol=1e-4)
    assert (together - before).abs().max() > 0.05


def test_members_in_a_loop_are_those_at_once():
    starts, x = [NETS["cnn"].model(seed) for seed in range(3)], NETS["cnn"].inputs(20, seed=9)
    model = NETS["cnn"].model().eval()
    fast, slow = (
        forward.outputs(model, trained("cnn", starts, vectorize=how), x) for how in (True, False)
    )
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)


def test_starts_differ_from_each_other_and_from_the_model():
    model = NETS["transformer"].model()
    starts = fresh_starts(model, 3, torch.Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue  # biases may start at zero
        drawn = [weight, *(dict(each.named_parameters())[name] for each in starts)]
        for i, each in enumerate(drawn):
            assert not any(torch.equal(each, other) for other in drawn[:i]), name


def test_starts_keep_ties_and_forget_statistics():
    model = NETS["tied"].model()
    (start,) = fresh_starts(model, 1, torch.Generator().manual_seed(0))
    assert start.score.weight is start.embed.weight
    model = NETS["cnn"].model()
    model(NETS["cnn"].inputs(8))
    (start,) = fresh_starts(model, 1, torch.Generator().manual_seed(0))
    assert start[1].running_mean.abs().sum() == 0
    assert model[1].running_mean.abs().sum() > 0


def test_a_module_that_cannot_be_drawn_anew_is_named():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gain

    net = nn.Sequential(Bare(), nn.Linear(4, 3))
    data = torch.randn(32, 4), torch.randint(3, (32,))
    with pytest.raises(UnsupportedModelError, match=r"`0` \(Bare\) owns gain .*reset_parameters"):
        fit(net, data, Ensemble(members=2, epochs=1))
    fit(net, data, MAP(epochs=1))


def test_an_ensemble_has_two_members_at_least():
    with pytest.raises(OptionError, match="members=1"):
        Ensemble(members=1)


def test_a_learnt_noise_is_shared_and_the_loss_is_the_sum():
    x, y = torch.randn(32, 4), torch.randn(32)
    method = Ensemble(members=3, epochs=1)
    posterior = fit(nn.Linear(4, 1), (x, y), method, likelihood="gaussian")
    assert posterior.trainable_parameters == 3 * 5 + 1
    (entry,) = posterior.record.history
    assert entry["loss"] == pytest.approx(3 * entry["nll"], rel=1e-5)


@pytest.mark.parametrize("method", [MAP(epochs=2), Ensemble(members=2, epochs=2)])
def test_frozen_weights_stay_as_they_are(method):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    posterior = fit(net, (x, torch.arange(40) % 3), method)
    for member in posterior.q.sample(1)["0.weight"]:
        assert torch.equal(member, net[0].weight)
    assert (posterior.q.sample(1)["2.weight"] - net[2].weight).abs().max() > 1e-3
    assert posterior.trainable_parameters == len(posterior.q.sample(1)["2.bias"]) * 27


def test_nothing_to_train_is_refused():
    net = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="frozen"):
        fit(net, (torch.randn(40, 4), torch.arange(40) % 3), MAP())


class Gains(nn.Module):
    """A network with a weight that no module of it can draw."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * self.gain)


@register
@dataclass(frozen=True)
class BuildsGains:
    def __call__(self) -> nn.Module:
        return Gains()


def test_a_network_is_made_anew_where_its_modules_cannot_draw_it():
    data = torch.randn(30, 4), torch.arange(30) % 3
    with pytest.raises(UnsupportedModelError, match=r"owns gain .* bayesify.Ensemble\(build=...\)"):
        fit(Gains(), data, Ensemble(members=2, epochs=1))
    method = Ensemble(members=2, epochs=1, lr=1e-9, build=BuildsGains())
    assert from_json(to_json(method)) == method
    first, second = fit(Gains(), data, method).q.members.named()["gain"]
    assert (first - second).abs().max() > 0.05
    with pytest.raises(OptionError, match=r"bayesify\.core\.options\.register"):
        fit(Gains(), data, Ensemble(members=2, epochs=1, build=Gains))
