"""vbll 0.4 by its tutorial: the last layer is its `DiscClassification`, trained with the rest."""

import torch
import vbll
from job import Job, Predict, descend
from torch import Tensor, nn


def dense(job: Job) -> Predict:
    """A dense covariance for each class, its default."""
    return _fit(job, "dense")


def diagonal(job: Job) -> Predict:
    """A diagonal one, as in its tutorial."""
    return _fit(job, "diagonal")


def _fit(job: Job, covariance: str) -> Predict:
    features = job.net(outputs=False)
    last = vbll.DiscClassification(
        job.hidden[-1], job.num_classes, 1 / job.num_data, parameterization=covariance
    )
    net = nn.Sequential(features, last).train()
    descend(
        job,
        lambda x, y: net(x).train_loss_fn(y),
        [
            {"params": features.parameters(), "weight_decay": job.decay},
            {"params": last.parameters()},
        ],
    )
    net.eval()

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        return last.predictive(features(x), n_samples=job.num_samples)

    return predict
