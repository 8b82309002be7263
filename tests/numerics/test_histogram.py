import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.numerics import histogram as module
from bayesify.numerics.histogram import Histogram, symmetric_matrices


def weights(n: int) -> Tensor:
    """Heavy-tailed means and log deviations that grow with them a little."""
    mean = torch.from_numpy(np.random.default_rng(7).standard_t(4, n))
    return torch.stack([mean, torch.randn(n) + 0.2 * mean.abs()], dim=1).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1024, 256)])
def test_no_moment_of_the_points_is_lost(shape, dtype):
    points = weights(20_000).to(dtype)
    histogram = Histogram.of(points.split(3_000), shape=shape)
    exact = points.double()
    assert histogram.count.sum().item() == len(points)
    mean = (histogram.count[:, None] * histogram.mean).sum(0) / len(points)
    torch.testing.assert_close(mean, exact.mean(0), rtol=1e-12, atol=1e-13)
    off = histogram.mean - mean
    total = (histogram.count[:, None] * off).mT @ off + histogram.scatter.sum(0)
    torch.testing.assert_close(total / (len(points) - 1), exact.mT.cov(), rtol=1e-12, atol=1e-13)


def test_a_bin_has_the_moments_of_its_points():
    points = weights(5_000).double()
    before = points.clone()
    histogram = Histogram.of([points], shape=(40, 20))
    index = histogram.bins(points)
    assert points.equal(before)
    assert index.dtype == torch.int32
    assert index.unique().equal(torch.arange(len(histogram.count)).int())
    for i in range(0, len(histogram.count), 7):
        inside = points[index == i]
        off = inside - inside.mean(0)
        assert histogram.count[i].item() == len(inside)
        torch.testing.assert_close(histogram.mean[i], inside.mean(0), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(histogram.scatter[i], off.mT @ off, rtol=1e-9, atol=1e-12)


def test_points_beyond_the_limits_are_at_the_border():
    points = torch.tensor([[0.5, 0.5], [-7.0, 0.1], [0.1, 0.1], [1.0, 1.0], [9.0, 8.0]])
    histogram = Histogram.of([points], limits=((0, 1), (0, 1)), shape=(4, 4))
    assert histogram.bins(points).tolist() == [1, 0, 0, 2, 2]
    torch.testing.assert_close(histogram.mean[2], torch.tensor([5.0, 4.5]).double())


def test_chunks_are_a_list_or_a_function_and_their_size_does_not_matter(monkeypatch):
    points = weights(10_000)
    want = Histogram.of([points])
    monkeypatch.setattr(module, "POINTS", 500)
    for chunks in (points.split(999), lambda: iter(points.split(1_234)), [points[:0], points]):
        got = Histogram.of(chunks)
        assert got.lower == want.lower
        assert got.bins(points).equal(want.bins(points))
        torch.testing.assert_close(got.scatter, want.scatter, rtol=0, atol=1e-12)


def test_the_limits_are_quantiles_of_a_sample(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 4_000)
    points = weights(50_000)
    histogram = Histogram.of(points.split(777), tail=0.01)
    want = np.quantile(points[::16].double().numpy(), 0.01, axis=0)
    assert histogram.lower == tuple(want)


def test_a_constant_coordinate_has_one_column():
    points = weights(1_000)
    points[:, 1] = 3
    histogram = Histogram.of([points], shape=(50, 20))
    assert histogram.mean[:, 1].eq(3).all()


def test_points_that_cannot_be_counted_are_refused():
    for wrong in (math.nan, math.inf, -math.inf):
        points = weights(10)
        points[3, 1] = wrong
        for limits in (None, ((0.0, 1.0), (0.0, 1.0))):
            with pytest.raises(DataError, match="finite"):
                Histogram.of([points], limits=limits)
    for limits in (None, ((0.0, 1.0), (0.0, 1.0))):
        with pytest.raises(DataError, match="none"):
            Histogram.of([torch.zeros(0, 2)], limits=limits)
    with pytest.raises(ShapeError, match=r"\(4, 3\)"):
        Histogram.of([torch.zeros(4, 3)])
    with pytest.raises(OptionError, match="iterator"):
        Histogram.of(iter([weights(10)]))
    with pytest.raises(OptionError, match="limits"):
        Histogram.of([weights(10)], limits=((1.0, 0.0), (0.0, 1.0)))
    with pytest.raises(OptionError, match="tail"):
        Histogram.of([weights(10)], tail=0.5)
    with pytest.raises(OptionError, match="shape"):
        Histogram.of([weights(10)], shape=(0, 5))


def test_points_that_were_not_counted_have_no_bin():
    histogram = Histogram.of([torch.tensor([[0.0, 0.0], [1.0, 1.0]])])
    with pytest.raises(DataError, match="counted"):
        histogram.bins(torch.tensor([[0.5, 0.5]]))
    assert histogram.bins(torch.zeros(0, 2)).shape == (0,)


def test_symmetric_matrices_are_put_together_from_their_three_numbers():
    a, b, c = np.arange(6.0).reshape(3, 2)
    assert symmetric_matrices(a, b, c).tolist() == [[[0, 2], [2, 4]], [[1, 3], [3, 5]]]
