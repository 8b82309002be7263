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
from torch import Tensor, nn

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
from bayesify.training.loop import GradientRun, adam
from bayesify.training.problem import Problem

T = TypeVar("T")

LIKELIHOOD_RATE = 10
"""Learning rate of the likelihood's own numbers (a log scale), in units of that of the weights: it
may have nats to go where weights have hundredths, and few steps on small data.
"""

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
    """A run that trains the members of q, in the mode that the model is in."""
    learnt = trainable(q, problem)
    objective = _Objective(problem, q, training)
    in_weights = training.kernel not in (INDEPENDENT, "function")
    share = 1 / (problem.num_data * training.prior_scale**2)
    if training.kernel == "function":
        share /= q.size(1)  # as the direction is divided by M
    explicit = in_weights or training.decay > 0  # the prior's gradient, at the weights as they are
    optimiser = optimiser_of(problem, learnt, lr=training.lr, decay=0.0 if explicit else share)

    @torch.no_grad()
    def before(*_: Any) -> None:
        if explicit:
            _add_decay_(learnt, share)
        if in_weights:
            svgd_(
                q,
                num_data=problem.num_data,
                temperature=training.temperature,
                kernel=training.kernel,
            )
        if training.clip is not None:
            clip_members_(learnt, training.clip)
        if training.decay:
            for each in learnt:
                each.mul_(1 - optimiser.param_groups[0]["lr"] * training.decay)

    if training.rates:
        _slow_down(optimiser, learnt, training.rates)  # before the decay, which it slows down too
    optimiser.register_step_pre_hook(before)
    return GradientRun(
        objective,
        optimiser,
        epochs=training.epochs,
        steps_per_epoch=problem.steps_per_epoch,
        posterior=lambda: problem.posterior(q),
        epoch_ended=objective.epoch_ended,
    )


def trainable(weights: nn.Module, problem: Problem) -> list[nn.Parameter]:
    """The parameters of a network, or of members, that want a gradient.

    Raises:
        UnsupportedModelError: there are none.
    """
    learnt = [each for each in weights.parameters() if each.requires_grad]
    if not learnt:
        raise UnsupportedModelError(
            f"every weight of {type(problem.model).__name__} is frozen (requires_grad=False), so "
            f"there is nothing to train; unfreeze some, or start from the trained network with "
            f"`pretrain=None`."
        )
    return learnt


def optimiser_of(
    problem: Problem, learnt: list[nn.Parameter], *, lr: float, decay: float
) -> torch.optim.Adam:
    """Adam, whose decay is the gradient of the prior; the likelihood's own numbers have none."""
    noise = list(problem.likelihood.parameters())
    return adam(
        [
            {"params": learnt, "lr": lr},
            {"params": noise, "lr": LIKELIHOOD_RATE * lr, "weight_decay": 0.0},
        ],
        weight_decay=decay,
    )


class _Objective:
    """The sum of the members' losses on a batch, as a run logs and descends it."""

    def __init__(
        self, problem: Problem, q: Particles | LowRankParticles, training: Training
    ) -> None:
        self.problem, self.q, self.training = problem, q, training
        self.chunk_size = default_chunk_size(
            Footprint.of(problem.model, q, problem.example),
            problem.example,
            next(q.parameters()).device,
            q.size(1),
        )
        self.cache, self.trunk = self._shared()
        self.others: list[Iterator[tuple[Inputs, Tensor]]] = []
        self.compared = False

    def __call__(self, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        if self.training.own_batches:
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
        if self.training.kernel == "function":
            loss = self._in_function_space(raw, target, loss)
        return {"loss": loss, "nll": losses.detach().mean()}

    def _losses(self, raw: Tensor, target: Tensor) -> Tensor:
        """Of each member, nats per example."""
        return -self.problem.likelihood.log_prob(raw, target).flatten(1).mean(1)

    def _own_losses(self, inputs: Inputs, target: Tensor) -> Tensor:
        """The same, on the batch for the first member and one of its own for each other."""
        if not self.others:
            self.others = [repeatedly(self.problem.batches) for _ in range(self.q.size(1) - 1)]
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

    def epoch_ended(self) -> None:
        self.others = []
        if self.cache is not None:
            self.cache.end_epoch()

    def _in_function_space(self, raw: Tensor, target: Tensor, loss: Tensor) -> Tensor:
        """A number of the value of `loss`, whose gradient is SVGD's direction for the outputs."""
        (slope,) = torch.autograd.grad(loss, raw, retain_graph=True)
        ((direction,),) = svgd_direction(
            [DenseCoordinates(raw.detach())],
            [(slope,)],
            repulsion=self.training.temperature / self.problem.num_data,
        )
        moved = (raw * direction).sum()
        own = self._losses(raw.detach(), target).sum()
        return moved - moved.detach() + own  # `own` moves the likelihood's numbers alone

    def _shared(self) -> tuple[FeatureCache | None, Trunk | None]:
        problem, q = self.problem, self.q
        at_once = problem.vectorize and self.chunk_size >= q.size(1)
        if not self.training.cache_features and (self.training.own_batches or at_once):
            return None, None  # nothing is shared, or one call computes it once by itself
        trunk = Trunk.of(problem.model, q.names, problem.example)
        if not self.training.cache_features:
            return None, trunk
        if problem.augmented():
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
            num_data=problem.different or problem.num_data,
            cache_limit=self.training.cache_limit,
            passes=q.size(1) if self.training.own_batches else 1,
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
    if len(batches) < 2 or problem.steps_per_epoch < 2:
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


def _add_decay_(learnt: list[nn.Parameter], share: float) -> None:
    for each in learnt:
        each.grad = each * share if each.grad is None else each.grad.add_(each, alpha=share)


def _slow_down(
    optimiser: torch.optim.Optimizer, learnt: list[nn.Parameter], rates: tuple[float, ...]
) -> None:
    """Let a step take each member `rates` of the way; Adam knows no rates within a tensor."""
    held: list[Tensor] = []

    def before(*_: Any) -> None:
        held[:] = [each.detach().clone() for each in learnt]

    def after(*_: Any) -> None:
        with torch.no_grad():
            for each, start in zip(learnt, held, strict=True):
                rate = (
                    torch.tensor(rates, dtype=torch.float64)
                    .to(each)
                    .view(-1, *[1] * (each.ndim - 1))
                )
                each.copy_(torch.lerp(start, each, rate))

    optimiser.register_step_pre_hook(before)
    optimiser.register_step_post_hook(after)
