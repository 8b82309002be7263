import pytest
import torch

from bayesify.core.errors import DataError, ShapeError
from bayesify.evaluation.checks import (
    check_classes,
    check_labels,
    check_pit,
    check_scores,
    check_values,
)

HALF = torch.full((2, 2), 0.5)
CLASSES = torch.tensor([0, 1])


def test_probabilities_and_class_indices_are_accepted():
    check_classes(HALF, CLASSES)
    check_classes(HALF.bfloat16(), CLASSES.to(torch.uint8))


@pytest.mark.parametrize(
    ("probs", "target", "error", "words"),
    [
        (HALF * 0.9, CLASSES, DataError, "sum to 1"),
        (torch.tensor([[2.0, -1.0], [0.5, 0.5]]), CLASSES, DataError, "not logits"),
        (torch.full((2, 2), torch.nan), CLASSES, DataError, "finite"),
        (HALF, torch.tensor([0, 2]), DataError, "0 to 1, got 0 to 2"),
        (HALF, torch.tensor([-1, 0]), DataError, "got -1"),
        (HALF, torch.tensor([0.0, 1.0]), DataError, "integer type"),
        (HALF, torch.tensor([0]), ShapeError, r"\(1,\)"),
        (HALF, HALF.long(), ShapeError, r"\(2, 2\)"),
        (HALF[:0], CLASSES[:0], DataError, "at least one"),
        (HALF[0], CLASSES, ShapeError, r"\(2,\)"),
    ],
)
def test_what_is_no_classification_is_refused_in_words(probs, target, error, words):
    with pytest.raises(error, match=words):
        check_classes(probs, target)


@pytest.mark.parametrize(
    ("probs", "target", "error"),
    [
        (HALF, torch.full((2, 2), 0.3), DataError),
        (HALF * 4, HALF.round(), DataError),
        (HALF, torch.zeros(2, 3), ShapeError),
    ],
)
def test_what_is_no_multilabel_problem_is_refused(probs, target, error):
    with pytest.raises(error, match="expected"):
        check_labels(probs, target)


def test_values_and_scores_must_be_finite_and_fit():
    with pytest.raises(ShapeError, match="one shape"):
        check_values(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(DataError, match="1 that are not"):
        check_values(torch.zeros(2, 1), torch.tensor([[0.0], [torch.inf]]))
    with pytest.raises(ShapeError, match="one score"):
        check_scores(torch.zeros(2, 2))
    with pytest.raises(DataError, match="at least one"):
        check_scores(torch.zeros(0))


def test_values_of_distribution_functions_lie_between_zero_and_one():
    check_pit(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(DataError, match=r"got -0\.1 to 0\.5"):
        check_pit(torch.tensor([[-0.1, 0.5]]))
    with pytest.raises(ShapeError, match="per example and dimension"):
        check_pit(torch.zeros(3))
    with pytest.raises(DataError, match="at least one"):
        check_pit(torch.zeros(0, 1))
