"""MAP: the single most probable network, i.e. ordinary training with weight decay.

    loss = mean_b -log p(y_b | x_b, w)  -  log p(w) / N,    p(w) = N(0, prior_scale^2)

The ensemble of one member that starts from the given weights, trained as torch trains any network:
in its own parameters, so nothing is stacked or replaced. No uncertainty about the weights: the
baseline that every method has to beat, and the pretraining of those that start from a trained net.
Cost: that of ordinary training.
"""

from dataclasses import dataclass

from torch import Tensor

from bayesify.core.modes import train_
from bayesify.core.options import check_options, option
from bayesify.core.types import Inputs
from bayesify.distributions.particles import Particles
from bayesify.forward.checkpointing import no_checkpointing
from bayesify.methods.members.training import optimiser_of, trainable
from bayesify.training.loop import GradientRun
from bayesify.training.method import Method
from bayesify.training.problem import Problem
from bayesify.weights.held_rows import keep_held_rows_


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
        """Yes."""
        return True

    def start(self, problem: Problem) -> GradientRun:
        """Train from the weights the model has."""
        model = train_(problem.model)
        share = 1 / (problem.num_data * self.prior_scale**2)

        def terms(inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
            with no_checkpointing():  # methods that go on from here would not bear it
                return {"loss": problem.network_loss(inputs, target)}

        optimiser = optimiser_of(problem, trainable(model, problem), lr=self.lr, decay=share)
        keep_held_rows_(model, optimiser)
        return GradientRun(
            terms,
            optimiser,
            epochs=self.epochs,
            steps_per_epoch=problem.steps_per_epoch,
            posterior=lambda: problem.posterior(Particles.of_models([model])),
        )
