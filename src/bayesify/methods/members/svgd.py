"""SVGD: M full networks under Stein variational gradient descent.

Source: Liu & Wang 2016, arXiv 1608.04471 (algorithm 1, median rule for the bandwidth); in the space
of outputs, Wang et al. 2019, arXiv 1902.09754.

    g_i  =  1/M sum_j [ k(w_j, w_i) g_j  -  (T / N) grad_{w_j} k(w_j, w_i) ]
    k(w, w')  =  exp(-|w - w'|^2 / h)

A deep ensemble (`ensemble.py`) whose members repel each other. With T = 1 the repulsion is
1 / N of a gradient of the loss per example: on data of real size the members are then, as far as
one can see, averages of each other's gradients. In millions of coordinates distances concentrate,
and k is nearly the same for all pairs; kernel="function" compares outputs instead.
Cost: that of the ensemble and O(M^2 P) for P weights.
"""

from dataclasses import dataclass

from bayesify.core.modes import train_
from bayesify.core.options import check_options, option
from bayesify.distributions.particles import Particles
from bayesify.methods.members.fresh import fresh_starts
from bayesify.methods.members.training import Training, train_members
from bayesify.training.loop import GradientRun
from bayesify.training.method import Method
from bayesify.training.problem import Problem


@dataclass(frozen=True)
class SVGD(Method):
    """Stein variational gradient descent over all weights.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = SVGD(members=3, epochs=1)
        >>> bayesify.fit(torch.nn.Linear(4, 3), (x, y), method).predict(x).logits.shape
        torch.Size([3, 64, 3])
    """

    members: int = option(5, help="how many networks", at_least=1)
    kernel: str = option(
        "weights",
        help="what is compared: weights, or outputs on the batch",
        choices=("weights", "function"),
    )
    temperature: float = option(
        1.0, help="T of the repulsion, divided by N; 1 targets the posterior", at_least=0
    )
    epochs: int = option(60, help="passes over the data", at_least=1)
    lr: float = option(3e-3, help="initial learning rate of Adam, falls along a cosine", above=0)
    prior_scale: float = option(1.0, help="standard deviation of the weights' prior", above=0)
    clip: float | None = option(
        None, help="largest norm of a member's gradient; none: any", above=0
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
        """Draw M starts and let them move together."""
        q = Particles.of_models(fresh_starts(problem.model, self.members, problem.generator))
        train_(problem.model)
        return train_members(
            problem,
            q,
            Training(
                self.epochs,
                self.lr,
                self.prior_scale,
                kernel=self.kernel,
                temperature=self.temperature,
                clip=self.clip,
            ),
        )
