"""Training M members together, alone or under Stein variational gradient descent.

    loss = sum_m [ mean_b -log p(y_b | x_b, w_m)  -  log p(w_m) / N ],    p(w) = N(0, prior_scale^2)

The members' losses are summed, never the loss of averaged outputs: the gradient of the sum with
respect to member m is that of its own loss. Independent members get the log prior as the
optimiser's decay 1 / (N prior_scale^2), whose gradient is the same; under SVGD it is part of the
gradients that the kernel mixes. With kernel="function" the direction is taken in the space of the
outputs on the batch (Wang et al. 2019, arXiv 1902.09754), and carried back by each member's own
Jacobian; the prior stays with the weights.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from bayesify.core.batches import tensors_of
from bayesify.core.errors import DataError, UnsupportedModelError
from bayesify.core.types import Inputs
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.particles import Particles
from bayesify.forward.chunking import Footprint, default_chunk_size
from bayesify.forward.feature_cache import CACHE_LIMIT, FeatureCache
from bayesify.forward.outputs import outputs, own_outputs
from bayesify.forward.trunk import Trunk
from bayesify.methods.members.interaction import clip_members_, svgd_
from bayesify.numerics.kernels import DenseCoordinates
from bayesify.numerics.svgd import svgd_direction
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.loop import GradientRun, adam
from bayesify.training.objective import Objective
from bayesify.training.problem import Problem

T = TypeVar("T")

INDEPENDENT = "none"
"""The kernel of members that do not see each other."""


@dataclass(frozen=True)
class Training:
    """How members are trained.

    Attributes:
        epochs: Passes over the data.
        lr: Initial learning rate of Adam; it falls to zero along a cosine.
        prior_scale: Standard deviation of the prior on every learnt number.
        kernel: "none", or of SVGD: in weights "product" or "factor", in outputs "function".
        temperature: T, of SVGD's repulsion.
        clip: Largest norm of a member's gradient; None: any.
        rates: Learning rates of the members in units of `lr`; empty: all 1.
        decay: Decoupled weight decay, of AdamW; no prior corresponds to it.
        own_batches: Whether each member learns from batches of its own, in an order of its own.
        cache_features: Whether what comes before the first weight that is learnt is kept across
            epochs.
        cache_limit: Bytes that this may take.
    """

    epochs: int
    lr: float
    prior_scale: float
    kernel: str = INDEPENDENT
    temperature: float = 1.0
    clip: float | None = None
    rates: tuple[float, ...] = ()
    decay: float = 0.0
    own_batches: bool = False
    cache_features: bool = False
    cache_limit: int = CACHE_LIMIT


def train_members(
    problem: Problem, q: Particles | LowRankParticles, training: Training
) -> GradientRun:
    """A run that trains the members of q, in the mode that the model is in.

    Raises:
        UnsupportedModelError: every weight is frozen.
    """
    objective = MemberObjective(problem, q, training)
    if not objective.learnt:
        raise UnsupportedModelError(
            f"every weight of {type(problem.model).__name__} is frozen (requires_grad=False), so "
            f"there is nothing to train; unfreeze some, or start from the trained network with "
            f"`pretrain=None`."
        )
    groups = objective.parameter_groups(lr=training.lr)
    decay = training.decay if objective.is_explicit else objective.share
    optimiser = adam(groups, weight_decay=decay, decoupled=training.decay > 0)
    return GradientRun(
        objective, optimiser, epochs=training.epochs, steps_per_epoch=problem.data.steps_per_epoch
    )


class MemberObjective(Objective):
    """The sum of the members' losses on a batch, and the direction in which they go from there.

    Args:
        problem: What is fitted.
        q: The members.
        training: How they are trained.
    """

    def __init__(
        self, problem: Problem, q: Particles | LowRankParticles, training: Training
    ) -> None:
        super().__init__(problem)
        self.q, self.how = q, training
        self.learnt = [each for each in q.parameters() if each.requires_grad]
        self.in_weights = training.kernel not in (INDEPENDENT, "function")
        self.share = 1 / (problem.data.num_data * training.prior_scale**2)
        if training.kernel == "function":
            self.share /= q.size(1)  # as the direction is divided by M
        # whether the prior's gradient is added here, at the weights as they are, and not by Adam
        self.is_explicit = self.in_weights or training.decay > 0
        self.before: list[Tensor] = []
        self.chunk_size = default_chunk_size(
            Footprint.of(problem.model, q, problem.data.example),
            problem.data.example,
            next(q.parameters()).device,
            q.size(1),
        )
        self.cache, self.trunk = self._shared()
        self.others: list[Iterator[tuple[Inputs, Tensor]]] = []
        self.compared = False

    def forward(self, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The sum of the members' losses, and their mean without the prior, nats per example."""
        if self.how.own_batches:
            losses = self._own_losses(inputs, target)
            return {"loss": losses.sum(), "nll": losses.detach().mean()}
        raw = outputs(
            self.problem.model,
            self.q,
            inputs,
            chunk_size=self.chunk_size,
            vectorize=self.problem.vectorize,
            readout=self.problem.readout,
            within=self._within(inputs),
        )  # (M, B, ...)
        losses = self._losses(raw, target)
        loss = losses.sum()
        if self.how.kernel == "function":
            loss = self._in_function_space(raw, target, loss)
        return {"loss": loss, "nll": losses.detach().mean()}

    @torch.no_grad()
    def direct_(self) -> None:
        """Add the prior's gradient, mix the members' by the kernel, and cut what is too long."""
        if self.is_explicit:
            for each in self.learnt:
                prior = each * self.share
                each.grad = prior if each.grad is None else each.grad.add_(prior)
        if self.in_weights:
            svgd_(
                self.q,
                num_data=self.problem.data.num_data,
                temperature=self.how.temperature,
                kernel=self.how.kernel,
            )
        if self.how.clip is not None:
            clip_members_(self.learnt, self.how.clip)
        if self.how.rates:
            self.before = [each.detach().clone() for each in self.learnt]

    @torch.no_grad()
    def stepped_(self) -> None:
        """Let each member go its own part of the way; Adam knows no rates within a tensor."""
        super().stepped_()
        for each, start in zip(self.learnt, self.before, strict=True) if self.before else ():
            rates = torch.tensor(self.how.rates, dtype=torch.float64).to(each)
            each.copy_(torch.lerp(start, each, rates.view(-1, *[1] * (each.ndim - 1))))

    def end_epoch(self, epoch: int) -> None:
        """Members draw new batches, and a cache has been filled."""
        self.others = []
        if self.cache is not None:
            self.cache.end_epoch()

    def posterior(self) -> WeightPosterior:
        """The members so far."""
        return self.problem.posterior(self.q)

    def _losses(self, raw: Tensor, target: Tensor) -> Tensor:
        """Of each member, nats per example."""
        return -self.likelihood.log_prob(raw, target).flatten(1).mean(1)

    def _own_losses(self, inputs: Inputs, target: Tensor) -> Tensor:
        """The same, on the batch for the first member and one of its own for each other."""
        if not self.others:
            self.others = [repeatedly(self.problem.data.batches) for _ in range(self.q.size(1) - 1)]
        batches = [(inputs, target), *(next(each) for each in self.others)]
        if not self.compared:
            self.compared = True
            _warn_if_the_same(batches, self.problem)
        raw = own_outputs(
            self.problem.model,
            self.q,
            [x for x, _ in batches],
            chunk_size=self.chunk_size,
            vectorize=self.problem.vectorize,
            readout=self.problem.readout,
            within=[self.cache.shared(x) for x, _ in batches] if self.cache else (),
        )
        each = zip(raw, (y for _, y in batches), strict=True)
        return torch.cat([self._losses(one.unsqueeze(0), y) for one, y in each])

    def _in_function_space(self, raw: Tensor, target: Tensor, loss: Tensor) -> Tensor:
        """A number of the value of `loss`, whose gradient is SVGD's direction for the outputs."""
        (slope,) = torch.autograd.grad(loss, raw, retain_graph=True)
        ((direction,),) = svgd_direction(
            [DenseCoordinates(raw.detach())],
            [(slope,)],
            repulsion=self.how.temperature / self.problem.data.num_data,
        )
        moved = (raw * direction).sum()
        own = self._losses(raw.detach(), target).sum()
        return moved - moved.detach() + own  # `own` moves the likelihood's numbers alone

    def _shared(self) -> tuple[FeatureCache | None, Trunk | None]:
        problem, q = self.problem, self.q
        at_once = problem.vectorize and self.chunk_size >= q.size(1)
        if not self.how.cache_features and (self.how.own_batches or at_once):
            return None, None  # nothing is shared, or one call computes it once by itself
        trunk = Trunk.of(problem.model, q.names, problem.data.example)
        if not self.how.cache_features:
            return None, trunk
        if problem.data.is_augmented():
            raise DataError(
                "cache_features=True: expected training examples that are the same in every epoch, "
                "but they change from one look to the next; switch off their random augmentation, "
                "or train without cached features."
            )
        if trunk is None:
            raise UnsupportedModelError(
                f"cache_features=True: {type(problem.model).__name__} computes nothing before the "
                f"first weight that is learnt that could be kept; choose weights of its last "
                f"blocks with `where`, or leave cache_features out."
            )
        cache = FeatureCache(
            trunk,
            num_data=problem.data.different,
            cache_limit=self.how.cache_limit,
            passes=q.size(1) if self.how.own_batches else 1,
        )
        return cache, trunk

    def _within(self, inputs: Inputs) -> Callable[[], Any]:
        source = self.cache or self.trunk
        return nullcontext if source is None else source.shared(inputs)


def repeatedly(passes: Callable[[], Iterator[T]]) -> Iterator[T]:
    """One pass after the other, without end."""
    while True:
        yield from passes()


def _warn_if_the_same(batches: list[tuple[Inputs, Tensor]], problem: Problem) -> None:
    """Members whose own batches are all the same hardly come to differ."""
    if len(batches) < 2 or problem.data.steps_per_epoch < 2:
        return
    first, *others = [[*tensors_of(x), y] for x, y in batches]
    for other in others:
        if len(first) != len(other) or not all(map(torch.equal, first, other)):
            return
    warnings.warn(
        f"all {len(batches)} members see the same batches, though each should have its own: the "
        f"loader gives every pass in the same order. Let it shuffle (shuffle=True), or pass "
        f"batches='same' if that is meant.",
        stacklevel=2,
    )
