"""Numbers with noise around them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.likelihoods.base import Likelihood
from bayesify.likelihoods.predictive import RegressionPredictive, check_degrees
from bayesify.numerics.noise import noise, single_or_better, widened

MIN_VARIANCE = 1e-4
"""Smallest noise variance that `reestimate_` sets, in squared units of the standardised target: a
network that interpolates its data would send the noise to zero."""


class Gaussian(Likelihood):
    """Normal noise around the output; targets (B, D), or (B,) when D = 1.

    Args:
        scale: Noise standard deviation in the units of the target: a number (fixed), "learnt"
            (one number, trained with the weights, started at 1: standardise the targets; `fit`
            starts it at the residuals of a network that is trained already), or "output" (the
            network returns 2 D numbers: the means, then rho with scale = softplus(rho)).
        degrees: None: the predictive has normal noise. A number nu above 2: the predictive has
            Student-t noise with nu degrees of freedom and the same variance, for data with heavy
            tails; 4 is a good first choice. It does not enter the log density used in training,
            where it would make the fit unstable.

    Raises:
        OptionError: an impossible `scale` or `degrees`.

    Example:
        >>> Gaussian(1.0).log_prob(torch.zeros(1, 1, 1), torch.zeros(1)).item()  # -ln(2 pi) / 2
        -0.918...
        >>> far, zero = torch.tensor([6.0]), torch.zeros(1, 1, 1)
        >>> [Gaussian(1.0, nu).predictive(zero).log_prob(far).item() for nu in (None, 4)]
        [-18.918..., -7.995...]
    """

    task = "regression"
    error_name = "root mean squared error"

    def __init__(self, scale: float | str = "learnt", degrees: float | None = None) -> None:
        super().__init__()
        fixed = isinstance(scale, int | float) and 0 < scale < math.inf
        if not fixed and scale not in ("learnt", "output"):
            raise OptionError(
                f"Gaussian(scale={scale!r}): expected a number above 0, 'learnt' or 'output'."
            )
        check_degrees(degrees)
        self.kind, self.degrees = scale, degrees
        self.log_scale = nn.Parameter(torch.zeros(())) if scale == "learnt" else None

    def log_prob(
        self,
        outputs: Float[Tensor, "samples batch *outputs"],
        target: Float[Tensor, "batch *dims"],
    ) -> Float[Tensor, "samples batch"]:
        """Log density of all dimensions of an example."""
        loc, scale = self._split(widened(outputs))
        residual = (target.reshape(loc.shape[1:]) - loc) / scale
        density = -0.5 * residual.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        return density.sum(-1)

    def predictive(self, outputs: Tensor) -> RegressionPredictive:
        """The mixture of the samples' Gaussians, or with `degrees` of their Student-t."""
        loc, scale = self._split(widened(outputs))
        scale = scale.detach() if self.kind == "learnt" else scale
        return RegressionPredictive(loc, scale, self.degrees)

    def sample(
        self,
        outputs: Float[Tensor, "samples batch *outputs"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "samples batch dims"]:
        """Values with normal noise, whatever the `degrees`, in the units of the target."""
        loc, scale = self._split(outputs.detach().to(single_or_better(outputs.dtype)))
        return loc + scale.detach() * noise(torch.randn, loc, generator)

    def output_precision(self, outputs: Tensor) -> Float[Tensor, ""] | None:
        """1 / scale^2, unless the noise comes from the output."""
        if self.kind == "output":
            return None
        dtype = single_or_better(outputs.dtype)
        _, scale = self._split(outputs[:0].to(dtype))
        return scale.detach().to(dtype).pow(-2)

    def reestimate_(
        self,
        outputs: Float[Tensor, "samples batch *outputs"],
        target: Float[Tensor, "batch *dims"],
        *,
        rate: float,
    ) -> None:
        """scale^2 <- (1 - rate) scale^2 + rate mean (target - loc)^2, if the scale is learnt.

        The mean is over samples, examples and dimensions; the result is at least `MIN_VARIANCE`.
        """
        if self.log_scale is None:
            return
        with torch.no_grad():
            loc, scale = self._split(outputs.to(self.log_scale))
            squared = (target.to(loc).reshape(loc.shape[1:]) - loc).square().mean()
            variance = torch.lerp(scale.square(), squared, rate).clamp_min(MIN_VARIANCE)
            self.log_scale.copy_(variance.log() / 2)

    def fit_to_(
        self,
        outputs: Float[Tensor, "samples batch *outputs"],
        target: Float[Tensor, "batch *dims"],
    ) -> bool:
        """scale^2 = mean (target - loc)^2, where the scale is learnt and is still the initial 1.

        One that has been trained before, or that is held (`requires_grad_(False)`), stays. The
        result is at least `MIN_VARIANCE` times the mean square of the targets about their mean.
        """
        if self.log_scale is None or not self.log_scale.requires_grad or self.log_scale.item() != 0:
            return False
        with torch.no_grad():
            wide = outputs.to(single_or_better(outputs.dtype))
            loc, _ = self._split(wide)
            wanted = target.to(loc).reshape(loc.shape[1:])
            least = MIN_VARIANCE * (wanted - wanted.mean(0)).square().mean()
            variance = torch.maximum((wanted - loc).square().mean(), least)
            if not bool(torch.isfinite(variance) & (variance > 0)):
                return False
            self.log_scale.copy_(variance.log() / 2)
        return True

    def against_constant(self, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Root mean squared error over examples and dimensions: of the means, and of their mean."""
        loc = torch.cat([self._split(outputs[None])[0][0] for outputs, _ in batches])
        loc = loc.to(single_or_better(loc.dtype))
        target = torch.cat([each for _, each in batches]).to(loc).reshape(loc.shape)
        errors = (target - loc), (target - target.mean(0))
        own, constant = (each.square().mean().sqrt().item() for each in errors)
        return own, constant

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
        """Which kind of scale, and the degrees of freedom."""
        return {"scale": self.kind, "degrees": self.degrees}

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means (S, B, D) and scales, broadcastable to them."""
        outputs = outputs.unsqueeze(-1) if outputs.ndim == 2 else outputs
        if self.kind == "output":
            loc, rho = outputs.chunk(2, -1)
            return loc, F.softplus(rho) + 1e-6  # never exactly zero: its logarithm is needed
        if self.log_scale is not None:
            return outputs, self.log_scale.exp()
        return outputs, outputs.new_tensor(self.kind)
