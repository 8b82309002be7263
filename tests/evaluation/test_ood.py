import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from bayesify.errors import DataError, ShapeError
from bayesify.evaluation.ood import aupr, auroc, fpr95, id_score, roc_curve

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


def test_empty_or_broken_scores_are_refused():
    with pytest.raises(DataError, match="at least one"):
        auroc(HIGH, LOW[:0])
    with pytest.raises(DataError, match="finite"):
        fpr95(HIGH, torch.tensor([torch.nan]))
