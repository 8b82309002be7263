"""Everything we measure about a posterior on held-out data, in one call."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.errors import ShapeError
from bayesify.evaluation.calibration import reliability
from bayesify.evaluation.metrics import METRICS
from bayesify.evaluation.ood import aupr, auroc, fpr95, id_score, roc_curve
from bayesify.evaluation.predictions import (
    OnBatch,
    Predictions,
    Predicts,
    collect,
    collect_unlabelled,
)
from bayesify.loading import Data, as_loader

NOTES = {
    "nll": "nats per example",
    "ece": "15 bins, top label",
    "brier": "sum over classes",
    "label_ece": "15 bins, mean over labels",
    "coverage90": "0.9 is best",
    "ood_auroc": "ID positive, score -entropy",
    "ood_fpr95": "OOD taken for ID at 95 % ID kept",
}


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        metrics: Numbers by name.
        curves: What the report draws, JSON-ready: "reliability" (classification) and "roc" (with
            out-of-distribution data).
        predictions: What the metrics were computed from, before any `target_scale`.
    """

    metrics: dict[str, float]
    curves: dict[str, dict[str, Any]]
    predictions: Predictions

    def to_json(self) -> dict[str, Any]:
        """`metrics` and `curves`; a number that is not finite becomes None, as JSON has none."""
        finite = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return {"metrics": finite, "curves": self.curves}

    def __str__(self) -> str:
        width = max(map(len, self.metrics))
        lines = [
            f"  {name:<{width}}  {value:>9.4f}  {NOTES.get(name, '')}".rstrip()
            for name, value in self.metrics.items()
        ]
        return "\n".join([f"{self.predictions.task}, {len(self.predictions)} examples", *lines])


def evaluate(
    posterior: Predicts,
    data: Data,
    *,
    ood: Data | Tensor | None = None,
    num_samples: int = 32,
    batch_size: int = 256,
    chunk_size: int | None = None,
    target_scale: Float[Tensor, " dims"] | None = None,
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Predict `data` (and `ood`) once, with the same weight samples throughout, and measure.

    Args:
        posterior: What predicts.
        data: Held-out data: a loader, a data set, or tensors `(x, y)`.
        ood: Data of another kind; its targets are never read. May be a bare tensor of inputs.
        num_samples: Weight samples S.
        batch_size: For data that is no loader; the results do not depend on it.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        target_scale: Standard deviation (D,) by which regression targets were divided; RMSE, NLL
            and sharpness are then given in the units of the target.
        on_batch: Called after every batch with the number of inputs it held.
    """
    passing = {"num_samples": num_samples, "chunk_size": chunk_size, "on_batch": on_batch}
    predictions = collect(
        posterior, as_loader(data, batch_size=batch_size, shuffle=False), **passing
    )
    measured = predictions if target_scale is None else in_target_units(predictions, target_scale)
    metrics = {name: metric(measured) for name, metric in METRICS[predictions.task].items()}
    curves: dict[str, dict[str, Any]] = {}
    if predictions.task == "classification":
        curves["reliability"] = reliability(predictions.probs, predictions.target).to_json()
    if ood is not None:
        unlabelled = (ood, torch.zeros(len(ood))) if isinstance(ood, Tensor) else ood
        other = collect_unlabelled(
            posterior, as_loader(unlabelled, batch_size=batch_size, shuffle=False), **passing
        )
        scores = id_score(predictions.values), id_score(other)
        metrics |= {
            "ood_auroc": auroc(*scores),
            "ood_aupr": aupr(*scores),
            "ood_fpr95": fpr95(*scores),
        }
        curves["roc"] = roc_curve(*scores)
    return Evaluation(metrics, curves, predictions)


def in_target_units(predictions: Predictions, scale: Float[Tensor, " dims"]) -> Predictions:
    """Regression predictions for targets that were divided by `scale`, in the targets' own units.

    Densities change by the Jacobian: log p(scale * y) = log p(y) - sum log scale. A mean that was
    subtracted from the targets is not put back; no metric depends on it.
    """
    if predictions.task != "regression":
        raise ShapeError(f"expected `target_scale` for regression only, got {predictions.task}.")
    scale = torch.as_tensor(scale).cpu().reshape(-1)
    if scale.shape != predictions.target.shape[1:] or not (scale > 0).all():
        raise ShapeError(
            f"expected a positive `target_scale` for each of {predictions.target.shape[1]} output "
            f"dimensions, got {scale.tolist()}."
        )
    powers = {"mean": scale, "variance": scale.square(), "epistemic": scale.square()}
    return replace(
        predictions,
        values={name: each * powers[name] for name, each in predictions.values.items()},
        log_prob=predictions.log_prob - scale.log().sum(),
        target=predictions.target * scale,
    )
