"""The methods, one file each. `METHODS` is the table that the command line and the tests read."""

from bayesify.methods.bali.layerwise_inference import BALI
from bayesify.methods.laplace.diagonal import DiagonalLaplace
from bayesify.methods.laplace.structured import Laplace
from bayesify.methods.mc_dropout import MCDropout
from bayesify.methods.members.bella import Bella
from bayesify.methods.members.ensemble import Ensemble
from bayesify.methods.members.fine_tuned_ensemble import FineTunedEnsemble
from bayesify.methods.members.map import MAP
from bayesify.methods.members.svgd import SVGD
from bayesify.methods.sharing.weight_sharing import WeightSharing
from bayesify.methods.swag import SWAG
from bayesify.methods.vi.last_layer import LastLayerVI
from bayesify.methods.vi.mean_field import MeanFieldVI
from bayesify.methods.vi.stf import STF
from bayesify.training.method import Method

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
