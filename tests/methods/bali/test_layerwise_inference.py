"""BALI where the truth is known: exact regression, the bound on a softmax layer, convolutions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify import (
    BALI,
    MAP,
    Callback,
    Categorical,
    Ensemble,
    FineTunedEnsemble,
    Gaussian,
    fit,
    last_layer,
    matching,
)
from bayesify.core.errors import (
    DivergenceError,
    OptionError,
    UnsupportedLayerError,
    UnsupportedModelError,
)
from bayesify.core.types import Inputs
from bayesify.data import splits
from bayesify.forward.outputs import read_tensor
from bayesify.numerics.layer_regression import LayerRegression
from bayesify.training.data import TrainingData
from bayesify.training.problem import Problem
from zoo import NETS, SHARED, TransformerNet

EXACT = {
    "temperature": 1.0,
    "rate": 1.0,
    "forward_noise": False,
    "final_rate": 1.0,
    "warmup": 0,
    "cap": 1e12,
    "epochs": 1,
    "min_steps": 1,
}
"""One step that forgets everything: the statistics of the batch are the posterior's."""


def started(model: nn.Module, x: Inputs, likelihood, size: int, **options):
    """A run on one full batch."""
    problem = Problem(
        model=model,
        likelihood=likelihood,
        data=TrainingData.of(lambda: iter([(x, torch.zeros(size))]), num_data=size),
        readout=read_tensor,
        vectorize=True,
        generator=torch.Generator().manual_seed(0),
    )
    return BALI(**options).start(problem)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_one_full_step_on_a_linear_net_is_exact_regression(bias, members, generator):
    x = torch.randn(40, 3, generator=generator).double()
    y = torch.randn(40, 2, generator=generator).double()
    net = nn.Linear(3, 2, bias=bias).double()
    method = BALI(prior_precision=0.7, members=members, **EXACT)
    posterior = fit(net, (x, y), method, likelihood=Gaussian(0.3), batch_size=40)
    h = torch.cat([x, torch.ones(40, 1).double()], 1) if bias else x
    precision = h.T @ h + 0.7 * torch.eye(h.shape[1]).double()
    mean = torch.linalg.solve(precision, h.T @ y)
    q = posterior.q
    for member in range(members):
        got = q.loc.named()["weight"][member]
        if bias:
            got = torch.cat([got, q.loc.named()["bias"][member, :, None]], 1)
        torch.testing.assert_close(got.detach().T, mean, rtol=0, atol=1e-10)
        row, column = (each.named()["weight"][member].detach() for each in (q.row, q.column))
        torch.testing.assert_close(row @ row.T, precision, rtol=0, atol=1e-10)
        torch.testing.assert_close(column @ column.T, 0.09 * torch.eye(2).double())


def test_predictive_variance_of_a_known_regression_is_the_dense_one():
    """Bayesian linear regression with noise variance .01 and weights' prior precision 2."""
    torch.manual_seed(0)
    x, w = torch.randn(50, 5).double(), torch.randn(5, 1).double()
    y = x @ w + 0.1 * torch.randn(50, 1).double()
    net = nn.Linear(5, 1, bias=False).double()
    # the conjugate prior is N(0, noise / tau)
    method = BALI(prior_precision=2 * 0.01, **EXACT)
    q = fit(net, (x, y), method, likelihood=Gaussian(0.1), batch_size=50).q
    dense = torch.linalg.inv(x.T @ x / 0.01 + 2 * torch.eye(5).double())
    row, column = q.row.named()["weight"][0].detach(), q.column.named()["weight"][0].detach()
    got = column.square() * torch.cholesky_inverse(row)
    torch.testing.assert_close(got, dense, rtol=0, atol=1e-10)
    torch.testing.assert_close(q.point()["weight"].T, dense @ x.T @ y / 0.01, rtol=0, atol=1e-10)


def test_a_softmax_layer_under_the_bound_descends_to_its_stationary_point(generator):
    x = torch.randn(60, 4, generator=generator).double()
    y = torch.randint(3, (60,), generator=generator)
    options = EXACT | {"bound_output": True, "prior_precision": 20.0}
    run = started(nn.Linear(4, 3).double(), x, Categorical(), 60, **options)
    h = torch.cat([x, torch.ones(60, 1).double()], 1)

    def objective(mean: Tensor) -> Tensor:  # V = 2 I scales the prior: N(0, 2 / tau)
        return F.cross_entropy(h @ mean, y, reduction="sum") + 20 * mean.square().sum() / 4

    values = []
    for _ in range(400):
        values.append(objective(run.layers[0].regression.mean[0]).item())
        run.step(x, y)
    steps = np.diff(values)
    assert (steps <= 1e-10).all()
    assert steps[0] < -0.1
    mean = run.layers[0].regression.mean[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(mean), mean)
    assert slope.abs().max() < 1e-6


class Unfolded(nn.Module):
    """A convolution written as a linear layer on patches, then the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, padding=1, stride=2).mT  # (B, positions, 8)
        return self.head(torch.tanh(self.first(patches)).mean(1))


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 3, 2, padding=1, stride=2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)).flatten(2).mean(2))


def test_a_convolution_is_the_linear_layer_on_its_patches(generator):
    x = torch.randn(12, 2, 5, 5, generator=generator).double()
    y = torch.randint(2, (12,), generator=generator)
    flat, conv = Unfolded().double(), Convolved().double()
    with torch.no_grad():
        conv.first.weight.copy_(flat.first.weight.view(3, 2, 2, 2))
        conv.first.bias.copy_(flat.first.bias)
    conv.head.load_state_dict(flat.head.state_dict())
    runs = [
        started(each, x, Categorical(), 12, forward_noise=False, warmup=0) for each in (flat, conv)
    ]
    for _ in range(5):
        for run in runs:
            run.step(x, y)
    for ours, theirs in zip(runs[0].layers, runs[1].layers, strict=True):
        for field, value in vars(ours.regression).items():
            torch.testing.assert_close(
                getattr(theirs.regression, field), value, rtol=1e-9, atol=1e-9
            )


def test_looking_at_the_data_in_parts_is_looking_at_the_whole():
    net, (x, y) = NETS["mlp"].model().double(), (torch.randn(48, 4).double(), None)
    del y

    def grams(parts: int) -> list[Tensor]:
        problem = Problem(
            model=net,
            likelihood=Categorical(),
            data=TrainingData.of(lambda: ((part, part[:, 0]) for part in x.chunk(parts))),
            readout=read_tensor,
            vectorize=True,
            generator=torch.Generator(),
        )
        return [each.regression.precision for each in BALI(members=2).start(problem).layers]

    for whole, parts in zip(grams(1), grams(4), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    assert not torch.equal(grams(1)[1][0], grams(1)[1][1])  # members see features of their own


@pytest.mark.parametrize("evidence", [True, False])
def test_the_precision_never_falls_below_the_prior(evidence):
    net = NETS["mlp"].problem()
    run = BALI(evidence=evidence, warmup=0).start(net)
    x, y = NETS["mlp"].inputs(16), torch.randint(3, (16,))
    for _ in range(30):
        run.step(x, y)
        for layer in run.layers:
            tau = layer.regression.prior_precision
            smallest = torch.linalg.eigvalsh(layer.regression.precision)[:, 0]
            assert (smallest >= tau - 1e-9 * layer.regression.precision.abs().amax((1, 2))).all()
    moved = [(each.regression.prior_precision != 30.0).all() for each in run.layers]
    assert all(moved) == evidence


def test_widths_are_left_to_the_task_unless_they_are_given():
    regression, classes = (BALI().scales(each) for each in (Gaussian(0.5), Categorical()))
    assert (regression.prior_precision, regression.damping, regression.temperature) == (
        0.1,
        0.05,
        1,
    )
    assert (classes.prior_precision, classes.damping, classes.temperature) == (30, 0.02, 0.5)
    given = BALI(damping=0.3).scales(Categorical())
    assert (given.prior_precision, given.damping, given.temperature) == (30, 0.3, 0.5)


def test_members_are_different_and_the_first_starts_at_the_given_weights():
    net = NETS["mlp"].model()
    run = started(net, NETS["mlp"].inputs(16), Categorical(), 16, members=3)
    weight = run.posterior().q.loc.named()["0.weight"]
    assert torch.equal(weight[0], net[0].weight)
    assert not torch.equal(weight[1], weight[0])
    assert not torch.equal(weight[1], weight[2])


def test_small_data_get_at_least_so_many_steps():
    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    method = BALI(epochs=2, min_steps=25, warmup=0)
    posterior = fit(NETS["mlp"].model(), (x, y), method, batch_size=10)
    assert len(posterior.record.history) == 7  # of 4 steps each
    assert len(fit(NETS["mlp"].model(), (x, y), BALI(epochs=9, min_steps=1)).record.history) == 9


def test_frozen_and_other_weights_stay_as_they_are():
    net = NETS["mlp"].model()
    net[0].weight.requires_grad_(False)
    method = BALI(where=matching("0.*", "4.*"), epochs=1, min_steps=1)
    posterior = fit(net, NETS["mlp"].data(), method)
    assert posterior.q.names == ["4.weight", "4.bias", "0.bias"]
    assert torch.equal(posterior.model[0].weight, net[0].weight)
    assert torch.equal(posterior.model[2].weight, net[2].weight)
    assert not torch.equal(posterior.point()["0.bias"], net[0].bias)  # a vector, by Adam


def test_norms_are_trained_as_points():
    net = NETS["cnn"].model()
    posterior = fit(net, NETS["cnn"].data(), BALI(epochs=3, min_steps=1))
    assert list(posterior.q.points.named()) == ["1.weight", "1.bias"]
    assert not torch.equal(posterior.point()["1.weight"], net[1].weight)
    assert posterior.point()["1.running_mean"].abs().sum() > 0


def test_a_trained_network_is_where_it_starts():
    net, data = NETS["mlp"].model(), NETS["mlp"].data()
    trained = fit(net, data, MAP(epochs=100, lr=0.01)).record.history[-1]["loss"]
    options = {"epochs": 1, "min_steps": 1, "rate": 1e-6, "forward_noise": False}
    method = BALI(pretrain=MAP(epochs=100, lr=0.01), **options)
    history = fit(net, data, method).record.history
    assert history[-1]["phase"] == "BALI"
    assert history[-1]["loss"] == pytest.approx(trained, rel=0.1)
    assert fit(net, data, BALI(**options)).record.history[-1]["loss"] > 2 * trained


def test_weights_drawn_anew_owe_nothing_to_the_networks_own():
    x, y = torch.randn(60, 3), torch.randint(2, (60,))
    means = {}
    for how in ("own", "he"):
        for factor in (1.0, 7.0):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
            with torch.no_grad():
                net[0].weight *= factor
            fitted = fit(net, (x, y), BALI(epochs=1, min_steps=1, first_weights=how), seed=1)
            means[how, factor] = fitted.q.point()["0.weight"]
    assert torch.equal(means["he", 1.0], means["he", 7.0])
    assert not torch.allclose(means["own", 1.0], means["own", 7.0])
    assert not torch.allclose(means["own", 1.0], means["he", 1.0])


def test_a_trained_network_is_not_thrown_away():
    with pytest.raises(OptionError, match="would be thrown away"):
        BALI(pretrain=MAP(), first_weights="he")


def test_a_trained_network_is_one_start_not_several():
    with pytest.raises(OptionError, match=r"expected pretrain=Ensemble\(members=4\)"):
        BALI(pretrain=MAP(), members=4)
    with pytest.raises(OptionError, match="trains several networks"):
        BALI(pretrain=Ensemble(members=3))


def test_the_members_of_an_ensemble_are_as_many_starts():
    x, y = torch.randn(60, 3), torch.randint(2, (60,))
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    ensemble = Ensemble(members=3, epochs=2)
    still = {"epochs": 1, "min_steps": 1, "rate": 1e-9, "final_rate": 1e-9, "rest_lr": 1e-9}
    before = fit(net, (x, y), ensemble, seed=1).q.stacked()
    after = fit(net, (x, y), BALI(pretrain=ensemble, members=3, **still), seed=1).q
    for name, each in after.loc.named().items():
        torch.testing.assert_close(each, before[name], atol=1e-5, rtol=0)
    gains = after.points.named()["1.weight"]
    torch.testing.assert_close(gains, before["1.weight"], atol=1e-5, rtol=0)
    assert not torch.allclose(gains[0], gains[1])


def test_networks_that_differ_in_what_is_not_learnt_are_refused_before_training():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    data, seen = (torch.randn(60, 3), torch.randint(2, (60,))), []

    class Watch(Callback):
        def on_epoch_end(self, logs):
            seen.append(logs)

    ensemble = Ensemble(members=2, epochs=1)
    method = BALI(members=2, pretrain=ensemble, where=last_layer, min_steps=1)
    with pytest.raises(OptionError, match=r"not learnt after it, 0.weight, 0.bias"):
        fit(net, data, method, callbacks=[Watch()])
    nested = BALI(members=2, pretrain=BALI(members=2, epochs=1, min_steps=1), min_steps=1)
    with pytest.raises(OptionError, match="expected one that leaves 2 whole networks"):
        fit(net, data, nested, callbacks=[Watch()])
    assert not seen
    net[0].requires_grad_(False)  # alike in all members, and not learnt
    q = fit(net, data, replace(method, epochs=1)).q
    assert len(q.loc.named()["2.weight"]) == 2


def test_members_that_are_trained_need_not_be_drawn():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(self.gain * x)

    data = (torch.randn(60, 3), torch.randint(2, (60,)))
    tuned = FineTunedEnsemble(pretrain=None, members=2, epochs=1)
    q = fit(Own(), data, BALI(members=2, pretrain=tuned, epochs=1, min_steps=1)).q
    assert len(q.loc.named()["linear.weight"]) == 2


def test_a_likelihood_that_learns_by_gradients_is_refused():
    likelihood = Categorical()
    likelihood.register_parameter("scale", nn.Parameter(torch.zeros(())))
    with pytest.raises(OptionError, match="Categorical learns scale"):
        fit(NETS["mlp"].model(), NETS["mlp"].data(), BALI(), likelihood=likelihood)


@pytest.mark.parametrize(
    ("net", "names"),
    [
        ("lstm", ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]),
        ("tied", ["embed.weight"]),
        ("transformer", ["encoder.layers.0.self_attn.in_proj_weight"]),
    ],
)
def test_layers_it_cannot_treat_are_named(net, names):
    with pytest.raises(UnsupportedLayerError) as caught:
        fit(NETS[net].model(), NETS[net].data(), BALI())
    assert all(f"`{name}`" in str(caught.value) for name in names)
    assert "rest='all'" in str(caught.value)


def test_a_network_without_a_linear_map_is_refused():
    net = TransformerNet()
    for name, each in net.named_parameters():
        each.requires_grad_("norm" in name)
    with pytest.raises(UnsupportedModelError, match="no layer to learn in TransformerNet"):
        fit(net, NETS["transformer"].data(), BALI())


def test_a_run_that_cannot_go_on_says_so_and_keeps_what_it_had():
    x, y = NETS["mlp"].inputs(16), torch.randint(3, (16,))
    run = started(NETS["mlp"].model(), x, Categorical(), 16, members=2)
    run.step(x, y)
    before = run.posterior().q.state_dict()
    broken = torch.full_like(x, float("nan"))
    for _ in range(20):
        assert np.isnan(run.step(broken, y)["loss"])
    with pytest.raises(DivergenceError, match="member"):
        run.step(broken, y)
    after = run.posterior().q.state_dict()
    assert all(torch.equal(each, after[name]) for name, each in before.items())


def test_it_learns_classes_better_than_guessing_in_a_hundred_steps():
    digits = splits("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    posterior = fit(net, digits.train, BALI(epochs=1, min_steps=100))
    x, y = digits.validation.batch(torch.arange(len(digits.validation)))
    predictive = posterior.predict(x)
    assert (predictive.probs.argmax(1) == y).float().mean() > 0.93
    assert -predictive.log_prob(y).mean() < 0.35


@pytest.mark.skipif(not SHARED.exists(), reason="the UCI sets are not at hand")
@pytest.mark.parametrize("name", ["boston", "concrete", "energy", "wine", "yacht"])
def test_no_run_on_small_real_data_ends_in_numbers_that_are_not_finite(name):
    """40 posteriors a set: 2 splits of 20 members, each a run of its own."""
    for fold in (0, 1):
        data = splits(str(SHARED / f"uci_{name}.npz"), fold=fold)
        net = nn.Sequential(nn.Linear(data.input_shape[0], 50), nn.ReLU(), nn.Linear(50, 1))
        method = BALI(members=20, epochs=1, min_steps=150)
        posterior = fit(net, data.train, method, likelihood="gaussian", batch_size=100)
        assert all(np.isfinite(line["loss"]) for line in posterior.record.history)
        x, y = data.test.batch(torch.arange(len(data.test)))
        predictive = posterior.predict(x, num_samples=40)
        assert torch.isfinite(predictive.loc).all()
        assert predictive.log_prob(y).mean() > -1.3  # of a standardised target; guessing has -1.42


# --- few rows, wide layers


def table(rows: int, inputs: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A line with noise of .3, standardised; the posterior's noise has that to find."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator)
    y = x[:, :1] + 0.3 * torch.randn(rows, 1, generator=generator)
    return x, (y - y.mean()) / y.std()


def net(inputs: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1))


@pytest.mark.parametrize(("rows", "width"), [(20, 64), (60, 64)])
def test_more_weights_than_rows_give_the_spread_of_the_data(rows, width):
    """Truth: the residuals of ordinary least squares on the inputs, within a factor of 3."""
    x, y = table(rows)
    posterior = fit(net(5, width), (x, y), BALI(min_steps=300), likelihood="gaussian")
    design = torch.cat([x, torch.ones(rows, 1)], 1)
    left = y - design @ torch.linalg.lstsq(design, y).solution
    truth = (left.square().sum() / (rows - 6)).sqrt()
    spread = posterior.predict(x).variance.sqrt().median()
    assert truth / 3 < spread < 3 * truth


def test_at_its_default_rates_one_layer_is_exact_regression(generator):
    """Truth: conjugate regression in dense algebra; forward passes are noisy, targets are not."""
    x = torch.randn(40, 3, generator=generator).double()
    y = torch.randn(40, 2, generator=generator).double()
    posterior = fit(nn.Linear(3, 2).double(), (x, y), BALI(min_steps=300), likelihood=Gaussian(0.3))
    h = torch.cat([x, torch.ones(40, 1).double()], 1)
    precision = h.T @ h + 0.1 * torch.eye(4).double()
    mean = torch.linalg.solve(precision, h.T @ y)
    found = posterior.q.point()
    ours = torch.cat([found["weight"].T, found["bias"][None]])
    torch.testing.assert_close(ours, mean, rtol=0, atol=1e-9)
    row = posterior.q.row.named()["weight"][0]
    torch.testing.assert_close(row @ row.T, precision, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rows", [12, 60])
def test_layers_have_at_most_half_as_many_effective_parameters_as_rows(rows):
    """Truth: tr(F V) tr(G (G + tau I)^-1), dense, of what a fit of full batches ends with."""
    x, y = table(rows)
    seen: dict[str, float] = {}

    class Watch(Callback):
        def on_phase_end(self) -> None:
            for layer in runs[-1].layers:
                found = layer.regression
                tau = found.prior_precision[:, None, None]
                gram = found.precision - tau * torch.eye(found.precision.shape[-1])
                columns = torch.linalg.solve(found.precision, gram).diagonal(dim1=1, dim2=2).sum()
                directions = 1.0 if layer.is_output else float(
                    (found.fisher @ found.covariance).diagonal(dim1=1, dim2=2).sum()
                )  # fmt: skip
                seen[layer.name] = float(columns) * directions

    runs = []
    method = BALI(min_steps=300)
    start = type(method).start

    def noted(self, problem):
        runs.append(start(self, problem))
        return runs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BALI, "start", noted)
        fit(net(5, 64), (x, y), method, likelihood="gaussian", callbacks=[Watch()])
    assert len(seen) == 2
    for each in seen.values():
        assert each < 1.1 * rows / 2
    assert max(seen.values()) > 0.4 * rows  # the bound is at work


def test_few_parameters_are_left_alone(generator):
    h = torch.randn(1, 50, 4, generator=generator).double()
    layer = LayerRegression.start(
        torch.zeros(1, 4, 2), h.mT @ h, prior_precision=0.1, covariance=0.1
    )
    assert layer.with_at_most(25.0, least=0.1) is layer


class Mixed(nn.Linear):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize(
    ("model", "told"), [(nn.Linear(5, 1).half(), "float16"), (Mixed(5, 1), "autocast")]
)
def test_precisions_it_cannot_learn_in_are_named_before_any_step(model, told):
    x, y = table(20)
    half = next(model.parameters()).dtype
    with pytest.raises(UnsupportedModelError, match=told):
        fit(model, (x.to(half), y.to(half)), BALI(), likelihood="gaussian")
