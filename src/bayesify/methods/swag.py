"""SWAG: a Gaussian through the iterates of SGD at a constant rate, around a trained net.

Source: Maddox et al. 2019, arXiv 1902.02476, algorithm 1 and equation 1; the mean is stochastic
weight averaging (Izmailov et al. 2018, arXiv 1803.05407).

    w_t    = w_(t-1) - lr * (with momentum) d/dw [ mean_b -log p(y_b | x_b, w) - log p(w) / N ]
    mean_n = mean of the n iterates collected so far, one in `collect_every` steps
    v      = mean of their squared differences from mean_n;   d_n = w_n - mean_n
    q(w)   = N(mean, [diag(v) + D^T D / (K - 1)] / 2),   rows of D: the last K = `rank` of d_n

As in algorithm 1 the weights that collecting starts from are the first iterate, without a row in
D. p(w) = N(0, prior_scale^2), as under `MAP`, enters as the optimiser's decay. The variance is
updated by differences (Welford 1962) in single precision or better, not taken as the difference
of two moments, as published: nothing cancels, and it cannot fall below its floor, 0.
Completions of ours: `burn_in` epochs whose iterates are not collected; weights that `where` leaves
out, or that are frozen, stay as trained; a learnt likelihood scale is averaged like the weights.
Deviation: the paper estimates batch norm's statistics anew for every sample of the weights, at a
pass over the data each. Samples are drawn afresh for every prediction here, so they share one set:
averages over the training batches at the mean of the weights.
Cost: that of `burn_in + epochs` epochs of training, K + 2 numbers for each random weight in memory
and on disk, and one forward pass over the data more where there is batch norm. S forward passes to
predict.
"""

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.modes import train_
from bayesify.core.options import check_options, option
from bayesify.core.types import Inputs, Named, Where
from bayesify.distributions.low_rank_normal import LowRankNormal
from bayesify.forward.batch_norm import batch_norms, recalibrate_
from bayesify.likelihoods import Likelihood
from bayesify.methods.members.map import MAP
from bayesify.numerics.noise import single_or_better
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.loop import GradientRun
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain
from bayesify.training.objective import Objective
from bayesify.training.problem import Problem
from bayesify.weights.named import assign_, stacked
from bayesify.weights.select import all_weights, chosen

RATE = 0.02
"""Of SGD, where None was left to decide."""

RATE_OF_VARIANCE = 0.1
"""The same in units of the noise variance, where the likelihood has one: the curvature of the loss
goes as its inverse, so that a rate which suits one noise diverges under a smaller.
"""


@dataclass(frozen=True)
class SWAG(Method):
    """Gaussian noise around the average of SGD's iterates, as wide as they wander.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = SWAG(pretrain=bayesify.MAP(epochs=1), epochs=5, rank=4)
        >>> posterior = bayesify.fit(torch.nn.Linear(4, 3), (x, y), method)
        >>> posterior.q.rank, posterior.predict(x).logits.shape
        (4, torch.Size([32, 64, 3]))
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    where: Where = option(all_weights, help="which weights are random, and move")
    epochs: int = option(
        20, help="passes over the data in which iterates are collected", at_least=1
    )
    burn_in: int = option(10, help="passes at the same rate before these", at_least=0)
    lr: float | None = option(
        None,
        help="learning rate of SGD, constant; none: 0.02, or a tenth of the noise variance",
        above=0,
    )
    momentum: float = option(0.9, help="momentum of SGD, below 1", at_least=0, at_most=0.999)
    prior_scale: float = option(1.0, help="standard deviation of the weights' prior", above=0)
    rank: int = option(20, help="last deviations kept, K", at_least=2)
    collect_every: int | None = option(
        None, help="steps between the iterates that are collected; none: an epoch", at_least=1
    )
    recalibrate: bool = option(
        True,
        help="estimate batch norm's statistics anew, at the mean; else they stay the network's",
    )

    def __post_init__(self) -> None:
        check_options(self)

    def start(self, problem: Problem) -> GradientRun:
        """Begin at the weights the network has.

        Raises:
            OptionError: no weight is chosen, or no iterate would be collected.
            UnsupportedModelError: all chosen weights are frozen.
        """
        steps = self.epochs * problem.data.steps_per_epoch
        if self.collect_every is not None and self.collect_every > steps:
            raise OptionError(
                f"SWAG(collect_every={self.collect_every}): expected at most the {steps} steps of "
                f"{self.epochs} epochs, so that some iterate is collected; lower it, or raise "
                f"`epochs`."
            )
        objective = Averaging(self, problem)
        rate = self.lr or _rate(problem.likelihood)
        sgd = torch.optim.SGD(
            objective.parameter_groups(lr=rate, likelihood_lr=rate),
            momentum=self.momentum,
            weight_decay=1 / (problem.data.num_data * self.prior_scale**2),
        )
        return GradientRun(
            objective,
            sgd,
            epochs=self.burn_in + self.epochs,
            steps_per_epoch=problem.data.steps_per_epoch,
            constant=True,
        )


class Averaging(Objective):
    """The loss of the network as it is, and the moments of where SGD has been.

    Args:
        options: Of the method.
        problem: What is fitted; the chosen weights move in its own network.
    """

    def __init__(self, options: SWAG, problem: Problem) -> None:
        super().__init__(problem)
        self.options = options
        train_(problem.model)
        norms = {n: each for n, each in batch_norms(problem.model).items() if each.training}
        self.norms = norms if options.recalibrate else {}
        self.weights = _moving(problem, options.where)
        self.learnt = nn.ParameterList(self.weights.values())
        self.noise = dict(problem.likelihood.named_parameters())
        if not options.recalibrate:
            for norm in norms.values():
                norm.eval()
        self.every = options.collect_every or problem.data.steps_per_epoch
        self.steps = 0
        self._begin()

    def forward(self, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The loss without the prior."""
        return {"loss": self.problem.network_loss(inputs, target)}

    @torch.no_grad()
    def stepped_(self) -> None:
        """Collect the iterate, if it is one of those."""
        super().stepped_()
        self.steps += 1
        if self.steps > self.begun and (self.steps - self.begun) % self.every == 0:
            self.iterates.add_(self.weights)
            self.noises.add_(self.noise)

    def end_epoch(self, epoch: int) -> None:
        """Start to collect after the burn-in; after the last, put the network at the mean."""
        if epoch + 1 == self.options.burn_in:
            self._begin()
        if epoch + 1 == self.options.burn_in + self.options.epochs:
            assign_(self.problem.model, self.iterates.mean)
            if self.norms:
                batches = (inputs for inputs, _ in self.problem.data.batches())
                recalibrate_(self.problem.model, batches, self.norms)

    def posterior(self) -> WeightPosterior:
        """Through the iterates so far; before the first, the start without noise."""
        q = self.iterates.normal({name: each.dtype for name, each in self.weights.items()})
        likelihood = copy.deepcopy(self.problem.likelihood)
        assign_(likelihood, self.noises.mean)
        return replace(self.problem, likelihood=likelihood).posterior(q)

    def _begin(self) -> None:
        """Collect from here; the present weights are the first iterate."""
        self.begun = self.steps
        self.iterates = Iterates(self.weights, self.options.rank)
        self.noises = Iterates(self.noise, 0)


class Iterates:
    """Running moments of named tensors, in single precision or better.

    Args:
        first: The first iterate. Copied.
        rank: How many of the last deviations are kept.

    Example:
        >>> iterates = Iterates({"w": torch.tensor([0.0])}, rank=2)
        >>> iterates.add_({"w": torch.tensor([2.0])})
        >>> iterates.mean, iterates.variance()
        ({'w': tensor([1.])}, {'w': tensor([1.])})
    """

    def __init__(self, first: Mapping[str, Tensor], rank: int) -> None:
        self.mean = _wide(first)
        self.squares = {name: torch.zeros_like(each) for name, each in self.mean.items()}
        self.deviations: deque[Named] = deque(maxlen=rank)
        self.count = 1

    def add_(self, iterate: Mapping[str, Tensor]) -> None:
        """One more."""
        self.count += 1
        now: Named = {}
        for name, each in _wide(iterate).items():
            before = each - self.mean[name]
            self.mean[name] += before / self.count
            now[name] = each - self.mean[name]
            self.squares[name] += before * now[name]  # of equal sign: the mean is between
        self.deviations.append(now)

    def variance(self) -> Named:
        """Mean squared difference from the mean, of 0 or above."""
        return {name: each / self.count for name, each in self.squares.items()}

    def normal(self, dtypes: dict[str, torch.dtype]) -> LowRankNormal:
        """The Gaussian of equation 1; deviations of zero stand in for the first two."""
        zero = {name: torch.zeros_like(each) for name, each in self.mean.items()}
        rows = [*self.deviations, *(2 - len(self.deviations)) * [zero]]
        scale = {name: each.sqrt() for name, each in self.variance().items()}
        loc, diagonal, deviations = (
            {name: each.to(dtypes[name]) for name, each in named.items()}
            for named in (self.mean, scale, stacked(rows))
        )
        return LowRankNormal(loc, diagonal, deviations)


def _rate(likelihood: Likelihood) -> float:
    precision = likelihood.output_precision(torch.empty(0))
    return RATE if precision is None else RATE_OF_VARIANCE / precision.item()


def _moving(problem: Problem, where: Where) -> dict[str, nn.Parameter]:
    """The chosen weights that are not frozen; all others are, from here on."""
    model = problem.model
    names = chosen(where, model, problem.data.example)
    held = dict(model.named_parameters())
    moving = {name: held[name] for name in names if held[name].requires_grad}
    if not moving:
        raise UnsupportedModelError(
            f"every weight of {type(model).__name__} that {where} chose is frozen "
            f"(requires_grad=False), so there is nothing for SGD to move; unfreeze some, or choose "
            f"others."
        )
    for name, each in held.items():
        each.requires_grad_(name in moving)
    return moving


def _wide(named: Mapping[str, Tensor]) -> Named:
    """A copy in single precision or better."""
    return {
        name: each.detach().to(single_or_better(each.dtype), copy=True)
        for name, each in named.items()
    }
