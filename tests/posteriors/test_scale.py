import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesify import MAP, Categorical, Gaussian, MeanField, WeightPosterior, fit, rescaled
from bayesify.core.errors import DataError, UnsupportedModelError
from bayesify.distributions.base import Scalable
from bayesify.posteriors.scale import RUNGS, best_factor, times
from zoo import NETS

GRID = [2 ** (halves / 2) for halves in range(-2 * RUNGS, 2 * RUNGS + 1)]


def nll(posterior: WeightPosterior, data: tuple[Tensor, Tensor], num_samples: int = 10) -> float:
    log_prob = posterior.predict(data[0], num_samples=num_samples).log_prob(data[1])
    return -log_prob.double().mean().item()


@pytest.fixture(scope="module")
def trained() -> WeightPosterior:
    net = NETS["mlp"]
    data = net.data(40, seed=1)
    return fit(net.model(), (data.inputs, data.target), MAP(epochs=60, lr=1e-2), batch_size=20)


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    data = NETS["mlp"].data(120, seed=2)
    return data.inputs, data.target


def around(trained: WeightPosterior, scale: float) -> WeightPosterior:
    """A network with logits six times too large: noise helps it, up to a best factor."""
    model = copy.deepcopy(trained.model)
    model.load_state_dict(trained.point())
    model[-1].weight.data *= 6
    model[-1].bias.data *= 6
    q = MeanField.around(model, scale=scale, relative=True)
    return WeightPosterior(model, q, Categorical())


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.5, 3.0, 60.0])
def test_the_factor_is_the_best_of_all(trained, held_out, scale):
    """Also from a start without effect, and from one at chance, where the NLL has no slope."""
    wide = around(trained, scale)
    losses = {factor: nll(times(wide, factor), held_out) for factor in GRID}
    again = rescaled(wide, held_out)
    assert nll(again, held_out) == pytest.approx(min(losses.values()), abs=2e-4)
    assert nll(again, held_out) <= nll(wide, held_out)
    want = min(losses, key=lambda each: losses[each])
    got = (again.q.scale["0.weight"] / wide.q.scale["0.weight"]).mean().item()
    assert got == pytest.approx(want, rel=1e-3)


def test_the_width_of_noise_in_one_number_is_found():
    """y = w x with w of spread 0.5 from group to group: that is the best width of q too."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    x = torch.ones(4000, 1, dtype=torch.float64)
    y = 0.5 * torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = MeanField.around(net, scale=8.0)
    posterior = WeightPosterior(net, q, Gaussian(0.05))
    again = rescaled(posterior, (x, y), num_samples=400, batch_size=4000)
    assert again.q.scale["weight"].item() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_it_is_never_worse_even_where_all_noise_hurts(likelihood):
    net = nn.Linear(4, 1 if likelihood == "gaussian" else 3)
    x = NETS["mlp"].inputs(50)
    with torch.no_grad():
        y = net(x).squeeze(1) if likelihood == "gaussian" else net(x).argmax(1)
    kind = Gaussian(0.1) if likelihood == "gaussian" else Categorical()
    posterior = WeightPosterior(net, MeanField.around(net, scale=2.0), kind)
    assert nll(rescaled(posterior, (x, y)), (x, y)) <= nll(posterior, (x, y))


def test_a_posterior_that_fits_is_left_alone(trained, held_out):
    once = rescaled(around(trained, 0.5), held_out)
    twice = rescaled(once, held_out)
    assert twice.q is once.q


def test_nothing_else_changes(trained, held_out):
    wide = around(trained, 3.0)
    wide.record, wide.vectorize = trained.record, False
    before = copy.deepcopy(wide.q.state_dict())
    again = rescaled(wide, held_out)
    assert all(torch.equal(each, before[name]) for name, each in wide.q.state_dict().items())
    assert (again.model, again.likelihood, again.record, again.vectorize) == (
        wide.model,
        wide.likelihood,
        wide.record,
        False,
    )
    for name, each in again.point().items():
        assert torch.equal(each, wide.point()[name])


def test_loaders_data_sets_and_tensors_are_the_same_data_and_no_generator_moves(trained, held_out):
    wide, before = around(trained, 3.0), torch.get_rng_state()
    whole = TensorDataset(*held_out)
    kinds = (held_out, whole, DataLoader(whole, batch_size=7), DataLoader(whole, shuffle=True))
    scales = {rescaled(wide, data).q.scale["0.weight"].mean().item() for data in kinds}
    assert len(scales) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mapping_and_a_recurrent_net_are_welcome():
    for name in ("mapping", "lstm"):
        net = NETS[name]
        model = net.model()
        posterior = WeightPosterior(model, MeanField.around(model, scale=1.0), Categorical())
        again = rescaled(posterior, DataLoader(net.data(), batch_size=16), num_samples=3)
        assert (again.q.scale["head.weight"] <= 1.0).all()


def test_a_prediction_that_is_no_number_is_the_worst():
    net = nn.Linear(2, 3)
    scale = {name: torch.full_like(each, 1e38) for name, each in net.named_parameters()}
    posterior = WeightPosterior(net, MeanField(dict(net.named_parameters()), scale), Categorical())
    x, y = 10 * torch.ones(8, 2), torch.arange(8) % 3
    factor = best_factor(posterior, lambda: [(x, y)], num_samples=4)
    assert not math.isfinite(nll(posterior, (x, y), 4))
    assert math.isfinite(nll(times(posterior, factor), (x, y), 4))


def test_only_noise_with_a_scale_can_be_scaled(trained, held_out):
    assert isinstance(MeanField.around(nn.Linear(2, 2)), Scalable)
    with pytest.raises(UnsupportedModelError, match="such as MeanField, got Particles; define"):
        rescaled(trained, held_out)


def test_data_must_be_there(trained, held_out):
    with pytest.raises(DataError, match="no examples"):
        rescaled(around(trained, 1.0), (held_out[0][:0], held_out[1][:0]))
