import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bayesify.numerics import kernels
from bayesify.numerics.kernels import (
    DenseCoordinates,
    ProductCoordinates,
    median_bandwidth,
    rbf,
)

M, RANK, INPUTS, OUTPUTS, SCALE = 5, 2, 7, 6, 0.7


class LargestTensor(TorchDispatchMode):
    """How many elements the largest tensor has that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def dense(dtype: torch.dtype = torch.float64) -> DenseCoordinates:
    return DenseCoordinates(torch.randn(M, 3, 4, dtype=dtype))


def products(dtype: torch.dtype = torch.float64, scale: float = SCALE) -> ProductCoordinates:
    down = torch.randn(M, RANK, INPUTS, dtype=dtype)
    return ProductCoordinates(down, torch.randn(M, OUTPUTS, RANK, dtype=dtype), scale)


def weights(coordinates: DenseCoordinates | ProductCoordinates) -> torch.Tensor:
    """What members are compared by, (M, ...) in plain float64: for factors, these and products."""
    if isinstance(coordinates, DenseCoordinates):
        return coordinates.values.double()
    down, up = coordinates.down.double(), coordinates.up.double()
    product = coordinates.scale * up @ down
    return torch.cat([each.flatten(1) for each in (product, down, up)], dim=1)


def with_tensors(
    coordinates: DenseCoordinates | ProductCoordinates, tensors: list[torch.Tensor]
) -> DenseCoordinates | ProductCoordinates:
    if isinstance(coordinates, DenseCoordinates):
        return DenseCoordinates(*tensors)
    return ProductCoordinates(tensors[0], tensors[1], coordinates.scale)


def distances_of(values: torch.Tensor) -> torch.Tensor:
    """|w_i - w_j|^2 from every difference."""
    return (values[:, None] - values[None]).square().flatten(2).sum(-1)


def test_the_bandwidth_is_the_median_pair_over_the_logarithm():
    distances = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 9.0], [2.0, 9.0, 0.0]])
    assert median_bandwidth(distances).item() == pytest.approx(2 / math.log(4), rel=1e-6)


def test_the_median_of_an_even_number_of_pairs_is_between_the_two_in_the_middle():
    x = torch.tensor([0.0, 1.0, 3.0, 7.0])  # squared: 1 4 9 16 36 49
    want = 12.5 / math.log(5)
    assert median_bandwidth(distances_of(x[:, None])).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-44])
def test_the_bandwidth_is_one_where_members_coincide_or_nearly(size, dtype):
    size *= torch.finfo(dtype).tiny / torch.finfo(torch.float32).tiny
    distances = torch.full((4, 4), size, dtype=dtype).fill_diagonal_(0)
    assert median_bandwidth(distances).item() == 1


def test_the_bandwidth_of_one_member_is_one():
    assert median_bandwidth(torch.zeros(1, 1)).item() == 1


def test_the_kernel_is_a_gaussian_of_half_the_bandwidth_as_variance():
    x, h = torch.randn(M, 3), 1.7
    normal = torch.distributions.Normal(0.0, math.sqrt(h / 2))
    ratio = normal.log_prob(x[:, None] - x) - normal.log_prob(torch.zeros(()))
    torch.testing.assert_close(rbf(distances_of(x), h), ratio.sum(-1).exp())


@pytest.mark.parametrize("make", [dense, products])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_distances_are_those_of_the_weights(make, dtype):
    coordinates = make(dtype)
    got = coordinates.distances()
    assert got.dtype == torch.float64
    assert got.diagonal().eq(0).all()
    torch.testing.assert_close(got, distances_of(weights(coordinates)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 2, 2)])
def test_dense_members_have_any_shape(shape):
    coordinates = DenseCoordinates(torch.randn(M, *shape, dtype=torch.float64))
    want = distances_of(coordinates.values.reshape(M, -1))
    torch.testing.assert_close(coordinates.distances(), want)
    (away,) = coordinates.repulsion(rbf(want, 1.0), 1.0)
    assert away.shape == (M, *shape)


def test_distances_of_large_tensors_are_summed_part_by_part(monkeypatch):
    coordinates = DenseCoordinates(torch.randn(M, 3, 4))
    want = coordinates.distances()
    monkeypatch.setattr(kernels, "COLUMNS", 5)
    torch.testing.assert_close(coordinates.distances(), want)


def test_distances_of_close_dense_members_are_accurate():
    """In float32; the truth is the differences of what float32 holds."""
    common = 100 * torch.randn(1, 2_000)
    coordinates = DenseCoordinates(common * (1 + 1e-4 * torch.randn(M, 2_000)))
    want = distances_of(weights(coordinates))
    torch.testing.assert_close(coordinates.distances(), want, rtol=1e-6, atol=0)


def test_distances_of_close_members_are_accurate_when_the_first_is_far():
    values = 1 + 1e-4 * torch.randn(M, 2_000)
    values[0] += 1
    coordinates = DenseCoordinates(values)
    want = distances_of(weights(coordinates))
    torch.testing.assert_close(coordinates.distances(), want, rtol=1e-6, atol=0)


def test_distances_of_close_products_are_accurate():
    down, up = 100 * torch.randn(1, RANK, 300), torch.randn(1, 200, RANK)
    near_down, near_up = (
        each * (1 + 1e-4 * torch.randn(M, *each.shape[1:])) for each in (down, up)
    )
    coordinates = ProductCoordinates(near_down, near_up, SCALE)
    want = distances_of(weights(coordinates))
    torch.testing.assert_close(coordinates.distances(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_members_that_coincide_have_no_distance_and_no_repulsion(dtype):
    """Rounding must not look like a distance: the bandwidth would turn it into a force."""
    down, up = torch.randn(1, RANK, 301, dtype=dtype), torch.randn(1, 203, RANK, dtype=dtype)
    same = [
        DenseCoordinates(torch.randn(1, 1_001, dtype=dtype).repeat(7, 1) / 3),
        ProductCoordinates(down.repeat(7, 1, 1) / 3, up.repeat(7, 1, 1), SCALE),
    ]
    for coordinates in same:
        distances = coordinates.distances()
        assert distances.eq(0).all()
        h = median_bandwidth(distances)
        for away in coordinates.repulsion(rbf(distances, h), h):
            assert away.abs().max() < 1e-10


def test_factors_of_one_product_are_told_apart():
    """A kernel that did not would move them alike (tests/methods/members/test_interaction.py)."""
    one = products()
    gauge = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    both = ProductCoordinates(one.down[:1] / gauge, one.up[:1] * gauge, SCALE)
    want = (one.down[0] / 2).square().sum() + one.up[0].square().sum()
    torch.testing.assert_close(both.distances()[0, 1], want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [dense, products])
def test_the_repulsion_is_the_sum_of_the_kernels_gradients(make):
    """Each term by autograd, with respect to the coordinates of the other member."""
    coordinates, h = make(), 40.0
    kernel = rbf(coordinates.distances(), h)
    want = [torch.zeros_like(each) for each in coordinates.tensors]
    for i in range(M):
        for j in range(M):
            own = [each[i] for each in coordinates.tensors]
            other = [each[j].clone().requires_grad_() for each in coordinates.tensors]
            pair = [torch.stack(each) for each in zip(own, other, strict=True)]
            difference = weights(with_tensors(coordinates, pair)).diff(dim=0)
            k = torch.exp(-difference.square().sum() / h)
            for total, term in zip(want, torch.autograd.grad(k, other), strict=True):
                total[i] += term
    for got, truth in zip(coordinates.repulsion(kernel, h), want, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [dense, products])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_repulsion_has_the_type_of_the_members(make, dtype):
    coordinates = make(dtype)
    exact = with_tensors(coordinates, [each.double() for each in coordinates.tensors])
    kernel = rbf(coordinates.distances(), 40.0)
    pairs = zip(coordinates.repulsion(kernel, 40.0), exact.repulsion(kernel, 40.0), strict=True)
    for got, want in pairs:
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype), rtol=1e-2, atol=1e-5)


def test_the_repulsion_of_close_dense_members_is_accurate():
    coordinates = DenseCoordinates(100 * (1 + 1e-4 * torch.randn(M, 50)))
    h = median_bandwidth(coordinates.distances())
    kernel = rbf(coordinates.distances(), h)
    (got,), (want,) = (
        each.repulsion(kernel, h)
        for each in (coordinates, DenseCoordinates(coordinates.values.double()))
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6 * want.abs().max().item())


def growth(coordinates: DenseCoordinates | ProductCoordinates) -> float:
    """By which part the distance of two members grows in a small step along the repulsion."""
    before = coordinates.distances()
    h = median_bandwidth(before)
    away = coordinates.repulsion(rbf(before, h), h)
    moved = [x + 1e-4 * h * v for x, v in zip(coordinates.tensors, away, strict=True)]
    return (with_tensors(coordinates, moved).distances() / before)[0, 1].item() - 1


def test_plain_tensors_are_driven_apart():
    assert growth(DenseCoordinates(torch.randn(2, 3, 4, dtype=torch.float64))) > 1e-5


def test_close_products_are_driven_apart():
    down = torch.randn(1, RANK, INPUTS) + 0.1 * torch.randn(2, RANK, INPUTS)
    up = torch.randn(1, OUTPUTS, RANK) + 0.1 * torch.randn(2, OUTPUTS, RANK)
    assert growth(ProductCoordinates(down.double(), up.double(), SCALE)) > 1e-5


def test_products_are_never_formed():
    members, n, rank = 8, 4096, 2
    coordinates = ProductCoordinates(
        torch.randn(members, rank, n), torch.randn(members, n, rank), SCALE
    )
    with LargestTensor() as largest:
        distances = coordinates.distances()
        coordinates.repulsion(rbf(distances, 1e6), 1e6)
    assert largest.elements <= members * n * rank


def test_dense_members_are_not_subtracted_in_all_pairs():
    coordinates = DenseCoordinates(torch.randn(16, 5_000))
    with LargestTensor() as largest:
        distances = coordinates.distances()
        coordinates.repulsion(rbf(distances, 1e4), 1e4)
    assert largest.elements <= 16 * 5_000
