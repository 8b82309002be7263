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
from bayesify.training.loop import GradientRun, adam
from bayesify.training.method import Method
from bayesify.training.objective import member_losses
from bayesify.training.problem import Problem


@dataclass(frozen=True)
class Name:
    """What a user gets."""

    pretrain: Method | None = option(None, help="method that trains the network first")
    epochs: int = option(10, help="passes over the data", at_least=1)
    lr: float = option(1e-3, help="initial learning rate", above=0)

    def __post_init__(self) -> None:
        check_options(self)

    def start(self, problem: Problem) -> GradientRun:
        """Begin."""
        q = Particles.of_models([problem.model])

        def terms(inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
            losses = member_losses(
                problem.model, q, problem.likelihood, inputs, target, readout=problem.readout
            )
            return {"loss": losses.sum()}

        groups = [{"params": [*q.parameters(), *problem.likelihood.parameters()], "lr": self.lr}]
        return GradientRun(
            terms,
            adam(groups),
            epochs=self.epochs,
            steps_per_epoch=problem.steps_per_epoch,
            posterior=lambda: problem.posterior(q),
        )
