"""<Name>: what it does, in one sentence.

Source: <Authors> <year>, arXiv <id>, <section, algorithm or equation>.

    q(w)  = ...
    loss  = ...                            in nats per example, with our symbols (docs/glossary.md)

Completions of ours: <where the source is silent, what you chose, and why>.
Cost: <parameters, memory, time, as multiples of ordinary training>.
"""

from dataclasses import dataclass

from torch import Tensor

from bayesify.core.options import check_options, option
from bayesify.core.types import Inputs
from bayesify.distributions.particles import Particles
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.loop import GradientRun, adam
from bayesify.training.method import Method, Pretrain
from bayesify.training.objective import Objective, member_losses
from bayesify.training.problem import Problem


@dataclass(frozen=True)
class Name(Method):
    """What a user gets."""

    pretrain: Pretrain = option(None, help="method that trains the network first")
    epochs: int = option(10, help="passes over the data", at_least=1)
    lr: float = option(1e-3, help="initial learning rate", above=0)

    def __post_init__(self) -> None:
        check_options(self)

    def start(self, problem: Problem) -> GradientRun:
        """Begin."""
        objective = NameObjective(problem)
        return GradientRun(
            objective,
            adam(objective.parameter_groups(lr=self.lr)),
            epochs=self.epochs,
            steps_per_epoch=problem.data.steps_per_epoch,
        )


class NameObjective(Objective):
    """The loss; its parameters, and the likelihood's, are what is learnt."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.q = Particles.of_models([problem.model])

    def forward(self, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The terms of a batch, nats per example."""
        losses = member_losses(
            self.problem.model,
            self.q,
            self.likelihood,
            inputs,
            target,
            readout=self.problem.readout,
        )
        return {"loss": losses.sum()}

    def posterior(self) -> WeightPosterior:
        """What has been learnt so far."""
        return self.problem.posterior(self.q)
