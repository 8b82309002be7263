import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as D
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from bayesify.core.errors import BayesifyError
from bayesify.evaluation.metrics.regression import interval_calibration, interval_coverage
from bayesify.evaluation.metrics.scores import (
    METRICS,
    accuracy,
    adaptive_ece,
    aurc,
    brier,
    coverage90,
    ece,
    exact_match,
    label_accuracy,
    label_brier,
    label_ece,
    mce,
    mean_entropy,
    mean_nll,
    measure,
    nll,
    rmse,
    sharpness,
)
from bayesify.evaluation.predictions import Predictions, collect
from bayesify.likelihoods.predictive import RegressionPredictive
from evaluation.stub import LinearPosterior


@pytest.fixture(scope="module")
def reference():
    generator = torch.Generator().manual_seed(1234)
    logits = torch.randn(200, 5, generator=generator, dtype=torch.float64) * 2
    return logits.softmax(1), torch.randint(0, 5, (200,), generator=generator)


def test_reference_numbers_of_other_libraries_are_met(reference):
    assert accuracy(*reference) == pytest.approx(0.215)
    assert nll(*reference) == pytest.approx(2.744300, abs=1e-6)
    assert brier(*reference) == pytest.approx(1.125468, abs=1e-6)
    assert ece(*reference, bins=10) == pytest.approx(0.444282, abs=1e-6)
    assert ece(*reference) == pytest.approx(0.448172, abs=1e-6)
    worst = multiclass_calibration_error(*reference, num_classes=5, n_bins=15, norm="max")
    assert mce(*reference) == pytest.approx(worst.item(), abs=1e-6)
    entropy = D.Categorical(probs=reference[0]).entropy().mean().item()
    assert mean_entropy(reference[0]) == pytest.approx(entropy)


def test_certain_and_right_is_perfect():
    probs, target = torch.eye(3), torch.arange(3)
    assert accuracy(probs, target) == 1
    assert nll(probs, target) == brier(probs, target) == ece(probs, target) == 0
    assert adaptive_ece(probs, target) == mce(probs, target) == aurc(probs, target) == 0
    assert mean_entropy(probs) == 0


def test_certain_and_wrong_is_the_worst():
    probs, target = torch.eye(3), torch.tensor([1, 2, 0])
    assert accuracy(probs, target) == 0
    assert nll(probs, target) == math.inf
    assert brier(probs, target) == 2
    assert ece(probs, target) == adaptive_ece(probs, target) == mce(probs, target) == 1
    assert aurc(probs, target) == 1


def test_uniform_probabilities_cost_log_of_the_number_of_classes():
    probs, target = torch.full((4, 10), 0.1), torch.arange(4)
    assert nll(probs, target) == pytest.approx(math.log(10))
    assert brier(probs, target) == pytest.approx(0.9)
    assert mean_entropy(probs) == pytest.approx(math.log(10))
    assert aurc(probs, target) == pytest.approx(0.75)  # of four equals: one right, any first


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 6))
def test_metrics_do_not_depend_on_the_order_of_examples(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(n, classes, generator=generator).mul(3).softmax(1)
    target = torch.randint(classes, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)
    for metric in (accuracy, nll, brier, ece, adaptive_ece, mce, aurc):
        assert metric(probs, target) == pytest.approx(metric(probs[order], target[order]))


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_brier_equals_its_definition(seed, n):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(n, 4, generator=generator, dtype=torch.float64).softmax(1)
    target = torch.randint(4, (n,), generator=generator)
    want = (probs - F.one_hot(target, 4)).square().sum(1).mean()
    assert brier(probs, target) == pytest.approx(want.item())


def test_multilabel_metrics_by_hand():
    probs = torch.tensor([[0.9, 0.2], [0.6, 0.6]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert exact_match(probs, target) == 0.5
    assert label_accuracy(probs, target) == 0.75
    assert label_brier(probs, target) == pytest.approx((0.01 + 0.04 + 0.16 + 0.36) / 4)
    assert label_ece(probs, target) == pytest.approx((0.25 + 0.4) / 2)


def test_multilabel_ece_is_the_mean_of_the_binary_ones():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(100, 3, generator=generator)
    target = (torch.rand(100, 3, generator=generator) > 0.5).long()
    want = [
        binary_calibration_error(probs[:, i].contiguous(), target[:, i]).item() for i in range(3)
    ]
    assert label_ece(probs, target) == pytest.approx(sum(want) / 3, abs=1e-6)


def test_regression_metrics_by_hand():
    mean, target = torch.tensor([[0.0], [0.0]]), torch.tensor([[3.0], [4.0]])
    assert rmse(mean, target) == pytest.approx(math.sqrt(12.5))
    assert sharpness(torch.tensor([[4.0], [12.0]])) == pytest.approx(math.sqrt(8))
    assert coverage90(mean, torch.tensor([[1.0], [9.0]]), target) == 0.5


def test_gaussian_targets_are_covered_in_ninety_percent_of_cases():
    generator = torch.Generator().manual_seed(0)
    target = 3 + 2 * torch.randn(20_000, 1, generator=generator)
    got = coverage90(torch.full_like(target, 3), torch.full_like(target, 4), target)
    assert got == pytest.approx(0.9, abs=0.005)


def test_mean_nll_is_minus_the_mean_log_density():
    assert mean_nll(torch.tensor([-1.0, -2.0])) == 1.5


@pytest.mark.parametrize("metric", [accuracy, nll, brier, ece, adaptive_ece, mce, aurc])
def test_logits_are_refused(metric):
    with pytest.raises(BayesifyError, match="logits"):
        metric(torch.tensor([[3.0, -1.0]]), torch.tensor([0]))


def test_logits_have_no_entropy():
    with pytest.raises(BayesifyError, match="logits"):
        mean_entropy(torch.tensor([[3.0, -1.0]]))


@pytest.mark.parametrize("task", METRICS)
def test_our_own_predictives_have_every_metric_of_their_task(task):
    target = {"classification": torch.arange(6) % 3, "multilabel": torch.ones(6, 3)}
    y = target.get(task, torch.zeros(6, 3))
    found = measure(collect(LinearPosterior(task), [(torch.ones(6, 4), y)]))
    assert list(found) == list(METRICS[task])
    assert all(isinstance(value, float) for value in found.values())


def bimodal(n=2000):
    """Two far modes, in equal parts true."""
    loc = torch.tensor([-5.0, 5.0])[:, None, None].expand(2, n, 1).contiguous()
    generator = torch.Generator().manual_seed(0)
    target = loc[torch.arange(n) % 2, torch.arange(n)] + torch.randn(n, 1, generator=generator)
    predictive = RegressionPredictive(loc, torch.ones(1))
    scores = predictive.scores(target)
    log_prob = scores.pop("log_prob")
    return Predictions("regression", predictive.summary(), log_prob, target, scores)


def test_coverage_is_exact_where_the_predictive_says_how():
    exact = bimodal()
    moments = Predictions("regression", exact.values, exact.log_prob, exact.target)
    assert measure(exact)["coverage90"] == interval_coverage(exact.scores["pit"], 0.9)
    assert measure(exact)["coverage90"] == pytest.approx(0.9, abs=0.02)
    assert measure(moments)["coverage90"] > 0.99  # 1.64 * sqrt(26) reaches beyond both modes
    curve = interval_calibration(exact.scores["pit"])
    assert measure(exact)["interval_error"] == curve.error


def test_metrics_that_are_not_available_are_left_out():
    exact = bimodal()
    moments = Predictions("regression", exact.values, exact.log_prob, exact.target)
    assert set(measure(exact)) - set(measure(moments)) == {"crps", "interval_error"}
    assert METRICS["regression"]["crps"](moments) is None
    assert measure(exact)["crps"] == pytest.approx(exact.scores["crps"].mean().item())


def test_every_task_has_an_nll():
    assert all("nll" in metrics for metrics in METRICS.values())
