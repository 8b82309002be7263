"""MAP: the single most probable network, i.e. ordinary training with weight decay.

    loss = mean_b -log p(y_b | x_b, w)  -  log p(w) / N,    p(w) = N(0, prior_scale^2)

The ensemble of one member that starts from the given weights, in whose memory it is trained. No
uncertainty about the weights: the baseline that every method has to beat, and the pretraining of
those that start from a trained net.
Cost: that of ordinary training.
"""

from dataclasses import dataclass

from bayesify.core.modes import train_
from bayesify.core.options import check_options, option
from bayesify.distributions.particles import Particles
from bayesify.methods.members.training import Training, train_members
from bayesify.training.loop import GradientRun
from bayesify.training.method import Method
from bayesify.training.problem import Problem


@dataclass(frozen=True)
class MAP(Method):
    """Maximum a posteriori: train the network as it is.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> posterior = bayesify.fit(torch.nn.Linear(4, 3), (x, y), MAP(epochs=1))
        >>> posterior.predict(x).logits.shape                  # one sample: a point estimate
        torch.Size([1, 64, 3])
    """

    epochs: int = option(60, help="passes over the data", at_least=1)
    lr: float = option(3e-3, help="initial learning rate of Adam, falls along a cosine", above=0)
    prior_scale: float = option(1.0, help="standard deviation of the weights' prior", above=0)

    def __post_init__(self) -> None:
        check_options(self)

    def trains_network(self) -> bool:
        """It trains whatever network it is given."""
        return True

    def start(self, problem: Problem) -> GradientRun:
        """Train from the weights the model has."""
        train_(problem.model)
        q = Particles.sharing(problem.model)
        return train_members(problem, q, Training(self.epochs, self.lr, self.prior_scale))
