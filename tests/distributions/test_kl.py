import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.errors import UnsupportedModelError
from bayesify.priors import NormalPrior
from bayesify.types import Named


def test_the_reference_layer_has_its_published_divergence():
    torch.manual_seed(0)
    loc = {"weight": torch.randn(10, 20) * 0.3, "bias": torch.randn(10) * 0.3}
    sigma = F.softplus(torch.tensor(-2.0))
    q = MeanField(loc, {name: torch.full_like(each, sigma) for name, each in loc.items()})
    assert kl_divergence(q, NormalPrior(1.0)).item() == pytest.approx(338.69385, abs=1e-4)


def test_it_is_the_sum_of_torchs_divergences_weight_by_weight():
    loc = {"a": torch.randn(3, 2).double(), "b": torch.randn(4).double()}
    scale = {name: torch.rand_like(each) + 0.1 for name, each in loc.items()}
    centre = {"a": torch.randn(3, 2).double()}
    widths = {"a": 0.5, "b": 2.0}
    want = sum(
        torch_kl(
            Normal(loc[name], scale[name]),
            Normal(centre.get(name, torch.zeros_like(loc[name])), widths[name]),
        ).sum()
        for name in loc
    )
    got = kl_divergence(MeanField(loc, scale), NormalPrior(widths, loc=centre))
    torch.testing.assert_close(got.detach(), want)


def test_it_is_a_sum_and_not_a_mean():
    one = MeanField({"w": torch.ones(1)}, {"w": torch.full((1,), 0.3)})
    many = MeanField({"w": torch.ones(70)}, {"w": torch.full((70,), 0.3)})
    prior = NormalPrior(1.0)
    torch.testing.assert_close(kl_divergence(many, prior), 70 * kl_divergence(one, prior))


def test_the_prior_itself_is_at_distance_zero():
    loc = {"w": torch.randn(5)}
    q = MeanField(loc, {"w": torch.full((5,), 0.7)})
    assert kl_divergence(q, NormalPrior(0.7, loc=loc)).item() == pytest.approx(0, abs=1e-6)


def test_a_pair_without_closed_form_names_the_known_ones():
    q = Particles.of_models([nn.Linear(2, 1)])
    with pytest.raises(UnsupportedModelError, match=r"KL\(Particles .* \(MeanField, NormalPrior\)"):
        kl_divergence(q, NormalPrior(1.0))


# --- matrix normal


def factor(k: int, n: int) -> Tensor:
    below = torch.randn(k, n, n).double().tril(-1) / n**0.5
    return below + torch.diag_embed(torch.rand(k, n).double() + 0.5)


def layered(k: int = 1, **points: Tensor) -> MatrixNormal:
    """A layer with its bias, and a convolution without."""
    shapes = {"a": (3, 2), "b": (3,), "c": (2, 3, 2)}
    return MatrixNormal(
        {name: torch.randn(k, *shape).double() for name, shape in shapes.items()},
        row={"a": factor(k, 3), "c": factor(k, 6)},
        column={"a": factor(k, 3), "c": factor(k, 2)},
        points=points,
    )


def dense(q: MatrixNormal) -> list[tuple[list[str], MultivariateNormal]]:
    """For each layer its names and the law of vec(W~): by output, its weights and its bias."""
    laws = []
    for layer in q.layers:
        row, column = (each.named()[layer.weight][0].detach() for each in (q.row, q.column))
        covariance = torch.kron(column @ column.T, torch.linalg.inv(row @ row.T).contiguous())
        laws.append((layer.names, MultivariateNormal(vec(layer.names, q.loc.named()), covariance)))
    return laws


def vec(names: list[str], held: Named) -> Tensor:
    outputs = held[names[0]].shape[1]
    return torch.cat([held[name].view(outputs, -1) for name in names], 1).flatten().detach()


@pytest.mark.parametrize("centred", [True, False])
def test_matrix_normal_layers_have_the_divergence_of_dense_gaussians(centred):
    q, widths = layered(), {"a": 0.5, "b": 2.0, "c": 1.3}
    held = {name: each.detach() for name, each in q.loc.named().items()}
    centre = {n: torch.zeros_like(e) if centred else torch.randn_like(e) for n, e in held.items()}
    scales = {n: torch.full_like(e, widths[n]) for n, e in held.items()}
    want = sum(
        torch_kl(law, MultivariateNormal(vec(n, centre), vec(n, scales).square().diag()))
        for n, law in dense(q)
    )
    loc = {} if centred else {name: each[0] for name, each in centre.items()}
    got = kl_divergence(q, NormalPrior(widths, loc=loc)).detach()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_a_matrix_normal_of_independent_entries_has_the_divergence_of_a_mean_field():
    loc = {"a": torch.randn(3, 2).double(), "b": torch.randn(3).double()}
    q = MatrixNormal(
        {name: each[None] for name, each in loc.items()},
        row={"a": torch.eye(3).double()[None] / 0.3},
        column={"a": torch.eye(3).double()[None]},
    )
    same = MeanField(loc, {name: torch.full_like(each, 0.3) for name, each in loc.items()})
    prior = NormalPrior({"a": 0.5, "b": 2.0})
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(same, prior))


def test_a_matrix_normal_that_is_the_prior_is_at_distance_zero():
    loc = {"a": torch.randn(1, 3, 2).double()}
    row, column = 2 * torch.eye(2).double()[None], 1.4 * torch.eye(3).double()[None]
    q = MatrixNormal(loc, row={"a": row}, column={"a": column})
    assert kl_divergence(q, NormalPrior(0.7, loc={"a": loc["a"][0]})).item() == pytest.approx(
        0, abs=1e-12
    )


def test_points_have_no_density_and_do_not_count():
    torch.manual_seed(0)
    without = kl_divergence(layered(), NormalPrior(0.7))
    torch.manual_seed(0)
    beside = kl_divergence(layered(gain=torch.full((1, 4), 9.0)), NormalPrior(0.7))
    assert torch.equal(without, beside)


def test_a_mixture_of_several_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"KL\(mixture of 3 .*; one member has one"):
        kl_divergence(layered(3), NormalPrior(1.0))
