from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bayesify.core.types import Named
from bayesify.distributions.shared.normal import LAWS, SharedNormal
from bayesify.methods.sharing import codebook
from bayesify.methods.sharing.codebook import share
from bayesify.methods.sharing.merging import MergeLimits
from bayesify.methods.sharing.structure import Source, quantisation_error


def toy() -> tuple[Named, Named]:
    loc = {"a": torch.randn(40, 25), "b.c": 0.1 * torch.randn(30)}
    scale = {name: 0.05 * each.std() * torch.randn_like(each).exp() for name, each in loc.items()}
    return loc, scale


def few_values() -> tuple[Named, Named]:
    """Fifteen different pairs of mean and scale in each of two tensors."""
    means, scales = torch.tensor([-0.7, -0.2, 0.0, 0.3, 0.9]), torch.tensor([0.01, 0.02, 0.07])
    pairs = torch.cartesian_prod(means, scales)
    at = {"a": torch.randint(15, (30, 20)), "b": torch.arange(15).repeat(4)}
    loc = {name: pairs[each][..., 0] for name, each in at.items()}
    scale = {name: pairs[each][..., 1] for name, each in at.items()}
    loc["b"], scale["b"] = 3 * loc["b"], 2 * scale["b"]
    return loc, scale


def nats(q: SharedNormal, loc: Named, scale: Named) -> dict[str, Tensor]:
    """KL(q_i || N(loc_i, scale_i^2)) of every weight."""
    found = {}
    for name, mean in q.point().items():
        wide = (q.scale()[name].detach() / scale[name]) ** 2
        away = ((mean - loc[name]) / scale[name]) ** 2
        found[name] = ((wide + away - 1 - wide.log()) / 2).flatten()
    return found


def total(nats_by_name: Named) -> float:
    return sum(each.double().sum().item() for each in nats_by_name.values())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("blending", "em_steps"), [(True, 5), (False, 5), (False, 0)])
def test_with_a_code_for_every_value_the_posterior_is_what_it_was(blending, em_steps):
    loc, scale = few_values()
    _, q = share(loc, scale, codes=64, outliers=0.0, blending=blending, em_steps=em_steps)
    assert len(q.loc) == 30
    point, width = q.point(), q.scale()
    for name in loc:
        torch.testing.assert_close(point[name], loc[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(width[name].detach(), scale[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("law", ["per_layer", "fixed", "shared_loc", "shared"])
def test_with_a_code_for_every_value_the_means_are_what_they_were_under_any_law(law):
    loc, scale = few_values()
    _, q = share(loc, scale, codes=64, outliers=0.0, law=law)
    for name, each in q.point().items():
        torch.testing.assert_close(each, loc[name], rtol=1e-5, atol=1e-6)
    if law == "per_layer":  # codes stand for means alone, and 0 is a value of both tensors
        assert len(q.loc) == 9
        for name, each in q.scale().items():
            want = (scale[name] ** -2).mean().rsqrt().expand_as(each)
            torch.testing.assert_close(each.detach(), want)


def test_more_codes_are_nearer_to_the_posterior():
    loc, scale = toy()
    costs = [total(nats(share(loc, scale, codes=k)[1], loc, scale)) for k in (4, 16, 64, 256)]
    for few, many in pairwise(costs):
        assert many < 0.5 * few


@pytest.mark.parametrize("law", LAWS)
def test_the_same_generator_gives_the_same_result(law):
    loc, scale = toy()
    before = torch.get_rng_state()
    first, second = (
        share(loc, scale, codes=20, blending=True, law=law, em_steps=3, generator=generator())[
            1
        ].state_dict()
        for _ in range(2)
    )
    assert first.keys() == second.keys()
    for name, each in first.items():
        assert torch.equal(each, second[name]), name
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("codes", [1, 2, 50, 400, 2**15])
@pytest.mark.parametrize("blending", [True, False])
def test_there_are_no_more_codes_than_asked_for_and_all_are_used(codes, blending):
    loc, scale = toy()
    _, q = share(loc, scale, codes=codes, outliers=0.1, blending=blending, em_steps=5)
    used = [each.codes.flatten()[each.alone()] for each in q.tensors().values()]
    used += [each.codes.flatten()[each.blends.long()] for each in q.tensors().values()]
    used += [each.second for each in q.tensors().values()]
    assert torch.cat(used).unique().tolist() == list(range(len(q.loc)))
    assert min(codes, 400) * 0.6 < len(q.loc) <= codes


@pytest.mark.parametrize("law", LAWS)
def test_outliers_are_as_many_as_asked_for_and_keep_their_own_gaussians(law):
    loc, scale = toy()
    _, q = share(loc, scale, codes=20, outliers=0.1, law=law)
    assert len(q.own_loc) == 103
    point, width = q.point(), q.scale()
    for name, coded in q.tensors().items():
        at = coded.outliers.long()
        torch.testing.assert_close(point[name].flatten()[at], loc[name].flatten()[at])
        want = torch.zeros(len(at)) if law == "fixed" else scale[name].flatten()[at]
        torch.testing.assert_close(width[name].flatten()[at].detach(), want)


def test_outliers_are_what_the_first_book_serves_worst():
    loc, scale = toy()
    _, first = share(loc, scale, codes=20, outliers=0.0, generator=generator())
    source, q = share(loc, scale, codes=20, outliers=0.02, generator=generator())
    cost = {
        name: ((loc[name] - mean) / scale[name]).square().flatten()
        for name, mean in first.point().items()
    }
    outliers = {name: each.outliers.long() for name, each in q.tensors().items()}
    taken = torch.cat([cost[name][at] for name, at in outliers.items()])
    for name, at in outliers.items():
        cost[name][at] = 0
    assert len(taken) == round(0.02 * 1030)
    assert taken.min() >= max(each.max() for each in cost.values())
    by_size = share(
        loc,
        scale,
        codes=20,
        outliers=0.02,
        scores=lambda held, _: {name: each.abs() for name, each in held.loc.items()},
        generator=generator(),
    )[1]
    assert total(nats(q, loc, scale)) < total(nats(by_size, loc, scale))
    assert source.loc.keys() == loc.keys()


def test_scores_are_asked_for_once_with_a_book_that_has_no_outliers():
    seen: list[SharedNormal] = []

    def scores(source: Source, q: SharedNormal) -> Named:
        seen.append(q)
        return quantisation_error(source, q)

    loc, scale = toy()
    share(loc, scale, codes=20, outliers=0.0, scores=scores)
    assert not seen
    share(loc, scale, codes=20, outliers=0.1, blending=True, scores=scores)
    (first,) = seen
    assert len(first.own_loc) == 0
    assert not any(len(each.blends) for each in first.tensors().values())


def test_neighbours_are_merged_if_limits_are_given():
    loc, scale = toy()
    plain, _, all_ = (
        share(loc, scale, codes=50, outliers=0.0, limits=limits, generator=generator())[1]
        for limits in (None, MergeLimits(0.0), MergeLimits(1e9))
    )
    assert len(all_.loc) == 1
    some = share(loc, scale, codes=50, limits=MergeLimits(0.05), generator=generator())[1]
    assert 1 < len(some.loc) < len(plain.loc)


def test_limits_of_zero_change_nothing():
    loc, scale = toy()
    plain, same = (
        share(loc, scale, codes=50, limits=limits, generator=generator())[1].state_dict()
        for limits in (None, MergeLimits(0.0))
    )
    for name, each in plain.items():
        assert torch.equal(each, same[name])


def test_blends_come_only_if_asked_for():
    loc, scale = toy()
    for blending in (True, False):
        _, q = share(loc, scale, codes=8, blending=blending, em_steps=10)
        blends = sum(len(each.blends) for each in q.tensors().values())
        assert (blends > 0) == blending


def test_em_goes_on_from_k_means(monkeypatch):
    seen: list[dict[str, int]] = []
    fit_mixture = codebook.fit_mixture

    def spy(histogram, components, generator, **steps):
        seen.append(steps)
        return fit_mixture(histogram, components, generator, **steps)

    monkeypatch.setattr(codebook, "fit_mixture", spy)
    loc, scale = toy()
    plain = share(loc, scale, codes=20, generator=generator())[1].loc
    more = share(loc, scale, codes=20, em_steps=7, generator=generator())[1].loc
    assert [each["iterations"] for each in seen] == [0, 7]
    assert len(plain) != len(more) or not torch.equal(plain, more)


def test_one_weight_can_be_shared():
    _, q = share({"w": torch.tensor([[2.0]])}, {"w": torch.tensor([[0.1]])}, outliers=0.0)
    assert q.point()["w"].item() == pytest.approx(2.0)
    assert q.scale()["w"].item() == pytest.approx(0.1)


def test_a_tensor_of_zeros_is_shared_too():
    loc = {"w": torch.randn(50), "bias": torch.zeros(5)}
    scale = {name: torch.full_like(each, 0.1) for name, each in loc.items()}
    _, q = share(loc, scale, codes=64, outliers=0.0)
    assert q.point()["bias"].abs().max() < 1e-6


def test_weights_beyond_the_histogram_are_outliers_first_and_in_any_case():
    normal = torch.randn(2 * 10**5, generator=generator())
    normal[[7, 70_000]] = torch.tensor([60.0, -45.0])
    loc, scale = {"w": normal}, {"w": torch.full_like(normal, 0.1)}
    for outliers in (0.0, 1e-5, 0.01):
        _, q = share(loc, scale, codes=64, outliers=outliers, generator=generator())
        held = q.tensors()["w"].outliers.tolist()
        assert {7, 70_000} <= set(held)
        assert len(held) == max(round(outliers * len(normal)), len(held) if outliers < 1e-3 else 0)
        assert len(held) < 1e-3 * len(normal) or outliers == 0.01
        assert (q.point()["w"] - normal).abs().max() < 1  # and not tens, as in a border bin
