"""Our SWAG against torch-uncertainty's, both fed with the iterates of one and the same training."""

import copy
import warnings

import pytest
import torch
from torch import nn

import bayesify

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("torch_uncertainty.methods")

pytestmark = pytest.mark.peers
STEPS, RANK = 12, 5


class Recorder:
    """Keeps a copy of the weights after every step."""

    def __init__(self, net):
        self.net, self.iterates = net, []

    def on_step(self, log):
        self.iterates.append(copy.deepcopy(self.net.state_dict()))

    def on_phase_start(self, *_):
        pass

    def on_epoch_end(self, _):
        pass

    def on_phase_end(self):
        pass


@pytest.fixture
def both():
    """Our distribution, and their wrapper after the same iterates, the start among them."""
    net = nn.Linear(3, 2)
    x, y = torch.randn(STEPS * 8, 3), torch.randint(2, (STEPS * 8,))
    wrapper = peer.SWAG(
        copy.deepcopy(net),
        cycle_start=0,
        cycle_length=1,
        max_num_models=RANK,
        scale=0.5,
        num_estimators=1,
    )
    recorder = Recorder(net)
    recorder.on_step({})
    method = bayesify.SWAG(
        pretrain=None, burn_in=0, epochs=1, lr=0.5, momentum=0.0, rank=RANK, collect_every=1
    )
    posterior = bayesify.fit(net, (x, y), method, batch_size=8, copy=False, callbacks=[recorder])
    assert len(recorder.iterates) == STEPS + 1
    for epoch, weights in enumerate(recorder.iterates, start=1):
        wrapper.core_model.load_state_dict(weights)
        wrapper.update_wrapper(epoch)
    return posterior.q, wrapper


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_mean_variance_and_deviations_are_theirs(both, name):
    q, wrapper = both
    stats = {k.removeprefix(wrapper.prfx): v for k, v in wrapper.swag_stats.items()}
    mean, second = stats[f"{name}_mean"], stats[f"{name}_sq_mean"]
    torch.testing.assert_close(q.loc.named()[name].detach(), mean)
    variance = q.diagonal.named()[name].detach().square()
    torch.testing.assert_close(variance, second - mean**2, atol=1e-6, rtol=1e-3)
    deviations = q.deviations.named()[name].detach().flatten(1)
    torch.testing.assert_close(deviations, stats[f"{name}_covariance_sqrt"], atol=1e-6, rtol=1e-4)


def test_samples_vary_as_much(both):
    """Each weight's variance; across tensors theirs are independent, ours are not."""
    q, wrapper = both
    number = 1_000
    theirs = [wrapper.sample(0.5).state_dict() for _ in range(number)]
    ours = q.sample(number, generator=torch.Generator().manual_seed(0))
    for name, each in ours.items():
        ratio = each.var(0) / torch.stack([one[name] for one in theirs]).var(0)
        assert ((ratio - 1).abs() < 5 * (4 / number) ** 0.5).all()
