"""fastbnns 0.4 by its README: convert, its ELBO, then samples or moments that are propagated."""

import torch
from fastbnns.bnn.base import BNN
from fastbnns.bnn.losses import ELBO
from fastbnns.bnn.types import MuVar
from job import Job, Predict, averaged, descend
from torch import Tensor, nn


def vi(job: Job) -> Predict:
    """One network a sample."""
    return averaged(_fit(job), job.num_samples)


def moments(job: Job) -> Predict:
    """One pass for mean and variance of the logits, and samples of these."""
    net = _fit(job)

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        out = net(MuVar(x))
        noise = torch.randn(job.num_samples, *out.mu.shape)
        return (out.mu + out.var.sqrt() * noise).softmax(2).mean(0)

    return predict


def _fit(job: Job) -> nn.Module:
    net = BNN(nn=job.net()).train()
    for each in net.parameters():
        each.data = each.data.clone()  # they are expanded from one number, which Adam refuses
    elbo = ELBO(neg_log_likelihood=nn.CrossEntropyLoss(), beta=1 / job.num_data, reduction="mean")
    descend(job, lambda x, y: elbo(model=net, input=net(x), target=y), net.parameters())
    return net.eval()
