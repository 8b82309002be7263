"""What a method is, and the run that trains by gradients.

A *method* is a frozen dataclass of options. Its `start` gives a *run*, which owns the distribution,
the optimiser and the schedule, and which `fit` feeds with batches. All objectives are on one scale,
nats per example (`bayesify/training/objective.py`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bayesify.core.errors import DivergenceError
from bayesify.core.types import Inputs, Named, Readout
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.priors import Prior
from bayesify.forward.checkpointing import check_graph
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.weight import Posterior, WeightPosterior
from bayesify.tracing.trace import call


@dataclass(frozen=True)
class Problem:
    """What a method is asked to fit.

    Attributes:
        model: A copy of the user's network, which the run may put in a mode and freeze.
        likelihood: What its outputs mean; its parameters, if any, are trained too.
        num_data: Training examples N: as many as one pass gives.
        steps_per_epoch: Batches in an epoch.
        example: Inputs of the first batch.
        inputs: Gives the inputs of all training batches, on the model's device, for a look at the
            data before the first step.
        batches: Gives all training batches, inputs and targets, in an order of its own, for what
            needs more passes than the run is fed with.
        readout: Turns what the model returns into a tensor.
        vectorize: Whether samples and members run at once.
        generator: Source of the run's noise.
        validation: Gives batches of held-out examples, inputs and targets, on the model's device,
            in the order of their loader: for choosing numbers, never for training. None when none
            were given.
        augmented: Whether the training examples change from pass to pass; looks at a few.
        trained: What the pretraining left, whose point the model has already; None without one.
        smallest: Inputs and target of the smallest batch, on the model's device.
        different: Different examples that the passes give in all: more than N where each pass
            leaves some out. None: N.
    """

    model: nn.Module
    likelihood: Likelihood
    num_data: int
    steps_per_epoch: int
    example: Inputs
    inputs: Callable[[], Iterator[Inputs]]
    batches: Callable[[], Iterator[tuple[Inputs, Tensor]]]
    readout: Readout
    vectorize: bool
    generator: torch.Generator
    validation: Callable[[], Iterator[tuple[Inputs, Tensor]]] | None = None
    augmented: Callable[[], bool] = lambda: False
    trained: Posterior | None = None
    smallest: tuple[Inputs, Tensor] | None = None
    different: int | None = None

    def network_loss(self, inputs: Inputs, target: Tensor) -> Tensor:
        """Of the network as it is: mean of -log p, nats per example (and position)."""
        outputs = self.readout(call(self.model, inputs))
        return -self.likelihood.log_prob(outputs[None], target).mean()

    def posterior(self, q: WeightDistribution, prior: Prior | None = None) -> WeightPosterior:
        """The model and the likelihood with q over the weights, which had that prior."""
        return WeightPosterior(
            self.model,
            q,
            self.likelihood,
            readout=self.readout,
            vectorize=self.vectorize,
            prior=prior,
        )


class Run(Protocol):
    """A method at work on one problem."""

    @property
    def epochs(self) -> int:
        """Passes over the data that it wants."""
        ...

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """Learn from one batch; returns what is worth logging, `loss` among it."""
        ...

    def end_epoch(self, epoch: int) -> None:
        """Called after the last batch of each epoch, counted from 0."""
        ...

    def posterior(self) -> Posterior:
        """What has been learnt so far."""
        ...


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of options that can start a run."""

    @property
    def pretrain(self) -> "Pretrain":
        """The method that trains the network first; None when it starts from what is given."""
        ...

    def start(self, problem: Problem) -> Run:
        """Begin."""
        ...


Pretrain = Literal["auto"] | Method | None
"""What trains the network first: a method, nothing, or "auto": `bayesify.training.starting` decides."""

PRETRAIN_HELP = (
    "method that trains the network first; none: it is trained already; auto: map, unless the "
    "network is far better than a constant prediction"
)


@runtime_checkable
class TrainsNetwork(Protocol):
    """A method that trains whatever network it is given, one without any training too."""

    @property
    def draws_weights(self) -> bool:
        """Whether it begins at weights drawn anew, not at those that the network has."""
        ...


@runtime_checkable
class Certifiable(Protocol):
    """A method that can keep part of the data from the training of the network and its prior."""

    @property
    def certify_split(self) -> float:
        """The share that only the posterior's own training sees; 0: nothing is kept."""
        ...


@runtime_checkable
class FromMembers(Protocol):
    """A method that can go on from each of several networks that its pretraining trained."""

    @property
    def from_members(self) -> bool:
        """Whether it will; if not, it begins at a single network."""
        ...


class StreamRun(Run, Protocol):
    """A run that can learn from any batch at any time."""

    def update(
        self, inputs: Inputs, target: Tensor, *, forgetting: float | None = None
    ) -> dict[str, float]:
        """Learn from a batch that has arrived; what was learnt before fades at the given rate."""
        ...

    def state_dict(self) -> Named:
        """Everything that the run's future depends on, as tensors by name."""
        ...

    def load_state_dict(self, state: Named) -> None:
        """Go on exactly where the run that gave `state` was."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A method whose posteriors hold all that is needed to learn on."""

    def resume(self, posterior: WeightPosterior, example: Inputs) -> StreamRun:
        """Go on where `posterior` ended; the layers are read off `example`."""
        ...


class GradientRun:
    """A run that descends the gradient of a loss with a torch optimiser.

    The learning rates of all groups fall to zero along a cosine over the planned epochs, unless
    they are constant.

    Args:
        terms: `(inputs, target) -> {"loss": ..., more to log}`, differentiable.
        optimiser: Holds the parameters that the loss depends on.
        epochs: Passes over the data, the length of the schedule.
        steps_per_epoch: Batches in one.
        posterior: Builds the posterior from what has been learnt.
        epoch_ended: Called after every epoch.
        constant: Whether the learning rates stay as they are.
    """

    def __init__(
        self,
        terms: Callable[[Inputs, Tensor], dict[str, Tensor]],
        optimiser: torch.optim.Optimizer,
        *,
        epochs: int,
        steps_per_epoch: int,
        posterior: Callable[[], Posterior],
        epoch_ended: Callable[[], None] = lambda: None,
        constant: bool = False,
    ) -> None:
        self.epochs = epochs
        self._terms = terms
        self._optimiser = optimiser
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        self._schedule = None if constant else cosine(optimiser, epochs * steps_per_epoch)
        self._posterior = posterior
        self._epoch_ended = epoch_ended
        self._steps = 0
        self._last_loss: float | None = None

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """One step of the optimiser.

        Raises:
            DivergenceError: when the loss or its gradient is not finite; no parameter has been
                changed by it.
        """
        terms = self._terms(inputs, target)
        log = {name: term.item() for name, term in terms.items()}
        if not math.isfinite(log["loss"]):
            raise DivergenceError(
                f"training diverged at step {self._steps}: the loss is {log['loss']}, the last "
                f"finite one was {self._last_loss}; lower the learning rate, and look for extreme "
                f"values in the data."
            )
        if self._steps == 0:
            check_graph(terms["loss"])
        self._optimiser.zero_grad()
        terms["loss"].backward()
        if not torch.isfinite(self._gradient_norm()):
            raise DivergenceError(
                f"training diverged at step {self._steps}: the loss is {log['loss']}, but its "
                f"gradient is not finite, the last loss with a finite one was {self._last_loss}; "
                f"lower the learning rate, and look for extreme values in the data."
            )
        self._optimiser.step()
        if self._schedule is not None:
            self._schedule.step()
        self._steps, self._last_loss = self._steps + 1, log["loss"]
        return log

    def end_epoch(self, epoch: int) -> None:
        """Tell whoever wanted to know."""
        self._epoch_ended()

    def posterior(self) -> Posterior:
        """What has been learnt so far."""
        return self._posterior()

    def _gradient_norm(self) -> Tensor:
        groups = self._optimiser.param_groups
        gradients = [each.grad for group in groups for each in group["params"]]
        return nn.utils.get_total_norm([each for each in gradients if each is not None])


def adam(groups: list[dict[str, Any]], *, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Adam over `groups`, fused where torch has it. Decay is added to the gradient (L2)."""
    tensors = [each for group in groups for each in group["params"]]
    fused = all(each.device.type in ("cpu", "cuda") for each in tensors)
    return torch.optim.Adam(groups, weight_decay=weight_decay, fused=fused)
