import pytest
import torch

from bayesify.data.readers.toy import sinc, two_moons


@pytest.mark.parametrize("draw", [sinc, two_moons])
def test_the_same_generator_draws_the_same_points(draw):
    first, second = (draw(20, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_sinc_leaves_a_gap():
    x, y = sinc(500, noise=0, generator=torch.Generator().manual_seed(0))
    assert (x.abs() >= 1).all()
    assert (x.abs() <= 3).all()
    torch.testing.assert_close(y, torch.sin(torch.pi * x) / (torch.pi * x))


def test_moons_are_half_circles():
    x, y = two_moons(500, noise=0, generator=torch.Generator().manual_seed(0))
    centres = torch.stack([y.float(), 0.5 * y], 1)
    torch.testing.assert_close((x - centres).norm(dim=1), torch.ones(500))
    assert (x[y == 0][:, 1] >= 0).all()
    assert (x[y == 1][:, 1] <= 0.5).all()
