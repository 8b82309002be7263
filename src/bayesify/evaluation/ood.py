"""Telling data the model was trained for (ID) from other data (OOD) by a score per example.

Convention: ID is the positive class, and a higher score means more in-distribution. Only the order
of the scores matters, so any real numbers will do (scikit-learn ranks them as they are).
"""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve
from torch import Tensor

from bayesify.errors import ShapeError
from bayesify.evaluation.checks import check_scores
from bayesify.types import Named

Scores = Float[Tensor, " examples"]
OtherScores = Float[Tensor, " others"]


def id_score(values: Named) -> Scores:
    """How much at home the model feels: -entropy (nats), or for regression -total variance.

    Args:
        values: `Predictions.values`, or what `collect_unlabelled` returns.

    Example:
        >>> id_score({"entropy": torch.tensor([0.0, 0.7])}).tolist()[1] < 0
        True
    """
    if "entropy" in values:
        return -values["entropy"]
    if "variance" in values:
        return -values["variance"].sum(1)
    raise ShapeError(f"expected values with `entropy` or `variance`, got {sorted(values)}.")


def auroc(score_id: Scores, score_ood: OtherScores) -> float:
    """P(score of an ID example > score of an OOD example), ties counting half.

    Example:
        >>> auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0]))
        1.0
    """
    return float(roc_auc_score(*_labelled(score_id, score_ood)))


def aupr(score_id: Scores, score_ood: OtherScores) -> float:
    """Average precision with ID as positive class; depends on the share of ID examples."""
    return float(average_precision_score(*_labelled(score_id, score_ood)))


def fpr95(score_id: Scores, score_ood: OtherScores) -> float:
    """Share of OOD examples taken for ID at the strictest threshold that keeps 95 % of ID.

    Example:
        >>> fpr95(torch.full((100,), 0.9), torch.tensor([0.95, 0.85]))
        0.5
    """
    truth, score = _labelled(score_id, score_ood)
    fpr, tpr, _ = sklearn_roc_curve(truth, score, drop_intermediate=False)
    return float(fpr[np.argmax(tpr >= 0.95)])


def roc_curve(
    score_id: Scores, score_ood: OtherScores, *, points: int = 200
) -> dict[str, list[float]]:
    """The curve (false positive rate, true positive rate), thinned to at most `points` points.

    The points kept lie on the curve, evenly along its length, both ends included. JSON-ready.
    """
    fpr, tpr, _ = sklearn_roc_curve(*_labelled(score_id, score_ood))
    along = fpr + tpr  # both grow, so this is the (city-block) length from the origin
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)))
    return {"fpr": np.round(fpr[kept], 6).tolist(), "tpr": np.round(tpr[kept], 6).tolist()}


def _labelled(score_id: Tensor, score_ood: Tensor) -> tuple[np.ndarray, np.ndarray]:
    check_scores(score_id)
    check_scores(score_ood)
    truth = np.concatenate([np.ones(len(score_id)), np.zeros(len(score_ood))])
    score = torch.cat([score_id.detach().cpu().double(), score_ood.detach().cpu().double()])
    return truth, score.numpy()
