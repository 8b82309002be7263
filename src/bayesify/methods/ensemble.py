"""Deep ensemble: M networks from M random starts, averaged.

Source: Lakshminarayanan, Pritzel & Blundell 2017, arXiv 1612.01474, algorithm 1.

    loss = sum_m [ mean_b -log p(y_b | x_b, w_m)  -  log p(w_m) / N ],    p(w) = N(0, prior_scale^2)

The members are independent: the gradient of the sum with respect to w_m is that of the m-th term.
The log prior enters as the optimiser's decay 1 / (N prior_scale^2), whose gradient is the same.
Deviations: no adversarial training (the authors' is optional); all members see the same
mini-batches, so they differ by their starts alone; a learnt likelihood scale is shared.
Cost: M times the parameters and time of one network, but one graph: members run at once where that
is faster. MAP (`methods/map.py`) is the ensemble of one member that starts from the given weights.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesify.distributions.particles import Particles
from bayesify.errors import UnsupportedModelError
from bayesify.forward import activation_bytes, default_chunk_size
from bayesify.methods.base import GradientRun, Problem, adam
from bayesify.modes import seeded
from bayesify.objective import member_losses
from bayesify.options import check_options, option, register
from bayesify.posterior import WeightPosterior
from bayesify.types import Inputs

LIKELIHOOD_RATE = 10
"""Learning rate of the likelihood's own numbers (a log scale), in units of that of the weights: it
may have nats to go where weights have hundredths, and few steps on small data.
"""


@register
@dataclass(frozen=True)
class Ensemble:
    """Deep ensemble of `members` networks, each from a random start of its own.

    Example:
        >>> import bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> posterior = bayesify.fit(nn.Linear(4, 3), (x, y), Ensemble(members=3, epochs=1))
        >>> posterior.predict(x).logits.shape
        torch.Size([3, 64, 3])
    """

    members: int = option(5, help="how many networks", at_least=2)
    epochs: int = option(60, help="passes over the data", at_least=1)
    lr: float = option(3e-3, help="initial learning rate of Adam, falls along a cosine", above=0)
    prior_scale: float = option(1.0, help="standard deviation of the weights' prior", above=0)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def pretrain(self) -> None:
        """It trains the network itself."""

    def start(self, problem: Problem) -> GradientRun:
        """Draw M starts and train them together."""
        q = Particles.of_models(fresh_starts(problem.model, self.members, problem.generator))
        return train_members(
            problem, q, epochs=self.epochs, lr=self.lr, prior_scale=self.prior_scale
        )


def train_members(
    problem: Problem, q: Particles, *, epochs: int, lr: float, prior_scale: float
) -> GradientRun:
    """A run that trains the members of q independently, each to its own mode."""
    learnt = [each for each in q.parameters() if each.requires_grad]
    if not learnt:
        raise UnsupportedModelError(
            f"every weight of {type(problem.model).__name__} is frozen (requires_grad=False), so "
            f"there is nothing to train; unfreeze some, or start from the trained network with "
            f"`pretrain=None`."
        )
    problem.model.train()
    chunk_size = default_chunk_size(
        activation_bytes(problem.model, q, problem.example),
        problem.example,
        next(q.parameters()).device,
    )

    def terms(inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        losses = member_losses(
            problem.model,
            q,
            problem.likelihood,
            inputs,
            target,
            chunk_size=chunk_size,
            vectorize=problem.vectorize,
            readout=problem.readout,
        )
        return {"loss": losses.sum(), "nll": losses.detach().mean()}

    groups = [
        {"params": learnt, "lr": lr},
        {
            "params": list(problem.likelihood.parameters()),
            "lr": LIKELIHOOD_RATE * lr,
            "weight_decay": 0.0,
        },
    ]
    return GradientRun(
        terms,
        adam(groups, weight_decay=1 / (problem.num_data * prior_scale**2)),
        epochs=epochs,
        steps_per_epoch=problem.steps_per_epoch,
        posterior=lambda: WeightPosterior(
            problem.model,
            q,
            problem.likelihood,
            readout=problem.readout,
            vectorize=problem.vectorize,
        ),
    )


def fresh_starts(model: nn.Module, members: int, generator: torch.Generator) -> list[nn.Module]:
    """M copies of `model`, each initialised anew by its modules' own `reset_parameters`.

    Modules whose weights are all frozen keep them.

    Raises:
        UnsupportedModelError: when a module owns weights but has no way to draw them anew.
    """
    starts = [copy.deepcopy(model) for _ in range(members)]
    with seeded(int(torch.randint(2**62, (), generator=generator)), model):
        for start in starts:
            for name, module in reversed(list(start.named_modules())):  # a parent's word is last
                _reset_(name, module)
    return starts


def _reset_(name: str, module: nn.Module) -> None:
    own = list(module.parameters(recurse=False))
    if own and not any(each.requires_grad for each in own):
        return
    for method in ("reset_parameters", "_reset_parameters"):  # the latter: torch's attention
        if callable(reset := getattr(module, method, None)):
            reset()
            return
    if owned := [each for each, _ in module.named_parameters(recurse=False)]:
        raise UnsupportedModelError(
            f"an ensemble needs M random starts, but `{name or type(module).__name__}` "
            f"({type(module).__name__}) owns {', '.join(owned)} and has no `reset_parameters()` "
            f"to draw them anew; give the class one."
        )
