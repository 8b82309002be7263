"""A deep ensemble of one pretrained network: fine-tuned M times, on batches in M orders.

Members that start at the same weights differ by the order (and augmentation) of the batches alone,
so they are trained one after the other, each on passes of its own, as MAP is. The honest rival of
methods that put cheap members around a pretrained network. Statistics of batch norm stay those of
the network by default: moving ones cost likelihood (benchmarks/README.md).
Cost: M times the parameters and time of fine-tuning.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from bayesify.core.clones import clone
from bayesify.core.modes import train_
from bayesify.core.options import check_options, option
from bayesify.core.types import Inputs, Where
from bayesify.distributions.particles import Particles
from bayesify.forward.batch_norm import batch_norms
from bayesify.methods.members.fresh import fresh_weights
from bayesify.methods.members.map import MAP
from bayesify.methods.members.training import Training, train_members
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain, Run
from bayesify.training.problem import Problem
from bayesify.weights.named import assign_


@dataclass(frozen=True)
class FineTunedEnsemble(Method):
    """`members` networks fine-tuned from the same weights.

    Example:
        >>> import bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = FineTunedEnsemble(pretrain=bayesify.MAP(epochs=1), members=3, epochs=1)
        >>> bayesify.fit(torch.nn.Linear(4, 3), (x, y), method).predict(x).logits.shape
        torch.Size([3, 64, 3])
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    members: int = option(5, help="how many networks", at_least=2)
    epochs: int = option(5, help="passes over the data for each", at_least=1)
    lr: float = option(1e-3, help="initial learning rate of Adam, falls along a cosine", above=0)
    prior_scale: float = option(1.0, help="standard deviation of the weights' prior", above=0)
    heads: Where | None = option(
        None, help="weights of a new head, drawn anew for each member; none: there is none"
    )
    batch_norm: str = option(
        "frozen",
        help="statistics of batch norm: those of the network, or moving for each member",
        choices=("frozen", "moving"),
    )

    def __post_init__(self) -> None:
        check_options(self)

    def start(self, problem: Problem) -> "OneByOne":
        """Begin with the first member."""
        return OneByOne(problem, self._fine_tuned, self.members)

    def _fine_tuned(self, problem: Problem) -> Run:
        if self.heads is not None:
            names = self.heads(problem.model, problem.data.example)
            drawn = fresh_weights(problem.model, names, 1, problem.generator)
            assign_(problem.model, {name: each[0] for name, each in drawn.items()})
        q = Particles.of_models([problem.model])
        train_(problem.model)
        if self.batch_norm == "frozen":
            for norm in batch_norms(problem.model).values():
                norm.eval()
        return train_members(problem, q, Training(self.epochs, self.lr, self.prior_scale))


class OneByOne:
    """A run that fits the same network M times, and mixes what it found.

    Args:
        problem: Its model and likelihood are where every member starts, and are not changed.
        start: Begins the fit of one member.
        members: M.
    """

    def __init__(self, problem: Problem, start: Callable[[Problem], Run], members: int) -> None:
        self._problem, self._start, self._members = problem, start, members
        self._done: list[WeightPosterior] = []
        self._run = self._next()
        self._epoch = 0

    @property
    def epochs(self) -> int:
        """Passes over the data for all members."""
        return self._members * self._run.epochs

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """A step of the member at work."""
        return self._run.step(inputs, target)

    def end_epoch(self, epoch: int) -> None:
        """Go on to the next member when this one has had its passes."""
        self._run.end_epoch(self._epoch)
        self._epoch += 1
        if self._epoch == self._run.epochs and len(self._done) < self._members - 1:
            self._done.append(self._finished())
            self._run, self._epoch = self._next(), 0

    def posterior(self) -> WeightPosterior:
        """The members that are done and the one at work; the others are where they start."""
        waiting = self._members - len(self._done) - 1
        at_start = Particles.of_models([self._problem.model])
        found = [*self._done, self._finished()]
        fitted = [cast(Particles, each.q) for each in found]
        q = Particles.joined([*fitted, *waiting * [at_start]])
        likelihood = clone(self._problem.likelihood)
        averaged = {
            name: torch.stack([each.likelihood.state_dict()[name] for each in found]).mean(0)
            for name in likelihood.state_dict()
        }
        likelihood.load_state_dict(averaged)
        return replace(self._problem, likelihood=likelihood).posterior(q)

    def _next(self) -> Run:
        return self._start(
            replace(
                self._problem,
                model=clone(self._problem.model),
                likelihood=clone(self._problem.likelihood),
            )
        )

    def _finished(self) -> WeightPosterior:
        return cast(WeightPosterior, self._run.posterior())
