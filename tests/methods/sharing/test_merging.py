import itertools
import math

import pytest
import torch
from torch import Tensor

from bayesify.distributions.shared.coded import CodedTensor
from bayesify.methods.sharing.codebook import share
from bayesify.methods.sharing.merging import MergeLimits, current, merge
from bayesify.methods.sharing.structure import Source
from bayesify.numerics.mixture import Mixture
from bayesify.numerics.wasserstein import squared_wasserstein


def mixture(
    points: list[tuple[float, float]], *, variance: float = 1e-4, counts: list[float] | None = None
) -> Mixture:
    count = torch.tensor(counts or [1.0] * len(points)).double()
    covariance = variance * torch.eye(2).double().expand(len(points), 2, 2)
    return Mixture(count / count.sum(), torch.tensor(points).double(), covariance.clone(), count)


def random(size: int) -> Mixture:
    generator = torch.Generator().manual_seed(0)
    loc = torch.rand(size, 2, generator=generator).double()
    root = 0.03 * torch.randn(size, 2, 2, generator=generator).double()
    covariance = root @ root.mT + 1e-5 * torch.eye(2)
    count = 1 + 50 * torch.rand(size, generator=generator).double()
    return Mixture(count / count.sum(), loc, covariance, count)


def moments(found: Mixture) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the mixture as a whole."""
    mean = found.weight @ found.loc
    second = found.covariance + found.loc[:, :, None] * found.loc[:, None, :]
    return mean, (found.weight[:, None, None] * second).sum(0) - mean[:, None] * mean


NEAR = [(0.0, 0.0), (0.1, 0.0)]


def test_two_that_merge_have_the_moments_of_both():
    before = mixture(NEAR, counts=[3.0, 1.0])
    after, group = merge(before, MergeLimits(0.02))
    assert group.tolist() == [0, 0]
    assert after.count.tolist() == [4.0]
    assert after.weight.tolist() == [1.0]
    torch.testing.assert_close(after.loc, torch.tensor([[0.025, 0.0]]).double())
    spread = 0.75 * 0.025**2 + 0.25 * 0.075**2
    want = torch.diag(torch.tensor([1e-4 + spread, 1e-4]).double())
    torch.testing.assert_close(after.covariance[0], want)


@pytest.mark.parametrize("distance", [1e-4, 3e-3, 0.03, 0.3])
def test_moments_of_the_whole_and_of_every_group_are_kept(distance):
    before = random(40)
    after, group = merge(before, MergeLimits(distance))
    for got, want in zip(moments(after), moments(before), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert sorted(group.unique().tolist()) == list(range(len(after.count)))
    assert after.weight.sum().item() == pytest.approx(1)
    for k in range(len(after.count)):
        inside = group == k
        count = before.count[inside]
        part = Mixture(count / count.sum(), before.loc[inside], before.covariance[inside], count)
        mean, covariance = moments(part)
        assert after.count[k].item() == pytest.approx(count.sum().item())
        torch.testing.assert_close(after.loc[k], mean)
        torch.testing.assert_close(after.covariance[k], covariance)
    assert len(after.count) < 40 or distance == 1e-4


def test_no_neighbours_that_may_merge_are_left():
    after, _ = merge(random(60), MergeLimits(5e-3))
    assert 5 < len(after.count) < 55
    distance = squared_wasserstein(after.loc, after.covariance)
    near = torch.cdist(after.loc, after.loc).argsort(1)[:, 1:3]
    assert (distance.gather(1, near) >= 5e-3).all()


GATES = {
    "distance": ({"distance": 0.01}, {"distance": 0.0101}),
    "gradient": ({"gradient": 0.19}, {"gradient": 0.21}),
    "variance": ({"variance": 1e-4}, {"variance": 1.01e-4}),
}


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_alone_can_keep_two_apart(gate):
    """They are 0.1 apart, of variance 1e-4 and with gradients 0.2 apart."""
    open_ = {"distance": 1.0, "gradient": math.inf, "variance": math.inf}
    slope = torch.tensor([0.3, 0.5])
    for limits, size in zip(GATES[gate], (2, 1), strict=True):
        after, group = merge(mixture(NEAR), MergeLimits(**(open_ | limits)), slope)
        assert len(after.count) == size
        assert group.tolist() == ([0, 0] if size == 1 else [0, 1])


def test_one_that_is_too_wide_merges_with_none():
    before = mixture(NEAR)
    before.covariance[1, 0, 0] = 2e-4
    assert len(merge(before, MergeLimits(1.0, variance=1.5e-4))[0].count) == 2
    assert len(merge(before, MergeLimits(1.0, variance=2.5e-4))[0].count) == 1


def test_without_gradients_their_gate_is_open():
    assert len(merge(mixture(NEAR), MergeLimits(1.0, gradient=0.0))[0].count) == 1


def test_three_in_a_row_become_one_over_two_rounds():
    points = [(0.0, 0.0), (0.1, 0.0), (0.21, 0.0), (9.0, 0.0)]
    after, group = merge(mixture(points), MergeLimits(0.05))
    assert group.tolist() == [0, 0, 0, 1]
    assert after.count.tolist() == [3.0, 1.0]
    assert after.loc[0, 0].item() == pytest.approx(0.31 / 3)


def test_the_nearest_merge_first():
    """Of three, 0.1 and 0.11 apart, either pair may merge, but then the third is too far."""
    points = [(0.0, 0.0), (0.11, 0.0), (0.21, 0.0)]
    _, group = merge(mixture(points), MergeLimits(0.0125))
    assert group.tolist() == [0, 1, 1]


def test_the_gradient_of_a_group_is_the_sum_of_its_parts():
    points = [(0.0, 0.0), (0.01, 0.0), (0.1, 0.0)]
    slope = torch.tensor([0.1, 0.1, 0.0])  # that of the first two is 0.2
    for gradient, size in ((0.19, 2), (0.21, 1)):
        after, _ = merge(mixture(points), MergeLimits(1.0, gradient), slope)
        assert len(after.count) == size


@pytest.mark.parametrize("size", [2, 3, 4, 5, 9])
def test_any_number_of_equals_become_one(size):
    after, group = merge(mixture([(0.5, 0.5)] * size), MergeLimits(1e-9))
    assert group.tolist() == [0] * size
    assert after.count.tolist() == [size]


def test_one_may_merge_with_a_neighbour_that_has_nearer_ones():
    """The two nearest to the second are not its match, but it is among those of the first."""
    points = [(0.0, 0.05), (0.0, 0.0), (0.02, 0.0), (-0.02, 0.0)]
    slope = torch.tensor([0.0, 0.0, 1.0, -1.0])
    _, group = merge(mixture(points), MergeLimits(1.0, 0.5), slope)
    assert group.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("points", "limit"),
    [
        ([(0.0, 0.0), (0.0, 0.0)], 0.0),
        ([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)], 0.9),
        ([(0.0, 0.0)], 1.0),
    ],
)
def test_nothing_merges_at_a_limit_of_zero_or_far_apart_or_alone(points, limit):
    before = mixture(points)
    after, group = merge(before, MergeLimits(limit))
    assert group.tolist() == list(range(len(points)))
    assert torch.equal(after.loc, before.loc)
    assert torch.equal(after.covariance, before.covariance)
    assert torch.equal(after.count, before.count)


@pytest.mark.parametrize("law", ["per_weight", "per_layer", "shared_loc", "shared"])
def test_the_current_mixture_is_the_book_and_the_spread_of_its_entries(law):
    loc = {"a": torch.randn(30, 20), "b": 0.1 * torch.randn(51)}
    scale = {name: (each.std() * torch.randn_like(each) / 2).exp() for name, each in loc.items()}
    blending = law != "per_layer"
    source, q = share(loc, scale, codes=6, outliers=0.05, blending=blending, law=law, em_steps=10)
    with torch.no_grad():
        q.loc += 0.1 * torch.randn_like(q.loc)  # as training does
        q.log_scale += 0.1 * torch.randn_like(q.log_scale)
    found, used = current(source, q)
    assert used.tolist() == list(range(len(q.loc)))
    assert sum(len(each.blends) for each in q.tensors().values()) > 0 or law == "per_layer"
    points: dict[int, list[Tensor]] = {code: [] for code in range(len(q.loc))}
    for name, coded in q.tensors().items():
        outliers = set(coded.outliers.tolist())
        for i, code in enumerate(coded.codes.flatten().tolist()):
            if i not in outliers:
                points[code].append(source.points(name)[i].double())
    floor = torch.tensor(source.histogram.width).double().square() / 12
    for code, each in points.items():
        assert found.count[code].item() == len(each)
        covariance = torch.stack(each).T.cov(correction=0) + torch.diag(floor)
        torch.testing.assert_close(found.covariance[code], covariance, rtol=1e-6, atol=1e-9)
    second = 0.0 * q.loc if law == "per_layer" else source.stretch * q.log_scale.double()
    want = torch.stack([q.loc.double(), second.double()], 1).detach()
    torch.testing.assert_close(found.loc, want)
    torch.testing.assert_close(found.weight, found.count / found.count.sum())


def test_codes_without_entries_are_no_gaussians():
    loc = {"w": torch.tensor([1.0, 1.1, -2.0, -2.1, 3.0, 3.1])}
    scale = {"w": torch.full((6,), 0.1)}
    source, q = share(loc, scale, codes=3, outliers=0.0)
    codes = [group.item() for group, _ in itertools.groupby(q.tensors()["w"].codes)]
    q.restructure_({"w": CodedTensor(torch.tensor(codes)[[0, 0, 2, 2, 2, 2]])})
    found, used = current(source, q)
    assert used.tolist() == sorted([codes[0], codes[2]])
    assert sorted(found.count.tolist()) == [2.0, 4.0]
    assert torch.equal(found.loc[:, 0], q.loc.detach().double()[used])


def test_the_current_mixture_of_a_flat_source_has_its_points_on_a_line():
    loc, scale = {"w": torch.randn(100)}, {"w": torch.rand(100) + 0.1}
    source, q = share(loc, scale, codes=4, outliers=0.0, law="per_layer")
    assert isinstance(source, Source)
    found, _ = current(source, q)
    assert (found.loc[:, 1] == 0).all()
    assert found.covariance[:, 1, 1].tolist() == pytest.approx([1 / 12] * len(found.count))
