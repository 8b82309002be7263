"""What a method is asked to fit: a network, a likelihood, and training data to look at."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesify.core.types import Inputs, Readout
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.priors import Prior
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.tracing.trace import call
from bayesify.training.data import Batches, TrainingData


@dataclass(frozen=True)
class Problem:
    """What a method is asked to fit.

    Attributes:
        model: A copy of the user's network, which the run may put in a mode and freeze.
        likelihood: What its outputs mean; its parameters, if any, are trained too.
        data: The training examples.
        readout: Turns what the model returns into a tensor.
        vectorize: Whether samples and members run at once.
        generator: Source of the run's noise.
        validation: Gives batches of held-out examples, in the order of their loader: for choosing
            numbers, never for training. None when none were given.
        trained: What the pretraining left, whose point the model has already; None without one.
    """

    model: nn.Module
    likelihood: Likelihood
    data: TrainingData
    readout: Readout
    vectorize: bool
    generator: torch.Generator
    validation: Batches | None = None
    trained: Posterior | None = None

    def network_loss(self, inputs: Inputs, target: Tensor) -> Tensor:
        """Of the network as it is: mean of -log p, nats per example (and position)."""
        outputs = self.readout(call(self.model, inputs))
        return -self.likelihood.log_prob(outputs[None], target).mean()

    def posterior(self, q: WeightDistribution, prior: Prior | None = None) -> WeightPosterior:
        """The model and the likelihood with q over the weights, which had that prior."""
        return WeightPosterior(
            self.model,
            q,
            self.likelihood,
            readout=self.readout,
            vectorize=self.vectorize,
            prior=prior,
        )
