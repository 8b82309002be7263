"""One class out of C."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.likelihoods.base import Likelihood
from bayesify.likelihoods.predictive import ClassPredictive
from bayesify.numerics.noise import noise, single_or_better, widened


class Categorical(Likelihood):
    """One class out of C; outputs are logits (S, B, C), or (S, B, C, *positions) per position.

    Args:
        logit_temperature: Temperature scaling of the averaged predictive; see `ClassPredictive`.
            It does not enter the log density used in training.

    Example:
        >>> Categorical().log_prob(torch.zeros(1, 1, 4), torch.tensor([2])).item()     # -ln 4
        -1.386...
    """

    task = "classification"

    def __init__(self, logit_temperature: float = 1.0) -> None:
        super().__init__()
        if not (logit_temperature > 0 and math.isfinite(logit_temperature)):
            raise OptionError(f"logit_temperature={logit_temperature}: expected a value above 0.")
        self.logit_temperature = logit_temperature

    def log_prob(
        self,
        outputs: Float[Tensor, "samples batch classes *positions"],
        target: Integer[Tensor, "batch *positions"] | Bool[Tensor, "batch *positions"],
    ) -> Float[Tensor, "samples batch"]:
        """Log probability of the class indices, summed over positions."""
        repeated = target.long().expand(len(outputs), *target.shape)
        rows = widened(outputs).flatten(0, 1)
        nll = F.cross_entropy(rows, repeated.flatten(0, 1), reduction="none")
        return -nll.view(*outputs.shape[:2], -1).sum(-1)

    def predictive(self, outputs: Tensor) -> ClassPredictive:
        """The averaged class probabilities."""
        return ClassPredictive(outputs, self.logit_temperature)

    def sample(
        self,
        outputs: Float[Tensor, "samples batch classes *positions"],
        *,
        generator: torch.Generator | None = None,
    ) -> Integer[Tensor, "samples batch *positions"]:
        """Class indices, drawn by inverting the cumulative probabilities."""
        logits = outputs.detach().to(single_or_better(outputs.dtype))
        below = F.softmax(logits, 2).cumsum(2)
        below = below / below[:, :, -1:]  # ends at 1 exactly, which the uniform never reaches
        uniform = noise(torch.rand, logits.select(2, 0), generator)
        return (below <= uniform.unsqueeze(2)).sum(2)

    def check(self, output: Tensor, target: Tensor) -> None:
        """Targets must be integers in [0, C), of the output's shape without its class axis."""
        if output.ndim < 2 or target.shape != (len(output), *output.shape[2:]):
            raise ShapeError(
                f"categorical likelihood: expected outputs (batch, classes, ...) and targets "
                f"(batch, ...), got outputs {tuple(output.shape)} and targets "
                f"{tuple(target.shape)}; {self._advice(output, target)}."
            )
        if target.is_floating_point() or target.is_complex():
            raise DataError(
                f"categorical likelihood: expected integer class indices, got {target.dtype}; "
                f"convert with `.long()`, or use likelihood='gaussian' for regression."
            )
        low, high, classes = int(target.min()), int(target.max()), output.shape[1]
        if low < 0 or high >= classes:
            raise DataError(
                f"labels reach from {low} to {high}, but the model has {classes} outputs, so they "
                f"must lie in 0..{classes - 1}; relabel the data or widen the last layer."
            )

    def against_constant(self, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Mean NLL per label, nats: the network's, and the entropy of the labels' frequencies.

        Frequencies are over all examples and positions.
        """
        labels = torch.cat([target.flatten().long() for _, target in batches])
        share = torch.bincount(labels) / len(labels)
        own = sum(-self.log_prob(outputs[None], target).sum().item() for outputs, target in batches)
        return own / len(labels), torch.special.entr(share).sum().item()

    def _advice(self, output: Tensor, target: Tensor) -> str:
        if output.ndim > 2 and target.shape == output.shape[:-1]:
            return (
                "the classes come last, as in language models: move them to the second axis, "
                "readout=lambda output: output.movedim(-1, 1) (or output.logits.movedim(-1, 1))"
            )
        return "targets are class indices, not one-hot rows"

    def options(self) -> dict[str, Any]:
        """The temperature."""
        return {"logit_temperature": self.logit_temperature}
