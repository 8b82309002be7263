import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bayesify.core.errors import UnsupportedModelError
from bayesify.forward.batch_norm import averaging, batch_norms, recalibrate_, statistics_of
from bayesify.weights.named import buffers_of
from zoo import NETS


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5, momentum=0.3)),
        nn.BatchNorm1d(5, track_running_stats=False),
        nn.LayerNorm(5),
    )


def batches() -> list[Tensor]:
    """Of unequal size, and of a distribution unlike that of the first statistics."""
    generator = torch.Generator().manual_seed(1)
    return [2 * torch.randn(n, 2, 4, 4, generator=generator) + 1 for n in (20, 20, 7)]


def test_batch_norms_are_those_that_keep_statistics():
    model = net()
    assert list(batch_norms(model)) == ["1", "4.1"]
    assert batch_norms(model)["4.1"] is model[4][1]
    assert statistics_of(model) == [
        f"{owner}.{name}"
        for owner in ("1", "4.1")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert set(statistics_of(model)) == set(buffers_of(model))
    assert statistics_of(NETS["mlp"].model()) == []
    assert statistics_of(nn.BatchNorm1d(2))[0] == "running_mean"


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_those_of_torch(training):
    model, want = net(), net()
    model(torch.randn(9, 2, 4, 4))  # in train mode: forgotten below
    update_bn(batches(), want)
    recalibrate_(model.train(training), batches())
    for name, each in buffers_of(model).items():
        torch.testing.assert_close(each, buffers_of(want)[name])


def test_statistics_are_plain_averages_over_batches():
    model = nn.Sequential(nn.BatchNorm1d(3))
    x = [torch.randn(n, 3) * 3 + 1 for n in (10, 4)]
    recalibrate_(model, x)
    mean = (x[0].mean(0) + x[1].mean(0)) / 2
    variance = (x[0].var(0) + x[1].var(0)) / 2
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, variance)
    assert model[0].num_batches_tracked == 2


def test_twice_is_once():
    model = net()
    recalibrate_(model, batches())
    once = copy.deepcopy(buffers_of(model))
    recalibrate_(model, iter(batches()))
    assert all(torch.equal(each, once[name]) for name, each in buffers_of(model).items())


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    x = torch.randn(50, 3) + 2
    recalibrate_(model, [x])
    torch.testing.assert_close(model[1].running_mean, x.mean(0))


def test_weights_modes_and_momenta_are_kept():
    model = net()
    model[4].eval()
    before = {name: each.clone() for name, each in model.named_parameters()}
    modes = [each.training for each in model.modules()]
    recalibrate_(model, batches())
    assert [each.training for each in model.modules()] == modes
    assert (model[1].momentum, model[4][1].momentum) == (0.1, 0.3)
    assert all(torch.equal(each, before[n]) for n, each in model.named_parameters())
    assert all(each.grad is None for each in model.parameters())


def test_modes_and_momenta_are_kept_when_the_model_fails():
    model = net().eval()
    with pytest.raises(RuntimeError):
        recalibrate_(model, [torch.randn(2, 7, 4, 4)])
    assert (model[1].momentum, model[4][1].momentum) == (0.1, 0.3)
    assert not any(each.training for each in model.modules())


def test_inside_only_batch_norms_are_in_train_mode():
    model = net().train()
    with averaging(model):
        assert model[1].training
        assert model[4][1].training
        assert not model[5].training
        assert not model[0].training
        assert model[1].momentum is None
    assert all(each.training for each in model.modules())


def test_inputs_are_what_the_model_takes():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.norm(left + right)

    a, b = torch.randn(8, 3), torch.randn(8, 3)
    for inputs in ((a, b), {"right": b, "left": a}):
        model = Pair()
        recalibrate_(model, [inputs])
        torch.testing.assert_close(model.norm.running_mean, (a + b).mean(0))


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.BatchNorm1d(3, track_running_stats=False)])
def test_there_must_be_something_to_estimate(model):
    with pytest.raises(UnsupportedModelError, match="no batch norm with statistics"):
        recalibrate_(model, [torch.randn(4, 3)])
