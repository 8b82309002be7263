import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import multiclass_calibration_error

from bayesify.core.errors import DataError, OptionError
from bayesify.evaluation.metrics.calibration import (
    adaptive_reliability,
    fit_temperature,
    label_reliability,
    reliability,
    tied_means,
)


def draw(seed, n, classes, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(classes, (n,), generator=generator)


def test_bins_hold_what_falls_between_their_edges():
    probs = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.6, 0.4]])
    bins = reliability(probs, torch.tensor([0, 1, 0]), bins=10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 1, 1]
    assert bins.accuracy[[6, 8, 9]].tolist() == [1, 0, 1]
    assert bins.confidence[[6, 8, 9]].tolist() == pytest.approx([0.6, 0.85, 0.95])


def test_a_confidence_of_one_belongs_to_the_last_bin():
    bins = reliability(torch.tensor([[1.0, 0.0], [0.98, 0.02]]), torch.tensor([0, 1]))
    assert bins.count.tolist() == [0] * 14 + [2]


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 8))
def test_counts_sum_to_the_number_of_examples(seed, n, classes):
    logits, target = draw(seed, n, classes)
    assert reliability(logits.softmax(1), target).count.sum() == n


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 8), st.integers(1, 30))
def test_ece_of_the_bins_equals_torchmetrics(seed, n, classes, bins):
    logits, target = draw(seed, n, classes)
    probs = logits.softmax(1)
    want = multiclass_calibration_error(probs, target, num_classes=classes, n_bins=bins)
    assert reliability(probs, target, bins=bins).ece == pytest.approx(want.item(), abs=2e-6)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 8), st.integers(1, 30))
def test_the_worst_bin_equals_torchmetrics(seed, n, classes, bins):
    logits, target = draw(seed, n, classes)
    probs = logits.softmax(1)
    want = multiclass_calibration_error(probs, target, num_classes=classes, n_bins=bins, norm="max")
    assert reliability(probs, target, bins=bins).mce == pytest.approx(want.item(), abs=2e-6)


def test_equal_mass_bins_are_scikit_learns():
    logits, target = draw(0, 15 * 20, 5)
    probs = logits.softmax(1)
    confidence, top = probs.max(1)
    right = (top == target).numpy()
    each = calibration_curve(right, confidence.numpy(), n_bins=15, strategy="quantile")
    bins = adaptive_reliability(probs, target)
    assert bins.count.tolist() == [20] * 15
    np.testing.assert_allclose(bins.accuracy, each[0])
    np.testing.assert_allclose(bins.confidence, each[1], rtol=1e-6)
    assert bins.ece == pytest.approx(np.abs(each[0] - each[1]).mean(), rel=1e-5)
    assert bins.mce == pytest.approx(np.abs(each[0] - each[1]).max(), rel=1e-5)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 30))
def test_equal_mass_bins_equal_numpys_split_of_the_sorted_examples(seed, n, bins):
    logits, target = draw(seed, n, 4)
    confidence, top = logits.softmax(1).max(1)
    order = np.argsort(confidence.numpy())
    parts = np.array_split(order, bins)
    pairs = [(confidence.numpy()[each], (top == target).numpy()[each]) for each in parts]
    want = sum(abs(right.sum() - sure.sum()) for sure, right in pairs) / n
    got = adaptive_reliability(logits.softmax(1), target, bins=bins)
    assert got.count.tolist() == [len(each) for each in parts]
    assert got.ece == pytest.approx(want, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 20))
def test_equal_mass_bins_do_not_depend_on_the_order_of_ties(seed, n, bins):
    generator = torch.Generator().manual_seed(seed)
    sure = 0.5 + torch.randint(4, (n,), generator=generator) / 8
    probs = torch.stack([sure, 1 - sure], 1)
    target = torch.randint(2, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)
    want = adaptive_reliability(probs, target, bins=bins)
    got = adaptive_reliability(probs[order], target[order], bins=bins)
    assert got.count.equal(want.count)
    torch.testing.assert_close(got.accuracy, want.accuracy)
    # where all are equal, every bin is the whole
    if len(sure.unique()) == 1:
        right = (probs.argmax(1) == target).double().mean()
        assert got.ece == pytest.approx(abs(right - sure[0].double()).item())


def test_a_cut_between_equals_shares_their_accuracy():
    probs = torch.tensor([[0.6, 0.4]]).repeat(3, 1)
    bins = adaptive_reliability(probs, torch.tensor([0, 0, 1]), bins=2)
    assert bins.count.tolist() == [2, 1]
    assert bins.accuracy.tolist() == pytest.approx([2 / 3, 2 / 3])


def test_fewer_examples_than_bins_leave_bins_empty():
    bins = adaptive_reliability(torch.tensor([[0.7, 0.3]]), torch.tensor([0]))
    assert bins.count.tolist() == [1] + [0] * 14
    assert bins.ece == bins.mce == pytest.approx(0.3)


def test_means_of_ties_keep_the_sum():
    key = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    got = tied_means(key, torch.tensor([3.0, 0.0, 0.0, 3.0, 9.0]))
    assert got.tolist() == [3, 1, 1, 1, 9]


def test_json_has_three_lists_of_equal_length():
    logits, target = draw(0, 20, 3)
    lists = reliability(logits.softmax(1), target).to_json()
    assert list(lists) == ["confidence", "accuracy", "count"]
    assert {len(each) for each in lists.values()} == {15}


def test_a_label_is_calibrated_when_on_as_often_as_said():
    bins = label_reliability(torch.full((4,), 0.25), torch.tensor([1, 0, 0, 0]))
    assert bins.ece == 0


@pytest.mark.parametrize("planted", [0.3, 1.0, 2.5])
def test_a_planted_temperature_is_recovered(planted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator, dtype=torch.float64) * 2
    target = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    sharpened = (logits * planted).log_softmax(1)
    assert fit_temperature(sharpened, target) == pytest.approx(planted, rel=0.03)


@pytest.mark.parametrize(("n", "scale", "prior_scale"), [(3, 9.0, 0.5), (40, 3.0, 0.5), (40, 1, 2)])
def test_the_temperature_is_the_maximum_of_the_penalised_likelihood(n, scale, prior_scale):
    """Against scipy's likelihood at 20,001 temperatures."""
    logits, target = draw(1, n, 4, scale)
    log_t = np.linspace(np.log(0.05), np.log(20), 20_001)
    scaled = logits.log_softmax(1).numpy() / np.exp(log_t)[:, None, None]
    likelihood = log_softmax(scaled, 2)[:, np.arange(n), target.numpy()].sum(1)
    want = log_t[(likelihood - 0.5 * (log_t / prior_scale) ** 2).argmax()]
    found = fit_temperature(logits.log_softmax(1), target, prior_scale=prior_scale)
    assert np.log(found) == pytest.approx(want, abs=6e-4)  # a step of the grid


def test_held_out_data_without_an_error_do_not_make_a_network_sure_of_everything():
    """Truth: the expected NLL where each of the N(0, 3^2) logits says what is so.

    Of 30 held-out examples none is wrong; the likelihood alone would take the least T.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.stack([3 * torch.randn(4000, generator=generator), torch.zeros(4000)], 1)
    probs, held_out = logits.double().softmax(1), (probs_of := logits.double().log_softmax(1))[:30]
    temperature = fit_temperature(held_out, held_out.argmax(1))
    assert 0.3 < temperature < 1

    def expected_nll(temperature):
        return -(probs * (probs_of / temperature).log_softmax(1)).sum(1).mean()

    assert expected_nll(temperature) < 1.25 * expected_nll(1)
    assert expected_nll(0.05) > 5 * expected_nll(1)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.floats(0.1, 8.0))
def test_temperature_never_hurts_nll_and_never_changes_accuracy(seed, scale):
    logits, target = draw(seed, 50, 4, scale)
    log_probs = logits.log_softmax(1)
    temperature = fit_temperature(log_probs, target)
    assert 0.05 <= temperature <= 20
    scaled = (log_probs / temperature).log_softmax(1)
    rows = torch.arange(50)
    assert -scaled[rows, target].mean() <= -log_probs[rows, target].mean() + 1e-12
    assert scaled.argmax(1).equal(log_probs.argmax(1))


def test_a_temperature_at_a_bound_is_said():
    log_probs = torch.tensor([[1.0, 0.0]]).log_softmax(1).expand(5, 2)
    for target, bound in ((torch.zeros(5).long(), 0.05), (torch.ones(5).long(), 20)):
        with pytest.warns(UserWarning, match=f"temperature is {bound:g}, the bound"):
            found = fit_temperature(log_probs, target, prior_scale=math.inf)
        assert found == pytest.approx(bound, rel=1e-3)
    with pytest.raises(OptionError, match="above 0"):
        fit_temperature(log_probs, target, prior_scale=0.0)


def test_log_probabilities_of_impossible_classes_are_refused():
    with pytest.raises(DataError, match="use those of a predictive"):
        fit_temperature(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]))


def test_logits_that_do_not_sum_to_one_are_refused():
    with pytest.raises(DataError, match="logits"):
        fit_temperature(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
