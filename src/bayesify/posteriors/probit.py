"""A posterior that damps the outputs of uncertain inputs instead of averaging over samples.

    p(y | x) ~ likelihood of f = m / sqrt(1 + pi v / 8),    m = f(x, w*),  v = var f(x, w),  w ~ q

Source: MacKay 1992, Neural Computation 4(5), for one logit, whose averaged sigmoid it approximates
to .02; for many classes, logit by logit, Daxberger et al. 2021, arXiv 2106.14806, appendix
B.3: what laplace-torch predicts with by default. For many classes it is no approximation of the
average but a rule of its own, which leaves out how logits move together. On trained networks it
was the better predictive of the two (benchmarks/peers/README.md).

Here v is the mean square of the samples' deviations from m, so S decides how well it is known (to a
quarter at S = 32), and nothing else. There is one output in place of S: what the weights disagree
on, mutual information, is gone. Right where outputs are linear in the random weights, or
linearised; elsewhere m is not their mean. Certificates and far-away limits are of the weights' law,
not of this rule, and are given for the average over samples (`sampled`).
Cost: that of the samples, and one more pass of the network for m.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.batches import to_device
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs
from bayesify.distributions.base import WeightDistribution, check_one_network
from bayesify.forward.outputs import call_at
from bayesify.likelihoods import Likelihood
from bayesify.numerics.noise import widened
from bayesify.posteriors.linearised import LinearisedPosterior
from bayesify.posteriors.weight import WeightPosterior

OF_LOGITS = ("classification", "multilabel")
"""Tasks whose outputs can be damped."""


class ProbitPosterior(WeightPosterior):
    """A distribution over weights that damps logits.

    Arguments as `WeightPosterior`.

    Raises:
        OptionError: q is made of several networks, each trained for itself, whose mean is none.
        UnsupportedModelError: the likelihood is of numbers; their average needs no approximation.

    Example:
        >>> from bayesify import Categorical, MeanField
        >>> net = nn.Linear(4, 3)
        >>> posterior = ProbitPosterior(net, MeanField.around(net, scale=1.0), Categorical())
        >>> posterior.outputs(torch.ones(2, 4), num_samples=8).shape
        torch.Size([1, 2, 3])
    """

    def __init__(
        self, model: nn.Module, q: WeightDistribution, likelihood: Likelihood, **how: Any
    ) -> None:
        super().__init__(model, q, likelihood, **how)
        check_one_network(q, type(self).__name__)
        if likelihood.task not in OF_LOGITS:
            raise UnsupportedModelError(
                f"{type(self).__name__} damps logits: expected a likelihood of classes, got "
                f"{type(likelihood).__name__}; take a plain bayesify.WeightPosterior."
            )

    def outputs(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Float[Tensor, "1 batch ..."]:
        """One damped output for each input; arguments as `Posterior.outputs`."""
        samples = super().outputs(
            x, num_samples=num_samples, generator=generator, chunk_size=chunk_size
        )
        x = to_device(x, self.device)
        with evaluating(self.model):
            mean = call_at(self.model, self.q.point(), x, self.readout)[None]
        mean, samples = widened(mean), widened(samples)
        return damped(mean, (samples - mean).square().mean(0))

    def sampled(self) -> WeightPosterior:
        """The same with its samples averaged."""
        return WeightPosterior.around(self)


class LinearisedProbitPosterior(ProbitPosterior, LinearisedPosterior):
    """The same for the linearised network; arguments as `WeightPosterior`.

    Example:
        >>> from bayesify import Categorical, MeanField
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> q = MeanField.around(net, scale=0.1)
        >>> posterior = LinearisedProbitPosterior(net, q, Categorical())
        >>> posterior.predict(torch.zeros(2, 4)).probs.shape
        torch.Size([2, 3])
    """

    def sampled(self) -> WeightPosterior:
        """The same with its samples averaged."""
        return LinearisedPosterior.around(self)


def damped(mean: Float[Tensor, "..."], variance: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Logits m / sqrt(1 + pi v / 8), whose sigmoid is nearly the average of sigmoids over N(m, v).

    Example:
        >>> damped(torch.tensor(2.0), torch.tensor(8 / math.pi))
        tensor(1.4142)
    """
    return mean / (1 + math.pi / 8 * variance).sqrt()
