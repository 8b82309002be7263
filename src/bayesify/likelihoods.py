"""p(y | network output): what the numbers that a network returns mean.

A likelihood reads outputs (S, B, ...) with the sample axis first and gives log densities in nats
*per example*: the labels, positions or dimensions of one example are summed, so that an objective
made of it weighs data and prior rightly.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.errors import DataError, OptionError, ShapeError
from bayesify.predictive import (
    ClassPredictive,
    MultiLabelPredictive,
    Predictive,
    RegressionPredictive,
)


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
    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise when `target` does not fit `output` (B, ...) or holds impossible values.

        Raises:
            ShapeError: the shapes do not belong together.
            DataError: labels out of range, or values that are not finite.
        """

    def options(self) -> dict[str, Any]:
        """Constructor arguments, in JSON's terms."""
        return {}


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
        nll = F.cross_entropy(outputs.flatten(0, 1), repeated.flatten(0, 1), reduction="none")
        return -nll.view(*outputs.shape[:2], -1).sum(-1)

    def predictive(self, outputs: Tensor) -> ClassPredictive:
        """The averaged class probabilities."""
        return ClassPredictive(outputs, self.logit_temperature)

    def check(self, output: Tensor, target: Tensor) -> None:
        """Targets must be integers in [0, C), of the output's shape without its class axis."""
        if output.ndim < 2 or target.shape != (len(output), *output.shape[2:]):
            raise ShapeError(
                f"categorical likelihood: expected outputs (batch, classes, ...) and targets "
                f"(batch, ...), got outputs {tuple(output.shape)} and targets "
                f"{tuple(target.shape)}; targets are class indices, not one-hot rows."
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

    def options(self) -> dict[str, Any]:
        """The temperature."""
        return {"logit_temperature": self.logit_temperature}


class Bernoulli(Likelihood):
    """L independent yes/no labels; outputs are logits (S, B, L), targets 0 or 1 (B, L).

    Example:
        >>> Bernoulli().log_prob(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.0]])).item()
        -1.386...
    """

    task = "multilabel"

    def log_prob(
        self,
        outputs: Float[Tensor, "samples batch labels"],
        target: Shaped[Tensor, "batch labels"],
    ) -> Float[Tensor, "samples batch"]:
        """Log probability of all labels of an example."""
        repeated = target.to(outputs.dtype).expand_as(outputs)
        nll = F.binary_cross_entropy_with_logits(outputs, repeated, reduction="none")
        return -nll.sum(-1)

    def predictive(self, outputs: Tensor) -> MultiLabelPredictive:
        """The averaged label probabilities."""
        return MultiLabelPredictive(outputs)

    def check(self, output: Tensor, target: Tensor) -> None:
        """Targets must be 0 or 1, of the output's shape (B, L)."""
        if output.ndim != 2 or target.shape != output.shape:
            raise ShapeError(
                f"bernoulli likelihood: expected outputs and targets of one shape (batch, labels), "
                f"got outputs {tuple(output.shape)} and targets {tuple(target.shape)}."
            )
        if not bool(((target == 0) | (target == 1)).all()):
            raise DataError(
                f"bernoulli likelihood: expected targets 0 or 1, got values from "
                f"{target.min().item():g} to {target.max().item():g}."
            )


class Gaussian(Likelihood):
    """Normal noise around the output; targets (B, D), or (B,) when D = 1.

    Args:
        scale: Noise standard deviation in the units of the target: a number (fixed), "learnt"
            (one number, trained with the weights, started at 1: standardise the targets), or
            "output" (the network returns 2 D numbers: the means, then rho with
            scale = softplus(rho)).

    Example:
        >>> Gaussian(1.0).log_prob(torch.zeros(1, 1, 1), torch.zeros(1)).item()  # -ln(2 pi) / 2
        -0.918...
    """

    task = "regression"

    def __init__(self, scale: float | str = "learnt") -> None:
        super().__init__()
        fixed = isinstance(scale, int | float) and 0 < scale < math.inf
        if not fixed and scale not in ("learnt", "output"):
            raise OptionError(
                f"Gaussian(scale={scale!r}): expected a number above 0, 'learnt' or 'output'."
            )
        self.kind = scale
        self.log_scale = nn.Parameter(torch.zeros(())) if scale == "learnt" else None

    def log_prob(
        self,
        outputs: Float[Tensor, "samples batch *outputs"],
        target: Float[Tensor, "batch *dims"],
    ) -> Float[Tensor, "samples batch"]:
        """Log density of all dimensions of an example."""
        loc, scale = self._split(outputs)
        residual = (target.reshape(loc.shape[1:]) - loc) / scale
        density = -0.5 * residual.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        return density.sum(-1)

    def predictive(self, outputs: Tensor) -> RegressionPredictive:
        """The mixture of the samples' Gaussians."""
        loc, scale = self._split(outputs)
        return RegressionPredictive(loc, scale.detach() if self.kind == "learnt" else scale)

    def check(self, output: Tensor, target: Tensor) -> None:
        """Targets must be finite floats with as many dimensions as the network predicts."""
        dims = output[0].numel() // (2 if self.kind == "output" else 1)
        even = self.kind != "output" or output[0].numel() % 2 == 0
        if not even or output.ndim > 2 or target.ndim > 2 or target[0].numel() != dims:
            raise ShapeError(
                f"gaussian likelihood (scale={self.kind!r}): expected outputs (batch, "
                f"{'2 * ' if self.kind == 'output' else ''}dims) and targets (batch, dims), got "
                f"outputs {tuple(output.shape)} and targets {tuple(target.shape)}."
            )
        if not target.is_floating_point():
            raise DataError(
                f"gaussian likelihood: expected floating-point targets, got {target.dtype}; use "
                f"`.float()`, or likelihood='categorical' for class indices."
            )

    def options(self) -> dict[str, Any]:
        """Which kind of scale."""
        return {"scale": self.kind}

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means (S, B, D) and scales, broadcastable to them."""
        outputs = outputs.unsqueeze(-1) if outputs.ndim == 2 else outputs
        if self.kind == "output":
            loc, rho = outputs.chunk(2, -1)
            return loc, F.softplus(rho) + 1e-6  # never exactly zero: its logarithm is needed
        if self.log_scale is not None:
            return outputs, self.log_scale.exp()
        return outputs, outputs.new_tensor(self.kind)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}

LIKELIHOOD_OF_TASK = {each.task: name for name, each in LIKELIHOODS.items()}
"""Name of the likelihood that belongs to a task."""


def resolve(likelihood: "str | Likelihood") -> Likelihood:
    """The likelihood itself, or a new one by name.

    Raises:
        OptionError: when the name is unknown.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise OptionError(
            f"likelihood {likelihood!r}: expected one of {', '.join(LIKELIHOODS)}, or a Likelihood."
        )
    return LIKELIHOODS[likelihood]()
