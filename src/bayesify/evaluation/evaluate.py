"""Everything we measure about a posterior on held-out data, in one call."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from bayesify.core.errors import ShapeError, UnsupportedModelError
from bayesify.data.examples import Examples, Normalise, is_image_shape
from bayesify.data.loading import Data, as_loader
from bayesify.evaluation.diagnosis.far_away import check_followed, overconfidence
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.guarantees.certificates import certify, sampled_risk
from bayesify.evaluation.metrics.calibration import reliability
from bayesify.evaluation.metrics.ood import ood_metrics
from bayesify.evaluation.metrics.regression import interval_calibration
from bayesify.evaluation.metrics.scores import measure
from bayesify.evaluation.metrics.selective import risk_coverage
from bayesify.evaluation.predictions import (
    OnBatch,
    Predictions,
    Predicts,
    collect,
    collect_unlabelled,
)
from bayesify.evaluation.privacy.membership import membership
from bayesify.evaluation.robustness.attacks import InputBox
from bayesify.evaluation.robustness.curves import Attacks, robustness
from bayesify.evaluation.shift.severities import Corruptions, shift
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.checks import check_labelled

NOTES = {
    "nll": "nats per example",
    "ece": "15 bins, top label",
    "brier": "sum over classes",
    "label_ece": "15 bins, mean over labels",
    "coverage90": "0.9 is best",
    "ood_auroc": "ID positive, score -entropy",
    "ood_fpr95": "OOD taken for ID at 95 % ID kept",
    "adaptive_ece": "15 bins of equal mass",
    "mce": "largest gap of a bin",
    "mean_entropy": "nats; how sharp",
    "aurc": "area under risk by coverage",
    "crps": "units of the target",
    "interval_error": "mean gap of interval coverage",
    "attack_eps": "radius of the attacks below",
    "worst_accuracy": "right under all of the attacks",
    "corrupted_accuracy": "mean over corruptions",
    "membership_auc": "0.5 gives nothing away",
    "certificate": "bounds the Gibbs risk",
    "far_confidence": "limit far from the data",
}


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        metrics: Numbers by name.
        curves: What the report draws, JSON-ready.
        predictions: What the metrics were computed from, before any `target_scale`.
    """

    metrics: dict[str, float]
    curves: dict[str, dict[str, Any]]
    predictions: Predictions

    def to_json(self) -> dict[str, Any]:
        """`metrics` and `curves`; a number that is not finite becomes None, as JSON has none."""
        finite = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return {"metrics": finite, "curves": self.curves}

    def joined(self, more: Findings) -> "Evaluation":
        """With the numbers and curves of another part."""
        found = Findings(self.metrics, self.curves) | more
        return replace(self, metrics=found.metrics, curves=found.curves)

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
    members: Data | None = None,
    certifying: Data | None = None,
    attacks: Attacks | None = None,
    surrogate: Posterior | None = None,
    corruptions: Corruptions | None = None,
    far_away: bool = False,
    normalise: Normalise | None = None,
    num_samples: int = 32,
    batch_size: int = 256,
    chunk_size: int | None = None,
    target_scale: Float[Tensor, " dims"] | None = None,
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Predict `data` (and `ood`) once, with the same weight samples throughout, and measure.

    The other parts are made where they are asked for, and each has a function of its own, whose
    metrics and curves are joined here.

    Args:
        posterior: What predicts.
        data: Held-out data: a loader, a data set, or tensors `(x, y)`.
        ood: Data of another kind; its targets are never read. May be a bare tensor of inputs.
        members: Training examples, without augmentation, to be told from `data` by an attacker:
            see `membership`.
        certifying: Training data of a fit with `certify_split`: see `certify`.
        attacks: Adversarial attacks to withstand, such as `Attacks()`: see `robustness`.
        surrogate: Another posterior, such as MAP's, whose adversarial inputs are tried as well.
        corruptions: Corruptions of images to withstand, such as `Corruptions()`: see `shift`.
        far_away: Whether to follow the confidence far away from the data: see `overconfidence`.
        normalise: From images in [0, 1] to what the model sees, for attacks and corruptions; None:
            that of `data` where these are `bayesify.data.Examples`, also inside a loader. For
            other data eps is in units of what the model sees, and images must be in [0, 1].
        num_samples: Weight samples S.
        batch_size: For data that is no loader; the results do not depend on it.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        target_scale: Standard deviation (D,) by which regression targets were divided; RMSE, NLL,
            CRPS and sharpness are then given in the units of the target.
        on_batch: Called after every batch with the number of inputs it held.

    Raises:
        BayesifyError: numbers that are not finite, or targets that do not fit the model; found in
            a pass over all of `data` before anything is predicted.
    """
    if attacks is not None:
        _attackable(posterior)
    if certifying is not None:
        _over_weights(posterior)
    if far_away:
        check_followed(_over_weights(posterior))
    check_labelled(posterior, as_loader(data, batch_size=batch_size, shuffle=False))
    passing = {"num_samples": num_samples, "chunk_size": chunk_size, "on_batch": on_batch}
    predictions = collect(
        posterior, as_loader(data, batch_size=batch_size, shuffle=False), **passing
    )
    measured = predictions if target_scale is None else in_target_units(predictions, target_scale)
    found = quality(measured)
    if ood is not None:
        unlabelled = (ood, torch.zeros(len(ood))) if isinstance(ood, Tensor) else ood
        other = collect_unlabelled(
            posterior, as_loader(unlabelled, batch_size=batch_size, shuffle=False), **passing
        )
        found |= ood_metrics(predictions.values, other)
    if members is not None:
        found |= membership(posterior, members, data, batch_size=batch_size, **passing)
    if corruptions is not None:
        seen = _normalise_of(data, normalise)
        found |= shift(
            posterior, data, corruptions, normalise=seen, batch_size=batch_size, **passing
        )
    if attacks is not None:
        seen = _normalise_of(data, normalise)
        found |= robustness(
            _attackable(posterior),
            data,
            attacks,
            box=None if seen is None else InputBox.of(seen),
            surrogate=surrogate,
            **passing,
        )
    if certifying is not None:
        found |= certify(_over_weights(posterior), certifying).findings()
        risk = sampled_risk(
            _over_weights(posterior), data, examples_per_sample=100, batch_size=batch_size
        )
        found |= Findings({"gibbs_test_risk": risk})
    if far_away:
        found |= overconfidence(_over_weights(posterior), data, num_samples=num_samples)
    return Evaluation(found.metrics, found.curves, predictions)


def quality(predictions: Predictions) -> Findings:
    """Every metric of the task, and the curves that belong to them."""
    curves: dict[str, dict[str, Any]] = {}
    if predictions.task == "classification":
        curves["reliability"] = reliability(predictions.probs, predictions.target).to_json()
        curves["risk_coverage"] = risk_coverage(predictions.probs, predictions.target).to_json()
    if "pit" in predictions.scores:
        curves["intervals"] = interval_calibration(predictions.scores["pit"]).to_json()
    return Findings(measure(predictions), curves)


def _normalise_of(data: Data, given: Normalise | None) -> Normalise | None:
    """What images went through; None for other inputs, whose range nobody knows."""
    if given is not None:
        return given
    while isinstance(data, DataLoader | Subset):
        data = data.dataset
    if isinstance(data, Examples) and is_image_shape(data.x.shape[1:]):
        return data.normalise
    return None


def _attackable(posterior: Predicts) -> Posterior:
    if not isinstance(posterior, Posterior):
        raise UnsupportedModelError(
            f"attacks need the gradient of `outputs`: expected a bayesify.Posterior, got "
            f"{type(posterior).__name__}; derive from it."
        )
    return posterior


def _over_weights(posterior: Predicts) -> WeightPosterior:
    if not isinstance(posterior, WeightPosterior):
        raise UnsupportedModelError(
            f"certificates and far-away limits are of distributions over weights: expected a "
            f"bayesify.WeightPosterior, got {type(posterior).__name__}."
        )
    return posterior


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
        scores={
            name: each * scale if name == "crps" else each
            for name, each in predictions.scores.items()
        },
    )
