"""Scores of predictions against the truth: plain functions of tensors, and a table of them by task.

Every function takes probabilities (or moments), never logits, and refuses what is none. Results are
Python floats, averaged over examples in double precision.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from bayesify.evaluation.checks import check_classes, check_labels, check_scores, check_values
from bayesify.evaluation.metrics.calibration import (
    DEFAULT_BINS,
    adaptive_reliability,
    label_reliability,
    reliability,
)
from bayesify.evaluation.metrics.regression import (
    interval_calibration,
    interval_coverage,
    mean_crps,
)
from bayesify.evaluation.metrics.selective import risk_coverage
from bayesify.evaluation.predictions import Predictions

Probs = Float[Tensor, "examples classes"]
Classes = Int[Tensor, " examples"]
LabelProbs = Float[Tensor, "examples labels"]
Labels = Shaped[Tensor, "examples labels"]
Values = Float[Tensor, "examples dims"]


def mean_nll(log_prob: Float[Tensor, " examples"]) -> float:
    """Mean negative log predictive density, nats per example (all labels or dimensions jointly)."""
    check_scores(log_prob)
    return float(-log_prob.double().mean())


# ------------------------------------------------------------------------------- classification


def accuracy(probs: Probs, target: Classes) -> float:
    """Share of examples whose most probable class is the true one.

    Example:
        >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        0.5
    """
    check_classes(probs, target)
    return float((probs.argmax(1) == target).double().mean())


def nll(probs: Probs, target: Classes) -> float:
    """Mean negative log of the (averaged) probability of the true class, nats per example.

    Infinite when a true class has probability 0.
    """
    check_classes(probs, target)
    return float(-_of_target(probs, target).log().mean())


def brier(probs: Probs, target: Classes) -> float:
    """Mean over examples of the squared error of all probabilities, summed over classes: [0, 2].

    Example:
        >>> brier(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        0.5
    """
    check_classes(probs, target)
    squared = probs.double().square().sum(1) - 2 * _of_target(probs, target) + 1
    return float(squared.mean())


def ece(probs: Probs, target: Classes, *, bins: int = DEFAULT_BINS) -> float:
    """Expected calibration error of the top label: `bins` equal-width bins, l1."""
    return reliability(probs, target, bins=bins).ece


def adaptive_ece(probs: Probs, target: Classes, *, bins: int = DEFAULT_BINS) -> float:
    """Expected calibration error of the top label: `bins` equal-mass bins, l1.

    Ties and remainders: see `adaptive_reliability`.

    Example:
        >>> probs = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
        >>> round(adaptive_ece(probs, torch.tensor([1, 0, 0, 0]), bins=2), 3)
        0.15
    """
    return adaptive_reliability(probs, target, bins=bins).ece


def mce(probs: Probs, target: Classes, *, bins: int = DEFAULT_BINS) -> float:
    """Maximum calibration error of the top label: the worst of `bins` equal-width bins.

    A bin with a single example counts as much as any other: noisy on small data.
    """
    return reliability(probs, target, bins=bins).mce


def mean_entropy(probs: Probs) -> float:
    """Sharpness: mean entropy of the predictive, nats; 0 is certain, ln C knows nothing.

    No score of its own: small is good only where the predictive is calibrated.

    Example:
        >>> round(mean_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])), 3)      # ln(2) / 2
        0.347
    """
    check_classes(probs, probs.argmax(1))
    return float(torch.special.entr(probs.double().clamp_min(0)).sum(1).mean())


def aurc(probs: Probs, target: Classes) -> float:
    """Area under the risk-coverage curve: mean error rate over the k most confident, all k.

    Example:
        >>> aurc(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        0.25
    """
    return risk_coverage(probs, target).aurc


# ----------------------------------------------------------------------------------- multilabel


def exact_match(probs: LabelProbs, target: Labels) -> float:
    """Share of examples with every label on the right side of 0.5."""
    check_labels(probs, target)
    return float(((probs > 0.5) == (target > 0.5)).all(1).double().mean())


def label_accuracy(probs: LabelProbs, target: Labels) -> float:
    """Share of labels on the right side of 0.5, over all examples and labels."""
    check_labels(probs, target)
    return float(((probs > 0.5) == (target > 0.5)).double().mean())


def label_brier(probs: LabelProbs, target: Labels) -> float:
    """Mean squared error of the label probabilities, over all examples and labels: [0, 1]."""
    check_labels(probs, target)
    return float((probs.double() - target.double()).square().mean())


def label_ece(probs: LabelProbs, target: Labels, *, bins: int = DEFAULT_BINS) -> float:
    """Calibration error of P(label on), `bins` equal-width bins, l1, averaged over labels."""
    check_labels(probs, target)
    each = [
        label_reliability(p, y, bins=bins).ece
        for p, y in zip(probs.unbind(1), target.unbind(1), strict=True)
    ]
    return sum(each) / len(each)


# ----------------------------------------------------------------------------------- regression


def rmse(mean: Values, target: Values) -> float:
    """Root of the mean squared error over examples and dimensions, in the units of the target."""
    check_values(mean, target)
    return math.sqrt(float((mean.double() - target.double()).square().mean()))


def coverage90(mean: Values, variance: Values, target: Values) -> float:
    """Share of targets inside the central 90 % interval of a Gaussian with the same two moments.

    The predictive is a mixture; its interval is approximated by moment matching. 0.9 is best. Where
    predictions hold the `pit` of their targets, the metric of this name is exact instead:
    `interval_coverage(pit, 0.9)`.
    """
    check_values(mean, target)
    check_values(variance, target)
    half_width = _Z95 * variance.double().sqrt()
    return float(((target.double() - mean.double()).abs() <= half_width).double().mean())


def sharpness(variance: Values) -> float:
    """Root of the mean predictive variance, in the units of the target: how sure the model is."""
    check_values(variance, variance)
    return math.sqrt(float(variance.double().mean()))


def measure(predictions: Predictions) -> dict[str, float]:
    """All of `METRICS` for the task that are available.

    Example:
        >>> values = {"mean": torch.zeros(1, 1), "variance": torch.ones(1, 1)}
        >>> plain = Predictions("regression", values, torch.tensor([-1.0]), torch.ones(1, 1))
        >>> measure(plain)                                        # without `pit` and `crps`
        {'rmse': 1.0, 'nll': 1.0, 'coverage90': 1.0, 'sharpness': 1.0}
    """
    found = {name: metric(predictions) for name, metric in METRICS[predictions.task].items()}
    return {name: value for name, value in found.items() if value is not None}


def _crps(predictions: Predictions) -> float | None:
    crps = predictions.scores.get("crps")
    return None if crps is None else mean_crps(crps)


def _coverage90(predictions: Predictions) -> float:
    pit = predictions.scores.get("pit")
    if pit is None:
        return coverage90(predictions.mean, predictions.variance, predictions.target)
    return interval_coverage(pit, 0.9)


def _interval_error(predictions: Predictions) -> float | None:
    pit = predictions.scores.get("pit")
    return None if pit is None else interval_calibration(pit).error


METRICS: dict[str, dict[str, Callable[[Predictions], float | None]]] = {
    "classification": {
        "accuracy": lambda p: accuracy(p.probs, p.target),
        "nll": lambda p: mean_nll(p.log_prob),
        "ece": lambda p: ece(p.probs, p.target),
        "adaptive_ece": lambda p: adaptive_ece(p.probs, p.target),
        "mce": lambda p: mce(p.probs, p.target),
        "brier": lambda p: brier(p.probs, p.target),
        "mean_entropy": lambda p: mean_entropy(p.probs),
        "aurc": lambda p: aurc(p.probs, p.target),
    },
    "multilabel": {
        "exact_match": lambda p: exact_match(p.probs, p.target),
        "label_accuracy": lambda p: label_accuracy(p.probs, p.target),
        "nll": lambda p: mean_nll(p.log_prob),
        "label_ece": lambda p: label_ece(p.probs, p.target),
        "label_brier": lambda p: label_brier(p.probs, p.target),
    },
    "regression": {
        "rmse": lambda p: rmse(p.mean, p.target),
        "nll": lambda p: mean_nll(p.log_prob),
        "crps": _crps,
        "coverage90": _coverage90,
        "interval_error": _interval_error,
        "sharpness": lambda p: sharpness(p.variance),
    },
}
"""What `measure` computes for each task, by name, as functions of `Predictions`.

None: not available, because the predictive keeps less than is needed.
"""

_Z95 = float(torch.special.ndtri(torch.tensor(0.95, dtype=torch.float64)))


def _of_target(probs: Tensor, target: Tensor) -> Tensor:
    return probs.double().gather(1, target.long().unsqueeze(1)).squeeze(1)
