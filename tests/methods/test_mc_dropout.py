import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bayesify import MAP, Gaussian, WeightPosterior, fit
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.methods.mc_dropout import MCDropout
from bayesify.posteriors.dropout import DropoutPosterior


def net(p: float = 0.4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 3))


def data(size: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def test_with_noise_on_the_inputs_of_ridge_regression_the_predictive_is_the_closed_one():
    """Training by dropout in front of a linear layer is ridge regression with a closed solution:

    E |y - W (x * z) / (1 - p)|^2 = |y - W x|^2 + p / (1 - p) sum_j W_j^2 x_j^2.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator).double()
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double()
    p, noise = 0.3, 0.5
    linear = nn.Sequential(nn.Dropout(p), nn.Linear(3, 1, bias=False)).double()
    method = MCDropout(MAP(epochs=300, lr=0.01, prior_scale=1e3))  # masks leave little noise
    posterior = fit(linear, (x, y), method, likelihood=Gaussian(noise), batch_size=100)
    gram = x.T @ x
    want = torch.linalg.solve(gram + p / (1 - p) * gram.diag().diag(), x.T @ y)
    torch.testing.assert_close(posterior.point()["1.weight"][0], want, rtol=0.02, atol=0.01)
    weight = posterior.point()["1.weight"][0]
    predictive = posterior.predict(x[:5], num_samples=2000)
    epistemic = p / (1 - p) * (x[:5].square() @ weight.square())
    torch.testing.assert_close(predictive.epistemic[:, 0], epistemic, rtol=0.15, atol=0.0)
    torch.testing.assert_close(
        predictive.aleatoric[:, 0], torch.full((5,), noise**2).double(), rtol=1e-6, atol=0.0
    )


def test_the_loss_in_the_record_is_that_under_dropout():
    torch.manual_seed(0)
    p, size = 0.5, 2000
    linear = nn.Sequential(nn.Dropout(p), nn.Linear(3, 1, bias=False))
    x, y = torch.randn(1, 3).repeat(size, 1), torch.ones(size)
    y[::2] = -1.0
    record = fit(linear, (x, y), MCDropout(None), likelihood=Gaussian(1.0), batch_size=1).record
    weight = linear[1].weight[0].detach()
    square = 1 + (weight @ x[0]) ** 2 + p / (1 - p) * (weight * x[0]).square().sum()
    want = 0.5 * square + 0.5 * math.log(2 * math.pi)
    assert record.history[0]["loss"] == pytest.approx(want.item(), abs=0.06 * square.item())
    assert [entry["phase"] for entry in record.history] == ["MCDropout"]


def test_the_network_is_the_one_that_map_trains_with_its_dropout_on():
    model = net()
    posterior, trained = (
        fit(model, data(), method, seed=5) for method in (MCDropout(MAP(epochs=3)), MAP(epochs=3))
    )
    off = fit(nn.Sequential(*model[:2], nn.Identity(), model[3]), data(), MAP(epochs=3), seed=5)
    for name, each in posterior.point().items():
        assert torch.equal(each, trained.point()[name])
        assert not torch.equal(each, off.point()[name])
    assert [entry["phase"] for entry in posterior.record.history] == ["MAP"] * 3 + ["MCDropout"]


def test_without_pretraining_the_weights_are_those_given():
    model = net()
    posterior = fit(model, data(), MCDropout(pretrain=None))
    assert isinstance(posterior, DropoutPosterior)
    for name, each in posterior.point().items():
        assert torch.equal(each, model.state_dict()[name])


def test_the_given_model_stays_as_it_is_in_the_mode_it_was():
    model = net().train()
    model[2].eval()
    before, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    posterior = fit(model, data(), MCDropout(MAP(epochs=1)))
    posterior.predict(data()[0])
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert [each.training for each in model.modules()] == modes
    assert not any(each.training for each in posterior.model.modules())


class Never:
    """A callback that fails the test once training begins."""

    def on_phase_start(self, phase: str, epochs: int, steps: int) -> None:
        raise AssertionError(phase)

    def on_step(self, log: dict[str, float]) -> None: ...

    def on_epoch_end(self, log: dict[str, float]) -> None: ...

    def on_phase_end(self) -> None: ...


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x[None]).mean(0))  # one token: of one example all fits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 3), "no dropout layer with p above 0"),
        (nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 3)), "add nn.Dropout"),
        (SequenceFirst(), "batch_first=True"),
    ],
    ids=["none", "p = 0", "batch not first"],
)
def test_a_network_that_cannot_is_refused_before_it_is_trained(model, message):
    with pytest.raises(UnsupportedModelError, match=message):
        fit(model, data(), MCDropout(), callbacks=[Never()])


def test_more_dropout_is_more_uncertainty_and_none_of_it_is_mutual_information_of_the_net():
    information = []
    for p in (0.1, 0.5):
        torch.manual_seed(0)
        posterior = fit(net(p), data(), MCDropout(MAP(epochs=20, lr=0.03)))
        information.append(posterior.predict(data()[0]).mutual_information().mean().item())
    assert 0 < information[0] < information[1]
    assert isinstance(posterior.without_dropout(), WeightPosterior)
    off = posterior.without_dropout().predict(data()[0]).mutual_information()
    assert off.max() < 1e-6


def test_pretraining_that_leaves_no_weights_to_take_is_no_method():
    with pytest.raises(OptionError, match="expected an instance"):
        fit(net(), data(), MCDropout(pretrain="map"))  # type: ignore[arg-type]
