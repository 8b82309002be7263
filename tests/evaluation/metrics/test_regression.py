import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bayesify.core.errors import DataError, OptionError
from bayesify.evaluation.metrics.regression import (
    LEVELS,
    interval_calibration,
    interval_coverage,
    mean_crps,
)
from bayesify.likelihoods.predictive import RegressionPredictive


def test_the_middle_of_the_distribution_is_in_every_interval():
    middle, end = torch.tensor([[0.5]]), torch.tensor([[0.999]])
    assert interval_coverage(middle, 0.05) == 1
    assert interval_coverage(end, 0.95) == 0
    assert interval_coverage(torch.cat([middle, end], 1), 0.5) == 0.5


def test_coverage_is_that_of_the_interval_between_quantiles():
    generator = torch.Generator().manual_seed(0)
    loc = 3 * torch.randn(4, 200, 2, generator=generator).double()
    predictive = RegressionPredictive(loc, torch.tensor(0.7).double())
    target = 3 * torch.randn(200, 2, generator=generator).double()
    pit = predictive.scores(target)["pit"]
    for level in (0.1, 0.5, 0.9):
        low, high = predictive.quantile((1 - level) / 2), predictive.quantile((1 + level) / 2)
        want = ((low <= target) & (target <= high)).double().mean().item()
        assert interval_coverage(pit, level) == pytest.approx(want)


def test_levels_are_five_percent_apart():
    np.testing.assert_allclose(LEVELS, np.arange(1, 20) / 20)
    pit = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    curve = interval_calibration(pit)
    want = [((2 * pit.double() - 1).abs() <= level).double().mean().item() for level in LEVELS]
    np.testing.assert_allclose(curve.coverage, want)
    assert curve.error == pytest.approx(np.mean(np.abs(np.array(want) - np.array(LEVELS))))
    assert curve.to_json()["level"] == list(LEVELS)


def test_the_right_mixture_is_calibrated_where_its_moments_are_not():
    """Two far modes: the exact interval holds 90 %, the Gaussian with the same moments all."""
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    loc = torch.tensor([-5.0, 5.0])[:, None, None].expand(2, n, 1).contiguous()
    which = torch.randint(2, (n, 1), generator=generator)
    target = (10.0 * which - 5) + torch.randn(n, 1, generator=generator)
    curve = interval_calibration(RegressionPredictive(loc, torch.ones(1)).scores(target)["pit"])
    torch.testing.assert_close(curve.coverage, curve.level, atol=0.012, rtol=0)
    assert curve.error < 0.006


@pytest.mark.parametrize("told", [0.5, 2.0])
def test_a_wrong_scale_has_the_error_of_its_curve(told):
    """True N(0, 1), told N(0, told^2): coverage(a) = 2 Phi(told z_a) - 1."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(40_000, 1, generator=generator)
    predictive = RegressionPredictive(torch.zeros(1, 40_000, 1), torch.tensor(told))
    curve = interval_calibration(predictive.scores(target)["pit"])
    want = 2 * stats.norm.cdf(told * stats.norm.ppf((1 + np.array(LEVELS)) / 2)) - 1
    np.testing.assert_allclose(curve.coverage, want, atol=0.01)
    assert curve.error == pytest.approx(np.abs(want - LEVELS).mean(), abs=0.005)


def test_mean_crps_of_the_truth_is_its_published_expectation():
    """E crps(N(0, 1), Y) = 1/2 E|Y - Y'| = 1 / sqrt(pi) for Y ~ N(0, 1)."""
    target = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))
    predictive = RegressionPredictive(torch.zeros(1, 40_000, 1), torch.ones(1))
    got = mean_crps(predictive.scores(target)["crps"])
    assert got == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)
    at_zero = integrate.quad(lambda x: stats.norm.cdf(x) ** 2, -np.inf, 0)[0] * 2
    zero = RegressionPredictive(torch.zeros(1, 1, 1).double(), torch.ones(1).double())
    assert mean_crps(zero.scores(torch.zeros(1).double())["crps"]) == pytest.approx(at_zero)


def test_what_is_no_distribution_function_is_refused():
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        interval_calibration(torch.tensor([[1.5]]))
    with pytest.raises(DataError, match="finite"):
        interval_calibration(torch.tensor([[math.nan]]))
    with pytest.raises(DataError, match="at least one"):
        interval_calibration(torch.zeros(0, 1))
    with pytest.raises(OptionError, match="above 0 and below 1"):
        interval_coverage(torch.tensor([[0.5]]), 90)
    with pytest.raises(DataError, match="finite"):
        mean_crps(torch.tensor([[math.inf]]))
