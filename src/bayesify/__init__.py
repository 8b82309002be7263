"""Turn any PyTorch network into a Bayesian one, at a cost people will pay, and prove it.

posterior = bayesify.fit(net, loader, bayesify.STF())
predictive = posterior.predict(x, num_samples=32)
predictive.probs, predictive.mutual_information()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesify import data, models
    from bayesify.core.batches import Unbatched
    from bayesify.core.errors import (
        BayesifyError,
        DataError,
        DivergenceError,
        LoadError,
        NotPositiveDefiniteError,
        OptionError,
        ShapeError,
        UnsupportedLayerError,
        UnsupportedModelError,
    )
    from bayesify.core.version import __version__
    from bayesify.distributions.base import WeightDistribution
    from bayesify.distributions.dense_normal import DenseNormal
    from bayesify.distributions.kl import kl_divergence
    from bayesify.distributions.kronecker_normal import KroneckerNormal
    from bayesify.distributions.low_rank_normal import LowRankNormal
    from bayesify.distributions.low_rank_particles import LowRankParticles
    from bayesify.distributions.matrix_normal import MatrixNormal
    from bayesify.distributions.mean_field import MeanField
    from bayesify.distributions.particles import Particles
    from bayesify.distributions.priors import NormalPrior, Prior
    from bayesify.distributions.shared.normal import SharedNormal
    from bayesify.evaluation.diagnosis.far_away import overconfidence
    from bayesify.evaluation.diagnosis.open_layers import Diagnosis, diagnose
    from bayesify.evaluation.evaluate import Evaluation, evaluate
    from bayesify.evaluation.guarantees.certificates import Certificate, certify
    from bayesify.evaluation.privacy.membership import membership
    from bayesify.evaluation.privacy.shadow import Shadows, shadow_attack
    from bayesify.evaluation.robustness.curves import Attacks, robustness
    from bayesify.evaluation.shift.severities import Corruptions, shift
    from bayesify.evaluation.temperature import temperature_scaled
    from bayesify.integrations.peft import export_adapters, import_adapters
    from bayesify.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
    from bayesify.likelihoods.predictive import (
        ClassPredictive,
        MultiLabelPredictive,
        Predictive,
        RegressionPredictive,
    )
    from bayesify.methods import METHODS
    from bayesify.methods.bali.layerwise_inference import BALI
    from bayesify.methods.laplace.diagonal import DiagonalLaplace
    from bayesify.methods.laplace.structured import Laplace
    from bayesify.methods.mc_dropout import MCDropout
    from bayesify.methods.members.bella import Bella
    from bayesify.methods.members.ensemble import Ensemble
    from bayesify.methods.members.fine_tuned_ensemble import FineTunedEnsemble
    from bayesify.methods.members.interaction import svgd_
    from bayesify.methods.members.map import MAP
    from bayesify.methods.members.svgd import SVGD
    from bayesify.methods.sharing.compression import Sizes, compressed
    from bayesify.methods.sharing.weight_sharing import WeightSharing
    from bayesify.methods.swag import SWAG
    from bayesify.methods.vi.last_layer import LastLayerVI
    from bayesify.methods.vi.mean_field import MeanFieldVI
    from bayesify.methods.vi.stf import STF
    from bayesify.posteriors.base import FitRecord, Posterior
    from bayesify.posteriors.dropout import DropoutPosterior
    from bayesify.posteriors.persistence import load, save
    from bayesify.posteriors.reestimation import recalibrated
    from bayesify.posteriors.scale import rescaled
    from bayesify.posteriors.weight import WeightPosterior
    from bayesify.training.callbacks import Callback
    from bayesify.training.cost import CostMeter
    from bayesify.training.fit import fit
    from bayesify.training.method import Method, Run, StreamRun
    from bayesify.training.objective import elbo_terms, member_losses, negative_elbo
    from bayesify.training.problem import Problem
    from bayesify.training.progress import ProgressBar
    from bayesify.training.streaming import resume
    from bayesify.weights.noise_scope import noise_scopes
    from bayesify.weights.select import all_weights, first_layer, last_layer, matching, matrices

_HOME = {
    # the one door
    "fit": "bayesify.training.fit",
    "evaluate": "bayesify.evaluation.evaluate",
    "Evaluation": "bayesify.evaluation.evaluate",
    # what one may ask of a posterior
    "certify": "bayesify.evaluation.guarantees.certificates",
    "Certificate": "bayesify.evaluation.guarantees.certificates",
    "robustness": "bayesify.evaluation.robustness.curves",
    "Attacks": "bayesify.evaluation.robustness.curves",
    "shift": "bayesify.evaluation.shift.severities",
    "Corruptions": "bayesify.evaluation.shift.severities",
    "membership": "bayesify.evaluation.privacy.membership",
    "shadow_attack": "bayesify.evaluation.privacy.shadow",
    "Shadows": "bayesify.evaluation.privacy.shadow",
    "overconfidence": "bayesify.evaluation.diagnosis.far_away",
    "diagnose": "bayesify.evaluation.diagnosis.open_layers",
    "Diagnosis": "bayesify.evaluation.diagnosis.open_layers",
    # keeping and changing posteriors
    "save": "bayesify.posteriors.persistence",
    "load": "bayesify.posteriors.persistence",
    "compressed": "bayesify.methods.sharing.compression",
    "Sizes": "bayesify.methods.sharing.compression",
    "resume": "bayesify.training.streaming",
    "export_adapters": "bayesify.integrations.peft",
    "import_adapters": "bayesify.integrations.peft",
    # methods
    "MAP": "bayesify.methods.members.map",
    "Ensemble": "bayesify.methods.members.ensemble",
    "MeanFieldVI": "bayesify.methods.vi.mean_field",
    "BALI": "bayesify.methods.bali.layerwise_inference",
    "STF": "bayesify.methods.vi.stf",
    "LastLayerVI": "bayesify.methods.vi.last_layer",
    "MCDropout": "bayesify.methods.mc_dropout",
    "DiagonalLaplace": "bayesify.methods.laplace.diagonal",
    "Laplace": "bayesify.methods.laplace.structured",
    "SWAG": "bayesify.methods.swag",
    "Bella": "bayesify.methods.members.bella",
    "SVGD": "bayesify.methods.members.svgd",
    "FineTunedEnsemble": "bayesify.methods.members.fine_tuned_ensemble",
    "WeightSharing": "bayesify.methods.sharing.weight_sharing",
    "METHODS": "bayesify.methods",
    "Method": "bayesify.training.method",
    "Problem": "bayesify.training.problem",
    "Run": "bayesify.training.method",
    "StreamRun": "bayesify.training.method",
    # posteriors and predictives
    "Posterior": "bayesify.posteriors.base",
    "WeightPosterior": "bayesify.posteriors.weight",
    "DropoutPosterior": "bayesify.posteriors.dropout",
    "FitRecord": "bayesify.posteriors.base",
    "Predictive": "bayesify.likelihoods.predictive",
    "ClassPredictive": "bayesify.likelihoods.predictive",
    "MultiLabelPredictive": "bayesify.likelihoods.predictive",
    "RegressionPredictive": "bayesify.likelihoods.predictive",
    "recalibrated": "bayesify.posteriors.reestimation",
    "rescaled": "bayesify.posteriors.scale",
    "temperature_scaled": "bayesify.evaluation.temperature",
    # likelihoods and priors
    "Likelihood": "bayesify.likelihoods",
    "Categorical": "bayesify.likelihoods",
    "Bernoulli": "bayesify.likelihoods",
    "Gaussian": "bayesify.likelihoods",
    "Prior": "bayesify.distributions.priors",
    "NormalPrior": "bayesify.distributions.priors",
    # your own loop
    "WeightDistribution": "bayesify.distributions.base",
    "MeanField": "bayesify.distributions.mean_field",
    "MatrixNormal": "bayesify.distributions.matrix_normal",
    "DenseNormal": "bayesify.distributions.dense_normal",
    "KroneckerNormal": "bayesify.distributions.kronecker_normal",
    "LowRankNormal": "bayesify.distributions.low_rank_normal",
    "LowRankParticles": "bayesify.distributions.low_rank_particles",
    "Particles": "bayesify.distributions.particles",
    "SharedNormal": "bayesify.distributions.shared.normal",
    "kl_divergence": "bayesify.distributions.kl",
    "negative_elbo": "bayesify.training.objective",
    "elbo_terms": "bayesify.training.objective",
    "noise_scopes": "bayesify.weights.noise_scope",
    "member_losses": "bayesify.training.objective",
    "svgd_": "bayesify.methods.members.interaction",
    # which weights
    "first_layer": "bayesify.weights.select",
    "last_layer": "bayesify.weights.select",
    "all_weights": "bayesify.weights.select",
    "matrices": "bayesify.weights.select",
    "matching": "bayesify.weights.select",
    # watching
    "Callback": "bayesify.training.callbacks",
    "ProgressBar": "bayesify.training.progress",
    "CostMeter": "bayesify.training.cost",
    # data and models to try things on
    "Unbatched": "bayesify.core.batches",
    "data": "bayesify.data",
    "models": "bayesify.models",
    # errors
    "BayesifyError": "bayesify.core.errors",
    "DataError": "bayesify.core.errors",
    "DivergenceError": "bayesify.core.errors",
    "LoadError": "bayesify.core.errors",
    "NotPositiveDefiniteError": "bayesify.core.errors",
    "OptionError": "bayesify.core.errors",
    "ShapeError": "bayesify.core.errors",
    "UnsupportedLayerError": "bayesify.core.errors",
    "UnsupportedModelError": "bayesify.core.errors",
    "__version__": "bayesify.core.version",
}
"""Every public name and the module it is imported from when it is first asked for.

So the command line answers before torch is loaded, and nobody pays for what he does not use.
"""

__all__ = list(_HOME)  # type: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bayesify' has no attribute {name!r}")
    home = import_module(_HOME[name])
    value = home if _HOME[name] == f"bayesify.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
