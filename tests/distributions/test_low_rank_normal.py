import math

import pytest
import torch
from torch import Tensor, nn

from bayesify.core.errors import OptionError, ShapeError
from bayesify.core.types import Named
from bayesify.distributions.low_rank_normal import LowRankNormal
from zoo import NETS


def around(model: nn.Module, rank: int = 4) -> LowRankNormal:
    loc = {name: each.detach() for name, each in model.named_parameters()}
    diagonal = {name: 0.1 + torch.rand_like(each) for name, each in loc.items()}
    deviations = {n: torch.randn(rank, *each.shape).to(each) for n, each in loc.items()}
    return LowRankNormal(loc, diagonal, deviations)


def flat(named: Named, start: int = 0) -> Tensor:
    return torch.cat([each.detach().flatten(start) for each in named.values()], -1)


def covariance_of(q: LowRankNormal) -> Tensor:
    """Equation 1 of the paper, dense."""
    deviations = flat(q.deviations.named(), 1)  # (K, P)
    diagonal = flat(q.diagonal.named()).square().diag()
    return diagonal / 2 + deviations.T @ deviations / (2 * (len(deviations) - 1))


@pytest.mark.parametrize("rank", [2, 7])
def test_samples_have_the_mean_and_covariance_of_the_formula(rank, generator):
    q = around(nn.Linear(3, 2).double(), rank)
    samples, want = flat(q.sample(50_000, generator=generator), 1), covariance_of(q)
    error = ((want.diag()[:, None] * want.diag() + want.square()) / 50_000).sqrt()
    assert ((samples.mean(0) - flat(q.loc.named())).abs() < 5 * error.diag().sqrt()).all()
    assert ((samples.T.cov() - want).abs() < 5 * error).all()
    assert (want - want.diag().diag()).abs().max() > 50 * error.max()  # which a diagonal has not


def test_the_scale_is_the_root_of_the_covariances_diagonal():
    q = around(nn.Linear(3, 2).double())
    torch.testing.assert_close(flat(q.scale), covariance_of(q).diag().sqrt())


def test_without_a_diagonal_samples_lie_in_the_span_of_the_deviations(generator):
    q = around(nn.Linear(5, 4).double(), rank=3)
    with torch.no_grad():
        for each in q.diagonal.parameters():
            each.zero_()
    shifts = flat(q.sample(10, generator=generator), 1) - flat(q.loc.named())
    together = torch.cat([shifts, flat(q.deviations.named(), 1)])  # all tensors by one z2
    assert torch.linalg.matrix_rank(together) == torch.linalg.matrix_rank(shifts) == 3


def test_without_any_spread_every_sample_is_the_mean(generator):
    loc = {"w": torch.randn(3)}
    q = LowRankNormal(loc, {"w": torch.zeros(3)}, {"w": torch.zeros(2, 3)})
    samples = q.sample(5, generator=generator)["w"]
    assert torch.equal(samples, loc["w"].expand(5, 3))
    samples.square().sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in q.parameters())


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1.0, 7.0, 1e4])
def test_scaled_multiplies_the_covariance_and_keeps_the_rest(factor):
    q = around(NETS["mlp"].model().double())
    q.loc.requires_grad_(False)
    again = q.scaled(factor)
    torch.testing.assert_close(
        covariance_of(again), factor**2 * covariance_of(q), rtol=1e-6, atol=0
    )
    assert torch.equal(flat(again.loc.named()), flat(q.loc.named()))
    assert [e.requires_grad for e in again.parameters()] == [
        e.requires_grad for e in q.parameters()
    ]


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(OptionError, match="expected a finite number above 0"):
        around(nn.Linear(2, 2)).scaled(factor)


def test_a_small_scale_survives_half_precision():
    tiny = torch.full((4,), 1e-4, dtype=torch.float16)  # its square would be 0
    q = LowRankNormal({"w": torch.ones_like(tiny)}, {"w": tiny}, {"w": torch.zeros(2, 4).half()})
    again = LowRankNormal.from_state(q.state_dict())
    torch.testing.assert_close(again.diagonal.named()["w"].double(), tiny.double())
    assert (again.diagonal.named()["w"].square() == 0).all()


def test_names_and_shapes_must_belong_together():
    loc, diagonal, two = ({"w": torch.ones(*shape)} for shape in ((3,), (3,), (2, 3)))
    with pytest.raises(ShapeError, match=r"diagonal: expected names \['w'\], got \['v'\]"):
        LowRankNormal(loc, {"v": torch.ones(3)}, two)
    with pytest.raises(ShapeError, match=r"deviations: expected names \['w'\], got \['v'\]"):
        LowRankNormal(loc, diagonal, {"v": torch.ones(2, 3)})
    with pytest.raises(ShapeError, match=r"diagonal of 'w': expected the shape \(3,\), got \(2,\)"):
        LowRankNormal(loc, {"w": torch.ones(2)}, two)
    with pytest.raises(ShapeError, match=r"deviations of 'w': expected the shape \(2, 3\)"):
        LowRankNormal(loc, diagonal, {"w": torch.ones(2, 4)})
    uneven = {"a": torch.ones(2, 3), "b": torch.ones(4, 3)}
    both = {"a": torch.ones(3), "b": torch.ones(3)}
    with pytest.raises(ShapeError, match=r"deviations of 'b': expected the shape \(2, 3\)"):
        LowRankNormal(both, both, uneven)
    with pytest.raises(ShapeError, match="at least 2, of which K - 1 are free, got 1"):
        LowRankNormal(loc, diagonal, {"w": torch.ones(1, 3)})


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused(value):
    wrong = {"w": torch.tensor([1.0, value])}
    with pytest.raises(OptionError, match="diagonal of 'w': expected finite numbers"):
        LowRankNormal({"w": torch.ones(2)}, wrong, {"w": torch.ones(2, 2)})
