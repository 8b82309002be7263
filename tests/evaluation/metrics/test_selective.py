from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesify.core.errors import DataError, ShapeError
from bayesify.evaluation.metrics.selective import risk_coverage, selective_risk


def test_the_surest_examples_come_first():
    curve = selective_risk(torch.tensor([0.2, 0.9, 0.5]), torch.tensor([1.0, 0.0, 1.0]))
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 2 / 3])
    assert curve.aurc == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)
    assert curve.excess_aurc == pytest.approx(((0 - 0) + (1 / 2 - 1 / 2) + 0) / 3)


def aurc_of_order(loss, order):
    return np.mean([np.mean([loss[i] for i in order[: k + 1]]) for k in range(len(order))])


tied = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(tied)
def test_ties_count_as_the_mean_over_all_orders_that_respect_the_confidence(pairs):
    confidence, loss = zip(*pairs, strict=True)
    allowed = [
        aurc_of_order(loss, order)
        for order in permutations(range(len(pairs)))
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order))
    ]
    every = [aurc_of_order(loss, order) for order in permutations(range(len(pairs)))]
    curve = selective_risk(torch.tensor(confidence).float(), torch.tensor(loss).float())
    assert curve.aurc == pytest.approx(np.mean(allowed))
    assert curve.excess_aurc == pytest.approx(np.mean(allowed) - min(every))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_the_order_of_examples_does_not_matter(seed, n):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.randint(5, (n,), generator=generator) / 5
    loss = torch.randint(2, (n,), generator=generator).float()
    order = torch.randperm(n, generator=generator)
    want = selective_risk(confidence, loss)
    got = selective_risk(confidence[order], loss[order])
    torch.testing.assert_close(got.risk, want.risk)
    torch.testing.assert_close(got.best, want.best)


def test_confidence_that_knows_nothing_has_the_error_rate_everywhere():
    loss = (torch.arange(40) % 4 == 0).float()
    curve = selective_risk(torch.full((40,), 0.5), loss)
    torch.testing.assert_close(curve.risk, torch.full((40,), 0.25).double())


def test_the_best_order_has_no_excess_and_the_published_area():
    """Geifman et al. 2019: AURC* of error rate r tends to r + (1 - r) ln(1 - r)."""
    n, rate = 100_000, 0.2
    loss = (torch.arange(n) < rate * n).float()
    curve = selective_risk(-loss, loss)
    assert curve.excess_aurc == 0
    assert curve.aurc == pytest.approx(rate + (1 - rate) * np.log(1 - rate), abs=1e-4)


def test_a_classifier_is_judged_by_its_top_label():
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(30, 4, generator=generator).double().softmax(1)
    target = torch.randint(4, (30,), generator=generator)
    wrong = (probs.argmax(1) != target).double().numpy()
    order = np.argsort(-probs.amax(1).numpy())
    assert risk_coverage(probs, target).aurc == pytest.approx(aurc_of_order(wrong, order))


@pytest.mark.parametrize("n", [1, 7, 200, 5000])
def test_a_thinned_curve_keeps_its_ends_and_lies_on_the_curve(n):
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(n, generator=generator)
    curve = selective_risk(torch.rand(n, generator=generator), loss)
    thin = curve.to_json()
    assert len(thin["coverage"]) == len(thin["risk"]) == min(n, 200)
    assert thin["coverage"][0] == pytest.approx(1 / n, abs=1e-6)
    assert thin["coverage"][-1] == 1
    assert thin["risk"][-1] == pytest.approx(loss.double().mean().item(), abs=1e-6)
    at = (torch.tensor(thin["coverage"]) * n).round().long() - 1
    torch.testing.assert_close(
        torch.tensor(thin["risk"]).double(), curve.risk[at], atol=1e-6, rtol=0
    )
    assert len(set(at.tolist())) == len(at)


def test_unusable_scores_are_refused():
    with pytest.raises(ShapeError, match="2 for 3"):
        selective_risk(torch.zeros(3), torch.zeros(2))
    with pytest.raises(DataError, match="at least one"):
        selective_risk(torch.zeros(0), torch.zeros(0))
    with pytest.raises(DataError, match="logits"):
        risk_coverage(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
