"""Who takes part: one row a method, by group, with its grid of learning rates and its budget.

Nothing of a library is imported here, so that the table can be printed without any of them.
"""

from dataclasses import dataclass

ADAM = (1e-3, 3e-3, 1e-2)
MAXIMAL_UPDATE = (1e-2, 3e-2, 1e-1)  # divided by widths there
OURS = "ours"


@dataclass(frozen=True)
class Row:
    """One method of one library.

    Attributes:
        group: Methods that are compared with each other.
        title: As it stands in the table.
        where: "module:function" of this folder.
        grid: Learning rates it may choose from, by the NLL on the validation part.
        like: `where` of the row whose choice it takes over: where a grid of its own would be dear.
        networks: Passes over the data in units of the epochs: members of an ensemble.
        more: Further passes over the training data after the epochs.
        budget: How a method that starts from a trained network divides the epochs.
        needs: Name that bayesify must have for the row to run.
        snag: What a user stumbles over, and the fix if there is one.
    """

    group: str
    title: str
    where: str
    grid: tuple[float, ...] = ADAM
    like: str = ""
    networks: int = 1
    more: int = 0
    budget: str = ""
    needs: str = ""
    snag: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it is one of bayesify."""
        return self.where.startswith(f"{OURS}:")


MAP, ENSEMBLE, MEAN_FIELD = "MAP", "Ensemble of 5", "Mean-field VI"
DROPOUT, SWAG, LAPLACE, LAST = "MC dropout", "SWAG", "Laplace", "Variational last layer"

ROWS = (
    Row(MAP, "plain torch", "plain_torch:map_"),
    Row(MAP, "**bayesify** MAP", "ours:map_"),
    Row(
        MAP,
        "**bayesify** MAP + temperature",
        "ours:map_scaled",
        like="ours:map_",
        snag="one number fitted to the validation part",
    ),
    Row(ENSEMBLE, "plain torch", "plain_torch:ensemble", like="plain_torch:map_", networks=5),
    Row(
        ENSEMBLE,
        "torch-uncertainty",
        "torch_uncertainty_:ensemble",
        like="plain_torch:map_",
        networks=5,
        snag="targets repeated by hand (RepeatTarget); Lightning",
    ),
    Row(ENSEMBLE, "**bayesify** Ensemble", "ours:ensemble", like="ours:map_", networks=5),
    Row(
        MEAN_FIELD,
        "bayesian-torch",
        "bayesian_torch_:vi",
        snag="its KL is a mean over weights: hardly a prior",
    ),
    Row(
        MEAN_FIELD,
        "bayesian-torch, MOPED",
        "bayesian_torch_:moped",
        budget="2/3 MAP",
        snag="the same; the prior is not moved with the start",
    ),
    Row(MEAN_FIELD, "torchbayesian", "torchbayesian_:vi", snag="discards a trained start"),
    Row(
        MEAN_FIELD,
        "posteriors vi.diag",
        "posteriors_:vi",
        snag="scales start at 1 by default: set to e^-3",
    ),
    Row(
        MEAN_FIELD,
        "torch-uncertainty",
        "torch_uncertainty_:vi",
        snag="networks of its own; its KL is divided by the number of layers",
    ),
    Row(
        MEAN_FIELD,
        "fastbnns, samples",
        "fastbnns_:vi",
        snag="parameters must be cloned for Adam",
    ),
    Row(
        MEAN_FIELD,
        "fastbnns, moments",
        "fastbnns_:moments",
        like="fastbnns_:vi",
        snag="the same; moments instead of weight samples",
    ),
    Row(
        MEAN_FIELD,
        "inferno, no prior",
        "inferno_:implicit",
        grid=MAXIMAL_UPDATE,
        snag="networks, parametrisation and so rates of its own",
    ),
    Row(
        MEAN_FIELD,
        "inferno, free energy",
        "inferno_:elbo",
        grid=MAXIMAL_UPDATE,
        snag="the same",
    ),
    Row(
        MEAN_FIELD,
        "IVON",
        "ivon_:vi",
        grid=(0.03, 0.1, 0.3),
        snag="GPL; rates of its own (README: .1)",
    ),
    Row(
        MEAN_FIELD,
        "**bayesify** MeanFieldVI",
        "ours:mean_field",
        budget="2/3 MAP",
    ),
    Row(
        MEAN_FIELD,
        "**bayesify** MeanFieldVI, wide",
        "ours:mean_field_wide",
        budget="2/3 MAP",
        snag="initial_scale=.5, prior_scale=1, temperature=.01, lr as its network's",
    ),
    Row(
        MEAN_FIELD,
        "**bayesify** STF",
        "ours:stf",
        budget="2/3 MAP",
        snag="first layer alone",
    ),
    Row(DROPOUT, "plain torch", "plain_torch:dropout"),
    Row(DROPOUT, "torch-uncertainty", "torch_uncertainty_:dropout", snag="Lightning"),
    Row(DROPOUT, "**bayesify** MCDropout", "ours:dropout", more=1),
    Row(
        SWAG,
        "torch-uncertainty",
        "torch_uncertainty_:swag",
        budget="2/3 Adam",
        snag="silently the plain network without a validation loader",
    ),
    Row(SWAG, "**bayesify** SWAG", "ours:swag", budget="1/2 MAP, 1/6 burn-in"),
    Row(
        LAPLACE,
        "laplace-torch, last layer",
        "laplace_torch:last_layer",
        more=1,
        snag="torchvision must import",
    ),
    Row(
        LAPLACE,
        "laplace-torch, all layers",
        "laplace_torch:all_layers",
        like="laplace_torch:last_layer",
        more=1,
        snag="a Jacobian of every input; Linear and Conv2d only",
    ),
    Row(
        LAPLACE,
        "**bayesify** DiagonalLaplace",
        "ours:diagonal_laplace",
        more=1,
        snag="noise chosen on the validation part",
    ),
    Row(
        LAPLACE,
        "**bayesify** Laplace",
        "ours:laplace",
        more=1,
        needs="Laplace",
        snag="noise scaled on the validation part",
    ),
    Row(
        LAPLACE,
        "**bayesify** Laplace, all layers",
        "ours:laplace_all",
        more=1,
        needs="Laplace",
    ),
    Row(LAST, "vbll, diagonal", "vbll_:diagonal", snag="trained from scratch"),
    Row(
        LAST,
        "vbll, dense",
        "vbll_:dense",
        like="vbll_:diagonal",
        snag="its default: a covariance H x H for each class",
    ),
    Row(
        LAST,
        "vbll, diagonal, frozen",
        "vbll_:frozen",
        budget="2/3 Adam",
        snag="on the features of a network that plain torch has trained; ours, not its tutorial",
    ),
    Row(
        LAST,
        "**bayesify** LastLayerVI",
        "ours:last_layer_vi",
        budget="2/3 MAP",
        needs="LastLayerVI",
    ),
)
