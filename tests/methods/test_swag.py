import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from bayesify import (
    MAP,
    SWAG,
    Gaussian,
    NormalPrior,
    Particles,
    WeightPosterior,
    fit,
    last_layer,
    recalibrated,
    rescaled,
)
from bayesify.core.errors import DivergenceError, OptionError, UnsupportedModelError
from bayesify.core.types import Named
from bayesify.distributions.low_rank_normal import LowRankNormal
from bayesify.methods.swag import Iterates
from bayesify.posteriors.scale import times
from bayesify.weights.named import buffers_of, copied, weights_of
from zoo import NETS

LR, MOMENTUM, PRIOR = 0.05, 0.8, 0.7


def swag(**changes) -> SWAG:
    given = {"lr": LR, "momentum": MOMENTUM, "prior_scale": PRIOR, "burn_in": 0}
    return SWAG(**({"pretrain": None} | given | changes))


PLAIN = swag()


def in_order(x: Tensor, y: Tensor, size: int = 16) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=size)


def classes(size: int = 48) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 4, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def law(posterior: WeightPosterior) -> LowRankNormal:
    assert isinstance(posterior.q, LowRankNormal)
    return posterior.q


def vector(named: Named, start: int = 0) -> np.ndarray:
    parts = [each.detach().flatten(start) for each in named.values()]
    return torch.cat(parts, -1).double().numpy()


def walked(model: nn.Module, loader: DataLoader, epochs: int) -> np.ndarray:
    """All weights after each step of SGD on the MAP loss, written out; first the start."""
    model = copy.deepcopy(model).train()
    weights = list(model.parameters())
    prior, speed = NormalPrior(PRIOR), [torch.zeros_like(each) for each in weights]
    path = [vector(weights_of(model))]
    for _ in range(epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            loss = loss - prior.log_prob(dict(model.named_parameters())) / len(loader.dataset)
            for v, w, slope in zip(speed, weights, torch.autograd.grad(loss, weights), strict=True):
                v.mul_(MOMENTUM).add_(slope)
                w.data.sub_(LR * v)
            path.append(vector(weights_of(model)))
    return np.stack(path)


@pytest.mark.parametrize(
    ("options", "start", "every"),
    [
        ({"epochs": 5}, 0, 3),  # once in an epoch of three steps
        ({"epochs": 5, "rank": 2}, 0, 3),
        ({"epochs": 5, "collect_every": 1, "rank": 4}, 0, 1),
        ({"epochs": 4, "collect_every": 5}, 0, 5),  # across the ends of epochs
        ({"epochs": 3, "burn_in": 2, "collect_every": 2}, 6, 2),
    ],
)
def test_the_moments_are_those_of_the_iterates_that_a_loop_by_hand_stores(options, start, every):
    model, loader = NETS["mlp"].model().double(), in_order(*classes())
    method = swag(**options)
    q = law(fit(model, loader, method))
    kept = walked(model, loader, method.burn_in + method.epochs)[start::every]
    np.testing.assert_allclose(vector(q.point()), kept.mean(0), rtol=1e-8, atol=1e-12)
    want = kept.std(0)
    np.testing.assert_allclose(vector(q.diagonal.named()), want, rtol=1e-7, atol=1e-12)
    deviations = [kept[i] - kept[: i + 1].mean(0) for i in range(1, len(kept))][-method.rank :]
    got = vector(q.deviations.named(), 1)
    np.testing.assert_allclose(got, np.stack(deviations), rtol=1e-7, atol=1e-12)
    assert want.max() > 1e-3


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_on_linear_regression_the_spread_is_what_the_rate_makes_it(share, generator):
    """With H the curvature per example and also the gradient's covariance (as the model is true),
    a step w <- w - lr (H w + noise / sqrt(B)) has the stationary variance lr / (B (2 - lr H)).
    At lr = 2 B noise^2 / N that is close to the posterior's, noise^2 / N (Mandt et al. 2017,
    arXiv 1704.04289)."""
    n, size, noise = 256, 16, 0.5
    x = torch.linalg.qr(torch.randn(n, 4, generator=generator).double())[0] * math.sqrt(n)
    residual = torch.randn(n, generator=generator).double()
    residual -= x @ (x.T @ residual) / n
    y = x.sum(1) + noise * residual / residual.square().mean().sqrt()
    data = TensorDataset(x, y)
    at_random = BatchSampler(RandomSampler(data, replacement=True), size, drop_last=True)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)  # the maximum of the likelihood
    lr = share * 2 * size * noise**2 / n
    options = {"epochs": 200, "collect_every": 32, "rank": 100, "burn_in": 0}
    method = SWAG(None, lr=lr, momentum=0.0, prior_scale=100.0, **options)
    loader = DataLoader(data, batch_size=None, sampler=at_random)
    q = law(fit(model, loader, method, likelihood=Gaussian(noise)))
    stationary = lr / (size * (2 - lr / noise**2))
    exact = noise**2 / n
    assert vector(q.scale).__pow__(2).mean() == pytest.approx(stationary, rel=0.25)
    assert share < 1 or 0.5 < (vector(q.scale) ** 2 / exact).mean() < 2
    assert abs(vector(q.point()) - 1).max() < 4 * math.sqrt(exact)


def test_where_sgd_stands_still_there_is_no_spread():
    model, x = nn.Linear(3, 2, bias=False).double(), torch.zeros(32, 3).double()
    method = swag(epochs=4, prior_scale=1e30)
    posterior = fit(model, (x, torch.arange(32) % 2), method)
    assert torch.equal(posterior.point()["weight"], model.weight)
    assert (law(posterior).scale["weight"] == 0).all()
    out = posterior.outputs(torch.randn(5, 3).double(), num_samples=4)
    assert torch.equal(out, out[:1].expand_as(out))


def test_batch_norm_has_the_statistics_of_torchs_own_pass_at_the_mean():
    model = NETS["cnn"].model()
    data = NETS["cnn"].data()
    loader = in_order(data.inputs, data.target)
    posterior = fit(model, loader, swag(epochs=3))
    again = copy.deepcopy(posterior.model)
    again.load_state_dict(posterior.point(), strict=False)
    update_bn(loader, again)
    got, moved = buffers_of(posterior.model), buffers_of(model)
    for name, want in buffers_of(again).items():
        torch.testing.assert_close(got[name], want)
        assert not torch.allclose(got[name].float(), moved[name].float())
    assert not any(each.training for each in posterior.model.modules())


def test_batch_norm_can_keep_the_networks_statistics():
    model = NETS["cnn"].model()
    with torch.no_grad():
        model[1].running_mean.fill_(0.3)
    posterior = fit(model, NETS["cnn"].data(), swag(epochs=2, recalibrate=False))
    for name, each in buffers_of(model).items():
        assert torch.equal(buffers_of(posterior.model)[name], each)


def test_a_set_of_samples_can_have_statistics_of_their_own_as_in_the_paper():
    data = NETS["cnn"].data()
    loader = in_order(data.inputs, data.target)
    posterior = fit(NETS["cnn"].model(), loader, swag(epochs=3))
    weights = law(posterior).sample(3, generator=torch.Generator().manual_seed(0))
    buffers = {n: torch.stack(3 * [each]) for n, each in buffers_of(posterior.model).items()}
    members = recalibrated(posterior.replaced(Particles(weights, buffers)), loader)
    for i, out in enumerate(members.outputs(data.inputs).detach()):
        again = copy.deepcopy(posterior.model)
        again.load_state_dict({n: each[i] for n, each in weights.items()}, strict=False)
        update_bn(loader, again)
        torch.testing.assert_close(out, again.eval()(data.inputs).detach())


def test_moments_do_not_cancel():
    """Of numbers around 1e4 with a spread of 0.01, single precision has no squares to subtract."""
    values = 1e4 + 0.01 * torch.randn(50, 8)
    iterates = Iterates({"w": values[0]}, rank=3)
    for each in values[1:]:
        iterates.add_({"w": each})
    naive = values.square().mean(0) - values.mean(0).square()
    want = values.double().var(0, correction=0)
    torch.testing.assert_close(iterates.variance()["w"].double(), want, rtol=0.1, atol=0)
    assert (naive.double() / want - 1).abs().min() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_half_types_are_kept_in_single_precision(dtype):
    values = (1 + 0.1 * torch.randn(50, 8)).to(dtype)
    iterates = Iterates({"w": values[0]}, rank=3)
    for each in values[1:]:
        iterates.add_({"w": each})
    assert iterates.mean["w"].dtype == torch.float32
    torch.testing.assert_close(iterates.mean["w"], values.float().mean(0))
    torch.testing.assert_close(iterates.variance()["w"], values.float().var(0, correction=0))
    q = iterates.normal({"w": dtype})
    assert {each.dtype for each in q.state_dict().values()} == {dtype}


def test_no_variance_is_negative():
    values = 1 + torch.finfo(torch.float32).eps * torch.randint(2, (200, 50))
    iterates = Iterates({"w": values[0]}, rank=2)
    for each in values[1:]:
        iterates.add_({"w": each})
        assert (iterates.variance()["w"] >= 0).all()


def test_before_the_first_iterate_it_is_the_network_without_noise():
    problem, x = NETS["mlp"].problem(), NETS["mlp"].inputs(5)
    posterior = PLAIN.start(problem).posterior()
    out = posterior.outputs(x, num_samples=3)
    torch.testing.assert_close(out, problem.model(x).expand_as(out))


def test_a_learnt_noise_is_averaged_over_the_iterates(monkeypatch):
    x, y = torch.randn(48, 2), torch.randn(48)
    seen = []
    step = torch.optim.SGD.step

    def noted(self, *given):
        step(self, *given)
        (log_scale,) = self.param_groups[1]["params"]
        seen.append(log_scale.item())

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    method = swag(epochs=4, collect_every=1)
    model = nn.Linear(2, 1)
    posterior = fit(model, (x, y), method, likelihood="gaussian")
    got = posterior.likelihood.state_dict()["log_scale"].item()
    first = (model(x)[:, 0] - y).square().mean().sqrt().log().item()  # the network's residuals
    trained = seen[1:]  # the first step is the rehearsal's
    assert got == pytest.approx(np.mean([first, *trained]), rel=1e-5)
    assert got != pytest.approx(seen[-1], rel=1e-2)


def test_the_prior_does_not_hold_a_learnt_noise():
    x, y = torch.zeros(32, 2), 0.01 * (-1.0) ** torch.arange(32)
    method = swag(burn_in=60, epochs=2, prior_scale=0.1)
    posterior = fit(nn.Linear(2, 1, bias=False), (x, y), method, likelihood="gaussian")
    want = math.log(0.01)  # decay of 1 / (N prior_scale^2) = 3.1 would stop it at once
    got = posterior.likelihood.state_dict()["log_scale"].item()
    assert got == pytest.approx(want, rel=1e-3)


def test_weights_that_are_not_chosen_or_frozen_stay():
    model = NETS["mlp"].model()
    model[4].bias.requires_grad_(False)
    posterior = fit(model, NETS["mlp"].data(), swag(epochs=2, where=last_layer))
    assert posterior.q.names == ["4.weight"]
    before, after = copied(weights_of(model)), weights_of(posterior.model)
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["4.weight"]
    assert set(posterior.base()) == set(before) - {"4.weight"}


def test_the_network_is_left_at_the_mean():
    posterior = fit(NETS["mlp"].model(), NETS["mlp"].data(), swag(epochs=2))
    for name, each in posterior.point().items():
        assert torch.equal(weights_of(posterior.model)[name], each)


def test_a_frozen_network_and_an_empty_choice_are_refused():
    frozen = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match=r"every weight of Linear that .* is frozen"):
        fit(frozen, NETS["mlp"].data(), PLAIN)
    with pytest.raises(OptionError, match="where='last_layer': expected a selector"):
        SWAG(where="last_layer").start(NETS["mlp"].problem())
    with pytest.raises(OptionError, match="chose no weight of Sequential"):
        SWAG(where=lambda model, example: []).start(NETS["mlp"].problem())


def test_a_run_that_would_collect_nothing_is_refused_before_the_pretraining():
    method = SWAG(pretrain=MAP(epochs=10**6), epochs=2, collect_every=7)
    with pytest.raises(OptionError, match=r"collect_every=7\): expected at most the 6 steps"):
        fit(NETS["mlp"].model(), NETS["mlp"].data(), method, batch_size=16)


def test_a_rate_that_is_too_high_is_told():
    x, y = 1e3 * torch.randn(64, 4), torch.randn(64)
    with pytest.raises(DivergenceError, match=r"diverged at step \d+.*lower the learning rate"):
        fit(nn.Linear(4, 1), (x, y), SWAG(None, lr=10.0), likelihood=Gaussian(1.0))


@pytest.mark.parametrize(
    "options",
    [
        *({"epochs": 0}, {"burn_in": -1}, {"lr": 0.0}, {"momentum": 1.0}, {"prior_scale": 0.0}),
        *({"rank": 1}, {"collect_every": 0}),
    ],
)
def test_senseless_options_are_refused(options):
    with pytest.raises(OptionError, match="SWAG"):
        SWAG(**options)


def test_its_noise_can_be_rescaled_on_held_out_examples():
    net = NETS["mlp"]
    posterior = fit(net.model(), net.data(), swag(epochs=4))
    held_out = net.data(64, seed=2)
    wide = times(posterior, 200.0)  # by far: a network trained so little gains from noise
    again = rescaled(wide, held_out, num_samples=32)
    nll = [
        -each.predict(held_out.inputs).log_prob(held_out.target).mean() for each in (wide, again)
    ]
    assert nll[1] < nll[0]
    assert torch.equal(law(again).loc.named()["0.weight"], law(posterior).loc.named()["0.weight"])
