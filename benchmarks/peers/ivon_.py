"""IVON 0.1 by its README: an optimiser that keeps a Gaussian. Its licence is the GPL."""

import ivon
import torch
from job import Job, Predict
from torch import Tensor
from torch.nn import functional as F


def vi(job: Job) -> Predict:
    """The defaults of the optimiser but for the rate, with a cosine as in its examples."""
    net = job.net().train()
    optimiser = ivon.IVON(net.parameters(), lr=job.lr, ess=job.num_data)
    steps = job.epochs * -(-job.num_data // job.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(job.epochs):
        for x, y in job.batches():
            with optimiser.sampled_params(train=True):
                optimiser.zero_grad()
                F.cross_entropy(net(x), y).backward()
            optimiser.step()
            schedule.step()
    net.eval()

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), job.num_classes)
        for _ in range(job.num_samples):
            with optimiser.sampled_params():
                total += net(x).softmax(1)
        return total / job.num_samples

    return predict
