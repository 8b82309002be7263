"""The public door of the metrics: what they take, checked once, refused in words.

Metrics take probabilities. A tensor of logits or of log probabilities does not sum to one and is
refused here rather than turned into something.
"""

import torch
from torch import Tensor

from bayesify.core.errors import DataError, ShapeError

SUM_TOLERANCE = 1e-2
"""Wide enough for bfloat16 probabilities, far too narrow for logits."""


def check_classes(probs: Tensor, target: Tensor) -> None:
    """Refuse all but probabilities (N, C) that sum to one and class indices (N,) within range."""
    if probs.ndim != 2 or target.shape != probs.shape[:1]:
        raise ShapeError(
            f"expected probabilities (N, C) and class indices (N,), got {tuple(probs.shape)} and "
            f"{tuple(target.shape)}; flatten positions into examples first."
        )
    if target.is_floating_point() or target.dtype == torch.bool:
        raise DataError(f"expected class indices of an integer type, got {target.dtype}.")
    _check_probabilities(probs)
    if (probs.sum(1) - 1).abs().max() > SUM_TOLERANCE:
        raise DataError(
            f"expected probabilities that sum to 1, got sums from {probs.sum(1).min():.4g} to "
            f"{probs.sum(1).max():.4g}; pass `predictive.probs`, not logits."
        )
    if target.min() < 0 or target.max() >= probs.shape[1]:
        raise DataError(
            f"expected class indices from 0 to {probs.shape[1] - 1}, got {int(target.min())} to "
            f"{int(target.max())}; the data has other classes than the model."
        )


def check_labels(probs: Tensor, target: Tensor) -> None:
    """Refuse anything but one probability per label (N, L) and labels of 0 and 1 (N, L)."""
    if probs.ndim != 2 or target.shape != probs.shape:
        raise ShapeError(
            f"expected probabilities and labels of one shape (N, L), got {tuple(probs.shape)} and "
            f"{tuple(target.shape)}."
        )
    _check_probabilities(probs)
    if not ((target == 0) | (target == 1)).all():
        raise DataError("expected labels of 0 and 1 only, got other values.")


def check_values(mean: Tensor, target: Tensor) -> None:
    """Refuse anything but finite values of one shape (N, D), at least one."""
    if mean.ndim != 2 or target.shape != mean.shape:
        raise ShapeError(
            f"expected means and targets of one shape (N, D), got {tuple(mean.shape)} and "
            f"{tuple(target.shape)}."
        )
    _check_finite(mean)
    _check_finite(target)


def check_scores(scores: Tensor) -> None:
    """Refuse anything but a vector of finite scores, at least one."""
    if scores.ndim != 1:
        raise ShapeError(f"expected one score per example (N,), got {tuple(scores.shape)}.")
    _check_finite(scores)


def check_pit(pit: Tensor) -> None:
    """Refuse anything but values (N, D) of distribution functions, at least one."""
    if pit.ndim != 2:
        raise ShapeError(f"expected one value per example and dimension, got {tuple(pit.shape)}.")
    _check_finite(pit)
    if pit.min() < 0 or pit.max() > 1:
        raise DataError(
            f"expected values of a distribution function, in [0, 1], got {pit.min():.4g} to "
            f"{pit.max():.4g}; pass P(y <= target), not the target."
        )


def _check_probabilities(probs: Tensor) -> None:
    _check_finite(probs)
    if probs.min() < -SUM_TOLERANCE or probs.max() > 1 + SUM_TOLERANCE:
        raise DataError(
            f"expected probabilities in [0, 1], got values from {probs.min():.4g} to "
            f"{probs.max():.4g}; pass `predictive.probs`, not logits."
        )


def _check_finite(values: Tensor) -> None:
    if not values.numel():
        raise DataError("expected at least one example, got none.")
    if not values.isfinite().all():
        raise DataError(
            f"expected finite numbers, got {int((~values.isfinite()).sum())} that are not; "
            f"the model has probably diverged."
        )
