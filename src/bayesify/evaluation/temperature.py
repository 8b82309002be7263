"""Temperature scaling of any classification posterior, after the fit; weights stay as they are."""

import copy
from dataclasses import replace
from typing import TypeVar, cast

import torch

from bayesify.core.batches import split_batch, to_device
from bayesify.core.errors import DataError, UnsupportedModelError
from bayesify.data.loading import Data, as_loader
from bayesify.evaluation.metrics.calibration import fit_temperature
from bayesify.likelihoods import Categorical
from bayesify.likelihoods.predictive import ClassPredictive
from bayesify.posteriors.base import Posterior

AnyPosterior = TypeVar("AnyPosterior", bound=Posterior)


def temperature_scaled(
    posterior: AnyPosterior, validation: Data, *, num_samples: int = 32, batch_size: int = 256
) -> AnyPosterior:
    """The posterior with one temperature on its averaged predictive, fitted on held-out data.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2; pooled over samples before it is
    calibrated, with the prior log T ~ N(0, 0.5^2) of `fit_temperature`, without which held-out data
    that hold no error want T = 0. A temperature that the likelihood had is replaced. Accuracy does
    not change.

    Args:
        posterior: Any posterior with a categorical likelihood; not changed. The result shares its
            weights.
        validation: Data that it was not trained on.
        num_samples: Weight samples S, which should be those of later predictions.
        batch_size: For data that is no loader.

    Raises:
        UnsupportedModelError: when the likelihood is not categorical.
        DataError: `validation` gives nothing, or labels that are no classes.
    """
    likelihood = posterior.likelihood
    if not isinstance(likelihood, Categorical):
        raise UnsupportedModelError(
            f"temperature scaling needs a categorical likelihood, got {type(likelihood).__name__}."
        )
    loader = as_loader(validation, batch_size=batch_size, shuffle=False)
    log_probs, target = [], []
    for batch in loader:
        inputs, labels = to_device(split_batch(batch), posterior.device)
        predictive = cast(ClassPredictive, posterior.predict(inputs, num_samples=num_samples))
        plain = replace(predictive.to(torch.float64), logit_temperature=1.0)
        exact = plain.log_probs  # (B, C, ...)
        log_probs.append(exact.movedim(1, -1).reshape(-1, exact.shape[1]).cpu())
        target.append(labels.reshape(-1).cpu())
    if not target:
        raise DataError("expected held-out examples, got an empty loader; check it.")
    temperature = fit_temperature(torch.cat(log_probs), torch.cat(target))
    scaled = copy.copy(posterior)
    scaled.likelihood = Categorical(temperature)
    return scaled
