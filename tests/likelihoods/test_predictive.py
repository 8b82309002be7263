import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import integrate, stats
from torch import distributions as D
from torch.nn import functional as F

from bayesify.core.errors import OptionError
from bayesify.likelihoods.predictive import (
    ClassPredictive,
    MultiLabelPredictive,
    RegressionPredictive,
    mixture_log_prob,
)

LOGITS = 3 * torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(0)).double()


def test_the_predictive_is_the_mean_of_probabilities():
    predictive = ClassPredictive(LOGITS)
    torch.testing.assert_close(predictive.probs, F.softmax(LOGITS, 2).mean(0))
    assert not torch.allclose(predictive.probs, F.softmax(LOGITS.mean(0), 1), atol=0.05)


def test_a_mixture_is_its_definition():
    log_prob = torch.randn(6, 3).double()
    torch.testing.assert_close(mixture_log_prob(log_prob), log_prob.exp().mean(0).log())
    far = mixture_log_prob(torch.tensor([[-1e4], [-1e4]]))
    assert far.item() == pytest.approx(-1e4)


def test_log_prob_picks_the_label():
    target = torch.tensor([0, 3, 1, 2, 2])
    want = F.softmax(LOGITS, 2).mean(0)[torch.arange(5), target].log()
    torch.testing.assert_close(ClassPredictive(LOGITS).log_prob(target), want)


def test_entropies_are_torchs():
    predictive = ClassPredictive(LOGITS)
    total = D.Categorical(probs=F.softmax(LOGITS, 2).mean(0)).entropy()
    expected = D.Categorical(logits=LOGITS).entropy().mean(0)
    torch.testing.assert_close(predictive.entropy(), total)
    torch.testing.assert_close(predictive.aleatoric(), expected)
    torch.testing.assert_close(predictive.mutual_information(), total - expected)


def test_opposed_certainties_share_ln_2_with_the_weights():
    opposed = ClassPredictive(torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]]))
    assert opposed.mutual_information().item() == pytest.approx(math.log(2))
    assert opposed.aleatoric().item() == pytest.approx(0)


def test_equal_samples_share_nothing_with_the_weights():
    same = ClassPredictive(LOGITS[:1].expand(7, -1, -1))
    assert (same.mutual_information() >= 0).all()
    torch.testing.assert_close(same.mutual_information(), torch.zeros(5).double())


def test_positions_are_variables_of_their_own():
    logits = torch.randn(3, 2, 4, 5, 6)
    whole = ClassPredictive(logits)
    part = ClassPredictive(logits[..., 2, 3])
    target = torch.randint(4, (2, 5, 6))
    torch.testing.assert_close(whole.probs[..., 2, 3], part.probs)
    torch.testing.assert_close(whole.log_prob(target)[:, 2, 3], part.log_prob(target[:, 2, 3]))
    torch.testing.assert_close(whole.mutual_information()[:, 2, 3], part.mutual_information())


def test_logit_temperature_scales_the_averaged_predictive():
    warm = ClassPredictive(LOGITS, logit_temperature=3.0)
    pooled = ClassPredictive(LOGITS).probs
    want = pooled ** (1 / 3)
    torch.testing.assert_close(warm.probs, want / want.sum(1, keepdim=True))
    plain = ClassPredictive(LOGITS).mutual_information()
    assert torch.equal(warm.mutual_information(), plain)


def test_labels_are_independent_given_the_weights_only():
    logits = 3 * torch.randn(6, 2, 3).double()
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]).double()
    predictive = MultiLabelPredictive(logits)
    joint = D.Bernoulli(logits=logits).log_prob(target).sum(-1).exp().mean(0).log()
    torch.testing.assert_close(predictive.log_prob(target), joint)
    torch.testing.assert_close(predictive.probs, torch.sigmoid(logits).mean(0))
    alone = D.Bernoulli(probs=predictive.probs).entropy().sum(-1)
    torch.testing.assert_close(predictive.entropy(), alone)
    given = D.Bernoulli(logits=logits).entropy().mean(0).sum(-1)
    torch.testing.assert_close(predictive.mutual_information(), alone - given)


@pytest.fixture
def mixture() -> RegressionPredictive:
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(5, 3, 2, generator=generator).double() * 2
    return RegressionPredictive(loc, torch.rand(5, 3, 2, generator=generator).double() + 0.2)


def test_moments_and_quantiles_are_those_of_samples(mixture):
    which = torch.randint(5, (100_000,))
    y = mixture.loc[which] + mixture.scale[which] * torch.randn(100_000, 3, 2).double()
    torch.testing.assert_close(mixture.mean, y.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(mixture.variance, y.var(0), rtol=0.03, atol=0)
    for level in (0.05, 0.5, 0.9):
        below = (y < mixture.quantile(level)).double().mean(0)
        torch.testing.assert_close(below, torch.full_like(below, level), rtol=0, atol=0.006)


def test_quantiles_invert_the_distribution_function(mixture):
    for level in (1e-6, 0.3, 0.999):
        got = mixture.cdf(mixture.quantile(level))
        torch.testing.assert_close(got, torch.full_like(got, level), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_level_outside_is_refused(mixture, level):
    with pytest.raises(OptionError, match="expected a share above 0 and below 1"):
        mixture.quantile(level)


def test_regression_log_prob_is_torchs_mixture(mixture):
    target = torch.randn(3, 2).double()
    components = D.Independent(
        D.Normal(mixture.loc.transpose(0, 1), mixture.scale.transpose(0, 1)), 1
    )
    weights = D.Categorical(torch.ones(3, 5).double())
    want = D.MixtureSameFamily(weights, components).log_prob(target)
    torch.testing.assert_close(mixture.log_prob(target), want)


def test_variance_is_noise_plus_disagreement(mixture):
    torch.testing.assert_close(mixture.variance, mixture.aleatoric + mixture.epistemic)
    torch.testing.assert_close(mixture.epistemic, mixture.loc.var(0, unbiased=False))
    one_scale = RegressionPredictive(mixture.loc, torch.tensor(0.5).double())
    torch.testing.assert_close(one_scale.aleatoric, torch.full((3, 2), 0.25).double())
    assert one_scale.log_prob(torch.zeros(3, 2).double()).shape == (3,)


@pytest.mark.parametrize("degrees", [None, 4])
def test_scores_are_those_of_the_exact_mixture(mixture, degrees):
    """The CRPS is the integral of (F - 1{x >= y})^2 with our own F, itself tested above."""
    predictive = RegressionPredictive(mixture.loc, mixture.scale, degrees)
    target = torch.randn(3, 2).double()
    scores = predictive.scores(target)
    assert set(scores) == {"log_prob", "crps", "pit"}
    assert torch.equal(scores["log_prob"], predictive.log_prob(target))
    assert torch.equal(scores["pit"], predictive.cdf(target))
    assert scores["crps"].shape == (3, 2)
    one = RegressionPredictive(mixture.loc[:, :1, :1], mixture.scale[:, :1, :1], degrees)
    y = target[0, 0].item()

    def error(x: float) -> float:
        return (one.cdf(torch.tensor([[x]]).double()).item() - (x >= y)) ** 2

    ends = [-200.0, *sorted([y, *one.loc.flatten().tolist()]), 200.0]
    area = sum(integrate.quad(error, low, high, limit=200)[0] for low, high in pairwise(ends))
    assert scores["crps"][0, 0].item() == pytest.approx(area, rel=1e-5)


def test_scores_take_targets_without_the_axis_of_dimensions_and_half_precision():
    loc = torch.randn(4, 6, 1).bfloat16()
    predictive = RegressionPredictive(loc, torch.tensor(0.5).bfloat16())
    target = torch.randn(6)
    scores, exact = (
        predictive.scores(target),
        RegressionPredictive(loc.double(), torch.tensor(0.5).double()).scores(
            target.double().unsqueeze(1)
        ),
    )
    assert scores["crps"].shape == scores["pit"].shape == (6, 1)
    for name in ("crps", "pit"):
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name].double(), exact[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("predictive", [ClassPredictive(LOGITS), MultiLabelPredictive(LOGITS)])
def test_other_predictives_score_their_density_alone(predictive):
    multilabel = isinstance(predictive, MultiLabelPredictive)
    target = torch.ones(5, 4) if multilabel else torch.zeros(5).long()
    scores = predictive.scores(target)
    assert set(scores) == {"log_prob"}
    assert torch.equal(scores["log_prob"], predictive.log_prob(target))


@pytest.mark.parametrize("kind", [ClassPredictive, MultiLabelPredictive])
def test_a_single_sample_shares_exactly_nothing(kind):
    assert torch.equal(kind(LOGITS[:1].float()).mutual_information(), torch.zeros(5))


def student_t(mixture: RegressionPredictive, degrees: float) -> RegressionPredictive:
    return RegressionPredictive(mixture.loc, mixture.scale, degrees)


def scipys(mixture: RegressionPredictive) -> Any:
    """The components, (S, B, D), with the variance that `scale` promises."""
    nu = mixture.degrees
    return stats.t(nu, mixture.loc.numpy(), mixture.scale.numpy() * math.sqrt((nu - 2) / nu))


HEAVY = [2.05, 3, 4.5, 30, 1e8]


@pytest.mark.parametrize("degrees", HEAVY)
@pytest.mark.parametrize("far", [1.0, 1e3])
def test_student_t_is_scipys(mixture, degrees, far):
    heavy = student_t(mixture, degrees)
    target = far * torch.randn(3, 2).double()
    joint = torch.from_numpy(scipys(heavy).logpdf(target.numpy())).sum(-1)
    torch.testing.assert_close(heavy.log_prob(target), mixture_log_prob(joint), rtol=1e-6, atol=0)
    below = torch.from_numpy(scipys(heavy).cdf(target.numpy())).mean(0)
    torch.testing.assert_close(heavy.cdf(target), below, rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("degrees", HEAVY)
def test_the_student_t_density_integrates_to_its_distribution_function(mixture, degrees):
    one = RegressionPredictive(mixture.loc[:, :1, :1], mixture.scale[:, :1, :1], degrees)

    def at(y: float) -> torch.Tensor:
        return torch.tensor([[y]], dtype=torch.float64)

    ends = [-20.0, *one.loc.flatten().sort().values.tolist(), 20.0]
    for low, high in pairwise(ends):
        area, _ = integrate.quad(lambda y: one.log_prob(at(y)).exp().item(), low, high)
        share = one.cdf(at(high)) - one.cdf(at(low))
        assert area == pytest.approx(share.item(), abs=1e-8)


@pytest.mark.parametrize("degrees", HEAVY)
def test_student_t_quantiles_invert_the_distribution_function(mixture, degrees):
    heavy = student_t(mixture, degrees)
    for level in (1e-6, 0.05, 0.5, 0.999):
        got = heavy.cdf(heavy.quantile(level))
        torch.testing.assert_close(got, torch.full_like(got, level), rtol=1e-6, atol=1e-9)
    alone = RegressionPredictive(mixture.loc[:1], mixture.scale[:1], degrees)
    want = torch.from_numpy(scipys(alone).ppf(0.9)[0])
    torch.testing.assert_close(alone.quantile(0.9), want)


def test_student_t_noise_has_the_variance_of_the_normal(mixture):
    heavy = student_t(mixture, 8)
    drawn = scipys(heavy).rvs((20_000, *mixture.loc.shape), random_state=0)
    y = torch.from_numpy(drawn).flatten(0, 1)
    torch.testing.assert_close(heavy.variance, y.var(0), rtol=0.03, atol=0)
    assert torch.equal(heavy.variance, mixture.variance)
    assert torch.equal(heavy.mean, mixture.mean)


@pytest.mark.parametrize("degrees", [1e6, 1e12, 1e300])
def test_many_degrees_are_normal_noise(mixture, degrees):
    heavy, target = student_t(mixture, degrees), torch.randn(3, 2).double()
    for got, want in (
        (heavy.log_prob(target), mixture.log_prob(target)),
        (heavy.cdf(target), mixture.cdf(target)),
        (heavy.quantile(0.95), mixture.quantile(0.95)),
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_student_t_is_of_single_precision_and_bears_a_gradient(mixture, dtype):
    loc = mixture.loc.to(dtype).requires_grad_()
    heavy = RegressionPredictive(loc, torch.tensor(0.5, dtype=dtype), 4)
    target = torch.zeros(3, 2, dtype=dtype)
    assert heavy.cdf(target).dtype == heavy.quantile(0.9).dtype == torch.float32
    assert not heavy.cdf(target).requires_grad
    (slope,) = torch.autograd.grad(heavy.log_prob(target).sum(), loc)
    assert slope.isfinite().all()


@pytest.mark.parametrize("degrees", [2, 0.0, -3.0, math.inf, math.nan])
def test_impossible_degrees_are_refused(mixture, degrees):
    with pytest.raises(OptionError, match=r"degrees=.*: expected .* above 2 .*; pass 4"):
        student_t(mixture, degrees)


@pytest.mark.parametrize(
    ("predictive", "names"),
    [
        (ClassPredictive(LOGITS), {"probs", "entropy", "mutual_information"}),
        (MultiLabelPredictive(LOGITS), {"probs", "entropy", "mutual_information"}),
        (RegressionPredictive(LOGITS, torch.ones(1)), {"mean", "variance", "epistemic"}),
    ],
)
def test_summaries_hold_one_row_an_example(predictive, names):
    summary = predictive.summary()
    assert set(summary) == names
    assert all(len(each) == 5 for each in summary.values())


def test_log_odds_go_on_where_the_probability_rounds_to_one():
    logits = torch.tensor([[[90.0, 0.0, -1.0], [0.3, 0.2, 0.1]]], dtype=torch.float64)
    odds = ClassPredictive(logits.float()).log_odds(torch.tensor([0, 1]))
    probs = logits[0, 1].softmax(0)
    want = torch.stack([90 - logits[0, 0, 1:].logsumexp(0), (probs[1] / (1 - probs[1])).log()])
    torch.testing.assert_close(odds.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictives_of_half_precision_are_those_of_its_numbers_in_double(dtype):
    """The truth is the same formula in double precision on what the network has returned."""
    logits, generator = LOGITS.to(dtype), torch.Generator().manual_seed(1)
    one, truth = ClassPredictive(logits), ClassPredictive(logits.double())
    near = {"rtol": 2e-6, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(one.probs.sum(1), torch.ones(5), rtol=0, atol=1e-6)
    labels = torch.randint(4, (5,), generator=generator)
    torch.testing.assert_close(one.log_prob(labels), truth.log_prob(labels), **near)
    for name, each in truth.summary().items():
        torch.testing.assert_close(one.summary()[name], each, **near)
    several, exact = MultiLabelPredictive(logits), MultiLabelPredictive(logits.double())
    for name, each in exact.summary().items():
        torch.testing.assert_close(several.summary()[name], each, **near)
    scale = torch.tensor(0.3, dtype=dtype)
    numbers = RegressionPredictive(logits, scale)
    wide = RegressionPredictive(logits.double(), scale.double())
    values = torch.randn(5, 4, generator=generator)
    for name, each in (wide.summary() | wide.scores(values)).items():
        got = (numbers.summary() | numbers.scores(values))[name]
        torch.testing.assert_close(got, each, rtol=1e-4, atol=1e-5, check_dtype=False)


DAMPED = torch.randn(5, 4, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_damped_logits_are_the_average_and_the_samples_what_they_were(temperature):
    plain = ClassPredictive(LOGITS, temperature)
    predictive = ClassPredictive(LOGITS, temperature, DAMPED)
    probs, target = (DAMPED / temperature).softmax(1), torch.tensor([0, 3, 1, 2, 2])
    truth = probs[torch.arange(5), target]
    torch.testing.assert_close(predictive.probs, probs)
    torch.testing.assert_close(predictive.log_prob(target), truth.log())
    torch.testing.assert_close(predictive.log_odds(target), (truth / (1 - truth)).log())
    torch.testing.assert_close(predictive.entropy(), D.Categorical(probs=probs).entropy())
    for each in ("aleatoric", "mutual_information"):
        assert torch.equal(getattr(predictive, each)(), getattr(plain, each)())
    want = {
        "probs": predictive.probs,
        "entropy": predictive.entropy(),
        "mutual_information": plain.mutual_information(),
    }
    assert all(torch.equal(each, want[name]) for name, each in predictive.summary().items())


def test_damped_labels_are_the_average_and_the_samples_what_they_were():
    plain, predictive = MultiLabelPredictive(LOGITS), MultiLabelPredictive(LOGITS, DAMPED)
    labels, target = D.Bernoulli(logits=DAMPED), (DAMPED > 0.3).double()
    torch.testing.assert_close(predictive.probs, labels.probs)
    torch.testing.assert_close(predictive.log_prob(target), labels.log_prob(target).sum(-1))
    torch.testing.assert_close(predictive.entropy(), labels.entropy().sum(-1))
    for each in ("aleatoric", "mutual_information"):
        assert torch.equal(getattr(predictive, each)(), getattr(plain, each)())
    assert torch.equal(predictive.summary()["mutual_information"], plain.mutual_information())


def test_a_class_predictive_is_cast_whole():
    narrow = ClassPredictive(LOGITS.float(), 3.0, DAMPED.float())
    wide = narrow.to(torch.float64)
    assert wide.logits.dtype == wide.damped.dtype == torch.float64
    assert wide.logit_temperature == 3.0
    torch.testing.assert_close(wide.probs, narrow.probs.double())
    assert ClassPredictive(LOGITS.float()).to(torch.float64).damped is None
