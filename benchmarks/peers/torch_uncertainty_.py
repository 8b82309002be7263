"""torch-uncertainty 0.13 through its routine and its trainer, as its tutorials have it.

Its Bayesian layers exist in networks of its own, so `vi` builds the perceptron by its function.
"""

import warnings
from typing import Any

import torch
import torchvision_operators  # noqa: F401  torch_uncertainty imports torchvision
from job import Job, Predict
from plain_torch import DROPOUT, MEMBERS
from torch import Tensor, nn
from torch_uncertainty import TUTrainer
from torch_uncertainty.losses import ELBOLoss
from torch_uncertainty.methods import SWAG, deep_ensembles, mc_dropout
from torch_uncertainty.models.mlp import bayesian_mlp
from torch_uncertainty.routines import ClassificationRoutine
from torch_uncertainty.transforms import RepeatTarget

warnings.filterwarnings("ignore", module="lightning")  # it has much to say about loaders


def ensemble(job: Job) -> Predict:
    """All members in one model that returns (M B, C), so targets have to be repeated."""
    model = deep_ensembles(job.net(), num_estimators=MEMBERS)
    return _fit(job, model, format_batch_fn=RepeatTarget(num_repeats=MEMBERS))


def vi(job: Job) -> Predict:
    """Its Bayesian perceptron with its ELBO, whose KL is divided by the number of layers."""
    model = bayesian_mlp(
        in_features=job.x.shape[1],
        num_outputs=job.num_classes,
        hidden_dims=list(job.hidden),
        num_samples=job.num_samples,
    )
    loss = ELBOLoss(
        model=None,
        inner_loss=nn.CrossEntropyLoss(),
        kl_weight=1 / job.num_data,
        num_samples=1,
    )
    return _fit(job, model, loss=loss, decay=0.0)


def dropout(job: Job) -> Predict:
    """Samples are folded into the batch, its default."""
    return _fit(job, mc_dropout(job.net(dropout=DROPOUT), num_estimators=job.num_samples))


def swag(job: Job) -> Predict:
    """Collects an iterate an epoch over the last third; without a validation loader none at all."""
    model = SWAG(
        job.net(),
        cycle_start=job.epochs - job.epochs // 3,
        cycle_length=1,
        num_estimators=job.num_samples,
    )
    return _fit(job, model, constant_rate=True)


def _fit(
    job: Job,
    model: nn.Module,
    *,
    loss: nn.Module | None = None,
    decay: float | None = None,
    constant_rate: bool = False,
    **routine: Any,
) -> Predict:
    def recipe(learnt: nn.Module) -> Any:
        decayed = job.decay if decay is None else decay
        optimiser = torch.optim.Adam(learnt.parameters(), lr=job.lr, weight_decay=decayed)
        if constant_rate:
            return optimiser
        steps = job.epochs * -(-job.num_data // job.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    whole = ClassificationRoutine(
        model,
        num_classes=job.num_classes,
        loss=loss or nn.CrossEntropyLoss(),
        is_ensemble=True,
        optim_recipe=recipe,
        **routine,
    )
    trainer = TUTrainer(
        accelerator="cpu",
        max_epochs=job.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1 if constant_rate else 0,  # SWAG is updated when validation starts
    )
    trainer.fit(whole, job.loader(), job.loader(held_out=True))
    model.eval()

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        return model(x).softmax(1).view(-1, len(x), job.num_classes).mean(0)  # (M B, C)

    return predict
