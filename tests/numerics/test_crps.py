import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from bayesify.numerics.crps import mixture_crps

S, B, D = 6, 2, 2


def mixture(spread=1.0, scales=0.3):
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(3, S, B, D, generator=generator, dtype=torch.float64)
    return spread * draw[0], (scales * draw[1]).exp(), 2 * draw[2, 0]


def brute_force(loc, scale, target, degrees=None):
    """The integral of (F - 1{x >= y})^2, between quantiles of the components, by adaptive rules."""
    levels = np.array([1e-3, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1 - 1e-3])
    inner = special.ndtri(levels) if degrees is None else special.stdtrit(degrees, levels)

    def cdf(x):
        z = (x - loc) / scale
        return (special.ndtr(z) if degrees is None else special.stdtr(degrees, z)).mean()

    def area(low, high):
        step = float(low >= target)
        return integrate.quad(lambda x: (cdf(x) - step) ** 2, low, high, limit=200)[0]

    points = sorted({target, *(loc + np.outer(inner, scale)).flat})
    ends = area(-np.inf, points[0]) + area(points[-1], np.inf)
    return ends + sum(area(low, high) for low, high in pairwise(points))


def brute_forces(loc, scale, target, degrees=None):
    want = torch.empty(B, D, dtype=torch.float64)
    for b in range(B):
        for d in range(D):
            arrays = loc[:, b, d].numpy(), scale[:, b, d].numpy(), target[b, d].item()
            want[b, d] = brute_force(*arrays, degrees)
    return want


def test_one_normal_scores_as_published():
    """Gneiting & Raftery 2007, section 4.2: s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))."""
    y = torch.linspace(-30, 30, 41, dtype=torch.float64)
    z = (y.numpy() - 1) / 3
    want = 3 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    got = mixture_crps(torch.ones(1, 41).double(), torch.tensor(3.0).double(), y)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(("spread", "scales"), [(1, 0.3), (50, 0.3), (1, 2), (0, 0)])
def test_a_normal_mixture_scores_the_area_it_is_defined_by(spread, scales):
    parts = mixture(spread, scales)
    torch.testing.assert_close(mixture_crps(*parts), brute_forces(*parts), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("degrees", [2.05, 4, 30])
@pytest.mark.parametrize(
    ("spread", "scales", "rtol"), [(1, 0.3, 1e-5), (50, 0.3, 1e-4), (1, 2, 1e-4), (0, 0, 1e-5)]
)
def test_a_student_mixture_scores_the_area_it_is_defined_by(spread, scales, rtol, degrees):
    parts = mixture(spread, scales)
    got, want = mixture_crps(*parts, degrees), brute_forces(*parts, degrees)
    torch.testing.assert_close(got, want, rtol=rtol, atol=0)


@pytest.mark.parametrize(("degrees", "rtol"), [(None, 1e-9), (2.05, 5e-3), (4, 5e-3), (30, 5e-3)])
def test_one_component_a_thousand_times_wider_than_the_others_is_not_lost(degrees, rtol):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(32, 1, 1, generator=generator, dtype=torch.float64)
    scale = torch.ones_like(loc)
    scale[-1] = 1000
    target = torch.zeros(1, 1).double()
    want = brute_force(loc[:, 0, 0].numpy(), scale[:, 0, 0].numpy(), 0.0, degrees)
    assert mixture_crps(loc, scale, target, degrees).item() == pytest.approx(want, rel=rtol)


@pytest.mark.parametrize("degrees", [2.05, 4, 30])
def test_one_student_scores_as_published(degrees):
    """Jordan, Krueger & Lerch 2019, "Evaluating Probabilistic Forecasts with scoringRules"."""
    z = np.linspace(-30, 30, 41)
    law = stats.t(degrees)
    spread = 2 * math.sqrt(degrees) / (degrees - 1)
    beta = math.lgamma(0.5) + math.lgamma(degrees - 0.5) - math.lgamma(degrees)
    square = math.lgamma(0.5) + math.lgamma(degrees / 2) - math.lgamma(degrees / 2 + 0.5)
    spread *= math.exp(beta - 2 * square)
    want = z * (2 * law.cdf(z) - 1) + 2 * law.pdf(z) * (degrees + z**2) / (degrees - 1) - spread
    loc, scale = torch.zeros(1, 41).double(), torch.ones(1).double()
    got = mixture_crps(loc, scale, torch.from_numpy(z), degrees)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("degrees", [None, 3.0])
def test_the_score_is_that_of_draws(degrees):
    """The energy form, estimated from draws: no closed form and no quadrature."""
    loc, scale, target = mixture()
    generator = np.random.default_rng(0)
    noise = generator.standard_normal if degrees is None else stats.t(degrees).rvs
    shape = 2, 200_000
    which = generator.integers(S, size=shape)
    law = {} if degrees is None else {"random_state": generator}
    eps = noise(size=shape, **law)
    x = loc[:, 0, 0].numpy()[which] + scale[:, 0, 0].numpy()[which] * eps
    want = np.abs(x - target[0, 0].item()).mean() - np.abs(x[0] - x[1]).mean() / 2
    assert mixture_crps(loc, scale, target, degrees)[0, 0].item() == pytest.approx(want, abs=0.015)


def test_many_degrees_are_normal():
    parts = mixture()
    for degrees in (1e6, 1e12, 1e300):
        torch.testing.assert_close(
            mixture_crps(*parts, degrees), mixture_crps(*parts), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("degrees", [None, 4.0])
def test_the_score_moves_and_scales_with_the_target(degrees):
    loc, scale, target = mixture()
    want = 7 * mixture_crps(loc, scale, target, degrees)
    got = mixture_crps(7 * loc - 100, 7 * scale, 7 * target - 100, degrees)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("degrees", [None, 4.0])
def test_repeated_components_change_nothing(degrees):
    loc, scale, target = mixture()
    got = mixture_crps(loc.repeat(3, 1, 1), scale.repeat(3, 1, 1), target, degrees)
    torch.testing.assert_close(got, mixture_crps(loc, scale, target, degrees), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("degrees", [None, 4.0])
def test_lower_precision_scores_in_single(dtype, degrees):
    parts = [each.to(dtype) for each in mixture()]
    got = mixture_crps(*parts, degrees)
    assert got.dtype == torch.float32
    want = mixture_crps(*(each.double() for each in parts), degrees)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_blocks_of_examples_are_all_of_them():
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(2, 5000, 1, generator=generator)
    whole = mixture_crps(loc, torch.ones(1), loc[0], 4.0)
    some = mixture_crps(loc[:, 4090:4100], torch.ones(1), loc[0, 4090:4100], 4.0)
    torch.testing.assert_close(whole[4090:4100], some, rtol=0, atol=0)
    assert mixture_crps(loc[:, :0], torch.ones(1), loc[0, :0], 4.0).shape == (0, 1)
