"""The methods, one file each. `METHODS` is the table that the command line and the tests read."""

from bayesify.methods.bali import BALI
from bayesify.methods.bella import Bella
from bayesify.methods.diagonal_laplace import DiagonalLaplace
from bayesify.methods.ensemble import Ensemble
from bayesify.methods.fine_tuned_ensemble import FineTunedEnsemble
from bayesify.methods.laplace import Laplace
from bayesify.methods.last_layer_vi import LastLayerVI
from bayesify.methods.map import MAP
from bayesify.methods.mc_dropout import MCDropout
from bayesify.methods.mean_field_vi import MeanFieldVI
from bayesify.methods.stf import STF
from bayesify.methods.svgd import SVGD
from bayesify.methods.swag import SWAG
from bayesify.methods.weight_sharing import WeightSharing
from bayesify.training.problem import Method

METHODS: dict[str, type[Method]] = {
    "map": MAP,
    "ensemble": Ensemble,
    "mean-field-vi": MeanFieldVI,
    "stf": STF,
    "last-layer-vi": LastLayerVI,
    "mc-dropout": MCDropout,
    "diagonal-laplace": DiagonalLaplace,
    "laplace": Laplace,
    "swag": SWAG,
    "bali": BALI,
    "bella": Bella,
    "svgd": SVGD,
    "fine-tuned-ensemble": FineTunedEnsemble,
    "weight-sharing": WeightSharing,
}
