"""Is a confidence of 80 % right in 80 % of cases? Reliability bins and temperature scaling.

    ece = sum_b n_b / N |accuracy_b - confidence_b|,    b over bins of confidence
    mce = max_b |accuracy_b - confidence_b|

Sources: Guo et al. 2017, arXiv 1706.04599, eqs. 2-3 (bins), 5 (mce) and section 4.2 (temperature);
bins of equal mass instead of equal width: Nguyen & O'Connor 2015, arXiv 1508.05154, and
Nixon et al. 2019, arXiv 1904.01685 (there per class, here of the top label).

One set of bins serves the diagram and the number, so that the two cannot disagree. Confidences are
binned in single precision, as torchmetrics does, which is the oracle in the tests; counts and sums
are kept in double precision, since single-precision counts stop growing at 2^24 examples.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import DataError, OptionError
from bayesify.evaluation.checks import check_classes, check_labels

DEFAULT_BINS = 15
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
GRID = 60
"""Steps of the search for a temperature, each a tenth in log T."""

TEMPERATURE_SCALE = 0.5
"""Standard deviation of log T before data are seen: two of three temperatures from .6 to 1.6."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Predictions sorted into bins of confidence, of equal width or of equal mass.

    Args:
        confidence: Mean confidence of each bin; 0 where it is empty.
        accuracy: Share of each bin that came true; 0 where it is empty.
        count: Predictions in each bin.
    """

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]

    @property
    def ece(self) -> float:
        """Mean over predictions of |accuracy - confidence| of their bin (l1)."""
        return float((self._gap * self.count).sum() / self.count.sum())

    @property
    def mce(self) -> float:
        """Largest |accuracy - confidence| of a bin, however few predictions it holds."""
        return float(self._gap.max())  # 0 in empty bins

    def to_json(self) -> dict[str, list[float] | list[int]]:
        """Lists by name, rounded to six digits after the point."""
        return {
            "confidence": [round(each, 6) for each in self.confidence.tolist()],
            "accuracy": [round(each, 6) for each in self.accuracy.tolist()],
            "count": self.count.tolist(),
        }

    @property
    def _gap(self) -> Float[Tensor, " bins"]:
        return (self.accuracy - self.confidence).abs()


def reliability(
    probs: Float[Tensor, "examples classes"],
    target: Int[Tensor, " examples"],
    *,
    bins: int = DEFAULT_BINS,
) -> ReliabilityBins:
    """Confidence and accuracy of the top label, in `bins` equal-width bins; the last holds 1 too.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
        >>> bins = reliability(probs, torch.tensor([0, 1]), bins=2)
        >>> bins.count.tolist(), bins.accuracy.tolist(), round(bins.ece, 3)
        ([0, 2], [0.0, 0.5], 0.4)
    """
    check_classes(probs, target)
    confidence, top = probs.max(1)
    return _into_bins(confidence, top == target, bins)


def adaptive_reliability(
    probs: Float[Tensor, "examples classes"],
    target: Int[Tensor, " examples"],
    *,
    bins: int = DEFAULT_BINS,
) -> ReliabilityBins:
    """Confidence and accuracy of the top label, in `bins` bins of equal mass.

    Predictions are sorted by confidence and cut into runs of N / `bins`; when that is no whole
    number, the first (least confident) N mod `bins` runs hold one more, and with fewer predictions
    than bins the last ones are empty. Predictions of the same confidence (in single precision) are
    given their common accuracy first, so that the result does not depend on the order of examples
    where a cut falls between equals.

    Example:
        >>> probs = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
        >>> bins = adaptive_reliability(probs, torch.tensor([1, 0, 0, 0]), bins=2)
        >>> bins.count.tolist(), bins.accuracy.tolist(), round(bins.ece, 3)
        ([2, 2], [0.5, 1.0], 0.15)
    """
    check_classes(probs, target)
    confidence, top = probs.max(1)
    confidence, order = confidence.float().sort()
    correct = tied_means(confidence, (top == target)[order].double())
    runs = torch.arange(bins, device=confidence.device)
    size = len(confidence) // bins + (runs < len(confidence) % bins)
    return _gathered(runs.repeat_interleave(size), confidence, correct, bins)


def tied_means(
    sorted_key: Float[Tensor, " examples"], value: Float[Tensor, " examples"]
) -> Float[Tensor, " examples"]:
    """Each value replaced by the mean over all examples of the same key; keys must be sorted.

    Example:
        >>> tied_means(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([5.0, 0.0, 1.0])).tolist()
        [5.0, 0.5, 0.5]
    """
    _, group, count = sorted_key.unique_consecutive(return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=value.dtype, device=value.device)
    return (total.index_add(0, group, value) / count)[group]


def label_reliability(
    probs: Float[Tensor, " examples"],
    target: Shaped[Tensor, " examples"],
    *,
    bins: int = DEFAULT_BINS,
) -> ReliabilityBins:
    """Probability that one yes/no label is on, against how often it is, in equal-width bins."""
    check_labels(probs.unsqueeze(1), target.unsqueeze(1))
    return _into_bins(probs, target > 0.5, bins)


def fit_temperature(
    log_probs: Float[Tensor, "examples classes"],
    target: Int[Tensor, " examples"],
    *,
    prior_scale: float = TEMPERATURE_SCALE,
) -> float:
    """The T in [0.05, 20] of most posterior probability under log T ~ N(0, prior_scale^2).

        sum_n ln softmax(log_probs_n / T)[y_n] - (ln T)^2 / (2 prior_scale^2)

    `log_probs` are logs of the *averaged* probabilities of held-out data, so the result is the
    `logit_temperature` of `ClassPredictive`. The likelihood alone has no maximum where the data
    hold no error: it wants T = 0. With the prior T is one that the data can tell from 1, and many
    data decide by themselves. It is searched for on a grid and then between its neighbours, in
    double precision. The NLL is never worse than with T = 1 on the data given.

    Args:
        log_probs: Held-out log probabilities that have not underflowed, as
            `ClassPredictive.log_probs` gives them.
        target: Class indices.
        prior_scale: Standard deviation of log T, `math.inf` for none.

    Raises:
        DataError: they are no finite log probabilities, or no classes.
        OptionError: the scale is not above 0.

    Warns:
        UserWarning: T is at a bound, so that other data would want it beyond.

    Example:
        >>> sure = torch.tensor([[4.0, 0.0]]).log_softmax(1).expand(10, 2)
        >>> right_in_eight_of_ten = torch.tensor([0] * 8 + [1] * 2)
        >>> round(fit_temperature(sure, right_in_eight_of_ten, prior_scale=math.inf), 3)
        2.885
        >>> round(4 / math.log(0.8 / 0.2), 3)
        2.885
    """
    if not prior_scale > 0:
        raise OptionError(f"prior_scale={prior_scale}: expected a standard deviation above 0.")
    if not log_probs.isfinite().all():
        raise DataError("expected finite log probabilities, got others; use those of a predictive.")
    check_classes(log_probs.exp(), target)
    log_probs, target = log_probs.double(), target.long()

    def loss(log_temperature: float) -> float:
        nll = F.cross_entropy(log_probs / math.exp(log_temperature), target, reduction="sum")
        return nll.item() + 0.5 * (log_temperature / prior_scale) ** 2

    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    grid = [low + (high - low) * step / GRID for step in range(GRID + 1)]
    best = min(range(GRID + 1), key=lambda step: loss(grid[step]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, GRID)])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x
    log_temperature = min((0.0, grid[best], found), key=loss)
    if log_temperature in (low, high):
        warnings.warn(
            f"the temperature is {math.exp(log_temperature):g}, the bound of what is tried: the "
            f"held-out part has no error, or the logits are far too large; look at both.",
            stacklevel=2,
        )
    return math.exp(log_temperature)


def _into_bins(confidence: Tensor, correct: Tensor, bins: int) -> ReliabilityBins:
    confidence = confidence.float().contiguous()
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device)
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, bins - 1)
    return _gathered(index, confidence, correct, bins)


def _gathered(index: Tensor, confidence: Tensor, correct: Tensor, bins: int) -> ReliabilityBins:
    count = torch.bincount(index, minlength=bins)
    total = torch.bincount(index, confidence.double(), minlength=bins)
    right = torch.bincount(index, correct.double(), minlength=bins)
    return ReliabilityBins(total / count.clamp_min(1), right / count.clamp_min(1), count)
