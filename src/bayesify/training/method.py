"""What a method is: a frozen dataclass of options, whose `start` gives a run.

A run owns the distribution, the optimiser and the schedule; `fit` feeds it with batches.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from bayesify.core.errors import OptionError
from bayesify.core.types import Inputs, Named
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.problem import Problem

AUTO = "auto"

PRETRAIN_HELP = (
    "method that trains the network first; none: it is trained already; auto: map, unless the "
    "network is far better than a constant prediction"
)


Log = dict[str, Any]
"""Numbers by name, or tensors of one number on an accelerator that nobody has waited for."""


class Run(Protocol):
    """A method at work on one problem."""

    @property
    def epochs(self) -> int:
        """Passes over the data that it wants."""
        ...

    def step(self, inputs: Inputs, target: Tensor) -> Log:
        """Learn from one batch; returns what is worth logging, `loss` among it."""
        ...

    def end_epoch(self, epoch: int) -> None:
        """Called after the last batch of each epoch, counted from 0."""
        ...

    def posterior(self) -> Posterior:
        """What has been learnt so far."""
        ...


class StreamRun(Run, Protocol):
    """A run that can learn from any batch at any time."""

    def update(self, inputs: Inputs, target: Tensor, *, forgetting: float | None = None) -> Log:
        """Learn from a batch that has arrived; what was learnt before fades at the given rate."""
        ...

    def state_dict(self) -> Named:
        """Everything that the run's future depends on, as tensors by name."""
        ...

    def load_state_dict(self, state: Named) -> None:
        """Go on exactly where the run that gave `state` was."""
        ...


class Method(ABC):
    """A frozen dataclass of options that can start a run.

    Attributes:
        pretrain: What trains the network first: a method; None where it starts from the network
            that is given; "auto" for `bayesify.training.starting` to decide.
        certify_split: The share of the data that only the posterior's own training sees, so that
            `certify` can bound the risk; 0 where nothing is kept.
        auto_pretrain: What "auto" stands for where the network is not trained yet.
    """

    pretrain: "Pretrain" = None
    certify_split: float = 0.0
    auto_pretrain: ClassVar["Method | None"] = None

    @abstractmethod
    def start(self, problem: Problem) -> Run:
        """Begin."""

    def trains_network(self) -> bool:
        """Whether it trains whatever network it is given, one without any training too."""
        return False

    def draws_weights(self) -> bool:
        """Whether it begins at weights drawn anew, not at those that the network has."""
        return False

    def from_members(self) -> bool:
        """Whether it goes on from each of several networks that its pretraining trained."""
        return False

    def resume(self, posterior: WeightPosterior, example: Inputs) -> StreamRun:
        """Go on where `posterior` ended; the layers are read off `example`.

        Raises:
            OptionError: the method cannot learn from a stream.
        """
        raise OptionError(
            f"resume: expected a posterior of a method that can learn from a stream (BALI), got "
            f"one of {type(self).__name__}; fit it by one."
        )

    def before(self) -> "Method | None":
        """What trains the network first, where it is not trained yet.

        Raises:
            OptionError: the method is of your own, with pretrain="auto", and does not say.
        """
        if self.pretrain != AUTO:
            return self.pretrain
        if self.auto_pretrain is None:
            raise OptionError(
                f"{type(self).__name__}(pretrain='auto'): the class does not say what trains the "
                f"network; give it `auto_pretrain = bayesify.MAP()`, or name a method."
            )
        return self.auto_pretrain


Pretrain = Literal["auto"] | Method | None
"""What trains the network first: a method, nothing, or "auto"."""
