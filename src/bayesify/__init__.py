"""Turn any PyTorch network into a Bayesian one, at a cost people will pay, and prove it.

posterior = bayesify.fit(net, loader, bayesify.STF())
predictive = posterior.predict(x, num_samples=32)
predictive.probs, predictive.mutual_information()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bayesify import data, models
from bayesify.callbacks import Callback
from bayesify.cost import CostMeter
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.errors import (
    BayesifyError,
    DataError,
    DivergenceError,
    LoadError,
    OptionError,
    ShapeError,
    UnsupportedLayerError,
    UnsupportedModelError,
)
from bayesify.fitting import fit
from bayesify.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from bayesify.methods import METHODS
from bayesify.methods.base import Method, Problem, Run
from bayesify.methods.ensemble import Ensemble
from bayesify.methods.map import MAP
from bayesify.methods.mean_field_vi import MeanFieldVI
from bayesify.methods.stf import STF
from bayesify.objective import elbo_terms, member_losses, negative_elbo
from bayesify.persistence import load, save
from bayesify.posterior import FitRecord, Posterior, WeightPosterior
from bayesify.predictive import (
    ClassPredictive,
    MultiLabelPredictive,
    Predictive,
    RegressionPredictive,
)
from bayesify.priors import NormalPrior, Prior
from bayesify.version import __version__
from bayesify.weights.select import all_weights, first_layer, last_layer, matching

if TYPE_CHECKING:
    from bayesify.evaluation.evaluate import Evaluation, evaluate
    from bayesify.evaluation.temperature import temperature_scaled
    from bayesify.progress import ProgressBar

_LATER = {
    "Evaluation": "bayesify.evaluation.evaluate",
    "ProgressBar": "bayesify.progress",
    "evaluate": "bayesify.evaluation.evaluate",
    "temperature_scaled": "bayesify.evaluation.temperature",
}
"""Names whose modules need more than torch: imported when first asked for."""

__all__ = [
    # the one door
    "fit",
    "evaluate",
    "Evaluation",
    "save",
    "load",
    # methods
    "MAP",
    "Ensemble",
    "MeanFieldVI",
    "STF",
    "METHODS",
    "Method",
    "Problem",
    "Run",
    # posteriors and predictives
    "Posterior",
    "WeightPosterior",
    "FitRecord",
    "Predictive",
    "ClassPredictive",
    "MultiLabelPredictive",
    "RegressionPredictive",
    "temperature_scaled",
    # likelihoods and priors
    "Likelihood",
    "Categorical",
    "Bernoulli",
    "Gaussian",
    "Prior",
    "NormalPrior",
    # your own loop
    "WeightDistribution",
    "MeanField",
    "Particles",
    "kl_divergence",
    "negative_elbo",
    "elbo_terms",
    "member_losses",
    # which weights
    "first_layer",
    "last_layer",
    "all_weights",
    "matching",
    # watching
    "Callback",
    "ProgressBar",
    "CostMeter",
    # data and models to try things on
    "data",
    "models",
    # errors
    "BayesifyError",
    "DataError",
    "DivergenceError",
    "LoadError",
    "OptionError",
    "ShapeError",
    "UnsupportedLayerError",
    "UnsupportedModelError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'bayesify' has no attribute {name!r}")
