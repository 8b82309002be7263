import pytest
import torch
from torch import Tensor

from bayesify.core.errors import OptionError
from bayesify.numerics import wasserstein
from bayesify.numerics.wasserstein import merged, squared_wasserstein, squared_wasserstein_pairs

K = 12
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def means(k: int = K) -> Tensor:
    return torch.randn(k, 2, dtype=torch.float64)


def covariances(k: int = K, smallest: float = 0.1) -> Tensor:
    """Turned ellipses whose smaller variance is about `smallest` of the larger."""
    angle = 6 * torch.rand(k, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(k, 2, 2)
    scale = torch.rand(k, 2, dtype=torch.float64) + 0.2
    scale[:, 1] *= smallest
    return turn @ torch.diag_embed(scale) @ turn.mT


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT


def defined(loc: Tensor, covariance: Tensor, other_loc: Tensor, other: Tensor) -> Tensor:
    """Every pair by matrix roots."""
    # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of B^1/2 A^1/2, which are accurate
    # where the eigenvalues of the product, their squares, are below the rounding errors.
    cross = torch.linalg.svdvals(root(other) @ root(covariance)[:, None]).sum(-1)
    one, two = (each.diagonal(dim1=-2, dim2=-1).sum(-1) for each in (covariance, other))
    return (loc[:, None] - other_loc).square().sum(-1) + one[:, None] + two - 2 * cross


@pytest.mark.parametrize("smallest", [1.0, 0.1, 1e-3, 1e-6])
def test_distances_are_those_by_matrix_roots(smallest):
    one = means(), covariances(smallest=smallest)
    other = means(7), covariances(7, smallest)
    torch.testing.assert_close(squared_wasserstein(*one, *other), defined(*one, *other), **EXACT)
    torch.testing.assert_close(squared_wasserstein(*one), defined(*one, *one), **EXACT)


def test_distances_of_segments_and_of_points():
    """Of rank one, tr (A^1/2 B A^1/2)^1/2 is |u v|; of rank zero the covariances add up."""
    u, v, far = means(), means(5), torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    still = torch.zeros_like
    got = squared_wasserstein(
        still(u), u[:, :, None] * u[:, None], still(v), v[:, :, None] * v[:, None]
    )
    want = u.square().sum(-1)[:, None] + v.square().sum(-1) - 2 * (u @ v.mT).abs()
    torch.testing.assert_close(got, want, **EXACT)
    point = torch.zeros(1, 2, 2, dtype=torch.float64)
    assert squared_wasserstein(still(far), point, far, point).item() == 25


@pytest.mark.parametrize("smallest", [1.0, 1e-6, 1e-15])
def test_equal_ones_have_no_distance_and_all_have_it_both_ways(smallest):
    distances = squared_wasserstein(means(), covariances(smallest=smallest))
    assert distances.diagonal().eq(0).all()
    assert distances.ge(0).all()
    torch.testing.assert_close(distances, distances.mT, rtol=1e-12, atol=0)


def test_close_ones_have_an_accurate_distance():
    """Deviations of 1 and 1 + e along either axis are 2 e^2 apart; nothing is left of 1e-16."""
    e = 2.0**-30
    spread = torch.eye(2, dtype=torch.float64) * torch.tensor([1, (1 + e) ** 2]).view(2, 1, 1)
    got = squared_wasserstein(torch.zeros(2, 2, dtype=torch.float64), spread)[0, 1].item()
    assert got == pytest.approx(2 * e**2, rel=1e-6)


def test_small_scales_are_accurate():
    """The weights of networks: deviations of 1e-5."""
    loc, spread = means(), covariances(smallest=1e-2)
    torch.testing.assert_close(
        squared_wasserstein(1e-5 * loc, 1e-10 * spread),
        1e-10 * squared_wasserstein(loc, spread),
        rtol=1e-10,
        atol=0,
    )


def test_pairs_and_blocks_have_the_distances_of_all(monkeypatch):
    loc, spread = means(), covariances()
    want = squared_wasserstein(loc, spread)
    first, second = torch.randint(0, K, (2, 50))
    for block in (wasserstein.BLOCK, 25, 1):
        monkeypatch.setattr(wasserstein, "BLOCK", block)
        assert squared_wasserstein(loc, spread).equal(want)
        got = squared_wasserstein_pairs(loc, spread, first, second)
        assert got.equal(want[first, second])


def test_single_precision_is_rounded_once():
    loc, spread = means().float(), covariances().float()
    got = squared_wasserstein(loc, spread)
    assert got.dtype == torch.float32
    assert got.equal(squared_wasserstein(loc.double(), spread.double()).float())


def test_none_have_no_distances():
    none = means(0), covariances(0)
    assert squared_wasserstein(*none).shape == (0, 0)
    assert squared_wasserstein(*none, means(), covariances()).shape == (0, K)
    assert squared_wasserstein(means(), covariances(), *none).shape == (K, 0)
    no = torch.zeros(0, dtype=torch.int64)
    assert squared_wasserstein_pairs(means(), covariances(), no, no).shape == (0,)


def test_half_of_the_others_is_refused():
    with pytest.raises(OptionError, match="pass both"):
        squared_wasserstein(means(), covariances(), means())


# --- merging


def moments(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    off = points - points.mean(0)
    return torch.tensor(len(points)), points.mean(0), off.mT @ off / len(points)


def test_merging_keeps_the_moments_of_the_points():
    clouds = [means(n) * 0.3 + means(1) for n in (5, 17, 40, 1, 8)]
    count, loc, spread = (torch.stack(each) for each in zip(*map(moments, clouds), strict=True))
    n, m, s = merged(count, loc, spread, torch.tensor([1, 0, 1, 1, 0]))
    for group, members in enumerate([(1, 4), (0, 2, 3)]):
        pooled = moments(torch.cat([clouds[i] for i in members]))
        assert n[group] == pooled[0]
        torch.testing.assert_close(m[group], pooled[1], **EXACT)
        torch.testing.assert_close(s[group], pooled[2], **EXACT)


def test_merging_in_two_steps_is_merging_in_one():
    all_of = 100 * torch.rand(K, dtype=torch.float64), means(), covariances()
    halfway = torch.arange(K) // 2
    last = torch.tensor([0, 1, 0, 1, 1, 0])
    once = merged(*all_of, last[halfway])
    twice = merged(*merged(*all_of, halfway), last)
    for got, want in zip(twice, once, strict=True):
        torch.testing.assert_close(got, want, **EXACT)


def test_merging_nothing_changes_nothing():
    all_of = torch.randint(1, 9, (K,)), means(), covariances()
    order = torch.randperm(K)
    for got, want in zip(merged(*all_of, order), all_of, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got[order], want, **EXACT)


def test_merging_close_means_far_off_does_not_cancel():
    loc = torch.tensor([[1e6, 0.0], [1e6 + 1e-3, 0.0]], dtype=torch.float64)
    group = torch.tensor([0, 0])
    _, _, s = merged(torch.ones(2), loc, torch.zeros(2, 2, 2, dtype=torch.float64), group)
    assert s[0, 0, 0].item() == pytest.approx(2.5e-7, rel=1e-6)


@pytest.mark.parametrize(("group", "message"), [([0, 2, 2], "group 1"), ([0, -1, 0], "from 0")])
def test_groups_with_gaps_are_refused(group, message):
    with pytest.raises(OptionError, match=message):
        merged(torch.ones(3), means(3), covariances(3), torch.tensor(group))
