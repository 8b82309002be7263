import math

import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.evaluation.privacy.likelihood_ratio import (
    balanced_halves,
    likelihood_ratio,
    likelihood_ratio_findings,
    true_class_logit,
    true_class_logits,
)
from bayesify.evaluation.privacy.membership import tpr_at
from bayesify.likelihoods.predictive import ClassPredictive, RegressionPredictive
from evaluation.stub import LinearPosterior


def brute_force(phi, inside, target, pooled):
    """Example by example, shadow by shadow, with scipy's density."""
    count, examples = phi.shape
    sides = {True: [], False: []}  # for every example the phi of shadows on that side
    everyone = {True: [], False: []}
    for e in range(examples):
        order = [(target + step) % count for step in range(1, count)]
        opposite = [s for s in order if inside[s, e] != inside[target, e]]
        for side in (True, False):
            there = [s for s in order if bool(inside[s, e]) == side]
            everyone[side].append([phi[s, e].item() for s in there])
            sides[side].append([phi[s, e].item() for s in there if s != opposite[0]])
    scores = []
    for e in range(examples):
        density = {}
        for side in (True, False):
            values = sides[side][e]
            mean = sum(values) / len(values)
            if pooled:
                groups = [torch.tensor(each, dtype=torch.float64) for each in everyone[side]]
                squares = sum(float((g - g.mean()).square().sum()) for g in groups)
                variance = squares / sum(len(g) - 1 for g in groups)
            else:
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            density[side] = norm.logpdf(phi[target, e].item(), mean, math.sqrt(variance))
        scores.append(density[True] - density[False])
    return torch.tensor(scores, dtype=torch.float64)


# ----------------------------------------------------------------------------------- the halves


def test_every_example_is_in_exactly_half(generator):
    inside = balanced_halves(301, 8, generator)
    assert inside.shape == (8, 301)
    assert (inside.sum(0) == 4).all()


def test_halves_are_random_and_their_sizes_binomial(generator):
    inside = balanced_halves(10_000, 6, generator)
    sizes = inside.sum(1)
    assert ((sizes - 5000).abs() < 5 * 50).all()
    patterns = (inside * 2 ** torch.arange(6).unsqueeze(1)).sum(0).unique(return_counts=True)[1]
    assert len(patterns) == math.comb(6, 3)
    # each of the 20 patterns is drawn 500 times, give or take a binomial error of 22
    assert ((patterns - 500).abs() < 5 * 22).all()


def test_halves_depend_on_the_generator_only():
    a, b, c = (balanced_halves(50, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert a.equal(b)
    assert not a.equal(c)


@pytest.mark.parametrize("count", [0, 5, -2])
def test_an_odd_number_of_shadows_has_no_halves(count, generator):
    with pytest.raises(OptionError, match="even"):
        balanced_halves(10, count, generator)


# -------------------------------------------------------------------------------------- the logit


def test_the_logit_of_a_probability_between_is_its_log_odds(generator):
    logits = torch.randn(7, 20, 4, generator=generator)
    target = torch.arange(20) % 4
    p = logits.double().softmax(2).mean(0)[torch.arange(20), target]
    torch.testing.assert_close(
        true_class_logit(ClassPredictive(logits), target), p.log() - (1 - p).log()
    )


@pytest.mark.parametrize("odds", [50.0, 500.0, 80_000.0, -80_000.0])
def test_the_logit_is_exact_where_the_probability_rounds_to_one_or_zero(odds):
    predictive = ClassPredictive(torch.tensor([[[odds, 0.0]], [[odds, 0.0]]]))
    assert true_class_logit(predictive, torch.tensor([0])).item() == odds
    three = ClassPredictive(torch.tensor([[[odds, 0.0, 0.0]]]))
    assert true_class_logit(three, torch.tensor([0])).item() == pytest.approx(odds - math.log(2))


def test_samples_are_averaged_as_probabilities():
    predictive = ClassPredictive(torch.tensor([[[60.0, 0.0]], [[0.0, 0.0]]]))
    # p = (1 + 1/2) / 2 up to e^-60, whose odds are 3
    assert true_class_logit(predictive, torch.tensor([0])).item() == pytest.approx(math.log(3))


def test_it_is_of_the_damped_logits_where_there_are_any():
    logits, damped = torch.zeros(2, 1, 2), torch.tensor([[60.0, 0.0]])
    predictive = ClassPredictive(logits, logit_temperature=2.0, damped=damped)
    found = true_class_logit(predictive, torch.tensor([0])).item()
    assert found == pytest.approx(30, rel=1e-12)


def test_a_temperature_is_respected(generator):
    predictive = ClassPredictive(torch.randn(3, 9, 4, generator=generator).double(), 2.5)
    target = torch.arange(9) % 4
    p = predictive.log_prob(target).exp()
    torch.testing.assert_close(true_class_logit(predictive, target), p.log() - (1 - p).log())


def test_batches_do_not_matter(generator):
    data = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    posterior = LinearPosterior("classification")
    a, b = (true_class_logits(posterior, data, batch_size=size) for size in (30, 7))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)  # the stub computes in single precision
    assert a.dtype == torch.float64


def test_other_tasks_are_refused():
    with pytest.raises(ShapeError, match="one class out of C"):
        true_class_logit(
            RegressionPredictive(torch.zeros(1, 2, 1), torch.ones(1)), torch.zeros(2).long()
        )
    with pytest.raises(ShapeError, match="per position"):
        true_class_logit(ClassPredictive(torch.zeros(1, 2, 3, 5)), torch.zeros(2, 5).long())


# -------------------------------------------------------------------------------------- the score


@pytest.mark.parametrize(("count", "pooled"), [(4, True), (10, True), (6, False), (10, False)])
def test_the_score_is_that_of_brute_force(count, pooled, generator):
    inside = balanced_halves(25, count, generator)
    phi = torch.randn(count, 25, generator=generator, dtype=torch.float64) + 2 * inside
    for target in (0, 1, count - 1):
        found = likelihood_ratio(phi, inside, target, pooled=pooled)
        torch.testing.assert_close(found, brute_force(phi, inside, target, pooled))


@pytest.mark.parametrize(("count", "pooled"), [(62, True), (64, False)])
def test_many_shadows_give_every_example_its_own_variance(count, pooled, generator):
    inside = balanced_halves(12, count, generator)
    phi = torch.randn(count, 12, generator=generator) * torch.arange(1.0, 13.0)
    assert likelihood_ratio(phi, inside, 3).equal(likelihood_ratio(phi, inside, 3, pooled=pooled))


def test_with_many_shadows_the_score_is_the_true_log_ratio(generator):
    inside = balanced_halves(400, 400, generator)
    easy = 3 * torch.randn(400, generator=generator)
    phi = easy + torch.randn(400, 400, generator=generator) + 1.5 * inside
    found = likelihood_ratio(phi, inside, 0)
    here = phi[0].double().numpy()
    easy = easy.double().numpy()
    want = torch.from_numpy(norm.logpdf(here, easy + 1.5) - norm.logpdf(here, easy))
    # of 200 values: a mean errs by 0.07, a log deviation by 0.05; over 400 examples that averages
    assert (found - want).mean().abs() < 0.1
    assert torch.corrcoef(torch.stack([found, want]))[0, 1] > 0.97


def test_easy_and_hard_examples_are_told_apart_where_a_threshold_is_blind(generator):
    inside = balanced_halves(500, 8, generator)
    easy = 100 * torch.randn(500, generator=generator)
    phi = easy + torch.randn(8, 500, generator=generator) + 3 * inside
    found = likelihood_ratio_findings(phi, inside).metrics
    threshold = roc_auc_score(inside[0], phi[0])
    assert threshold < 0.6
    assert found["lira_auc"] > 0.95


@pytest.mark.parametrize("count", [4, 6, 10, 64])
def test_the_design_alone_betrays_nobody(count, generator):
    """Where phi does not know the members, the area is a half, however few the shadows."""
    size = 16_000 // count
    inside = balanced_halves(size, count, generator)
    easy = torch.randn(size, generator=generator)
    phi = easy + torch.randn(count, size, generator=generator)
    found = likelihood_ratio_findings(phi, inside).metrics
    # the targets share shadows, so their spread is too small an error; a single target's is not
    single = math.sqrt(2 / (12 * size / 2))
    assert abs(found["lira_auc"] - 0.5) < 4 * single / math.sqrt(count / 2)


def test_a_surplus_shadow_would_betray_the_side(generator):
    """Why one is left out: the score with all of them ranks members below others."""
    inside = balanced_halves(20_000, 4, generator)
    phi = torch.randn(4, 20_000, generator=generator)
    scores, seen = [], inside[0]
    for side in (inside, ~inside):
        among = side.clone()
        among[0] = False
        mean = torch.where(among, phi, 0).sum(0) / among.sum(0)
        scores.append(-0.5 * (phi[0] - mean).square())
    area = roc_auc_score(seen, scores[0] - scores[1])
    assert area < 0.5 - 10 * math.sqrt(1 / (12 * 10_000))


def test_shadows_that_all_say_the_same_say_nothing(generator):
    inside = balanced_halves(50, 4, generator)
    phi = torch.randn(50, generator=generator).expand(4, 50)
    found = likelihood_ratio_findings(phi, inside).metrics
    assert found["lira_auc"] == pytest.approx(0.5, abs=0.15)
    assert all(math.isfinite(each) for each in found.values())


def test_findings_are_means_over_targets(generator):
    inside = balanced_halves(300, 6, generator)
    phi = torch.randn(6, 300, generator=generator, dtype=torch.float64) + inside
    found = likelihood_ratio_findings(phi, inside)
    areas, low, curve = [], [], found.curves["lira"]
    for target in range(6):
        scores, seen = likelihood_ratio(phi, inside, target), inside[target]
        areas.append(roc_auc_score(seen, scores))
        low.append([tpr_at(scores[seen], scores[~seen], rate) for rate in (0.01, 0.001, 0.5)])
    areas = torch.tensor(areas, dtype=torch.float64)
    low = torch.tensor(low, dtype=torch.float64)
    assert found.metrics == pytest.approx(
        {
            "lira_auc": areas.mean().item(),
            "lira_auc_se": areas.std().item() / math.sqrt(6),
            "lira_tpr1": low[:, 0].mean().item(),
            "lira_tpr1_se": low[:, 0].std().item() / math.sqrt(6),
            "lira_tpr01": low[:, 1].mean().item(),
            "lira_tpr01_se": low[:, 1].std().item() / math.sqrt(6),
        }
    )
    assert (curve["shadows"], curve["examples"]) == (6, 300)
    assert len(curve["fpr"]) == len(curve["tpr"]) <= 200
    assert curve["fpr"][-1] == curve["tpr"][-1] == 1


def test_designs_that_are_not_half_and_half_are_refused(generator):
    phi, inside = torch.randn(6, 20, generator=generator), balanced_halves(20, 6, generator)
    with pytest.raises(ShapeError, match="shape of `phi`"):
        likelihood_ratio(phi, inside[:, :5], 0)
    with pytest.raises(DataError, match="exactly half"):
        likelihood_ratio(phi, inside | True, 0)
    with pytest.raises(DataError, match="at least 4"):
        likelihood_ratio(phi[:2], balanced_halves(20, 2, generator), 0)
    with pytest.raises(DataError, match="6 for variances"):
        likelihood_ratio(phi[:4], balanced_halves(20, 4, generator), 0, pooled=False)
