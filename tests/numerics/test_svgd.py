from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from bayesify.numerics.kernels import (
    Coordinates,
    DenseCoordinates,
    ProductCoordinates,
    median_bandwidth,
)
from bayesify.numerics.svgd import svgd_direction

M, SCALE = 4, 0.7


@pytest.fixture(autouse=True)
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dense(members: int = M) -> DenseCoordinates:
    return DenseCoordinates(torch.randn(members, 3, 2))


def products(members: int = M) -> ProductCoordinates:
    return ProductCoordinates(torch.randn(members, 2, 5), torch.randn(members, 4, 2), SCALE)


def gradients_for(layers: Sequence[Coordinates]) -> list[tuple[Tensor, ...]]:
    return [tuple(torch.randn_like(each) for each in layer.tensors) for layer in layers]


def compared(layer: Coordinates, own: Sequence[Tensor]) -> Tensor:
    """What a member of the layer is compared by, as one long vector."""
    product = [] if isinstance(layer, DenseCoordinates) else [SCALE * own[1] @ own[0]]
    return torch.cat([each.flatten() for each in (*own, *product)])


def by_the_definition(
    layers: Sequence[Coordinates], gradients: list[tuple[Tensor, ...]], repulsion: float, h: Tensor
) -> list[list[Tensor]]:
    """phi (eq. 8) from its double sum; every gradient of the kernel of one pair by autograd.

    With respect to the factors of the other member, as the paper has it.
    """
    members = len(layers[0].tensors[0])
    result = [[torch.zeros_like(each) for each in layer.tensors] for layer in layers]
    for i in range(members):
        for j in range(members):
            others = [[each[j].clone().requires_grad_() for each in x.tensors] for x in layers]
            distance = torch.zeros(())
            for layer, other in zip(layers, others, strict=True):
                own = [each[i] for each in layer.tensors]
                apart = compared(layer, other) - compared(layer, own)
                distance = distance + apart.square().sum()
            k = torch.exp(-distance / h)
            leaves = [each for other in others for each in other]
            slopes = iter(torch.autograd.grad(k, leaves))
            for phi, g in zip(result, gradients, strict=True):
                for total, each in zip(phi, g, strict=True):
                    total[i] += (k.detach() * each[j] - repulsion * next(slopes)) / members
    return result


@pytest.mark.parametrize("makers", [[dense], [products], [dense, products, products, dense]])
@pytest.mark.parametrize("bandwidth", [None, 50.0])
def test_the_direction_is_its_definition(makers, bandwidth):
    layers = [make() for make in makers]
    gradients = gradients_for(layers)
    distances = torch.stack([each.distances() for each in layers]).sum(0)
    h = median_bandwidth(distances) if bandwidth is None else torch.tensor(bandwidth)
    got = svgd_direction(layers, gradients, repulsion=0.3, bandwidth=bandwidth)
    want = by_the_definition(layers, gradients, 0.3, h)
    for phi, truth in zip(got, want, strict=True):
        for each, of in zip(phi, truth, strict=True):
            torch.testing.assert_close(each, of, rtol=1e-10, atol=1e-10)


def test_one_kernel_serves_all_layers():
    """A layer cut in two is the layer."""
    whole, g = torch.randn(M, 6), torch.randn(M, 6)
    [(want,)] = svgd_direction([DenseCoordinates(whole)], [(g,)], repulsion=0.3)
    halves = svgd_direction(
        [DenseCoordinates(each) for each in whole.split(3, dim=1)],
        [(each,) for each in g.split(3, dim=1)],
        repulsion=0.3,
    )
    torch.testing.assert_close(torch.cat([each for (each,) in halves], dim=1), want)


def test_one_member_descends_its_gradient():
    layers = [dense(1), products(1)]
    gradients = gradients_for(layers)
    for phi, g in zip(svgd_direction(layers, gradients, repulsion=0.3), gradients, strict=True):
        assert all(torch.equal(each, of) for each, of in zip(phi, g, strict=True))


def test_members_far_apart_descend_their_own_gradients():
    layers = [DenseCoordinates(100 * torch.arange(M)[:, None] * torch.ones(1, 3))]
    [(g,)] = gradients_for(layers)
    [(phi,)] = svgd_direction(layers, [(g,)], repulsion=1.0, bandwidth=1.0)
    torch.testing.assert_close(phi, g / M)


def test_members_that_coincide_descend_the_mean_gradient():
    layers = [DenseCoordinates(torch.randn(1, 3).repeat(M, 1))]
    [(g,)] = gradients_for(layers)
    [(phi,)] = svgd_direction(layers, [(g,)], repulsion=1.0)
    torch.testing.assert_close(phi, g.mean(0).expand_as(g))


def test_the_repulsion_points_away():
    layer = DenseCoordinates(torch.randn(2, 5))
    [(phi,)] = svgd_direction([layer], [(torch.zeros(2, 5),)], repulsion=0.1)
    moved = DenseCoordinates(layer.values - 0.01 * phi)
    assert moved.distances()[0, 1] > layer.distances()[0, 1]


def test_the_inputs_are_not_touched_and_the_direction_carries_no_graph():
    down, up = torch.randn(M, 2, 5, requires_grad=True), torch.randn(M, 4, 2, requires_grad=True)
    layers = [DenseCoordinates(torch.randn(M, 3, requires_grad=True))]
    layers += [ProductCoordinates(down, up, SCALE)]
    gradients = gradients_for(layers)
    before = [each.clone() for g in gradients for each in g]
    for phi in svgd_direction(layers, gradients, repulsion=0.3):
        assert not any(each.requires_grad for each in phi)
    after = [each for g in gradients for each in g]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_direction_has_the_type_of_the_gradients(dtype):
    plain, product = dense(), products()
    gradients = gradients_for([plain, product])
    want = svgd_direction([plain, product], gradients, repulsion=0.3)
    narrow = [
        DenseCoordinates(plain.values.to(dtype)),
        ProductCoordinates(product.down.to(dtype), product.up.to(dtype), SCALE),
    ]
    cast = [tuple(each.to(dtype) for each in g) for g in gradients]
    for phi, truth in zip(svgd_direction(narrow, cast, repulsion=0.3), want, strict=True):
        for each, of in zip(phi, truth, strict=True):
            assert each.dtype == dtype
            torch.testing.assert_close(each.double(), of, rtol=3e-2, atol=3e-2)


def descended(
    start: Tensor, gradient: Callable[[Tensor], Tensor], *, repulsion: float, rate: float
) -> Tensor:
    """Particles after 1 000 steps, which is long after they have stopped spreading."""
    x = start
    for _ in range(1_000):
        [(phi,)] = svgd_direction([DenseCoordinates(x)], [(gradient(x),)], repulsion=repulsion)
        x = x - rate * phi
    return x


def test_particles_recover_a_gaussian_in_one_dimension(generator):
    """N = 1, so that the loss per example is the energy; N(2, 3^2).

    At the fixed point the mean is exact; the spread is too small by a bias of order 1/M, because a
    particle's kernel with itself brings a gradient and no repulsion: 2 % at M = 50.
    """
    start = torch.randn(50, 1, generator=generator)
    x = descended(start, lambda x: (x - 2) / 9, repulsion=1.0, rate=2.0)
    assert abs(x.mean() - 2) < 0.03
    assert 0.95 < x.std() / 3 < 1.0


def test_particles_recover_a_correlated_gaussian(generator):
    """As above, with a bias of a tenth of the variance at M = 50, which more particles lessen."""
    mean = torch.tensor([2.0, -1.0])
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    precision, root = torch.linalg.inv(covariance), torch.linalg.cholesky(covariance)
    bias = []
    for members in (50, 150):
        start = torch.randn(members, 2, generator=generator)
        x = descended(start, lambda x: (x - mean) @ precision, repulsion=1.0, rate=0.5)
        torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
        white = torch.linalg.solve_triangular(root, (x - mean).T, upper=False)
        bias.append((torch.cov(white) - torch.eye(2)).abs().max().item())
    assert bias[0] < 0.15
    assert bias[1] < 0.6 * bias[0]


def test_the_repulsion_is_a_temperature(generator):
    """Particles for T = 4 have twice the spread: the target is N(0, T)."""
    start = torch.randn(50, 1, generator=generator)
    warm = descended(start, lambda x: x, repulsion=4.0, rate=0.3)
    assert 0.95 < warm.std() / 2 < 1.0


def energy_slope_of_two_modes(x: Tensor) -> Tensor:
    """Minus the slope of the log density of equal normals around -4 and 4, deviation 0.7."""
    share = torch.sigmoid(8 * x / 0.49)
    return (x + 4 - 8 * share) / 0.49


def test_particles_that_start_spread_out_populate_both_modes(generator):
    """Half of them in each, up to where they started; the spread is 0.7 less its bias."""
    start = 16 * torch.rand(50, 1, generator=generator) - 8
    x = descended(start, energy_slope_of_two_modes, repulsion=1.0, rate=0.3)
    for centre, part in ((-4, x[x < 0]), (4, x[x > 0])):
        assert len(part) >= 15
        assert abs(part.mean() - centre) < 0.1
        assert abs(part.std() / 0.7 - 1) < 0.15


def test_without_repulsion_particles_collapse_to_the_mode(generator):
    """Not faster than exp(-0.3 * 1000 / 50): the kernel shrinks with them, and stragglers that it
    leaves out are moved by their own gradients alone, over M.
    """
    start = 0.1 * torch.randn(50, 1, generator=generator)
    spread = descended(start, lambda x: x - 2, repulsion=1.0, rate=0.3)
    collapsed = descended(start, lambda x: x - 2, repulsion=0.0, rate=0.3)
    assert spread.std() > 0.9
    assert collapsed.std() < 0.005
    assert (collapsed - 2).abs().max() < 0.01
