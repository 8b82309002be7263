"""Batch norm's statistics: which they are, and estimating them anew.

They belong to the pipeline that the network was trained with, augmentation included: estimated on
inputs that are prepared in another way they cost accuracy (docs/gotchas.md).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesify.core.errors import DataError, UnsupportedModelError
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs
from bayesify.tracing.trace import call


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that keep statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


def statistics_of(model: nn.Module) -> list[str]:
    """Names of all buffers of the batch norms."""
    return [
        name
        for owner, module in batch_norms(model).items()
        for name, _ in module.named_buffers(owner)
    ]


@contextmanager
def averaging(model: nn.Module, norms: Mapping[str, _BatchNorm] | None = None) -> Iterator[None]:
    """Inside, every forward pass adds its batch to a plain average over batches.

    The rest of the network is in eval mode. Start from statistics that are reset.

    Args:
        model: The network.
        norms: Those of its batch norms that do; None for all.

    Raises:
        UnsupportedModelError: when there is no batch norm.
        DataError: a batch holds one example alone.
    """
    norms = batch_norms(model) if norms is None else norms
    if not norms:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no batch norm with statistics, so there is nothing to "
            f"estimate anew; leave the recalibration out."
        )
    momenta = {name: norm.momentum for name, norm in norms.items()}
    with evaluating(model):
        for norm in norms.values():
            norm.train()
            norm.momentum = None  # torch's word for a plain average
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "a batch holds one example, which has no variance; let no batch be so small "
                "(drop_last=True, or pass the data set itself, which is cut into even batches)."
            ) from error
        finally:
            for name, norm in norms.items():
                norm.eval()
                norm.momentum = momenta[name]


@torch.no_grad()
def recalibrate_(
    model: nn.Module, batches: Iterable[Inputs], norms: Mapping[str, _BatchNorm] | None = None
) -> None:
    """Estimate the statistics of batch norm anew, in place, as averages over `batches`.

    Args:
        model: The network, in any mode, which it keeps.
        batches: Inputs, prepared (augmented, normalised) as in the network's own training.
        norms: The batch norms that are estimated; None for all.
    """
    norms = batch_norms(model) if norms is None else norms
    with averaging(model, norms):
        for norm in norms.values():
            norm.reset_running_stats()
        for inputs in batches:
            call(model, inputs)
