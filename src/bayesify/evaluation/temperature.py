"""Temperature scaling of any classification posterior, after the fit; weights stay as they are."""

import copy
from typing import TypeVar

from bayesify.errors import UnsupportedModelError
from bayesify.evaluation.calibration import fit_temperature
from bayesify.evaluation.predictions import collect
from bayesify.likelihoods import Categorical
from bayesify.loading import Data, as_loader
from bayesify.posterior import Posterior

AnyPosterior = TypeVar("AnyPosterior", bound=Posterior)


def temperature_scaled(
    posterior: AnyPosterior, validation: Data, *, num_samples: int = 32, batch_size: int = 256
) -> AnyPosterior:
    """The posterior with one temperature on its averaged predictive, fitted on held-out data.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2; pooled over samples before it is
    calibrated. Accuracy does not change.

    Args:
        posterior: Any posterior with a categorical likelihood; not changed. The result shares its
            weights.
        validation: Data that it was not trained on.
        num_samples: Weight samples S, which should be those of later predictions.
        batch_size: For data that is no loader.

    Raises:
        UnsupportedModelError: when the likelihood is not categorical.
    """
    likelihood = posterior.likelihood
    if not isinstance(likelihood, Categorical):
        raise UnsupportedModelError(
            f"temperature scaling needs a categorical likelihood, got {type(likelihood).__name__}."
        )
    loader = as_loader(validation, batch_size=batch_size, shuffle=False)
    held_out = collect(posterior, loader, num_samples=num_samples)
    temperature = fit_temperature(held_out.log_probs, held_out.target)
    scaled = copy.copy(posterior)
    scaled.likelihood = Categorical(likelihood.logit_temperature * temperature)
    return scaled
