import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from bayesify import (
    MAP,
    Bella,
    Ensemble,
    MeanField,
    WeightPosterior,
    fit,
    load,
    recalibrated,
    save,
)
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Named
from bayesify.distributions.base import Members
from bayesify.likelihoods import Categorical
from bayesify.weights.low_rank import LowRankWeight
from bayesify.weights.named import assign_, buffers_of
from zoo import NETS

METHODS = {
    "ensemble": Ensemble(members=3, epochs=2),
    "map": MAP(epochs=2),
    "bella": Bella(pretrain=None, members=10, epochs=2, noise=0.3, lr=0.05),
    "bella with statistics of its own": Bella(
        pretrain=None, members=3, epochs=2, noise=0.3, batch_norm="moving"
    ),
}


def fitted(name: str) -> WeightPosterior:
    return fit(NETS["cnn"].model(), NETS["cnn"].data(), METHODS[name], batch_size=16)


def shifted() -> DataLoader:
    """Batches in a fixed order, unlike those of the fit."""
    x = 3 * NETS["cnn"].inputs(50, seed=8) + 1
    return DataLoader(TensorDataset(x, torch.zeros(50).long()), batch_size=16)


def networks(posterior: WeightPosterior) -> list[nn.Module]:
    """Each member as a network of its own."""
    q, result = posterior.q, []
    assert isinstance(q, Members)
    for m in range(q.size(1)):
        draw = {
            key: each[m] if torch.is_tensor(each) else {n: e[m] for n, e in each.items()}
            for key, each in q.stacked().items()
        }
        weights: Named = {
            n: e.dense() if isinstance(e, LowRankWeight) else e for n, e in q.weights(draw).items()
        }
        result.append(copy.deepcopy(posterior.model))
        assign_(result[-1], weights)
    return result


@pytest.mark.parametrize("name", METHODS)
def test_each_members_statistics_are_those_of_torch_under_its_own_weights(name):
    posterior = fitted(name)
    want = networks(posterior)
    again = recalibrated(posterior, shifted())
    x = NETS["cnn"].inputs(5)
    for network in want:
        update_bn(shifted(), network)
    for m, (network, out) in enumerate(zip(want, again.outputs(x), strict=True)):
        for key, each in buffers_of(network).items():
            torch.testing.assert_close(again.q.statistics.named()[key][m], each)
        torch.testing.assert_close(out, network.eval()(x), rtol=1e-4, atol=1e-5)
    before = posterior.outputs(x)
    assert (again.outputs(x) - before).abs().max() > 0.05


@pytest.mark.parametrize("name", METHODS)
def test_the_posterior_does_not_change(name):
    posterior, x = fitted(name), NETS["cnn"].inputs(5)
    state = copy.deepcopy(posterior.q.state_dict()), copy.deepcopy(posterior.model.state_dict())
    modes = [each.training for each in posterior.model.modules()]
    out = posterior.outputs(x).detach()
    again = recalibrated(posterior, shifted())
    for was, now in zip(state, (posterior.q, posterior.model), strict=True):
        assert all(torch.equal(each, was[n]) for n, each in now.state_dict().items())
    assert [each.training for each in posterior.model.modules()] == modes
    assert posterior.model[1].momentum == 0.1
    assert torch.equal(posterior.outputs(x), out)
    for store in ("members", "down", "up", "offsets"):
        for key, each in getattr(posterior.q, store, nn.Module()).named_parameters():
            assert torch.equal(each, getattr(again.q, store).get_parameter(key))


def test_samples_share_statistics_that_are_averaged_over_their_weights():
    """With hardly any noise these are the network's own; with much, wider ones."""
    net, x = NETS["cnn"].model(), NETS["cnn"].inputs(5)
    narrow, wide = (
        WeightPosterior(net, MeanField.around(net, scale=scale), Categorical())
        for scale in (1e-6, 0.5)
    )
    before = copy.deepcopy(net.state_dict())
    again = recalibrated(narrow, shifted())
    want = copy.deepcopy(net)
    update_bn(shifted(), want)
    for name, each in buffers_of(again.model).items():
        torch.testing.assert_close(each, buffers_of(want)[name], rtol=1e-3, atol=1e-4)
    noisy = buffers_of(recalibrated(wide, shifted()).model)
    assert (noisy["1.running_var"] > buffers_of(again.model)["1.running_var"]).all()
    assert all(torch.equal(each, before[n]) for n, each in net.state_dict().items())
    assert again.model[1].momentum == 0.1
    assert not torch.allclose(again.outputs(x), narrow.outputs(x), atol=1e-2)


def test_twice_is_once():
    once = recalibrated(fitted("bella"), shifted())
    twice = recalibrated(once, shifted())
    for name, each in twice.q.statistics.named().items():
        assert torch.equal(each, once.q.statistics.named()[name])


def test_what_belongs_to_the_fit_is_kept():
    posterior = fitted("bella")
    again = recalibrated(posterior, shifted())
    assert again.record is posterior.record
    assert again.likelihood is posterior.likelihood
    assert again.vectorize == posterior.vectorize
    assert again.trainable_parameters == posterior.trainable_parameters


def test_tensors_are_cut_into_batches():
    x, y = shifted().dataset.tensors
    posterior = fitted("ensemble")
    whole = recalibrated(posterior, (x, y))
    assert whole.q.statistics.named()["1.num_batches_tracked"].tolist() == [1, 1, 1]
    parts = recalibrated(posterior, (x, y), batch_size=10)
    assert parts.q.statistics.named()["1.num_batches_tracked"].tolist() == [5, 5, 5]
    means = (each.q.statistics.named()["1.running_mean"] for each in (whole, parts))
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-5)  # batches of equal size


def test_the_result_can_be_saved(tmp_path):
    again, x = recalibrated(fitted("bella"), shifted()), NETS["cnn"].inputs(5)
    save(again, tmp_path / "saved")
    loaded = load(tmp_path / "saved", NETS["cnn"].model(seed=7))
    assert torch.equal(loaded.outputs(x), again.outputs(x))


def test_frozen_weights_do_not_become_learnt():
    model = NETS["cnn"].model()
    model[0].requires_grad_(False)
    posterior = fit(model, NETS["cnn"].data(), METHODS["ensemble"])
    again = recalibrated(posterior, shifted())
    assert again.trainable_parameters == posterior.trainable_parameters


def test_the_global_generator_rests():
    posterior, before = fitted("ensemble"), torch.get_rng_state()
    recalibrated(posterior, shifted().dataset.tensors, batch_size=10)
    assert torch.equal(torch.get_rng_state(), before)


def test_there_must_be_a_batch_norm():
    net = NETS["mlp"]
    posterior = fit(net.model(), net.data(), MAP(epochs=1))
    with pytest.raises(UnsupportedModelError, match="no batch norm"):
        recalibrated(posterior, net.data())
