import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Named
from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.distributions.priors import NormalPrior
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.normal import SharedNormal


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


# --- shared normal

SHAPES = {"a.weight": (6, 5), "b": (7,), "c": (2, 3, 2)}
CODES = 4


def shared(law: str, *, share: float = 0.2, shapes: dict[str, tuple[int, ...]] = SHAPES):
    """Random codes; `share` of the entries are outliers, and as many blends."""
    coded = {}
    for name, shape in shapes.items():
        several = int(share * math.prod(shape))
        places = torch.randperm(math.prod(shape))[: 2 * several].view(2, -1).sort(1).values
        codes = torch.randint(CODES, shape)
        second = (codes.flatten()[places[1]] + 1) % CODES
        coded[name] = CodedTensor(codes, *places, second, torch.rand(several))
    outliers = sum(each.own_count for each in coded.values())
    sizes = (CODES, len(shapes) if law == "per_layer" else CODES, outliers, outliers)
    return SharedNormal(
        coded,
        (0.3 + torch.rand(len(shapes))).double(),
        *(torch.randn(size).double() for size in sizes),
        spread=(0.1 + torch.rand(CODES, 3)).double(),
        law=law,
    )


def priors(shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, NormalPrior]:
    widths = {name: 0.5 + 0.3 * number for number, name in enumerate(shapes)}
    loc = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    first = next(iter(shapes))
    return {
        "zero": NormalPrior(0.7),
        "by name": NormalPrior(widths),
        "a mean per weight": NormalPrior(widths, loc=loc),
        "a mean for some": NormalPrior(widths, loc={first: loc[first]}),
        "a mean per row": NormalPrior(widths, loc={first: loc[first][:1]}),
    }


PRIORS = list(priors())


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("law", ["per_weight", "per_layer"])
def test_counted_codes_have_the_divergence_of_a_mean_field(law, share, prior):
    q, chosen = shared(law, share=share), priors()[prior]
    loc, scale = q.point(), {name: each.detach() for name, each in q.scale().items()}
    got = kl_divergence(q, chosen)
    want = kl_divergence(MeanField(loc, scale), chosen)
    torch.testing.assert_close(got, want.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("law", ["per_weight", "per_layer"])
def test_gradients_of_counted_codes_are_those_weight_by_weight(law, prior):
    q, chosen = shared(law), priors()[prior]
    got = torch.autograd.grad(kl_divergence(q, chosen), list(q.parameters()))
    local, terms = q.local_weights(), []
    for name, each in local.items():
        scale = torch.full_like(each.loc, chosen.scale_of(name))
        center = torch.as_tensor(chosen.loc_of(name)).to(scale)
        law_of_prior = Normal(center.expand_as(scale), scale)
        terms.append(torch_kl(Normal(each.loc, each.scale), law_of_prior).sum())
    want = torch.autograd.grad(torch.stack(terms).sum(), list(q.parameters()))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def by_use(q: SharedNormal, prior: NormalPrior, loc: Tensor, scale: Tensor) -> Tensor:
    """Sum over codes of the mean over uses of KL(N(loc_k, scale_k^2) || prior), entry by entry.

    And that of the outliers, each for itself.
    """
    uses = [[] for _ in range(CODES)]
    own, outlier = [], 0
    for unit, (name, tensor) in zip(q.unit, q.tensors().items(), strict=True):
        center = torch.as_tensor(prior.loc_of(name)).double().expand(tensor.codes.shape).flatten()
        width = torch.tensor(prior.scale_of(name), dtype=torch.float64)
        taken = {*tensor.outliers.tolist(), *tensor.blends.tolist()}
        for place, code in enumerate(tensor.codes.flatten().tolist()):
            aim = Normal(center[place], width)
            if place not in taken:
                uses[code].append(torch_kl(Normal(unit * loc[code], unit * scale[code]), aim))
        for place in tensor.outliers.tolist():
            mine = Normal(unit * q.own_loc[outlier], unit * q.own_log_scale[outlier].exp())
            own.append(torch_kl(mine, Normal(center[place], width)))
            outlier += 1
    return torch.stack([*own, *(torch.stack(each).mean() for each in uses if each)]).sum().detach()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_shared_number_counts_once_with_the_mean_over_its_uses(share, prior):
    q, chosen = shared("shared_loc", share=share), priors()[prior]
    want = by_use(q, chosen, q.loc, q.spread[:, 0])
    torch.testing.assert_close(kl_divergence(q, chosen).detach(), want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_random_gaussian_has_the_expected_divergence_of_its_draws(prior):
    """Monte Carlo over (m, log s), which the closed form integrates."""
    q, chosen, n = shared("shared"), priors()[prior], 150
    below = q.spread.detach()
    first, second = torch.randn(2, n, CODES).double()
    loc = q.loc.detach() + below[:, 0] * first
    scale = (q.log_scale.detach() + below[:, 1] * first + below[:, 2] * second).exp()
    terms = torch.stack([by_use(q, chosen, *each) for each in zip(loc, scale, strict=True)])
    error = terms.std() / n**0.5
    assert (kl_divergence(q, chosen).detach() - terms.mean()).abs() < 5 * error
    assert error < 0.2 * terms.mean()


def one_code(spread: list[float]) -> SharedNormal:
    return SharedNormal(
        {"w": CodedTensor(torch.tensor([0, 0, 0]))},
        torch.ones(1).double(),
        torch.tensor([0.4]).double(),
        torch.tensor([-1.0]).double(),
        spread=torch.tensor([spread]).double(),
        law="shared",
    )


def test_a_random_gaussian_is_at_least_as_far_as_its_marginal():
    """KL of a mixture of 4,000 of its draws, at samples of it, against the closed form."""
    q, prior, n = one_code([0.5, 0.4, 0.6]), NormalPrior(0.8), 4_000
    first, second, third = torch.randn(3, n).double()
    loc = 0.4 + 0.5 * first
    scale = (-1.0 + 0.4 * first + 0.6 * second).exp()
    values = loc + scale * third
    torch.testing.assert_close(values.std(), q.scale()["w"][0].detach(), rtol=0.1, atol=0)
    held_out = torch.randn(2, n).double()
    others = Normal(0.4 + 0.5 * held_out[0], (-1.0 + 0.4 * held_out[0] + 0.6 * held_out[1]).exp())
    density = others.log_prob(values[:, None]).logsumexp(1) - math.log(n)
    terms = density - Normal(0.0, 0.8).log_prob(values)
    bound = kl_divergence(q, prior).detach()
    assert bound > terms.mean() + 5 * terms.std() / n**0.5


def test_a_gaussian_without_spread_is_its_marginal():
    q = one_code([0.0, 0.0, 0.0])
    want = torch_kl(Normal(0.4, math.exp(-1.0)), Normal(0.0, 0.8)).double()
    torch.testing.assert_close(kl_divergence(q, NormalPrior(0.8)).detach(), want, check_dtype=False)


def test_tiny_scales_have_a_finite_divergence():
    q = shared("per_weight", share=0.2).float()
    with torch.no_grad():
        q.own_log_scale.fill_(-60.0)  # squares underflow in float32
    value = kl_divergence(q, NormalPrior(1.0))
    value.backward()
    assert value.isfinite()
    torch.testing.assert_close(q.own_log_scale.grad, -torch.ones_like(q.own_log_scale))


def test_weights_without_noise_have_no_divergence():
    with pytest.raises(UnsupportedModelError, match=r"no KL\(fixed weights \|\| prior\)"):
        kl_divergence(shared("fixed"), NormalPrior(1.0))
