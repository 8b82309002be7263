"""Telling data the model was trained for (ID) from other data (OOD) by a score per example.

Convention: ID is the positive class, and a higher score means more in-distribution. Only the order
of the scores matters, so any real numbers will do (scikit-learn ranks them as they are).

Entropy and the maximum probability (Hendrycks & Gimpel 2017, arXiv 1610.02136) mix what data leave
open with what the model does not know; the mutual information (BALD) is the second part alone.
"""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve
from torch import Tensor

from bayesify.core.errors import ShapeError
from bayesify.core.types import Named
from bayesify.evaluation.checks import SUM_TOLERANCE, check_scores
from bayesify.evaluation.findings import Findings

Scores = Float[Tensor, " examples"]
OtherScores = Float[Tensor, " others"]

LEAST_INFORMATION = 1e-5
"""Mutual information, nats, that single precision cannot tell from 0 when entropies are
subtracted."""


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


def id_scores(values: Named) -> dict[str, Scores]:
    """All scores that the values allow, by name; the first is that of `id_score`.

    - "entropy": -entropy, nats.
    - "mutual_information": -mutual information of y and the weights, nats; left out where it is
      zero everywhere (below 1e-5), as a single network has none.
    - "max_prob": the largest probability; only for classes, whose probabilities sum to one (those
      of independent labels say nothing by their largest).
    - "variance": -total variance, for regression.

    Args:
        values: `Predictions.values`, or what `collect_unlabelled` returns.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> entropy = torch.special.entr(probs).sum(1)
        >>> list(id_scores({"probs": probs, "entropy": entropy, "mutual_information": entropy}))
        ['entropy', 'mutual_information', 'max_prob']
        >>> list(id_scores({"variance": torch.ones(2, 1)}))
        ['variance']
    """
    scores = {"entropy" if "entropy" in values else "variance": id_score(values)}
    information = values.get("mutual_information")
    if information is not None and bool((information >= LEAST_INFORMATION).any()):
        scores["mutual_information"] = -information
    probs = values.get("probs")
    if probs is not None and bool(((probs.sum(1) - 1).abs() <= SUM_TOLERANCE).all()):
        scores["max_prob"] = probs.amax(1)
    return scores


def ood_metrics(values_id: Named, values_ood: Named) -> Findings:
    """AUROC, AUPR, FPR95 and the ROC curve by every score of `id_scores`.

    Metrics are `ood_auroc`, `ood_aupr` and `ood_fpr95`, the curve is `roc`, by the score of
    `id_score`; by the others with their names behind, as in `ood_auroc_mutual_information` and
    `roc_max_prob`.

    Args:
        values_id: `Predictions.values` of data of the kind the model was trained for.
        values_ood: The same of other data, from `collect_unlabelled`.

    Raises:
        ShapeError: the values hold neither `entropy` nor `variance`.
        DataError: no examples, or scores that are not finite.

    Example:
        >>> sure, unsure = torch.full((3,), 0.1), torch.full((2,), 0.6)
        >>> ood_metrics({"entropy": sure}, {"entropy": unsure}).metrics
        {'ood_auroc': 1.0, 'ood_aupr': 1.0, 'ood_fpr95': 0.0}
    """
    shared = values_id.keys() & values_ood.keys()
    both = {name: torch.cat([values_id[name], values_ood[name]]) for name in shared}
    found = Findings()
    for number, (name, score) in enumerate(id_scores(both).items()):
        split = len(values_id[next(iter(shared))])
        pair = score[:split], score[split:]
        suffix = f"_{name}" if number else ""
        numbers = {"ood_auroc": auroc(*pair), "ood_aupr": aupr(*pair), "ood_fpr95": fpr95(*pair)}
        found |= Findings(
            {f"{each}{suffix}": value for each, value in numbers.items()},
            {f"roc{suffix}": roc_curve(*pair)},
        )
    return found


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
