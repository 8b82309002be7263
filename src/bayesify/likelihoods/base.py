"""What a likelihood does: densities for training, draws for scores, a predictive for use."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.likelihoods.predictive import Predictive


class Likelihood(nn.Module, ABC):
    """How targets are distributed given what the network returns."""

    task: ClassVar[str]
    error_name: ClassVar[str] = "NLL"
    """What `against_constant` compares, in words."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, target: Tensor) -> Float[Tensor, "samples batch"]:
        """Log density of each example's target under each sample, nats."""

    @abstractmethod
    def predictive(self, outputs: Tensor) -> Predictive:
        """The predictive that averages over the samples in `outputs` (S, B, ...)."""

    @abstractmethod
    def sample(self, outputs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One draw of the target per sample and example, from the density of `log_prob`.

        What touches the predictive alone (a temperature, heavy tails) does not enter. The scores
        of these targets,
        `log_prob(outputs.flatten(0, 1)[None], sample(outputs).flatten(0, 1))` differentiated by
        the outputs, have the Fisher information as their mean outer product.

        Args:
            outputs: (S, B, ...), as in `log_prob`.
            generator: Source of the draws; None for torch's global one. It may live on another
                device than the outputs: one seed gives the same noise on every device.

        Returns:
            Targets (S, B, ...) on the device of the outputs, without a gradient.
        """

    @abstractmethod
    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise when `target` does not fit `output` (B, ...) or holds impossible values.

        Raises:
            ShapeError: the shapes do not belong together.
            DataError: labels out of range, or values that are not finite.
        """

    def output_precision(self, outputs: Tensor) -> Tensor | None:
        """The number c where -log p has curvature c I in the outputs of every example, else None.

        For methods that treat the last layer exactly: with such a likelihood a layer that is linear
        in Gaussian weights has a Gaussian posterior.

        Args:
            outputs: (S, B, ...), as in `log_prob`; only their dtype and device matter.

        Returns:
            A tensor without axes, in inverse squared units of the target, without a gradient; in
            single precision or better. Or None.
        """
        return None

    def reestimate_(self, outputs: Tensor, target: Tensor, *, rate: float) -> None:
        """Move the likelihood's own learnt numbers towards their maximum-likelihood values.

        An EM step without a gradient, in place; nothing happens where there is nothing to learn.

        Args:
            outputs: (S, B, ...), as in `log_prob`.
            target: (B, ...), as in `log_prob`.
            rate: Weight in (0, 1] of this batch in the moving average; 1 forgets the past.
        """
        return

    def fit_to_(self, outputs: Tensor, target: Tensor) -> bool:
        """Set the likelihood's own learnt numbers to their maximum-likelihood values, in place.

        For a network that is trained already, whose noise is read off its residuals. By default
        `reestimate_` at rate 1, where there is something to learn.

        Args:
            outputs: (S, B, ...), as in `log_prob`.
            target: (B, ...), as in `log_prob`.

        Returns:
            Whether anything was set. Numbers that were trained before stay as they are, in classes
            that can tell.
        """
        before = {name: each.clone() for name, each in self.state_dict().items()}
        if any(each.requires_grad for each in self.parameters()):
            self.reestimate_(outputs, target, rate=1.0)
        return not all(torch.equal(each, before[name]) for name, each in self.state_dict().items())

    def against_constant(
        self, batches: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[float, float] | None:
        """The error of a network, and that of the best prediction that is the same for all inputs.

        Args:
            batches: Outputs (B, ...) and targets of each batch, as in `check`.

        Returns:
            Two numbers of at least 0, in the measure that `error_name` names, 0 best; both on the
            targets given, the network's as it is (its noise, where there is one, does not enter).
            None where the likelihood does not know: this default.
        """
        return None

    def options(self) -> dict[str, Any]:
        """Constructor arguments, in JSON's terms."""
        return {}
