import math

import pytest
import torch
from torch import nn

import bayesify
from bayesify import MAP, DiagonalLaplace, MeanField, fit
from bayesify.core.errors import DivergenceError

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :1] + 0.1 * torch.randn(40, 1, generator=torch.Generator().manual_seed(1))


class Given(bayesify.Method):
    """A method that returns a mean-field posterior as wide as asked for, whatever the data."""

    pretrain = None

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def start(self, problem):
        run = MAP(epochs=1, lr=1e-9).start(problem)

        def posterior():
            q = MeanField.around(problem.model, scale=1.0)
            for each in q.rho.parameters():
                nn.init.constant_(
                    each, math.log(math.expm1(self.scale)) if self.scale < 20 else self.scale
                )
            return problem.posterior(q)

        run.posterior = posterior
        return run


@pytest.fixture(autouse=True)
def _no_options(monkeypatch):
    monkeypatch.setattr("bayesify.training.fit.to_json", lambda method: {})


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_posterior_that_says_nothing_about_its_own_training_data_is_an_error(unit):
    """Inputs of length 2, so that outputs vary by about twice the weights' standard deviation."""
    data, largest = (X, unit * Y), unit * Y.abs().max().item()
    net = nn.Linear(4, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    fit(net, data, Given(100 * largest), likelihood=bayesify.Gaussian(unit))
    with pytest.raises(DivergenceError, match=r"absurdly wide: .* largest target is"):
        fit(net, data, Given(1e4 * largest), likelihood=bayesify.Gaussian(unit))


def test_logits_are_in_nats_and_need_no_unit():
    data = X, (Y[:, 0] > 0).long()
    fit(nn.Linear(4, 2), data, Given(100.0))
    with pytest.raises(DivergenceError, match=r"its logits vary by .* nats"):
        fit(nn.Linear(4, 2), data, Given(1e4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_named(value):
    with pytest.raises(DivergenceError, match=r"5 of 5|4 of 4|1 of 1.*rho"):
        fit(nn.Linear(4, 1), (X, Y), Given(value), likelihood="gaussian")


def test_inputs_far_out_may_have_any_spread():
    """One example at 1e6 among those near 0: wide there, and rightly so."""
    x = torch.cat([X, torch.full((1, 4), 1e6)])
    y = torch.cat([Y, torch.zeros(1, 1)])
    method = DiagonalLaplace(pretrain=None, factor=1.0, prior_relative=False, prior_scale=1.0)
    net = nn.Linear(4, 1)
    nn.init.zeros_(net.weight)
    posterior = fit(net, (x, y), method, likelihood=bayesify.Gaussian(1.0), batch_size=41)
    assert torch.isfinite(posterior.predict(x).variance).all()
