"""What is minimised: the losses of the library on one scale, nats per example, and their module.

    negative ELBO    mean_b E_q[-log p(y_b | x_b, w)]  +  T * KL(q || prior) / N
    member losses    mean_b -log p(y_b | x_b, w_m)                                for each member m

The KL divergence is the exact sum over weights, divided by the number of training examples N once,
here and nowhere else. T = 1 is Bayes; T < 1 is a tempered ("cold") posterior.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.types import Inputs, Readout
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.priors import Prior
from bayesify.forward.outputs import local_outputs, outputs, read_tensor
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.base import Posterior
from bayesify.training.problem import Problem
from bayesify.weights.held_rows import held_rows
from bayesify.weights.noise_scope import Scopes

LIKELIHOOD_RATE = 10
"""Learning rate of the likelihood's own numbers (a log scale), in units of that of the weights: it
may have nats to go where weights have hundredths, and few steps on small data.
"""


class Objective(nn.Module, ABC):
    """A loss that a run, or any other trainer, minimises; its parameters are all that is learnt.

    The user's network is no submodule: it is in `problem`, and is called with other weights.

    Args:
        problem: What is fitted; the parameters of its likelihood are learnt too.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.likelihood = problem.likelihood
        self.held = [(row, row.clone()) for _, row in held_rows(problem.model).values()]

    @abstractmethod
    def forward(self, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The terms of a batch, nats per example: `loss`, differentiable, and more to log."""

    @abstractmethod
    def posterior(self) -> Posterior:
        """What has been learnt so far."""

    def direct_(self) -> None:
        """Turn the gradients into the direction of the step, in place; as they are by default."""

    @torch.no_grad()
    def stepped_(self) -> None:
        """Mend the parameters in place after a step of the optimiser, or look at them.

        By default rows of the network's tables that torch holds fixed are put back where they were:
        an optimiser's decay makes no exceptions.
        """
        for row, value in self.held:
            row.copy_(value)

    def end_epoch(self, epoch: int) -> None:
        """After the last batch of each epoch, counted from 0."""

    def parameter_groups(self, *, lr: float, likelihood_lr: float | None = None) -> list[Any]:
        """Groups for an optimiser: all that is learnt, then the likelihood's own, without decay.

        Args:
            lr: Learning rate.
            likelihood_lr: That of the likelihood; None for `LIKELIHOOD_RATE` times the other.
        """
        noise = list(self.likelihood.parameters())
        ours = {id(each) for each in noise}
        learnt = [e for e in self.parameters() if e.requires_grad and id(e) not in ours]
        rate = LIKELIHOOD_RATE * lr if likelihood_lr is None else likelihood_lr
        return [
            {"params": learnt, "lr": lr},
            {"params": noise, "lr": rate, "weight_decay": 0.0},
        ]


class NegativeELBO(NamedTuple):
    """The two terms of the negative evidence lower bound.

    Attributes:
        nll: Expected negative log likelihood, nats per example.
        kl: KL(q || prior), nats, summed over all weights and not divided by anything.
        loss: nll + T * kl / N.
    """

    nll: Tensor
    kl: Tensor
    loss: Tensor


def elbo_terms(
    model: nn.Module,
    q: WeightDistribution,
    likelihood: Likelihood,
    prior: Prior,
    inputs: Inputs,
    target: Tensor,
    *,
    num_data: int,
    temperature: float = 1.0,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    scopes: Scopes | None = None,
    readout: Readout = read_tensor,
) -> NegativeELBO:
    """The terms of the negative ELBO on one batch. Arguments as `negative_elbo`."""
    raw = local_outputs(
        model, q, inputs, num_samples, generator=generator, scopes=scopes, readout=readout
    )  # (S, B, ...)
    nll = -likelihood.log_prob(raw, target).mean()
    kl = kl_divergence(q, prior)
    return NegativeELBO(nll, kl, nll + temperature * kl / num_data)


def negative_elbo(
    model: nn.Module,
    q: WeightDistribution,
    likelihood: Likelihood,
    prior: Prior,
    inputs: Inputs,
    target: Tensor,
    *,
    num_data: int,
    temperature: float = 1.0,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    scopes: Scopes | None = None,
    readout: Readout = read_tensor,
) -> Float[Tensor, ""]:
    """Negative evidence lower bound on one batch, nats per example; differentiable in q.

    Args:
        model: The network, in the mode the caller wants (eval, usually).
        q: The variational posterior.
        likelihood: What the outputs mean.
        prior: Prior over the weights of q.
        inputs: One batch of inputs.
        target: Its targets.
        num_data: Training examples N.
        temperature: T, the weight of the KL term.
        num_samples: Monte Carlo samples of the expectation.
        generator: Source of noise.
        scopes: Which noise may differ between examples or rows, so that gradients vary less: what
            `noise_scopes(model, inputs, q.names)` finds, once. None for one draw of the weights.
        readout: Turns what the model returns into a tensor.

    Example:
        >>> from bayesify.distributions import MeanField
        >>> from bayesify.likelihoods import Categorical
        >>> from bayesify.distributions.priors import NormalPrior
        >>> net = nn.Linear(4, 3)
        >>> q = MeanField.around(net, scale=0.1)
        >>> x, y = torch.randn(8, 4), torch.randint(3, (8,))
        >>> loss = negative_elbo(net, q, Categorical(), NormalPrior(1.0), x, y, num_data=8)
        >>> loss.backward()
    """
    return elbo_terms(
        model,
        q,
        likelihood,
        prior,
        inputs,
        target,
        num_data=num_data,
        temperature=temperature,
        num_samples=num_samples,
        generator=generator,
        scopes=scopes,
        readout=readout,
    ).loss


def member_losses(
    model: nn.Module,
    q: WeightDistribution,
    likelihood: Likelihood,
    inputs: Inputs,
    target: Tensor,
    *,
    chunk_size: int | None = None,
    vectorize: bool = True,
    readout: Readout = read_tensor,
) -> Float[Tensor, " members"]:
    """Mean negative log likelihood of each member, nats per example.

    Their sum has independent gradients for the members: train it, never the loss of the averaged
    logits.
    """
    raw = outputs(
        model, q, inputs, chunk_size=chunk_size, vectorize=vectorize, readout=readout
    )  # (M, B, ...)
    return -likelihood.log_prob(raw, target).flatten(1).mean(1)
