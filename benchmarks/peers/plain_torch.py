"""What needs no library: one network, five of them, and dropout left on."""

import torch
from job import Job, Predict, averaged, trained
from torch import Tensor, nn

MEMBERS = 5
DROPOUT = 0.2


def map_(job: Job) -> Predict:
    """One network, trained with weight decay."""
    net = trained(job)
    return torch.no_grad()(lambda x: net(x).softmax(1))


def ensemble(job: Job) -> Predict:
    """A loop over members."""
    nets = [trained(job) for _ in range(MEMBERS)]

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        return torch.stack([net(x).softmax(1) for net in nets]).mean(0)

    return predict


def dropout(job: Job) -> Predict:
    """Dropout layers in train mode, all else in eval mode, as tutorials have it."""
    net = trained(job, dropout=DROPOUT)
    for layer in net.modules():
        layer.train(isinstance(layer, nn.Dropout))
    return averaged(net, job.num_samples)
