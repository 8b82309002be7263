"""laplace-torch 0.3 as its README has it: train, fit, tune the prior, predict by probit."""

import torch
import torchvision_operators  # noqa: F401  laplace imports torchvision
from job import Job, Predict, trained
from laplace import Laplace
from torch import Tensor

CHUNK = {"last_layer": 1000, "all": 100}
"""Inputs predicted at once. All layers need a Jacobian of each input: at 1,000 inputs of the larger
network they would take 11 GB."""


def last_layer(job: Job) -> Predict:
    """Kronecker-factored, the last layer alone."""
    return _fit(job, "last_layer")


def all_layers(job: Job) -> Predict:
    """Kronecker-factored, all layers, linearised."""
    return _fit(job, "all")


def _fit(job: Job, subset: str) -> Predict:
    approximation = Laplace(
        trained(job), "classification", subset_of_weights=subset, hessian_structure="kron"
    )
    approximation.fit(job.loader())
    approximation.optimize_prior_precision(method="marglik")

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        parts = x.split(CHUNK[subset])
        return torch.cat(
            [approximation(each, pred_type="glm", link_approx="probit") for each in parts]
        )

    return predict
