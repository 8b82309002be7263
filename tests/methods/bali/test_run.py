import math

import pytest
import torch
from torch import Tensor, nn

from bayesify import BALI, Categorical, Gaussian, NotPositiveDefiniteError
from bayesify.forward.outputs import read_tensor
from bayesify.methods.bali.run import LayerwiseRun
from bayesify.training.data import TrainingData
from bayesify.training.problem import Problem
from zoo import NETS


def run_of(model: nn.Module, x: Tensor, likelihood, *, num_data=48, steps=10, **options):
    problem = Problem(
        model=model,
        likelihood=likelihood,
        data=TrainingData.of(
            lambda: iter([(x, torch.zeros(1))]), num_data=num_data, steps_per_epoch=steps
        ),
        readout=read_tensor,
        vectorize=options.pop("vectorize", True),
        generator=torch.Generator().manual_seed(0),
    )
    return BALI(**({"epochs": 1, "min_steps": 1, "warmup": 0} | options)).start(problem)


def two_layers() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def test_a_step_is_the_regression_on_pseudo_targets_written_out(generator):
    """Every quantity by hand: G by autograd, T = H M - G V, natural parameters, dense inverses."""
    net = two_layers()
    x = torch.randn(12, 4, generator=generator).double()
    y = torch.randn(12, 1, generator=generator).double()
    rho, tau, delta, noise, n = 0.3, 0.7, 0.2, 0.5, 36
    run = run_of(
        net, x, Gaussian(noise), num_data=n, forward_noise=False, rate=rho, final_rate=rho,
        prior_precision=tau, damping=delta, cap=1e9, noise_covariance=0.4,
    )  # fmt: skip
    one = torch.ones(12, 1).double()
    h0 = torch.cat([x, one], 1)
    means = [
        torch.cat([each.weight, each.bias[:, None]], 1).T.detach() for each in (net[0], net[2])
    ]
    z0 = (h0 @ means[0]).requires_grad_()
    h1 = torch.cat([torch.tanh(z0), one], 1)
    z1 = h1 @ means[1]
    loss = (y - z1).square().sum() / (2 * noise**2)
    g0, g1 = torch.autograd.grad(loss, [z0, z1])
    for layer, h, m, g, v in zip(
        run.layers, (h0, h1.detach()), means, (g0, g1), (0.4, noise**2), strict=True
    ):
        eye = torch.eye(len(m)).double()
        first = n / 12 * h.T @ h + tau * eye
        torch.testing.assert_close(layer.regression.precision[0], first)
        precision = (1 - rho) * first + rho * (n / 12 * h.T @ h + tau * eye)
        shift = (1 - rho) * first @ m + rho * n / 12 * h.T @ (h @ m - g * v)
        layer.want = torch.linalg.inv(precision) @ shift  # type: ignore[attr-defined]
    run.step(x, y)
    for layer in run.layers:
        torch.testing.assert_close(layer.regression.mean[0], layer.want, rtol=0, atol=1e-11)  # type: ignore[attr-defined]


def test_the_covariance_is_the_inverse_of_the_fisher_of_drawn_labels(generator):
    """With one class drawn for each of many equal examples the average is known: J^T F J."""
    x = torch.randn(1, 4, generator=generator).double().expand(20_000, 4)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    run = run_of(net, x, Categorical(), num_data=20_000, forward_noise=False, damping=0.1)
    p = net(x[:1]).softmax(1)[0].detach()
    at_output = torch.diag(p) - torch.outer(p, p)
    weight = net[1].weight.detach()
    run.step(x, torch.zeros(20_000, dtype=torch.long))
    for layer, fisher in zip(run.layers, (weight.T @ at_output @ weight, at_output), strict=True):
        found = layer.regression
        torch.testing.assert_close(found.fisher[0], fisher, rtol=0, atol=0.01)  # 20,000 draws
        inverse = torch.linalg.inv(found.fisher[0] + 0.1 * torch.eye(len(fisher)).double())
        torch.testing.assert_close(found.covariance[0], inverse)


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_members_at_once_are_members_one_after_the_other(net):
    x, y = NETS[net].inputs(16), torch.arange(16) % 3
    runs = [
        run_of(NETS[net].model(), x, Categorical(), members=3, forward_noise=False,
               noise_covariance=0.2, vectorize=vectorize)
        for vectorize in (True, False)
    ]  # fmt: skip
    for _ in range(3):
        for run in runs:
            run.step(x, y)
    first, second = (run.posterior().q.state_dict() for run in runs)
    for name, each in first.items():
        torch.testing.assert_close(second[name], each, rtol=1e-3, atol=1e-4)


def test_a_member_alone_is_what_it_is_in_company():
    x, y = NETS["mlp"].inputs(16), torch.arange(16) % 3
    options = {"forward_noise": False, "noise_covariance": 0.2}
    alone = run_of(NETS["mlp"].model().double(), x.double(), Categorical(), **options)
    company = run_of(NETS["mlp"].model().double(), x.double(), Categorical(), members=3, **options)
    for _ in range(4):
        alone.step(x.double(), y)
        company.step(x.double(), y)
    for one, all_ in zip(alone.layers, company.layers, strict=True):
        torch.testing.assert_close(all_.regression.mean[:1], one.regression.mean)


def test_a_member_whose_numbers_break_keeps_what_it_had_and_the_others_go_on():
    x, y = NETS["mlp"].inputs(16), torch.arange(16) % 3
    run = run_of(NETS["mlp"].model(), x, Categorical(), members=3)
    run.step(x, y)
    broken = run.layers[1].regression.mean.clone()
    broken[1] = math.inf
    object.__setattr__(run.layers[1].regression, "mean", broken)
    before = [layer.regression.mean.clone() for layer in run.layers]
    log = run.step(x, y)
    assert math.isfinite(log["loss"])
    for layer, was in zip(run.layers, before, strict=True):
        assert torch.equal(layer.regression.mean[1], was[1])
        assert not torch.equal(layer.regression.mean[0], was[0])
        assert torch.isfinite(layer.regression.mean[[0, 2]]).all()


def test_a_precision_that_has_no_factor_is_named_with_its_smallest_eigenvalue():
    x, y = NETS["mlp"].inputs(16), torch.arange(16) % 3
    run = run_of(NETS["mlp"].model(), x, Categorical(), rate=1e-9, final_rate=1e-9)
    bad = run.layers[1].regression.precision.clone()
    bad[:, 0, 0] = -5.0
    object.__setattr__(run.layers[1].regression, "precision", bad)
    for _ in range(20):
        run.step(x, y)
    with pytest.raises(NotPositiveDefiniteError, match=r"'2.weight'.*eigenvalue"):
        run.step(x, y)


def test_rates_rise_and_then_fall_along_a_cosine():
    x, y = NETS["mlp"].inputs(16), torch.arange(16) % 3
    run = run_of(
        NETS["mlp"].model(), x, Categorical(), steps=40, warmup=9, rate=0.2, final_rate=0.02
    )
    rates = []
    for _ in range(40):
        rates.append(run._rate())
        run.step(x, y)
    cosine = [0.02 + 0.18 * (1 + math.cos(math.pi * k / 40)) / 2 for k in range(40)]
    assert rates == pytest.approx([c * min(1, (k + 1) / 10) for k, c in enumerate(cosine)])
    assert run._rate() == pytest.approx(0.02)


def test_statistics_rest_on_five_rows_for_each_feature():
    x = torch.randn(20, 30)
    net = nn.Sequential(nn.Linear(30, 9), nn.ReLU(), nn.Linear(9, 3))
    run = run_of(net, x, Categorical(), num_data=1000, rate=0.2)
    wide, narrow = (layer.highest_rate(20, 1000) for layer in run.layers)
    assert wide == pytest.approx(20 / (5 * 31))  # B / rho rows are remembered
    assert narrow == pytest.approx(20 / (5 * 10))
    before = run.layers[0].regression.precision
    run.step(x, torch.arange(20) % 3)
    h = torch.cat([x, torch.ones(20, 1)], 1).double()
    fresh = 1000 / (20 * 0.5) * h.T @ h + 30 * torch.eye(31).double()
    want = (1 - wide) * before[0] + wide * fresh
    torch.testing.assert_close(run.layers[0].regression.precision[0], want, rtol=1e-4, atol=1e-2)
    assert run.layers[0].highest_rate(20, 20) == 1.0  # a full batch
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 3))
    run = run_of(conv, torch.randn(20, 1, 8, 8), Categorical(), num_data=10_000)
    assert run.layers[0].rows_per_example == 36
    assert run.layers[0].highest_rate(20, 10_000) > 1.0


def test_factors_are_refreshed_only_now_and_then():
    x, y = NETS["mlp"].inputs(16), torch.arange(16) % 3
    run = run_of(NETS["mlp"].model(), x, Categorical(), refresh=3)
    seen = []
    for _ in range(7):
        run.step(x, y)
        seen.append((run.layers[1].regression.row, run.layers[1].regression.fisher))
    same = [torch.equal(seen[i][0], seen[i + 1][0]) for i in range(6)]
    assert same == [True, True, False, True, True, False]
    assert [torch.equal(seen[i][1], seen[i + 1][1]) for i in range(6)] == same


def test_a_temperature_is_so_many_fewer_data():
    x, y = NETS["mlp"].inputs(16).double(), torch.arange(16) % 3
    options = {"forward_noise": False, "noise_covariance": 0.2}
    cold = run_of(
        NETS["mlp"].model().double(), x, Categorical(), num_data=48, temperature=1.0, **options
    )
    tempered = run_of(
        NETS["mlp"].model().double(), x, Categorical(), num_data=96, temperature=2.0, **options
    )
    for _ in range(2):
        cold.step(x, y)
        tempered.step(x, y)
    for ours, theirs in zip(cold.layers, tempered.layers, strict=True):
        torch.testing.assert_close(ours.regression.mean, theirs.regression.mean)
        torch.testing.assert_close(ours.regression.precision, theirs.regression.precision)


def test_a_small_batch_replaces_a_small_share_of_the_past():
    x, y = NETS["mlp"].inputs(16).double(), torch.arange(16) % 3
    run = run_of(NETS["mlp"].model().double(), x, Categorical(), num_data=160, rate=0.2)
    run.step(x, y)
    before, tau = run.layers[0].regression.precision, 30.0
    rate = run._rate() * 4 / 16  # 16 rows are enough for 5 features at 0.2
    run.step(x[:4], y[:4])
    h = torch.cat([x[:4], torch.ones(4, 1).double()], 1)
    fresh = 160 / (4 * 0.5) * h.T @ h + tau * torch.eye(5).double()
    want = (1 - rate) * before[0] + rate * fresh
    torch.testing.assert_close(run.layers[0].regression.precision[0], want)


def test_the_trust_region_holds_the_pseudo_targets():
    x, y = torch.ones(8, 4).double(), torch.ones(8, dtype=torch.long)
    net = nn.Linear(4, 2, bias=False).double()
    nn.init.zeros_(net.weight)
    options = {"rate": 1.0, "final_rate": 1.0, "forward_noise": False, "prior_precision": 1e-9}
    run = run_of(net, x, Categorical(), num_data=8, cap=0.3, bound_output=True, **options)
    run.step(x, y)
    after = (x[:1] @ run.posterior().point()["weight"].T)[0]
    assert after.tolist() == pytest.approx([-0.3, 0.3], rel=1e-6)  # V G = 2 * 0.5 without a cap


def test_targets_of_a_regression_are_data_which_nothing_caps(generator):
    x = torch.randn(30, 2, generator=generator).double()
    y = 1000 * torch.randn(30, 1, generator=generator).double().exp()  # skewed, in large units
    options = {"rate": 1.0, "final_rate": 1.0, "forward_noise": False, "prior_precision": 1e-9}
    run = run_of(nn.Linear(2, 1).double(), x, Gaussian(500.0), num_data=30, **options)
    run.step(x, y)
    h = torch.cat([x, torch.ones(30, 1).double()], 1)
    want = torch.linalg.lstsq(h, y).solution
    torch.testing.assert_close(run.layers[0].regression.mean[0], want, rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("members", [1, 2])
def test_a_step_that_is_undone_leaves_no_trace_in_norms(members):
    x, y = NETS["cnn"].inputs(16), torch.arange(16) % 3
    run = run_of(NETS["cnn"].model(), x, Categorical(), members=members)
    run.step(x, y)
    run.step(x, y)
    before = run.posterior().q.state_dict()
    log = run.step(x * 1e38, y)
    assert log["rolled_back"] == 1.0
    after = run.posterior().q.state_dict()
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    run.step(x, y)
    assert torch.isfinite(run.posterior().outputs(x)).all()


def test_stale_factors_are_not_handed_out():
    x, y = NETS["mlp"].inputs(16), torch.arange(16) % 3
    run = run_of(NETS["mlp"].model(), x, Categorical(), refresh=50, rate=0.5)
    for _ in range(20):
        run.step(x, y)
    row = run.posterior().q.row.named()["2.weight"].detach().double()
    precision = run.layers[1].regression.precision
    torch.testing.assert_close(row @ row.mT, precision, rtol=1e-4, atol=1e-4)


def test_a_posterior_does_not_change_when_learning_goes_on():
    x, y = NETS["cnn"].inputs(16), torch.arange(16) % 3
    run = run_of(NETS["cnn"].model(), x, Categorical(), members=2)
    assert isinstance(run, LayerwiseRun)
    posterior = run.posterior()
    before = posterior.outputs(x)
    for _ in range(3):
        run.step(x, y)
    assert torch.equal(posterior.outputs(x), before)
    assert not torch.equal(run.posterior().outputs(x), before)


def test_noise_is_estimated_without_a_gradient():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    y = x[:, :1] + 0.2 * torch.randn(200, 1, generator=generator)
    run = run_of(nn.Linear(4, 1), x, Gaussian("learnt"), num_data=200, steps=60, rate=0.3)
    for _ in range(60):
        run.step(x, y)
    assert run.likelihood.log_scale.exp().item() == pytest.approx(0.2, rel=0.15)
    assert run.likelihood.log_scale.grad is None
