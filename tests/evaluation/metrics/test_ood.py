import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from bayesify.core.errors import DataError, ShapeError
from bayesify.evaluation.metrics.ood import (
    aupr,
    auroc,
    fpr95,
    id_score,
    id_scores,
    ood_metrics,
    roc_curve,
)
from bayesify.likelihoods.predictive import (
    ClassPredictive,
    MultiLabelPredictive,
    RegressionPredictive,
)

HIGH, LOW = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0])

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)


def test_separated_scores_are_perfect_and_swapped_ones_inverted():
    assert auroc(HIGH, LOW) == aupr(HIGH, LOW) == 1
    assert auroc(LOW, HIGH) == 0
    assert fpr95(HIGH, LOW) == 0
    assert fpr95(LOW, HIGH) == 1


def test_fpr95_by_hand():
    score_id = torch.full((100,), 0.9)
    score_ood = torch.cat([torch.full((50,), 0.95), torch.full((50,), 0.85)])
    assert fpr95(score_id, score_ood) == 0.5


@given(scores, scores)
def test_auroc_equals_the_share_of_pairs_in_order(score_id, score_ood):
    gap = score_id[:, None] - score_ood[None, :]
    want = (gap > 0).double().mean() + 0.5 * (gap == 0).double().mean()
    assert auroc(score_id, score_ood) == pytest.approx(want.item())


@given(scores, scores)
def test_auroc_of_swapped_roles_is_the_complement(score_id, score_ood):
    assert auroc(score_id, score_ood) == pytest.approx(1 - auroc(score_ood, score_id))


def test_large_scores_are_ranked_as_they_are():
    assert auroc(torch.tensor([-1e4]), torch.tensor([-2e4])) == 1


def test_auroc_and_aupr_equal_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    score_id = torch.rand(80, generator=generator).sqrt()
    score_ood = torch.rand(50, generator=generator)
    both = torch.cat([score_id, score_ood]), torch.cat([torch.ones(80), torch.zeros(50)]).long()
    assert auroc(score_id, score_ood) == pytest.approx(binary_auroc(*both).item(), abs=1e-6)
    assert aupr(score_id, score_ood) == pytest.approx(
        binary_average_precision(*both).item(), abs=1e-6
    )


def test_a_thinned_curve_keeps_its_ends_and_its_area():
    generator = torch.Generator().manual_seed(0)
    score_id = 1 + torch.randn(5000, generator=generator)
    score_ood = torch.randn(5000, generator=generator)
    curve = roc_curve(score_id, score_ood)
    fpr, tpr = torch.tensor(curve["fpr"]), torch.tensor(curve["tpr"])
    assert len(fpr) <= 200
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (fpr.diff() >= 0).all()
    assert torch.trapezoid(tpr, fpr).item() == pytest.approx(auroc(score_id, score_ood), abs=1e-3)


def test_the_default_score_falls_with_uncertainty():
    assert id_score({"entropy": torch.tensor([0.1, 0.9])}).diff() < 0
    assert id_score({"variance": torch.tensor([[0.1, 0.1], [1.0, 2.0]])}).diff() < 0
    with pytest.raises(ShapeError, match="entropy"):
        id_score({"mean": torch.zeros(1)})


def drawn(seed, samples=8, n=30, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(samples, n, 4, generator=generator)


def test_scores_of_classes_are_entropy_information_and_largest_probability():
    predictive = ClassPredictive(drawn(0))
    scores = id_scores(predictive.summary())
    assert list(scores) == ["entropy", "mutual_information", "max_prob"]
    torch.testing.assert_close(scores["entropy"], -predictive.entropy())
    torch.testing.assert_close(scores["mutual_information"], -predictive.mutual_information())
    torch.testing.assert_close(scores["max_prob"], predictive.probs.max(1).values)
    assert all(score[0] > score[1] for score in id_scores(peaked_then_flat()).values())


def peaked_then_flat():
    """One example sure and agreed upon, one where the samples contradict each other."""
    peaked = torch.tensor([9.0, 0.0, 0.0])
    contrary = torch.stack([peaked, peaked.roll(1)])
    return ClassPredictive(torch.stack([peaked.expand(2, 3), contrary], 1)).summary()


@pytest.mark.parametrize("samples", [1, 16])
def test_one_network_has_no_mutual_information_to_rank_by(samples):
    logits = drawn(0, samples=1, n=2000).expand(samples, -1, -1)
    assert list(id_scores(ClassPredictive(logits).summary())) == ["entropy", "max_prob"]
    assert list(id_scores(MultiLabelPredictive(logits).summary())) == ["entropy"]


def test_labels_have_no_largest_probability():
    scores = id_scores(MultiLabelPredictive(drawn(0)).summary())
    assert list(scores) == ["entropy", "mutual_information"]


def test_regression_is_ranked_by_variance():
    summary = RegressionPredictive(drawn(0), torch.ones(1)).summary()
    scores = id_scores(summary)
    assert list(scores) == ["variance"]
    torch.testing.assert_close(scores["variance"], -summary["variance"].sum(1))


def test_findings_are_the_plain_functions_of_each_score():
    known, foreign = ClassPredictive(drawn(0)).summary(), ClassPredictive(drawn(1, n=20)).summary()
    found = ood_metrics(known, foreign)
    pairs = {
        "": (-known["entropy"], -foreign["entropy"]),
        "_mutual_information": (-known["mutual_information"], -foreign["mutual_information"]),
        "_max_prob": (known["probs"].amax(1), foreign["probs"].amax(1)),
    }
    for suffix, pair in pairs.items():
        assert found.metrics[f"ood_auroc{suffix}"] == auroc(*pair)
        assert found.metrics[f"ood_aupr{suffix}"] == aupr(*pair)
        assert found.metrics[f"ood_fpr95{suffix}"] == fpr95(*pair)
        assert found.curves[f"roc{suffix}"] == roc_curve(*pair)
        both = torch.cat(pair).double(), torch.tensor([1] * 30 + [0] * 20)
        want = binary_auroc(both[0].softmax(0), both[1]).item()  # any growing map into [0, 1]
        assert found.metrics[f"ood_auroc{suffix}"] == pytest.approx(want, abs=1e-6)
    assert len(found.metrics) == 9
    assert len(found.curves) == 3


def test_the_scores_are_those_that_both_kinds_of_data_have():
    known = ClassPredictive(drawn(0, scale=0.0)).summary()  # all samples agree here
    foreign = ClassPredictive(drawn(1)).summary()
    found = ood_metrics(known, foreign)
    assert found.metrics["ood_auroc_mutual_information"] == 1
    assert set(ood_metrics(known, known).metrics) == {
        f"ood_{each}{suffix}" for each in ("auroc", "aupr", "fpr95") for suffix in ("", "_max_prob")
    }
    with pytest.raises(ShapeError, match="entropy"):
        ood_metrics({"mean": torch.zeros(1)}, {"mean": torch.zeros(1)})
    with pytest.raises(DataError, match="at least one"):
        ood_metrics(foreign, {name: each[:0] for name, each in foreign.items()})


def test_empty_or_broken_scores_are_refused():
    with pytest.raises(DataError, match="at least one"):
        auroc(HIGH, LOW[:0])
    with pytest.raises(DataError, match="finite"):
        fpr95(HIGH, torch.tensor([torch.nan]))
