import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayesify.core.types import Named
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.methods.sharing.structure import (
    BLENDED,
    ELLIPSE,
    SHARED_LAWS,
    Source,
    Structure,
    booked,
    quantisation_error,
    structured,
    top,
)
from bayesify.numerics.mixture import Mixture, fit_mixture


def toy(dtype: torch.dtype = torch.float32) -> tuple[Named, Named]:
    """Means and scales of two tensors of different magnitude, 651 weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (30, 20), "b": (51,)}
    loc = {n: torch.randn(shape, generator=generator).double() for n, shape in shapes.items()}
    loc["b"] *= 0.03
    scale = {
        name: 0.1 * each.std() * torch.randn(each.shape, generator=generator).mul(0.7).exp()
        for name, each in loc.items()
    }
    return ({name: each.to(dtype) for name, each in named.items()} for named in (loc, scale))


def source(dtype: torch.dtype = torch.float32, *, flat: bool = False) -> Source:
    return Source.of(*toy(dtype), flat=flat)


def mixture(held: Source, codes: int = 6) -> Mixture:
    return fit_mixture(held.histogram, codes, torch.Generator().manual_seed(0))


def chosen(held: Source) -> dict[str, Tensor]:
    """Every third weight."""
    return {name: torch.arange(0, len(each), 3) for name, each in held.loc.items()}


def built(held: Source, *, blending: bool = True, codes: int = 6) -> Structure:
    return structured(held, mixture(held, codes), chosen(held), blending=blending)


def members(held: Source, structure: Structure, code: int) -> tuple[Tensor, Tensor]:
    """Means and scales of the entries that have a code to themselves, one by one."""
    found = []
    for name, coded in structure.coded.items():
        taken = {*coded.outliers.tolist(), *coded.blends.tolist()}
        for i, each in enumerate(coded.codes.flatten().tolist()):
            if each == code and i not in taken:
                found.append((held.loc[name][i].item(), held.log_scale[name][i].exp().item()))
    return tuple(torch.tensor(found, dtype=torch.float64).T)


def kl(loc: Tensor, variance: Tensor, member_loc: Tensor, member_scale: Tensor) -> Tensor:
    """Summed KL(N(loc, variance) || N(member_loc, member_scale^2))."""
    ratio = variance / member_scale**2
    away = (loc - member_loc) ** 2 / member_scale**2
    return ((ratio + away - 1 - ratio.log()) / 2).sum()


# --- coordinates


def test_units_are_root_mean_squares_and_coordinates_are_those_of_the_docstring():
    loc, scale = toy()
    held = source()
    ratio = {}
    for i, name in enumerate(loc):
        unit = loc[name].square().mean().sqrt()
        assert held.unit[i].item() == pytest.approx(unit.item(), rel=1e-6)
        ratio[name] = (scale[name] / unit).flatten()
    stretch = math.sqrt(2) * torch.cat(list(ratio.values())).median().item()
    assert held.stretch == pytest.approx(stretch, rel=1e-5)
    for i, name in enumerate(loc):
        want = torch.stack([loc[name].flatten() / held.unit[i], stretch * ratio[name].log()], 1)
        torch.testing.assert_close(held.points(name), want)
        torch.testing.assert_close(held.log_scale[name], ratio[name].log())
    assert held.shapes == {name: each.shape for name, each in loc.items()}


def test_at_the_median_scale_a_step_either_way_costs_as_many_nats():
    held, step = source(), torch.tensor(1e-3, dtype=torch.float64)
    scale = torch.tensor(held.stretch / math.sqrt(2), dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    across = kl(step, scale**2, zero, scale)
    along = kl(zero, (scale * (step / held.stretch).exp()) ** 2, zero, scale)
    assert along.item() == pytest.approx(across.item(), rel=0.02)


def test_scales_are_found_by_name_and_half_types_are_widened():
    loc, scale = toy()
    turned = Source.of(loc, {name: scale[name] for name in reversed(loc)})
    for name, _, log_scale in turned.items():
        assert torch.equal(log_scale, source().log_scale[name])
    for dtype in (torch.bfloat16, torch.float64):
        held = source(dtype)
        assert held.dtype == dtype
        assert {each.dtype for _, *pair in held.items() for each in pair} == {torch.float32}


def test_the_bins_are_those_of_the_points():
    held = source()
    points = torch.cat([held.points(name) for name in held.loc]).double()
    bins = torch.cat([held.bins[name] for name in held.loc]).long()
    assert torch.equal(held.histogram.count, torch.bincount(bins).double())
    for b in range(len(held.histogram.count)):
        torch.testing.assert_close(held.histogram.mean[b], points[bins == b].mean(0))


@pytest.mark.parametrize("flat", [True, False])
def test_flat_sources_do_not_read_the_scales(flat):
    loc, scale = toy()
    other = {name: each * torch.rand_like(each).exp() for name, each in scale.items()}
    structures = [built(Source.of(loc, each, flat=flat)) for each in (scale, other)]
    codes = [torch.cat([e.codes.flatten().int() for e in s.coded.values()]) for s in structures]
    assert torch.equal(*codes) == flat
    assert len(codes[0].unique()) == 6


# --- structure


def responsibilities(held: Source, found: Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By bin, over all components: the two best, the share of the first, its distance squared."""
    point = held.histogram.mean[:, None]
    log = MultivariateNormal(found.loc, found.covariance).log_prob(point) + found.weight.log()
    value, at = log.topk(2, dim=1)
    off = held.histogram.mean - found.loc[at[:, 0]]
    distance = (off * torch.linalg.solve(found.covariance[at[:, 0]], off)).sum(1)
    return at[:, 0], at[:, 1], value.softmax(1)[:, 0], distance


def test_codes_are_the_most_responsible_components():
    held = source()
    first, *_ = responsibilities(held, mixture(held))
    for name, coded in built(held).coded.items():
        assert coded.codes.shape == held.shapes[name]
        shared = torch.ones(len(held.loc[name]), dtype=torch.bool)
        shared[chosen(held)[name]] = False  # the code of an outlier does not matter
        codes, want = coded.codes.flatten().long(), first[held.bins[name].long()]
        assert torch.equal(codes[shared], want[shared])
    assert len(first.unique()) == 6


def test_blends_are_what_is_far_from_its_gaussian_and_no_outlier():
    held = source()
    _, second, alpha, distance = responsibilities(held, mixture(held))
    total, left_out = 0, 0
    for name, coded in built(held).coded.items():
        bins = held.bins[name].long()
        far = (distance[bins] > ELLIPSE) & (alpha[bins] < BLENDED)
        left_out += far[chosen(held)[name]].sum()
        far[chosen(held)[name]] = False
        at = far.nonzero()[:, 0]
        assert coded.blends.tolist() == at.tolist()
        assert coded.second.tolist() == second[bins][at].tolist()
        assert (coded.second != coded.codes.flatten()[at]).all()
        assert coded.share.tolist() == (255 * alpha[bins][at]).round().tolist()
        assert torch.equal(coded.outliers.long(), chosen(held)[name])
        total += len(at)
    assert total > 3
    assert left_out > 0


def test_the_ellipse_is_the_95th_percentile_of_chi_squared():
    inside = torch.special.gammainc(torch.tensor(1.0), torch.tensor(ELLIPSE / 2))
    assert inside.item() == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize("given", [{"blending": False}, {"codes": 1}])
def test_without_blending_or_another_component_none_is_blended(given):
    coded = built(source(), **given).coded
    assert [len(each.blends) for each in coded.values()] == [0, 0]


# --- outliers


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_the_top_scores_are_those_of_all_tensors_together(share):
    scores = {"a": torch.rand(70), "b": 2 * torch.rand(30), "c": torch.rand(1)}
    found = top(scores, share)
    everything = torch.cat(list(scores.values()))
    want = everything.topk(round(share * 101)).indices
    offset = {"a": 0, "b": 70, "c": 100}
    got = torch.cat([each + offset[name] for name, each in found.items()])
    assert sorted(want.tolist()) == got.tolist()  # ascending in each tensor too


def test_a_share_of_nothing_is_nothing():
    found = top({"a": torch.rand(70), "b": torch.rand(30)}, 0.0)
    assert {name: len(each) for name, each in found.items()} == {"a": 0, "b": 0}


def test_of_equal_scores_as_many_are_taken_as_were_asked_for():
    found = top({"a": torch.ones(70), "b": torch.ones(30)}, 0.25)
    assert sum(len(each.unique()) for each in found.values()) == 25
    assert found["a"].max() < 70
    assert found["b"].numel() == 0 or found["b"].max() < 30


def test_the_quantisation_error_is_twice_the_nats_that_the_mean_costs():
    held = source()
    structure = built(held, blending=False)
    q = booked(held, structure, "per_weight")
    for name, each in quantisation_error(held, q).items():
        codes = structure.coded[name].codes.flatten().tolist()
        for i in range(0, len(codes), 7):
            member = held.loc[name][i].double(), held.log_scale[name][i].double().exp()
            away = kl(q.loc[codes[i]].double(), member[1] ** 2, *member)
            assert each[i].item() == pytest.approx(2 * away.item(), rel=1e-4, abs=1e-9)


# --- the book


def test_an_entry_of_the_book_has_the_least_summed_kl_divergence():
    held = source(torch.float64)
    structure = built(held)
    q = booked(held, structure, "per_weight")
    for code in range(6):
        loc, scale = members(held, structure, code)
        mean, variance = q.loc[code].detach(), (2 * q.log_scale[code]).exp().detach()
        assert variance.item() == pytest.approx((1 / (scale**-2).mean()).item(), rel=1e-5)
        assert mean.item() == pytest.approx(((loc / scale**2).mean() * variance).item(), rel=1e-5)
        least = kl(mean, variance, loc, scale)
        for dm, dv in ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
            other = kl(mean + 0.01 * dm * variance.sqrt(), variance * (1 + 0.01 * dv), loc, scale)
            assert other > least


def test_per_layer_the_book_and_the_scales_have_the_least_summed_kl_divergence():
    held = source(torch.float64, flat=True)
    structure = built(held)
    q = booked(held, structure, "per_layer")

    def cost(loc: Tensor, log_scale: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, (name, coded) in enumerate(structure.coded.items()):
            alone = coded.alone()
            mean = loc[coded.codes.flatten().long()[alone]]
            scale = held.log_scale[name].double().exp()[alone]
            total += kl(mean, (2 * log_scale[i]).exp(), held.loc[name].double()[alone], scale)
        return total

    loc, log_scale = q.loc.detach().clone(), q.log_scale.detach().clone()
    for i, (name, coded) in enumerate(structure.coded.items()):
        precision = (-2 * held.log_scale[name][coded.alone()]).exp()
        assert (-2 * log_scale[i]).exp().item() == pytest.approx(precision.mean().item(), rel=1e-5)
    for book in (loc, log_scale):
        for i in range(len(book)):
            for step in (-0.01, 0.01):
                least = cost(loc, log_scale)
                book[i] += step
                assert cost(loc, log_scale) > least
                book[i] -= step


def test_per_layer_a_tensor_of_outliers_alone_has_the_scale_of_these():
    held = source(flat=True)
    everything = {"a": torch.empty(0, dtype=torch.long), "b": torch.arange(51)}
    q = booked(held, structured(held, mixture(held), everything, blending=True), "per_layer")
    want = (-2 * held.log_scale["b"]).exp().mean().rsqrt()
    assert q.log_scale[1].exp().item() == pytest.approx(want.item(), rel=1e-5)


def test_fixed_entries_are_plain_means():
    held = source(flat=True)
    structure = built(held)
    q = booked(held, structure, "fixed")
    for code in range(6):
        loc, _ = members(held, structure, code)
        assert q.loc[code].item() == pytest.approx(loc.mean().item(), rel=1e-5)


@pytest.mark.parametrize("law", SHARED_LAWS)
def test_shared_entries_have_the_moments_of_their_points(law):
    held = source(torch.float64)
    structure = built(held)
    q = booked(held, structure, law)
    for code in range(6):
        loc, scale = members(held, structure, code)
        points = torch.stack([loc, scale.log()])
        mean, covariance = points.mean(1), points.cov(correction=0)
        assert q.loc[code].item() == pytest.approx(mean[0].item(), rel=1e-5)
        assert q.log_scale[code].item() == pytest.approx(mean[1].item(), rel=1e-5)
        if law == "shared_loc":
            assert q.spread[code].item() ** 2 == pytest.approx(covariance[0, 0].item(), rel=1e-5)
            continue
        lower = torch.zeros(2, 2, dtype=torch.float64)
        lower[0, 0], lower[1, 0], lower[1, 1] = q.spread[code].detach()
        torch.testing.assert_close(lower @ lower.T, covariance, rtol=1e-4, atol=1e-8)


def by_hand(law: str) -> tuple[Source, SharedNormal]:
    """Four weights: one of code 0, an outlier of code 1, and two blends of codes 0 and 2."""
    loc, scale = {"w": torch.tensor([1.0, -2, 3, 4])}, {"w": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    held = Source.of(loc, scale)
    codes = torch.tensor([0, 1, 2, 2])
    coded = {
        "w": CodedTensor(
            codes,
            torch.tensor([1]),
            torch.tensor([2, 3]),
            torch.tensor([0, 0]),
            torch.tensor([0.6, 0.7]),
        )
    }
    points = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]).double()
    found = Mixture(torch.ones(3) / 3, points, torch.eye(2).expand(3, 2, 2), torch.ones(3))
    return held, booked(held, Structure(coded, found), law)


@pytest.mark.parametrize("law", ["per_weight", *SHARED_LAWS])
def test_a_code_of_blends_alone_stays_where_the_mixture_has_it(law):
    held, q = by_hand(law)
    assert q.loc[2].item() == pytest.approx(0.5)
    assert q.log_scale[2].item() == pytest.approx(0.6 / held.stretch)
    assert q.loc[0].item() == pytest.approx(held.loc["w"][0].item())


@pytest.mark.parametrize("law", ["per_weight", "per_layer", "fixed", *SHARED_LAWS])
def test_outliers_have_exactly_their_own_numbers(law):
    held, q = by_hand(law)
    assert q.own_loc.tolist() == [held.loc["w"][1].item()]
    assert q.own_log_scale.tolist() == [held.log_scale["w"][1].item()]
    assert q.point()["w"][1].item() == pytest.approx(-2)


@pytest.mark.parametrize("law", ["per_weight", "per_layer", "fixed", *SHARED_LAWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_book_is_of_the_weights_dtype(law, dtype):
    held = source(dtype, flat=law in ("per_layer", "fixed"))
    q = booked(held, built(held), law)
    assert {each.dtype for each in [*q.parameters(), q.unit]} == {dtype}
    assert {name: each.shape for name, each in q.point().items()} == held.shapes
