"""Deep ensemble: M networks from M random starts, averaged.

Source: Lakshminarayanan, Pritzel & Blundell 2017, arXiv 1612.01474, algorithm 1.

    loss = sum_m [ mean_b -log p(y_b | x_b, w_m)  -  log p(w_m) / N ],    p(w) = N(0, prior_scale^2)

The members are independent: the gradient of the sum with respect to w_m is that of the m-th term.
The log prior enters as the optimiser's decay 1 / (N prior_scale^2), whose gradient is the same.
Deviations: no adversarial training (the authors' is optional); all members see the same
mini-batches, so they differ by their starts alone; a learnt likelihood scale is shared.
Cost: M times the parameters and time of one network, but one graph: members run at once where that
is faster. MAP (`map.py`) is the ensemble of one member that starts from the given weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bayesify.core.modes import train_
from bayesify.core.options import check_options, option
from bayesify.distributions.particles import Particles
from bayesify.methods.members.fresh import fresh_starts
from bayesify.methods.members.training import Training, train_members
from bayesify.training.loop import GradientRun
from bayesify.training.method import Method
from bayesify.training.problem import Problem


@dataclass(frozen=True)
class Ensemble(Method):
    """Deep ensemble of `members` networks, each from a random start of its own.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> posterior = bayesify.fit(torch.nn.Linear(4, 3), (x, y), Ensemble(members=3, epochs=1))
        >>> posterior.predict(x).logits.shape
        torch.Size([3, 64, 3])
    """

    members: int = option(5, help="how many networks", at_least=2)
    epochs: int = option(60, help="passes over the data", at_least=1)
    lr: float = option(3e-3, help="initial learning rate of Adam, falls along a cosine", above=0)
    prior_scale: float = option(1.0, help="standard deviation of the weights' prior", above=0)
    build: Callable[[], nn.Module] | None = option(
        None, help="makes a network of the same architecture anew; none: its modules' own ways"
    )

    def __post_init__(self) -> None:
        check_options(self)

    def trains_network(self) -> bool:
        """It trains whatever network it is given."""
        return True

    def draws_weights(self) -> bool:
        """Each member begins at its own."""
        return True

    def start(self, problem: Problem) -> GradientRun:
        """Draw M starts and train them together."""
        starts = fresh_starts(problem.model, self.members, problem.generator, self.build)
        q = Particles.of_models(starts)
        train_(problem.model)
        return train_members(problem, q, Training(self.epochs, self.lr, self.prior_scale))
