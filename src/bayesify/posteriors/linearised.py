"""A posterior whose network is linear in its weights: the tangent at their point, under samples.

    f_lin(x, w) = f(x, w*) + J(x) (w - w*),    J = df / dw at w*,    w ~ q,    w* = q.point()

Source: Khan et al. 2019, arXiv 1906.01930; Immer et al. 2021, arXiv 2008.08216 (the "GLM
predictive"). Curvature of the linearised network belongs to the linearised network: weights drawn
by it can be far off in the network itself, where that is not linear. For a Gaussian q the outputs
are Gaussian, with the covariance J cov(w) J^T; their samples go through the likelihood as any
others, and nothing is approximated but the average.

J is never formed. A sample costs one product with it, forward in one pass beside the network's own
(`torch.func.jvp`), so 2 to 3 forward passes whatever the number of outputs.
"""

import warnings
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp

from bayesify.core.batches import to_device
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs
from bayesify.distributions.base import WeightDistribution, check_one_network
from bayesify.forward.outputs import linearised_outputs
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.weight import WeightPosterior, check_samples
from bayesify.weights.named import buffers_of


class LinearisedPosterior(WeightPosterior):
    """A distribution over weights, seen through the network's tangent at its point.

    Arguments as `WeightPosterior`; any distribution over the weights of one network will do.

    Raises:
        OptionError: q is made of several networks, each trained for itself; they have no tangent
            in common.
        UnsupportedModelError: q sets buffers, such as members' batch norm statistics.

    Example:
        >>> from bayesify.distributions import MeanField
        >>> from bayesify.likelihoods import Categorical
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> posterior = LinearisedPosterior(net, MeanField.around(net, scale=0.1), Categorical())
        >>> posterior.predict(torch.zeros(2, 4)).probs.shape
        torch.Size([2, 3])
    """

    def __init__(
        self, model: nn.Module, q: WeightDistribution, likelihood: Likelihood, **how: Any
    ) -> None:
        super().__init__(model, q, likelihood, **how)
        check_one_network(q, type(self).__name__)
        if held := sorted(set(q.names) & set(buffers_of(model))):
            raise UnsupportedModelError(
                f"LinearisedPosterior: expected a distribution over weights, got a "
                f"{type(q).__name__} that sets the buffers {', '.join(held)} too, in which nothing "
                f"is linearised; take a plain bayesify.WeightPosterior."
            )

    def outputs(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Float[Tensor, "samples batch ..."]:
        """What the linearised network returns; arguments as `Posterior.outputs`.

        Raises:
            UnsupportedModelError: a layer has no derivative in forward mode (nn.LSTM has none).
        """
        check_samples(num_samples, chunk_size)
        x = to_device(x, self.device)
        _prepare_forward_mode()
        with evaluating(self.model):
            return linearised_outputs(
                self.model,
                self.q,
                x,
                num_samples,
                generator=generator or self.stream(),
                chunk_size=chunk_size or self._chunk_size(x, num_samples),
                vectorize=self.vectorize,
                readout=self.readout,
            )


@cache
def _prepare_forward_mode() -> None:
    """At the first use torch compiles formulas by a function that it has deprecated, and warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))
