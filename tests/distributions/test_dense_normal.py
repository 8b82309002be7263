import pytest
import torch
from torch import Tensor, nn

from bayesify.core.errors import LoadError, OptionError, ShapeError
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.priors import NormalPrior
from bayesify.weights.named import copied, weights_of


def dense(model: nn.Module | None = None) -> tuple[DenseNormal, Tensor]:
    """With its covariance, by an inverse."""
    loc = weights_of(model or nn.Linear(3, 2).double())
    size = sum(each.numel() for each in loc.values())
    factor = (torch.eye(size) + 0.3 * torch.randn(size, size).tril()).double()
    factor.diagonal().abs_()
    return DenseNormal(loc, factor), torch.linalg.inv(factor @ factor.T)


def test_covariance_and_scale_are_those_of_the_inverse_precision():
    q, covariance = dense()
    torch.testing.assert_close(q.covariance.detach(), covariance)
    scale = torch.cat([each.flatten() for each in q.scale.values()]).detach()
    torch.testing.assert_close(scale, covariance.diagonal().sqrt())


def test_tensors_vary_together():
    loc = {"a": torch.zeros(1), "b": torch.zeros(1)}
    factor = torch.linalg.cholesky(torch.tensor([[1.0, -0.999], [-0.999, 1.0]]).double())
    draws = DenseNormal(loc, factor).sample(500, generator=torch.Generator().manual_seed(0))
    assert torch.corrcoef(torch.stack([draws["a"], draws["b"]]).squeeze(2))[0, 1] > 0.99


def test_the_divergence_is_that_of_torch():
    q, covariance = dense()
    prior = NormalPrior({"weight": 0.5, "bias": 2.0})
    mean = torch.cat([each.flatten() for each in q.point().values()])
    wide = torch.cat([torch.full((6,), 0.25), torch.full((2,), 4.0)]).double().diag()
    normal = torch.distributions.MultivariateNormal
    want = torch.distributions.kl_divergence(
        normal(mean, covariance), normal(torch.zeros(8).double(), wide)
    )
    torch.testing.assert_close(kl_divergence(q, prior).detach(), want)


def test_a_file_holds_each_number_of_the_triangle_once():
    q, _ = dense()
    stored = q.stored()
    assert stored["triangle"].shape == (36,)
    again = DenseNormal.from_stored(copied(stored))
    assert all(torch.equal(e, again.state_dict()[n]) for n, e in q.state_dict().items())
    with pytest.raises(LoadError, match=r"expected the 36 numbers .* got 35"):
        DenseNormal.from_stored(stored | {"triangle": stored["triangle"][1:]})


def test_scaling_multiplies_the_noise_and_nothing_else():
    q, covariance = dense()
    q.loc.requires_grad_(False)
    wide = q.scaled(3.0)
    torch.testing.assert_close(wide.covariance.detach(), 9 * covariance)
    assert torch.equal(wide.point()["weight"], q.point()["weight"])
    assert not any(each.requires_grad for each in wide.loc.parameters())
    assert wide.factor.requires_grad
    with pytest.raises(OptionError, match="factor=0"):
        q.scaled(0.0)


def test_what_does_not_belong_together_is_refused():
    loc = {"w": torch.zeros(2)}
    with pytest.raises(ShapeError, match=r"expected the shape \(2, 2\)"):
        DenseNormal(loc, torch.eye(3))
    for factor in (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.full((2, 2), torch.inf)):
        with pytest.raises(OptionError, match="diagonal above 0"):
            DenseNormal(loc, factor)
