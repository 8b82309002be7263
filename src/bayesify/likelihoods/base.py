"""What a likelihood does: densities for training, draws for scores, a predictive for use."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.predictive import Predictive


class Likelihood(nn.Module, ABC):
    """How targets are distributed given what the network returns."""

    task: ClassVar[str]

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

    def options(self) -> dict[str, Any]:
        """Constructor arguments, in JSON's terms."""
        return {}
