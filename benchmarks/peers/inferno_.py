"""inferno-torch 0.0.8: its perceptron with diagonal covariances, in its own parametrisation."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision_operators  # noqa: F401  inferno imports torchvision
from inferno import bnn, loss_fns, models
from job import Job, Predict, descend
from torch import Tensor, nn
from torch.nn import functional as F


def implicit(job: Job) -> Predict:
    """No prior: the bias of the optimiser is the regulariser, which the library is about."""
    net = _net(job)
    return _fit(job, net, lambda logits, y: F.cross_entropy(logits, y))


def elbo(job: Job) -> Predict:
    """Its variational free energy, the KL over N."""
    net = _net(job)
    loss = loss_fns.VariationalFreeEnergy(nn.CrossEntropyLoss(), net, kl_weight=1 / job.num_data)
    return _fit(job, net, loss)


def _net(job: Job) -> Any:
    return models.MLP(
        in_size=job.x.shape[1],
        hidden_sizes=list(job.hidden),
        out_size=job.num_classes,
        cov=bnn.params.DiagonalCovariance(),
    )


def _fit(job: Job, net: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> Predict:
    net.train()
    groups = net.parameters_and_lrs(lr=job.lr, optimizer="Adam")
    descend(job, lambda x, y: loss(net(x, sample_shape=torch.Size([])), y), groups)
    net.eval()

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        return net(x, sample_shape=torch.Size([job.num_samples])).softmax(2).mean(0)

    return predict
