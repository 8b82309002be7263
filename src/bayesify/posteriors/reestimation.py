"""Batch norm's statistics, estimated anew under the weights of the posterior."""

import copy

import torch
from torch.utils.data import DataLoader

from bayesify.core.batches import split_batch, to_device
from bayesify.core.modes import seeded
from bayesify.core.streams import stream
from bayesify.data.loading import Data, as_loader
from bayesify.distributions.base import Members
from bayesify.forward.batch_norm import averaging, batch_norms, statistics_of
from bayesify.forward.outputs import outputs
from bayesify.posteriors.weight import WeightPosterior
from bayesify.weights.named import buffers_of


def recalibrated(
    posterior: WeightPosterior, data: Data, *, batch_size: int = 256
) -> WeightPosterior:
    """The same posterior with statistics that are averages over the batches of `data`.

    Every member of a finite set has statistics of its own. All samples of another distribution
    share one set in the network, averaged over a sample for each batch.

    Args:
        posterior: It does not change.
        data: A loader with the augmentation and normalisation of the network's own training:
            statistics of inputs prepared otherwise cost accuracy. One pass for each member.
        batch_size: Where `data` is no loader.

    Raises:
        UnsupportedModelError: there is no batch norm.

    Example:
        >>> from bayesify import MAP, fit
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> again = recalibrated(fit(net, (x, y), MAP(epochs=1)), (x, y), batch_size=64)
        >>> torch.allclose(again.point()["1.running_mean"], net[0](x).mean(0), atol=0.1)
        True
    """
    loader = as_loader(data, batch_size=batch_size, shuffle=True)
    if isinstance(posterior.q, Members):
        return _by_member(posterior, posterior.q, loader)
    again = copy.deepcopy(posterior)
    again.prior = None  # the statistics have seen `data`: no certificate may rest on them
    generator = stream(0, "recalibrate")
    with averaging(again.model), torch.no_grad(), seeded(0, "recalibrate", again.model):
        for norm in batch_norms(again.model).values():
            norm.reset_running_stats()
        for batch in loader:
            inputs = to_device(split_batch(batch)[0], again.device)
            outputs(again.model, again.q, inputs, generator=generator, readout=again.readout)
    return again


def _by_member(posterior: WeightPosterior, q: Members, loader: DataLoader) -> WeightPosterior:
    model = posterior.model
    with averaging(model), torch.no_grad(), seeded(0, "recalibrate", model):
        start = {name: buffers_of(model)[name] for name in statistics_of(model)}
        again = q.with_buffers(
            {
                name: (torch.ones if name.endswith("var") else torch.zeros)(
                    q.size(1), *each.shape, dtype=each.dtype, device=each.device
                )
                for name, each in start.items()
            }
        )
        again.attach_(dict(model.named_parameters()))
        for batch in loader:
            inputs = to_device(split_batch(batch)[0], posterior.device)
            outputs(model, again, inputs, vectorize=False, readout=posterior.readout)
    return posterior.replaced(again)
