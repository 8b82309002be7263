"""vbll 0.4 by its tutorial: the last layer is its `DiscClassification`, trained with the rest."""

import torch
import vbll
from job import Job, Predict, descend, trained
from torch import Tensor, nn


def dense(job: Job) -> Predict:
    """A dense covariance for each class, its default."""
    return _fit(job, "dense")


def diagonal(job: Job) -> Predict:
    """A diagonal one, as in its tutorial."""
    return _fit(job, "diagonal")


def frozen(job: Job) -> Predict:
    """Diagonal, on the features of a trained network: what our last-layer VI does."""
    own = job.epochs // 3
    features = trained(job, epochs=job.epochs - own)[:-1].requires_grad_(False)
    last = _last_layer(job, "diagonal")
    descend(job, lambda x, y: last(features(x)).train_loss_fn(y), last.parameters(), epochs=own)
    return _predictive(job, features, last)


def _fit(job: Job, covariance: str) -> Predict:
    features, last = job.net(outputs=False), _last_layer(job, covariance)
    net = nn.Sequential(features, last).train()
    descend(
        job,
        lambda x, y: net(x).train_loss_fn(y),
        [
            {"params": features.parameters(), "weight_decay": job.decay},
            {"params": last.parameters()},
        ],
    )
    return _predictive(job, features, last)


def _last_layer(job: Job, covariance: str) -> nn.Module:
    return vbll.DiscClassification(
        job.hidden[-1], job.num_classes, 1 / job.num_data, parameterization=covariance
    )


def _predictive(job: Job, features: nn.Module, last: nn.Module) -> Predict:
    features.eval()
    last.eval()

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        return last.predictive(features(x), n_samples=job.num_samples)

    return predict
