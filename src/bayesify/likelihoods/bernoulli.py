"""Independent yes/no labels."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from bayesify.core.errors import DataError, ShapeError
from bayesify.likelihoods.base import Likelihood
from bayesify.likelihoods.predictive import MultiLabelPredictive
from bayesify.numerics.noise import noise, single_or_better, widened


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
        logits = widened(outputs)
        repeated = target.to(logits.dtype).expand_as(logits)
        nll = F.binary_cross_entropy_with_logits(logits, repeated, reduction="none")
        return -nll.sum(-1)

    def predictive(self, outputs: Tensor) -> MultiLabelPredictive:
        """The averaged label probabilities."""
        return MultiLabelPredictive(outputs)

    def sample(
        self,
        outputs: Float[Tensor, "samples batch labels"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "samples batch labels"]:
        """Labels 0 or 1, of the outputs' dtype."""
        probs = torch.sigmoid(outputs.detach().to(single_or_better(outputs.dtype)))
        return (noise(torch.rand, probs, generator) < probs).to(outputs.dtype)

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

    def against_constant(self, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Mean NLL per example, nats: the network's, and that of each label's frequency."""
        on = torch.cat([target for _, target in batches]).float().mean(0)
        count = sum(len(target) for _, target in batches)
        own = sum(-self.log_prob(outputs[None], target).sum().item() for outputs, target in batches)
        entropy = torch.special.entr(on) + torch.special.entr(1 - on)
        return own / count, entropy.sum().item()
