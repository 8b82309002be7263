import math
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayesify.core.errors import DataError, OptionError
from bayesify.numerics.histogram import Histogram
from bayesify.numerics.mixture import Mixture, assign, bic, fit_mixture, log_likelihood
from bayesify.numerics.wasserstein import squared_wasserstein

FINE = (2000, 2000)
KNOWN = Mixture(
    weight=torch.tensor([0.3, 0.7]).double(),
    loc=torch.tensor([[-1.0, 0.5], [1.0, -0.5]]).double(),
    covariance=torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.4, -0.2], [-0.2, 0.2]]]).double(),
    count=torch.tensor([30_000.0, 70_000.0]).double(),
)


def weights(n: int) -> Tensor:
    """Heavy-tailed means and log deviations that grow with them a little."""
    mean = torch.from_numpy(np.random.default_rng(7).standard_t(4, n))
    return torch.stack([mean, torch.randn(n) + 0.2 * mean.abs()], dim=1).float()


def drawn(mixture: Mixture = KNOWN) -> Tensor:
    parts = zip(mixture.loc, mixture.covariance, mixture.count.int().tolist(), strict=True)
    return torch.cat([MultivariateNormal(m, s).sample((n,)) for m, s, n in parts])


def densities(mixture: Mixture, points: Tensor) -> Tensor:
    """ln p_k N(x | m_k, S_k) of all pairs."""
    normal = MultivariateNormal(mixture.loc, mixture.covariance)
    return mixture.weight.log() + normal.log_prob(points.double()[:, None])


def dense_step(mixture: Mixture, histogram: Histogram) -> tuple[Mixture, float]:
    """EM written out with every bin and every component; the floor is left out."""
    n, x, scatter = histogram.count, histogram.mean, histogram.scatter
    spread = torch.einsum("kij,bji->bk", mixture.covariance.inverse(), scatter) / n[:, None]
    log = densities(mixture, x) - spread / 2
    share = log.softmax(1) * n[:, None]
    count = share.sum(0)
    loc = share.mT @ x / count[:, None]
    off = x[:, None] - loc
    covariance = torch.einsum("bk,bki,bkj->kij", share, off, off)
    covariance += torch.einsum("bk,bij->kij", share / n[:, None], scatter)
    covariance /= count[:, None, None]
    bound = (log.logsumexp(1) * n).sum().item()
    return Mixture(count / count.sum(), loc, covariance, count), bound


def assert_same(got: Mixture, want: Mixture, rtol: float) -> None:
    for name in ("weight", "loc", "covariance", "count"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=rtol, atol=rtol)


# --- the fit


def test_a_known_mixture_is_found_again():
    histogram = Histogram.of([drawn()], shape=(400, 200))
    mixture = fit_mixture(histogram, 2, iterations=100)
    order = mixture.loc[:, 0].argsort()
    torch.testing.assert_close(mixture.weight[order], KNOWN.weight, rtol=0, atol=0.01)
    torch.testing.assert_close(mixture.loc[order], KNOWN.loc, rtol=0, atol=0.02)
    torch.testing.assert_close(mixture.covariance[order], KNOWN.covariance, rtol=0, atol=0.02)
    assert mixture.count.sum().item() == pytest.approx(100_000, rel=1e-12)


@pytest.mark.parametrize("shape", [(100, 60), FINE])
@pytest.mark.parametrize("components", [1, 3, 8])
def test_with_all_components_as_candidates_it_is_dense_em(components, shape, generator):
    histogram = Histogram.of([weights(3_000)], shape=shape)
    want = fit_mixture(histogram, components, generator, iterations=0)
    for steps in range(1, 6):
        got = fit_mixture(histogram, 1, iterations=1, start=want)
        assert_same(got, fit_mixture(histogram, 1, iterations=1, start=want), 0)
        bound = log_likelihood(want, histogram)
        want, truth = dense_step(want, histogram)
        assert bound == pytest.approx(truth, rel=1e-10)
        assert_same(got, want, 1e-8)
        assert steps < 6


def test_em_never_loses_likelihood_even_at_the_floor(generator):
    """Where bins are coarse, most of the components would be narrower than a bin."""
    histogram = Histogram.of([weights(3_000)], shape=(25, 12))
    mixture = fit_mixture(histogram, 30, generator, iterations=0)
    bounds = []
    for _ in range(30):
        bounds.append(log_likelihood(mixture, histogram, candidates=30))
        mixture = fit_mixture(histogram, 1, iterations=1, candidates=30, start=mixture)
    assert all(after >= before - 1e-8 for before, after in pairwise(bounds))
    floor = torch.diag(torch.tensor(histogram.width, dtype=torch.float64).square() / 12)
    assert torch.linalg.eigvalsh(mixture.covariance - floor).min() > -1e-12


def test_few_candidates_lose_little_likelihood(generator):
    histogram = Histogram.of([weights(30_000)])
    mixture = fit_mixture(histogram, 64, generator, iterations=20)
    dense = fit_mixture(histogram, 64, generator, iterations=20, candidates=64)
    lost = log_likelihood(dense, histogram, 64) - log_likelihood(mixture, histogram, 64)
    assert abs(lost) / 30_000 < 0.02


def test_the_bound_is_the_likelihood_of_points_that_have_bins_of_their_own():
    points = weights(500).double()
    histogram = Histogram.of([points], shape=FINE, tail=0)
    assert histogram.count.max() == 1
    mixture = fit_mixture(histogram, 4)
    truth = densities(mixture, points).logsumexp(1).sum().item()
    assert log_likelihood(mixture, histogram) == pytest.approx(truth, rel=1e-10)
    assert bic(mixture, histogram) == pytest.approx(23 * math.log(500) - 2 * truth, rel=1e-10)


def test_the_bound_is_below_the_likelihood_of_the_points():
    points = weights(20_000)
    histogram = Histogram.of([points], shape=(60, 40))
    mixture = fit_mixture(histogram, 6)
    truth = densities(mixture, points).logsumexp(1).sum().item()
    assert truth - 0.02 * len(points) < log_likelihood(mixture, histogram) < truth


def test_the_criterion_finds_the_number_of_components():
    histogram = Histogram.of([drawn()], shape=(200, 100))
    scores = [bic(fit_mixture(histogram, k, iterations=100), histogram) for k in (1, 2, 4)]
    assert min(scores) == scores[1]


def test_scikit_learn_finds_nothing_better(generator):
    sklearn = pytest.importorskip("sklearn.mixture")
    points = weights(2_000)
    reference = sklearn.GaussianMixture(6, random_state=0, max_iter=200).fit(points.numpy())
    histogram = Histogram.of([points])
    mixture = fit_mixture(histogram, 6, generator, iterations=100)
    got = densities(mixture, points).logsumexp(1).mean().item()
    assert got > reference.score(points.numpy()) - 0.01


def test_the_seed_decides():
    histogram = Histogram.of([weights(20_000)])
    one, same, other = (
        fit_mixture(histogram, 50, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert_same(one, same, 0)
    assert not one.loc.equal(other.loc)


def test_k_means_spreads_centres_as_well_as_a_plain_one(generator):
    """Within a tenth of the best of several starts of scikit-learn's."""
    cluster = pytest.importorskip("sklearn.cluster")
    points = weights(20_000)
    histogram = Histogram.of([points])
    mixture = fit_mixture(histogram, 100, generator, iterations=0, lloyd=30)
    got = torch.cdist(points.double(), mixture.loc).amin(1).square().mean().item()
    reference = cluster.KMeans(100, n_init=3, random_state=0).fit(points.numpy())
    assert got < 1.1 * reference.inertia_ / len(points)


@pytest.mark.parametrize("components", [6, 7, 100])
def test_there_are_no_more_components_than_bins(components):
    points = torch.tensor([[0, 0], [0, 1], [5, 0], [5, 3], [9, 0], [9, 1]]).repeat(10, 1).float()
    mixture = fit_mixture(Histogram.of([points]), components)
    assert len(mixture.count) == 6
    torch.testing.assert_close(mixture.count, torch.full((6,), 10.0).double())
    order = mixture.loc[:, 0] * 10 + mixture.loc[:, 1]
    assert mixture.loc[order.argsort()].equal(points[:6].double())
    assert torch.linalg.eigvalsh(mixture.covariance).gt(0).all()


def test_components_that_lose_all_points_are_dropped():
    """One far away from everything."""
    histogram = Histogram.of([drawn()], shape=(200, 100))
    far = Mixture(
        weight=torch.tensor([0.3, 0.6, 0.1]).double(),
        loc=torch.cat([KNOWN.loc, torch.tensor([[500.0, 500.0]])]),
        covariance=torch.cat([KNOWN.covariance, torch.eye(2)[None]]),
        count=torch.tensor([3.0, 6.0, 1.0]).double(),
    )
    mixture = fit_mixture(histogram, 3, start=far)
    assert len(mixture.count) == 2
    near = squared_wasserstein(mixture.loc, mixture.covariance, KNOWN.loc, KNOWN.covariance)
    assert near.diagonal().max() < 1e-2


@pytest.mark.parametrize(
    "wrong", [{"components": 0}, {"iterations": -1}, {"lloyd": -1}, {"candidates": 0}]
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(OptionError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        fit_mixture(Histogram.of([weights(10)]), **{"components": 2, **wrong})


def test_a_constant_coordinate_has_the_width_of_a_bin():
    points = weights(1_000)
    points[:, 1] = 3
    mixture = fit_mixture(Histogram.of([points], shape=(50, 20)), 5)
    assert torch.linalg.eigvalsh(mixture.covariance).gt(0).all()


# --- assignment


@pytest.mark.parametrize("components", [2, 8, 40])
def test_the_two_most_responsible_components_are_assigned(components, generator):
    histogram = Histogram.of([weights(5_000)], shape=(100, 60))
    mixture = fit_mixture(histogram, components, generator)
    got = assign(mixture, histogram.mean, candidates=components)
    best, order = densities(mixture, histogram.mean).topk(2, dim=1)
    assert got.first.equal(order[:, 0].int())
    assert got.second.equal(order[:, 1].int())
    torch.testing.assert_close(got.alpha, best.softmax(1)[:, 0], rtol=1e-8, atol=1e-10)
    off = (histogram.mean - mixture.loc[order[:, 0]])[:, :, None]
    squared = (off.mT @ mixture.covariance[order[:, 0]].inverse() @ off).flatten()
    torch.testing.assert_close(got.mahalanobis, squared, rtol=1e-8, atol=1e-8)


def test_the_codes_of_points_are_those_of_their_bins(generator):
    points = weights(5_000)
    histogram = Histogram.of([points], shape=(100, 60))
    mixture = fit_mixture(histogram, 8, generator)
    codes = assign(mixture, histogram.mean).first[histogram.bins(points)]
    want = densities(mixture, histogram.mean).argmax(1)[histogram.bins(points)]
    assert codes.equal(want.int())


def test_few_candidates_seldom_miss_the_best(generator):
    points = weights(50_000)
    histogram = Histogram.of([points])
    mixture = fit_mixture(histogram, 200, generator)
    few, all_of = (assign(mixture, points[:5_000], candidates=c).first for c in (8, 200))
    assert few.eq(all_of).double().mean() > 0.9


def test_one_component_has_everything():
    points = weights(100)
    mixture = fit_mixture(Histogram.of([points]), 1)
    got = assign(mixture, points)
    assert got.first.eq(0).all()
    assert got.second.eq(0).all()
    assert got.alpha.eq(1).all()
    assert got.mahalanobis.mean().item() == pytest.approx(2, rel=1e-6)
    assert assign(mixture, points[:0]).first.shape == (0,)
    with pytest.raises(DataError, match="finite"):
        assign(mixture, points / 0)


def test_a_million_weights_take_seconds():
    """Of processor time; a tenth of it is usual."""
    points = weights(1_000_000)
    start = time.process_time()
    histogram = Histogram.of([points])
    mixture = fit_mixture(histogram, 1_000, iterations=4)
    codes = assign(mixture, histogram.mean).first[histogram.bins(points)]
    assert time.process_time() - start < 15
    assert len(codes.unique()) > 900
