"""BALI where rows are few and layers wide, and where one layer makes it exact regression."""

import math

import pytest
import torch
from torch import nn

from bayesify import BALI, Gaussian, UnsupportedModelError, fit
from bayesify.numerics.layer_regression import LayerRegression


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


@pytest.mark.parametrize("most", [0.5, 3.0])
def test_damping_and_prior_hold_the_effective_parameters(most, generator):
    """Truth: tr(F (F + delta I)^-1) and tr(G (G + tau I)^-1), dense, reach the bound."""
    a, b = 9, 6
    h = torch.randn(1, 50, a, generator=generator).double()
    g = torch.randn(1, 50, b, generator=generator).double()
    gram = h.mT @ h
    layer = LayerRegression.start(torch.zeros(1, a, b), gram, prior_precision=0.1, covariance=0.1)
    quiet = {"rate": 0.5, "weight": 1.0, "cap": math.inf, "refresh": True}
    for _ in range(300):
        layer, _ = layer.with_fisher(g, rate=0.5, damping=1e-3, most=most)
        layer, _ = layer.with_at_most(most, least=0.1).updated(h, 0 * g, **quiet)
    fisher = (g.mT @ g / 50)[0]
    share = torch.trace(fisher @ layer.covariance[0])
    assert share.item() == pytest.approx(most, rel=1e-3)
    torch.testing.assert_close(
        torch.linalg.inv(layer.covariance[0]) - layer.fisher[0],
        layer.damping[0] * torch.eye(b).double(), rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    columns = torch.trace(gram[0] @ torch.linalg.inv(layer.precision[0]))
    assert columns.item() == pytest.approx(most, rel=1e-3)


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
