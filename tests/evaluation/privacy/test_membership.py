import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import bayesify
from bayesify.core.errors import DataError, OptionError
from bayesify.data.loading import evenly
from bayesify.evaluation.privacy.membership import (
    attack_auc,
    attack_auc_se,
    attack_curve,
    membership,
    spaced_rates,
    tpr_at,
    tpr_se,
    tprs_at,
)
from bayesify.likelihoods.predictive import ClassPredictive
from evaluation.stub import LinearPosterior

HIGH, LOW = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0])

few_values = st.lists(st.integers(-4, 4), min_size=1, max_size=30).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)


class Sayer:
    """Gives the true class (the rounded input's last column) the log odds in the first column."""

    device = torch.device("cpu")

    def predict(self, x, *, num_samples=32, generator=None, chunk_size=None):
        odds, label = x[:, 0], x[:, 1].round().long()
        logits = torch.zeros(1, len(x), 2)
        return ClassPredictive(logits.scatter(2, label.view(1, -1, 1), odds.view(1, -1, 1)))


def said(odds):
    """Data of which `Sayer` says these odds."""
    label = torch.arange(len(odds)) % 2
    return torch.stack([odds, label.float()], 1), label


def brute_tpr(members, others, fpr):
    """The best over all thresholds, in exact arithmetic: called are those not below it."""
    best = 0.0
    for threshold in [*torch.cat([members, others]).tolist(), math.inf]:
        if Fraction(int((others >= threshold).sum()), len(others)) <= Fraction(str(fpr)):
            best = max(best, int((members >= threshold).sum()) / len(members))
    return best


# ------------------------------------------------------------------------------------- the area


def test_separated_scores_are_a_perfect_attack():
    assert attack_auc(HIGH, LOW) == 1
    assert attack_auc(LOW, HIGH) == 0
    assert attack_auc(HIGH, HIGH) == 0.5


@given(few_values, few_values)
def test_the_area_is_that_of_scikit_learn_and_of_counted_pairs(members, others):
    gap = members[:, None] - others[None, :]
    pairs = (gap > 0).double().mean() + 0.5 * (gap == 0).double().mean()
    truth = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
    found = attack_auc(members, others)
    assert found == pytest.approx(pairs.item())
    assert found == pytest.approx(roc_auc_score(truth, torch.cat([members, others])))


@given(few_values.filter(lambda each: len(each) > 1), few_values.filter(lambda each: len(each) > 1))
def test_the_standard_error_is_the_formula_with_all_pairs_written_out(members, others):
    psi = [
        [1.0 if m > o else 0.5 if m == o else 0.0 for o in others.tolist()]
        for m in members.tolist()
    ]
    rows = [sum(row) / len(others) for row in psi]
    columns = [sum(row[j] for row in psi) / len(members) for j in range(len(others))]

    def variance_of_mean(values):
        mean = sum(values) / len(values)
        return sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)

    want = math.sqrt(variance_of_mean(rows) + variance_of_mean(columns))
    assert attack_auc_se(members, others) == pytest.approx(want, abs=1e-12)


def test_the_standard_error_is_that_of_the_bootstrap_and_of_fresh_draws(generator):
    def draw():
        return (
            torch.randn(150, generator=generator) + 0.7,
            torch.randn(100, generator=generator),
        )

    members, others = draw()
    se = attack_auc_se(members, others)
    boot = [
        attack_auc(
            members[torch.randint(150, (150,), generator=generator)],
            others[torch.randint(100, (100,), generator=generator)],
        )
        for _ in range(1000)
    ]
    fresh = [attack_auc(*draw()) for _ in range(1000)]
    # a standard deviation from 1,000 values is good to 2 %, and the se itself varies with the draw
    assert se == pytest.approx(torch.tensor(boot).std().item(), rel=0.1)
    assert se == pytest.approx(torch.tensor(fresh).std().item(), rel=0.2)


def test_one_example_has_no_standard_error():
    with pytest.raises(DataError, match="at least two members and two others"):
        attack_auc_se(HIGH[:1], LOW)


# ------------------------------------------------------------------- rates at low false positives


@given(few_values, few_values, st.sampled_from([0, 0.001, 0.01, 0.1, 0.25, 0.29, 0.5, 0.99, 1]))
def test_the_rate_is_the_best_over_all_thresholds(members, others, fpr):
    assert tpr_at(members, others, fpr) == pytest.approx(brute_tpr(members, others, fpr))


@pytest.mark.parametrize("fpr", [0.07, 0.29, 0.57, 0.58, 0.01, 0.001])
def test_a_rate_that_floats_miss_by_a_hair_is_met(fpr, generator):
    members, others = torch.randn(50, generator=generator), torch.randn(100, generator=generator)
    assert tpr_at(members, others, fpr) == pytest.approx(brute_tpr(members, others, fpr))


def test_below_one_false_positive_only_members_above_all_others_count():
    members, others = torch.tensor([9.0, 8.0, 7.0, 0.0]), torch.arange(8.0)
    assert tpr_at(members, others, 0.001) == tpr_at(members, others, 0.124) == 0.5
    assert tpr_at(members, others, 0.125) == 0.75


def test_ties_are_called_together_so_nothing_is_gained_at_random():
    same = torch.ones(100)
    assert tprs_at(same, same, [0, 0.5, 0.99, 1]) == [0, 0, 0, 1]


def test_the_rate_of_no_information_is_the_false_positive_rate(generator):
    members, others = (torch.rand(20_000, generator=generator) for _ in range(2))
    found = tpr_at(members, others, 0.1)
    # the binomial error of the rate, and as much again from the threshold
    assert abs(found - 0.1) < 4 * math.sqrt(2) * tpr_se(found, 20_000)


def test_the_error_of_a_rate_is_the_spread_of_fresh_draws_at_a_known_threshold(generator):
    draws = (torch.rand(1000, 200, generator=generator) < 0.3).double().mean(1)
    assert tpr_se(0.3, 200) == pytest.approx(draws.std().item(), rel=0.1)


@pytest.mark.parametrize("fpr", [-0.1, 1.5, math.nan])
def test_a_rate_that_is_no_share_is_refused(fpr):
    with pytest.raises(OptionError, match="from 0 to 1"):
        tpr_at(HIGH, LOW, fpr)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="finite"):
        attack_auc(torch.tensor([math.inf]), LOW)
    with pytest.raises(DataError, match="at least one"):
        tpr_at(HIGH, LOW[:0], 0.1)


# -------------------------------------------------------------------------------------- the curve


@pytest.mark.parametrize("others", [1, 2, 37, 200, 50_000])
def test_rates_are_those_that_can_be_shown_and_few(others):
    rates = spaced_rates(others)
    assert len(rates) <= 200
    assert rates == sorted(set(rates))
    assert rates[0] == 0
    assert rates[-1] == 1
    assert all((rate * others) == pytest.approx(round(rate * others)) for rate in rates)
    assert others == 1 or rates[1] == 1 / others


def test_the_low_end_of_the_curve_is_kept(generator):
    members, others = torch.randn(9000, generator=generator), torch.randn(9000, generator=generator)
    curve = attack_curve(members + 1, others)
    # 199 points on a log axis up to 9,000 are a factor of 1.047 apart: less than one count up to 20
    assert [round(fpr * 9000) for fpr in curve["fpr"][:21]] == list(range(21))
    for fpr, tpr in zip(curve["fpr"][::20], curve["tpr"][::20], strict=True):
        count = round(fpr * 9000)
        threshold = others.sort(descending=True).values[count] if count < 9000 else -math.inf
        assert tpr == pytest.approx((members + 1 > threshold).double().mean().item(), abs=1e-6)


# -------------------------------------------------------------------------------------- the whole


def test_a_posterior_that_knows_its_members_leaks_and_one_that_does_not_does_not(generator):
    odds = torch.rand(400, generator=generator)
    leaking = membership(Sayer(), said(odds + 2), said(odds)).metrics
    assert leaking["membership_auc"] == 1
    assert leaking["membership_tpr1"] == 1
    assert leaking["membership_auc_se"] == 0
    tight = membership(Sayer(), said(odds), said(odds)).metrics
    assert tight["membership_auc"] == 0.5
    fresh = membership(Sayer(), said(odds), said(torch.rand(400, generator=generator))).metrics
    assert 0 < fresh["membership_auc_se"] < 0.03
    assert abs(fresh["membership_auc"] - 0.5) < 4 * fresh["membership_auc_se"]


def test_each_attack_is_the_area_of_its_score(generator):
    posterior = LinearPosterior("classification")
    data = [
        (torch.randn(60, 4, generator=generator) * scale, torch.arange(60) % 3)
        for scale in (2.0, 1.0)
    ]
    found = membership(posterior, *data).metrics
    inside, outside = (posterior.predict(x) for x, _ in data)
    want = {
        "membership_auc": (inside.log_prob(data[0][1]), outside.log_prob(data[1][1])),
        "membership_auc_confidence": (inside.probs.amax(1), outside.probs.amax(1)),
        "membership_auc_entropy": (-inside.entropy(), -outside.entropy()),
        "membership_auc_mutual_information": (
            -inside.mutual_information(),
            -outside.mutual_information(),
        ),
    }
    for name, scores in want.items():
        assert found[name] == pytest.approx(attack_auc(*scores), abs=1e-3), name
    assert "membership_tpr1" not in found  # of 60 not one may be accused
    assert found["membership_auc_se"] == pytest.approx(
        attack_auc_se(*want["membership_auc"]), abs=1e-4
    )


def test_examples_that_single_precision_calls_certain_are_told_apart():
    found = membership(Sayer(), said(torch.full((100,), 25.0)), said(torch.full((100,), 20.0)))
    assert found.metrics["membership_tpr1"] == 1
    assert "membership_tpr01" not in found.metrics  # that takes 1,000


def test_rates_are_those_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randn(1000, generator=generator) + shift for shift in (0.5, 0.0))
    found = membership(Sayer(), said(inside), said(outside)).metrics
    for name, fpr in (("membership_tpr1", 0.01), ("membership_tpr01", 0.001)):
        assert found[name] == tpr_at(inside, outside, fpr)
        assert found[f"{name}_se"] == tpr_se(found[name], 1000)


def test_the_larger_set_is_cut_evenly():
    assert evenly(10, 10).tolist() == list(range(10))
    assert evenly(1000, 10).tolist() == list(range(0, 1000, 100))
    odds = torch.arange(100.0)
    found = membership(Sayer(), said(odds[:10] * 10), said(odds))
    assert found.curves["membership"]["members"] == found.curves["membership"]["others"] == 10
    assert found.metrics["membership_auc"] == 0.5


def test_a_map_network_has_no_mutual_information_to_attack():
    x = torch.randn(40, 4)
    data = x, (x[:, 0] > 0).long()
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    trained = bayesify.fit(net, data, bayesify.MAP(epochs=1))
    ensemble = bayesify.fit(net, data, bayesify.Ensemble(members=2, epochs=1))
    single, several = (membership(each, data, data) for each in (trained, ensemble))
    assert "membership_auc_mutual_information" not in single.metrics
    assert "mutual_information" not in single.curves["membership"]
    assert single.metrics["membership_auc_entropy"] == 0.5
    assert several.metrics["membership_auc_mutual_information"] == 0.5


@pytest.mark.parametrize(
    ("task", "target", "attacks"),
    [
        ("classification", torch.arange(40) % 3, {"confidence", "entropy", "mutual_information"}),
        ("multilabel", (torch.rand(40, 3) > 0.5).float(), {"entropy", "mutual_information"}),
        ("regression", torch.randn(40, 3), set()),
    ],
)
def test_every_task_has_its_attacks_and_batches_do_not_matter(task, target, attacks):
    x = torch.randn(40, 4)
    parts = (x[:25], target[:25]), (x[25:], target[25:])
    found = membership(LinearPosterior(task), *parts)
    assert set(found.curves["membership"]) == {"loss", "members", "others", *attacks}
    assert {f"membership_auc_{name}" for name in attacks} < set(found.metrics)
    assert all(math.isfinite(each) for each in found.metrics.values())
    other = membership(LinearPosterior(task), *parts, batch_size=7)
    assert other.metrics == pytest.approx(found.metrics)


def test_batches_are_counted():
    seen = []
    membership(
        Sayer(), said(torch.rand(10)), said(torch.rand(6)), batch_size=4, on_batch=seen.append
    )
    assert sum(seen) == 16


def test_a_network_that_learnt_labels_by_heart_leaks_its_members():
    digits = bayesify.data.splits("digits").train
    x, _ = digits[range(200)]
    y = torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
    net = bayesify.models.build("mlp", (1, 8, 8), 10, seed=0)
    method = bayesify.MAP(epochs=60, prior_scale=100.0)
    posterior = bayesify.fit(net, (x[:100], y[:100]), method, batch_size=20)
    found = membership(posterior, (x[:100], y[:100]), (x[100:], y[100:])).metrics
    assert found["membership_auc"] > 0.9
    assert found["membership_auc"] > 0.5 + 5 * found["membership_auc_se"]
