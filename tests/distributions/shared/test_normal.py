import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bayesify import WeightPosterior
from bayesify.core.errors import OptionError, ShapeError, UnsupportedModelError
from bayesify.core.types import Named
from bayesify.distributions.base import Scalable
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.normal import LAWS, SharedNormal
from bayesify.likelihoods import Categorical
from bayesify.weights.gaussian import GaussianWeight

K = 4
OWN = 3
INDEPENDENT = ("per_weight", "per_layer")
SHARED = ("shared_loc", "shared")


def coded() -> dict[str, CodedTensor]:
    """Two tensors of codes 0, 1, 2 (3 has no entry), three outliers and two blends."""
    return {
        "a.weight": CodedTensor(
            torch.tensor([[0, 1, 2], [2, 1, 0]]),
            outliers=torch.tensor([1, 5]),
            blends=torch.tensor([2]),
            second=torch.tensor([1]),
            share=torch.tensor([0.6]),
        ),
        "b": CodedTensor(
            torch.tensor([1, 0, 3, 1]),
            outliers=torch.tensor([2]),
            blends=torch.tensor([3]),
            second=torch.tensor([0]),
            share=torch.tensor([0.2]),
        ),
    }


def built(law: str, *, unit: tuple[float, ...] = (1.0, 0.5), seed: int = 0) -> SharedNormal:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SharedNormal(
            coded(),
            torch.tensor(unit).double(),
            torch.randn(K).double(),
            torch.randn(2 if law == "per_layer" else K).double() / 2 - 1,
            torch.randn(OWN).double(),
            torch.randn(OWN).double() / 2,
            spread=torch.tensor([0.5, 0.3, 0.4]).double() * (0.5 + torch.rand(K, 3)).double(),
            law=law,
        )


def flat(named: Named) -> Tensor:
    return torch.cat([each.detach().flatten() for each in named.values()])


def samples(q: SharedNormal, n: int, seed: int = 0) -> Tensor:
    drawn = q.sample(n, generator=torch.Generator().manual_seed(seed))
    return torch.cat([each.detach().flatten(1) for each in drawn.values()], 1)


def variances_of_codes(q: SharedNormal, tensor: int) -> list[float]:
    """From the definition of the law."""
    log_scale = q.log_scale.tolist()
    if q.law == "fixed":
        return [0.0] * K
    if q.law == "per_layer":
        return [math.exp(log_scale[tensor]) ** 2] * K
    if q.law == "per_weight":
        return [math.exp(each) ** 2 for each in log_scale]
    if q.law == "shared_loc":
        return [each[0] ** 2 for each in q.spread.tolist()]
    return [
        a**2 + math.exp(2 * each + 2 * (b**2 + c**2))
        for (a, b, c), each in zip(q.spread.tolist(), log_scale, strict=True)
    ]


def moments(q: SharedNormal) -> tuple[Tensor, Tensor]:
    """Mean and variance of every weight, one after the other."""
    means: list[float] = []
    variances: list[float] = []
    loc, noisy = q.loc.tolist(), q.law != "fixed"
    own = iter(zip(q.own_loc.tolist(), q.own_log_scale.tolist(), strict=True))
    for number, (unit, tensor) in enumerate(zip(q.unit, q.tensors().values(), strict=True)):
        codes, book = tensor.codes.flatten().tolist(), variances_of_codes(q, number)
        mean, variance = [loc[code] for code in codes], [book[code] for code in codes]
        blends = (
            each.tolist() for each in (tensor.blends, tensor.second, tensor.share.double() / 255)
        )
        for place, second, p in zip(*blends, strict=True):
            mean[place] = p * loc[codes[place]] + (1 - p) * loc[second]
            variance[place] = p**2 * book[codes[place]] + (1 - p) ** 2 * book[second]
        for place in tensor.outliers.tolist():
            mean[place], log_scale = next(own)
            variance[place] = noisy * math.exp(log_scale) ** 2
        means += [unit.item() * each for each in mean]
        variances += [unit.item() ** 2 * each for each in variance]
    return torch.tensor(means, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64)


@pytest.mark.parametrize("law", LAWS)
def test_means_and_variances_are_those_of_the_law(law):
    q, n = built(law), 20_000
    mean, variance = moments(q)
    torch.testing.assert_close(flat(q.point()), mean)
    torch.testing.assert_close(flat(q.scale()).square(), variance)
    drawn = samples(q, n)
    error = variance.sqrt() / n**0.5
    assert ((drawn.mean(0) - mean).abs() <= 5 * error + 1e-12).all()
    squares = (drawn - mean).square()
    error = squares.std(0) / n**0.5  # tails are heavy where scales are random
    assert ((squares.mean(0) - variance).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("law", INDEPENDENT)
def test_weights_of_one_code_are_independent(law):
    correlation = samples(built(law), 20_000).T.corrcoef()
    assert (correlation - torch.eye(len(correlation))).abs().max() < 5 / 20_000**0.5


@pytest.mark.parametrize("law", SHARED)
def test_weights_of_one_code_are_one_number_in_every_sample(law):
    q = built(law, unit=(1.0, 0.5))
    drawn = q.sample(50, generator=torch.Generator().manual_seed(0))
    a, b = drawn["a.weight"].detach(), drawn["b"].detach()
    book = torch.stack([a[:, 0, 0], a[:, 1, 1], a[:, 1, 0]], 1)  # codes 0, 1, 2
    assert torch.equal(b[:, 1], 0.5 * book[:, 0])
    assert torch.equal(b[:, 0], 0.5 * book[:, 1])
    p, r = 153 / 255, 51 / 255
    torch.testing.assert_close(a[:, 0, 2], p * book[:, 2] + (1 - p) * book[:, 1])
    torch.testing.assert_close(b[:, 3], 0.5 * (r * book[:, 1] + (1 - r) * book[:, 0]))
    same = built(law, unit=(1.0, 1.0)).sample(50)
    assert torch.equal(same["a.weight"][:, 0, 0], same["b"][:, 1])


@pytest.mark.parametrize("law", SHARED)
def test_covariances_grow_with_the_units(law):
    """Weights a[0, 0] and b[1] share code 0; a[1, 1] and b[0] code 1; others are independent."""
    q, n = built(law, unit=(3.0, 0.5)), 20_000
    centred = samples(q, n) - flat(q.point())
    book = variances_of_codes(q, 0)
    for first, second, want in ((0, 7, 1.5 * book[0]), (4, 6, 1.5 * book[1]), (0, 4, 0.0)):
        products = centred[:, first] * centred[:, second]
        assert (products.mean() - want).abs() < 5 * products.std() / n**0.5
    outliers = centred[:, [1, 5, 8]].T.corrcoef() - torch.eye(3)
    assert outliers.abs().max() < 5 / n**0.5


def test_the_log_scale_of_a_code_varies_as_its_spread_says():
    """Given the mean and the scale of a draw the number is normal: its kurtosis tells the scale's.

    With a = 0 the fourth moment is 3 E[s^4] = 3 exp(4 m + 8 v), with v the variance of log s.
    """
    q = SharedNormal(
        {"w": CodedTensor(torch.arange(100))},
        torch.ones(1).double(),
        torch.zeros(100).double(),
        torch.full((100,), -0.3).double(),
        spread=torch.tensor([[0.0, 0.12, 0.16]]).double().expand(100, -1),
        law="shared",
    )
    fourth = samples(q, 3_000).pow(4).flatten()
    want = 3 * math.exp(4 * -0.3 + 8 * 0.2**2)
    error = fourth.std() / len(fourth) ** 0.5
    assert (fourth.mean() - want).abs() < 5 * error
    assert want - 3 * math.exp(4 * -0.3) > 10 * error


@pytest.mark.parametrize("factor", [1e-3, 0.7, 20.0])
@pytest.mark.parametrize("law", LAWS)
def test_scaled_multiplies_every_standard_deviation(law, factor):
    q = built(law)
    q.loc.requires_grad_(False)
    before = copy.deepcopy(q.state_dict())
    again = q.scaled(factor)
    assert isinstance(q, Scalable)
    torch.testing.assert_close(flat(again.scale()), factor * flat(q.scale()))
    assert torch.equal(flat(again.point()), flat(q.point()))
    noise, wide = (samples(each, 30) - flat(each.point()) for each in (q, again))
    torch.testing.assert_close(wide, factor * noise, rtol=1e-6, atol=1e-10)
    assert [e.requires_grad for e in again.parameters()] == [
        e.requires_grad for e in q.parameters()
    ]
    assert all(torch.equal(each, before[name]) for name, each in q.state_dict().items())


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(OptionError, match="expected a finite number above 0"):
        built("per_weight").scaled(factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("law", LAWS)
def test_rounded_numbers_are_those_that_float16_has(law, dtype):
    q = built(law).to(dtype)
    with torch.no_grad():
        q.own_loc[0] = 3e-7  # float16 is coarse there
    once = q.rounded()
    for name, each in once.named_parameters():
        held = q.get_parameter(name)
        assert each.dtype == held.dtype
        assert torch.equal(each.half().to(dtype), each)
        error = held.abs() * 2.0**-11 + 2.0**-25
        if name == "own_log_scale":
            assert torch.equal((16 * each).round(), 16 * each)
            error = error + 2.0**-5
        assert ((each - held).abs() <= error).all()
    assert any(
        not torch.equal(a, b) for a, b in zip(once.parameters(), q.parameters(), strict=True)
    )
    twice = once.rounded()
    for name, each in twice.state_dict().items():
        assert torch.equal(each, once.state_dict()[name]), name


@pytest.mark.parametrize("law", LAWS)
def test_compacting_drops_the_codes_without_entries_and_changes_no_weight(law):
    q = built(law)  # code 3 has only an outlier, code 2 one entry beside a blend
    again = q.compacted()
    assert (len(q.loc), len(again.loc)) == (K, 3)
    assert torch.equal(flat(again.point()), flat(q.point()))
    assert torch.equal(flat(again.scale()), flat(q.scale()))
    assert torch.equal(again.counts, q.counts[:, :3])
    if law in INDEPENDENT:
        assert torch.equal(samples(again, 20), samples(q, 20))
    if law == "shared":
        assert torch.equal(again.spread, q.spread[:3])
    twice = again.compacted()
    assert all(torch.equal(e, again.state_dict()[n]) for n, e in twice.state_dict().items())


def test_a_code_that_only_blends_have_is_kept():
    blends = {"blends": torch.tensor([1]), "share": torch.tensor([0.3])}
    held = {"w": CodedTensor(torch.tensor([0, 2]), second=torch.tensor([4]), **blends)}
    q = SharedNormal(held, torch.ones(1), torch.arange(6.0), torch.zeros(6)).compacted()
    assert q.loc.tolist() == [0, 2, 4]
    assert q.tensors()["w"].codes.tolist() == [0, 1]
    assert q.tensors()["w"].second.tolist() == [2]


def test_outliers_alone_leave_a_book_of_one():
    held = {"w": CodedTensor(torch.tensor([2, 1]), outliers=torch.tensor([0, 1]))}
    own = torch.tensor([5.0, 6.0])
    q = SharedNormal(held, torch.ones(1), torch.arange(3.0), torch.zeros(3), own, own).compacted()
    assert len(q.loc) == 1
    assert q.point()["w"].tolist() == [5, 6]


def test_other_codes_come_in_place_and_an_optimiser_goes_on():
    q = built("per_weight")
    parameters = list(q.parameters())
    optimiser = torch.optim.SGD(q.parameter_groups(lr=0.1, scale_lr=0.1))
    new = q.tensors()
    new["b"] = CodedTensor(torch.tensor([3, 3, 0, 3]), outliers=torch.tensor([2]))
    q.restructure_(new)
    assert all(a is b for a, b in zip(q.parameters(), parameters, strict=True))
    assert q.counts[1].tolist() == [0, 0, 0, 3]
    assert torch.equal(q.point()["b"][[0, 1, 3]], 0.5 * q.loc[[3, 3, 3]])
    before = q.loc.detach().clone()
    q.point()
    q.sample(1)["b"].sum().backward()
    optimiser.step()
    moved = (q.loc.detach() - before).abs() > 0
    assert moved.tolist() == [False, False, False, True]


def test_other_codes_must_be_of_the_same_tensors_and_outliers():
    q = built("per_weight")
    held = q.tensors()
    wrong = [
        {"a.weight": held["a.weight"]},
        {"b": held["b"], "a.weight": held["a.weight"]},
        held | {"b": CodedTensor(held["b"].codes)},
    ]
    for each in wrong:
        with pytest.raises(ShapeError, match=r"outliers \{'a.weight': 2, 'b': 1\} in this order"):
            q.restructure_(each)
    beyond = held | {"b": CodedTensor(torch.tensor([0, 0, 0, 4]), outliers=torch.tensor([1]))}
    with pytest.raises(ShapeError, match=r"coded\['b'\]: expected codes below 4, got 4"):
        q.restructure_(beyond)
    assert q.tensors()["b"] is held["b"]


@pytest.mark.parametrize(
    ("law", "numbers"),
    [
        ("per_weight", 2 * K + 2 * OWN),
        ("per_layer", K + 2 + 2 * OWN),
        ("shared_loc", 2 * K + 2 * OWN),
        ("shared", 5 * K + 2 * OWN),
        ("fixed", K + OWN),
    ],
)
def test_so_many_numbers_are_learnt_and_all_of_them_matter(law, numbers):
    q = built(law)
    with torch.no_grad():
        q.restructure_(
            q.tensors() | {"b": CodedTensor(torch.tensor([3, 3, 0, 3]), torch.tensor([2]))}
        )
    learnt = [each for each in q.parameters() if each.requires_grad]
    assert sum(each.numel() for each in learnt) == numbers
    model = nn.ParameterDict(
        {"a": nn.ParameterDict({"weight": torch.zeros(2, 3)}), "b": torch.zeros(4)}
    )
    assert WeightPosterior(model, q, Categorical()).trainable_parameters == numbers
    drawn = q.sample(3)
    sum(each.square().sum() for each in drawn.values()).backward()
    assert all(bool((each.grad != 0).all()) for each in learnt)


@pytest.mark.parametrize("law", LAWS)
def test_means_and_scales_have_rates_of_their_own(law):
    q = built(law)
    means, scales = q.parameter_groups(lr=0.1, scale_lr=0.2)
    assert (means["lr"], scales["lr"]) == (0.1, 0.2)
    assert [id(each) for each in means["params"]] == [id(q.loc), id(q.own_loc)]
    everything = {id(each) for each in q.parameters()}
    assert {id(each) for group in (means, scales) for each in group["params"]} == everything
    torch.optim.Adam([means, scales])


@pytest.mark.parametrize("law", LAWS)
def test_training_noise_is_each_examples_own_where_weights_are_independent(law):
    q = built(law)
    local = q.local_weights(generator=torch.Generator().manual_seed(0))
    assert list(local) == q.names == ["a.weight", "b"]
    if law in INDEPENDENT:
        assert all(isinstance(each, GaussianWeight) for each in local.values())
        assert torch.equal(flat({n: each.loc for n, each in local.items()}), flat(q.point()))
        assert torch.equal(flat({n: each.scale for n, each in local.items()}), flat(q.scale()))
    else:
        assert not any(isinstance(each, GaussianWeight) for each in local.values())
        assert torch.equal(flat(local), samples(q, 1)[0])


@pytest.mark.parametrize("law", LAWS)
def test_the_state_comes_back_to_the_bit(law):
    q = built(law)
    again = SharedNormal.from_state(copy.deepcopy(q.state_dict()))
    assert (again.law, again.names) == (law, q.names)
    assert list(again.state_dict()) == list(q.state_dict())
    assert all(torch.equal(e, again.state_dict()[n]) for n, e in q.state_dict().items())
    assert torch.equal(samples(again, 5), samples(q, 5))


@pytest.mark.parametrize("again", ["scaled", "rounded"])
def test_what_is_made_of_it_moves_alone(again):
    q = built("per_weight")
    moved = q.scaled(2.0) if again == "scaled" else q.rounded()
    moved.to("meta")
    assert {each.device.type for each in q.state_dict().values()} == {"cpu"}
    samples(q, 2)


def test_without_spread_a_shared_law_has_none():
    one = {"w": CodedTensor(torch.tensor([0, 1]))}
    q = SharedNormal(one, torch.ones(1), torch.zeros(2), torch.tensor([0.1, 0.2]), law="shared")
    torch.testing.assert_close(q.scale()["w"], torch.tensor([0.1, 0.2]).exp())
    q = SharedNormal(one, torch.ones(1), torch.zeros(2), torch.zeros(2), law="shared_loc")
    assert torch.equal(q.scale()["w"], torch.zeros(2))


GOOD = {
    "coded": {"w": CodedTensor(torch.tensor([0, 1, 1]), outliers=torch.tensor([0]))},
    "unit": torch.ones(1),
    "loc": torch.zeros(2),
    "log_scale": torch.zeros(2),
    "own_loc": torch.zeros(1),
    "own_log_scale": torch.zeros(1),
}


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"law": "none"}, OptionError, "law='none': expected one of per_weight, per_layer"),
        ({"unit": torch.zeros(1)}, OptionError, "unit: expected a scale above 0"),
        ({"unit": torch.tensor([math.nan])}, OptionError, "unit: expected a scale above 0"),
        ({"unit": torch.ones(2)}, ShapeError, r"unit: expected \(1,\), got \(2,\)"),
        ({"log_scale": torch.zeros(3)}, ShapeError, r"log_scale: expected \(2,\), got \(3,\)"),
        ({"law": "per_layer"}, ShapeError, r"log_scale: expected \(1,\), got \(2,\)"),
        (
            {"own_loc": torch.zeros(2), "own_log_scale": torch.zeros(2)},
            ShapeError,
            r"own_loc: expected \(1,\), got \(2,\)",
        ),
        ({"own_loc": None}, ShapeError, r"own_loc: expected \(1,\), got \(0,\)"),
        ({"own_log_scale": None}, ShapeError, r"own_log_scale: expected \(1,\), got \(0,\)"),
        (
            {"spread": torch.zeros(2, 2), "law": "shared"},
            ShapeError,
            r"spread: expected \(2, 3\), got \(2, 2\)",
        ),
        (
            {"loc": torch.zeros(1), "log_scale": torch.zeros(1)},
            ShapeError,
            r"coded\['w'\]: expected codes below 1, got 1",
        ),
        (
            {"coded": {"a/w": GOOD["coded"]["w"]}},
            UnsupportedModelError,
            "weight name 'a/w' holds a '/'",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(wrong, error, said):
    SharedNormal(**GOOD)
    with pytest.raises(error, match=said):
        SharedNormal(**GOOD | wrong)


def test_the_statistics_count_what_is_shared_and_what_is_not():
    assert built("per_weight").tally() == {"gaussians": K, "outliers": OWN, "blended": 2}
