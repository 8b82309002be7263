"""What a network writes into stays inside the call: the truth is a plain copy of it, on a copy of x."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify import Bella, Categorical, Laplace, MeanField, Particles, WeightPosterior, forward
from bayesify.errors import UnsupportedModelError
from bayesify.isolation import isolated, lock_of
from bayesify.weights.named import assign_
from bayesify.weights.trace import call


class Centring(nn.Module):
    """Takes the mean off its inputs, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.sub_(0.7).mul_(2))


class SometimesCentring(Centring):
    """Only inputs that are large."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.max()) > 10 else self.body(x)


def rectified() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 8), nn.ReLU(True), nn.Linear(8, 3))


class Counting(nn.Module):
    """Reads buffers that it writes into, in place and by assignment, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("seen", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.first(x)
        self.mean = 0.5 * self.mean + 0.5 * hidden.mean(0)
        self.seen = hidden[0]
        return self.head(hidden - self.mean) * self.calls


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


def plain(model: nn.Module, q: Particles | MeanField, x: Tensor, samples: int) -> Tensor:
    """Each sample written into a copy of the network, which is called on a copy of x."""
    drawn = q.sample(samples, generator=torch.Generator().manual_seed(0))
    results = []
    for s in range(q.size(samples)):
        net = copy.deepcopy(model).eval()
        assign_(net, q.weights({name: each[s] for name, each in drawn.items()}))
        results.append(net(x.clone()))
    return torch.stack(results).detach()


def members(model: nn.Module) -> Particles:
    nets = [copy.deepcopy(model) for _ in range(6)]
    for net in nets:
        for each in net.parameters():
            nn.init.normal_(each, std=0.5)
    return Particles.of_models(nets)


@pytest.mark.parametrize("build", [Centring, rectified, Counting], ids=lambda each: each.__name__)
@pytest.mark.parametrize("kind", ["members", "drawn", "last"])
@pytest.mark.parametrize("size", [None, 1, 2, 6], ids=str)
def test_predictions_are_those_of_plain_copies_whatever_runs_at_once(build, kind, size):
    torch.manual_seed(0)
    model, x = build(), torch.randn(5, 4) + 1
    where = bayesify.last_layer if kind == "last" else bayesify.all_weights
    q = MeanField.around(model, scale=0.3, where=where, example=x.clone())
    q = members(model) if kind == "members" else q
    posterior = WeightPosterior(model, q, Categorical())
    given, before, own = x.clone(), state(model), state(q)
    expected = plain(model, q, x, 6)
    for _ in range(2):
        got = posterior.outputs(x, num_samples=6, chunk_size=size).detach()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(x, given)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(torch.equal(each, own[name]) for name, each in q.state_dict().items())
    assert model.training
    copy.deepcopy(posterior)
