"""One number for all the noise of a posterior, chosen on held-out examples.

Posterior widths that come from a curvature or a prior may be wrong by one factor, many times over.
The factor with the least held-out NLL is found by a search on powers of two, with the same noise
for every candidate, so that they differ by the factor alone.
"""

import math
from collections.abc import Callable, Iterable

from torch import Tensor

from bayesify.core.batches import split_batch, to_device
from bayesify.core.errors import DivergenceError, UnsupportedModelError
from bayesify.core.modes import seeded
from bayesify.core.streams import stream
from bayesify.core.types import Inputs
from bayesify.data.loading import Data, as_loader
from bayesify.distributions.base import Scalable
from bayesify.posteriors.weight import WeightPosterior

RUNGS = 8
"""The ladder reaches from 2^-8 to 2^8."""

NONE = 2.0**-20
"""A factor that leaves no noise to speak of: the means alone."""

GAIN = 1e-4
"""Nats per example: less is no difference."""

LITTLE = 0.02
"""Nats per example: noise that changes less has no effect yet. The mean of S samples of it is not
zero and moves the NLL up or down at first, whatever more noise does."""


def rescaled(
    posterior: WeightPosterior,
    data: Data,
    *,
    num_samples: int = 10,
    batch_size: int = 256,
    seed: int | None = None,
) -> WeightPosterior:
    """The same posterior with all standard deviations times the best factor on `data`.

    The factor, between 2^-8 and 2^8 in steps of sqrt(2), is the one of those tried with the least
    NLL of the averaged predictive; 1 is among them, so that the result is never worse on `data`.

    Args:
        posterior: Of a distribution that can be `scaled`, such as `MeanField`. Not changed; the
            result shares its model and likelihood, and q itself where 1 is best.
        data: Held-out examples, not those of the fit: a loader, a data set or tensors (x, y).
        num_samples: Weight samples S of each prediction.
        batch_size: Where `data` is no loader.
        seed: Of other weight samples than the posterior's own, which None stands for.

    Raises:
        UnsupportedModelError: the distribution has no `scaled`.

    Example:
        >>> import torch
        >>> from bayesify import Categorical, MeanField
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Linear(4, 3)
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> wide = WeightPosterior(net, MeanField.around(net, scale=30.0), Categorical())
        >>> fitting = rescaled(wide, (x, y))
        >>> bool((fitting.q.scale["weight"] < 30).all())
        True
    """
    loader = as_loader(data, batch_size=batch_size, shuffle=False)
    with seeded(0, "check", posterior.model):  # a loader draws a number for each pass
        factor = best_factor(
            posterior,
            lambda: (to_device(split_batch(batch), posterior.device) for batch in loader),
            num_samples=num_samples,
            seed=seed,
        )
    return times(posterior, factor)


def best_factor(
    posterior: WeightPosterior,
    batches: Callable[[], Iterable[tuple[Inputs, Tensor]]],
    *,
    num_samples: int = 10,
    seed: int | None = None,
) -> float:
    """What `rescaled` multiplies with, from batches on the posterior's device.

    A ladder of factors of two, down from 1 until the NLL rises, or up where down is no better;
    then the neighbours at sqrt(2). The NLL is flat at both ends, where noise is far too wide or has
    no effect yet: the ladder goes down as long as the means alone are better, and up as long as
    nothing is lost or the noise has little effect.
    """
    tried: dict[int, float] = {}

    def loss(halves: int) -> float:
        """NLL at the factor 2^(halves / 2)."""
        if halves not in tried:
            candidate = times(posterior, 2 ** (halves / 2))
            tried[halves] = _nll(candidate, batches, num_samples, seed)
        return tried[halves]

    without_noise, at = _nll(times(posterior, NONE), batches, 1, seed), 0
    if not math.isfinite(without_noise):
        raise DivergenceError(
            "rescaled: expected finite predictions of the held-out examples, got some that are "
            "not, even without noise; look at the network and at extreme values in the data."
        )
    while at > -2 * RUNGS and (
        loss(at - 2) < loss(at) - GAIN or min(tried.values()) > without_noise + GAIN
    ):
        at -= 2
    if min(tried.values()) > tried[0] - GAIN or abs(tried[0] - without_noise) < LITTLE:
        at = 0
        while at < 2 * RUNGS and (
            loss(at + 2) < loss(at) + GAIN or abs(loss(at + 2) - without_noise) < LITTLE
        ):
            at += 2
    best = min(tried, key=lambda each: tried[each])
    for halves in (best - 1, best + 1):
        if abs(halves) <= 2 * RUNGS:
            loss(halves)
    return 2 ** (min(tried, key=lambda each: tried[each]) / 2)


def times(posterior: WeightPosterior, factor: float) -> WeightPosterior:
    """The posterior with its standard deviations multiplied by `factor`; itself for 1.

    Raises:
        UnsupportedModelError: its distribution has no `scaled`.
    """
    q = posterior.q
    if not isinstance(q, Scalable):
        raise UnsupportedModelError(
            f"rescaled: expected a distribution whose noise has a scale, such as MeanField, got "
            f"{type(q).__name__}; define `scaled(factor)` on it, or calibrate the predictive "
            f"instead (bayesify.temperature_scaled)."
        )
    return posterior.replaced(q if factor == 1 else q.scaled(factor))


def _nll(
    posterior: WeightPosterior,
    batches: Callable[[], Iterable[tuple[Inputs, Tensor]]],
    num_samples: int,
    seed: int | None,
) -> float:
    """Nats per example (and position); infinite where a prediction is no number."""
    total, count = 0.0, 0
    for inputs, target in batches():
        generator = None if seed is None else stream(seed, "predict")
        predictive = posterior.predict(inputs, num_samples=num_samples, generator=generator)
        log_prob = predictive.log_prob(target)
        total, count = total - log_prob.double().sum().item(), count + log_prob.numel()
    return total / count if math.isfinite(total) else math.inf
