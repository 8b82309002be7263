"""MC dropout: the dropout that a network was trained with stays on when it predicts.

Source: Gal & Ghahramani 2016, arXiv 1506.02142, sections 3 and 4, equation 6.

    p(y | x)  ~  1/S sum_s p(y | x, w, z_s),    z_s ~ Bernoulli(1 - p) for each unit before a layer

Training with dropout and weight decay descends, up to constants, the negative ELBO of q(w) = the
law of the masked weights (their section 3.1), so nothing is learnt beyond the pretraining, which
`MAP` does with the dropout layers on. How uncertain the network is was decided by whoever chose p:
the data choose it neither here nor there, and no amount of data makes it smaller.
Deviations: a sample has one mask for all examples (`posteriors/dropout.py` says why). For
regression the authors read the noise off p, the decay and N (section 4); ours is the likelihood's
own. Cost: one forward pass over the training data, for the loss in the record; S passes to predict,
one after the other; no parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesify.core.batches import rows
from bayesify.core.options import check_options, option
from bayesify.core.types import Inputs
from bayesify.methods.members.map import MAP
from bayesify.posteriors.dropout import DropoutPosterior
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain
from bayesify.training.problem import Problem


@dataclass(frozen=True)
class MCDropout(Method):
    """Predict with the dropout that the network was trained with.

    Example:
        >>> import torch, bayesify
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> posterior = bayesify.fit(net, (x, y), MCDropout(pretrain=bayesify.MAP(epochs=1)))
        >>> posterior.predict(x, num_samples=10).logits.shape
        torch.Size([10, 64, 3])
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)

    def __post_init__(self) -> None:
        check_options(self)

    def start(self, problem: Problem) -> "DropoutRun":
        """Take the network as it is.

        Raises:
            UnsupportedModelError: it has no dropout layers, calls none, or the batch is not the
                first axis of what they act on.
        """
        return DropoutRun(problem)


class DropoutRun:
    """One look at the loss under dropout; there is nothing to learn."""

    epochs = 1

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._posterior = DropoutPosterior(
            problem.model.eval(), problem.likelihood, readout=problem.readout
        )
        with torch.no_grad():  # says now if it cannot be done; of one example any axis is the first
            self._posterior.outputs(rows(problem.data.example, slice(2)), num_samples=1)

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """The loss of the batch under fresh masks, nats per example, which training descended."""
        with torch.no_grad():
            outputs = self._posterior.outputs(
                inputs, num_samples=1, generator=self.problem.generator
            )
            return {"loss": -self.problem.likelihood.log_prob(outputs, target).mean().item()}

    def end_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def posterior(self) -> DropoutPosterior:
        """The network, with its dropout on."""
        return self._posterior
