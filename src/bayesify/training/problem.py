"""What a method is asked to fit: a network, a likelihood, and training data to look at."""

from collections.abc import Callable, Iterator
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


@dataclass(frozen=True)
class Problem:
    """What a method is asked to fit.

    Attributes:
        model: A copy of the user's network, which the run may put in a mode and freeze.
        likelihood: What its outputs mean; its parameters, if any, are trained too.
        num_data: Training examples N: as many as one pass gives.
        steps_per_epoch: Batches in an epoch.
        example: Inputs of the first batch.
        inputs: Gives the inputs of all training batches, on the model's device, for a look at the
            data before the first step.
        batches: Gives all training batches, inputs and targets, in an order of its own, for what
            needs more passes than the run is fed with.
        readout: Turns what the model returns into a tensor.
        vectorize: Whether samples and members run at once.
        generator: Source of the run's noise.
        validation: Gives batches of held-out examples, inputs and targets, on the model's device,
            in the order of their loader: for choosing numbers, never for training. None when none
            were given.
        augmented: Whether the training examples change from pass to pass; looks at a few.
        trained: What the pretraining left, whose point the model has already; None without one.
        smallest: Inputs and target of the smallest batch, on the model's device.
        different: Different examples that the passes give in all: more than N where each pass
            leaves some out. None: N.
    """

    model: nn.Module
    likelihood: Likelihood
    num_data: int
    steps_per_epoch: int
    example: Inputs
    inputs: Callable[[], Iterator[Inputs]]
    batches: Callable[[], Iterator[tuple[Inputs, Tensor]]]
    readout: Readout
    vectorize: bool
    generator: torch.Generator
    validation: Callable[[], Iterator[tuple[Inputs, Tensor]]] | None = None
    augmented: Callable[[], bool] = lambda: False
    trained: Posterior | None = None
    smallest: tuple[Inputs, Tensor] | None = None
    different: int | None = None

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
