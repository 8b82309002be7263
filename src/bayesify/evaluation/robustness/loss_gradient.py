"""What an attack climbs, and its slope in the inputs: the loss of the averaged predictive.

    loss(x)      -log p(y|x) / p(not y|x) for classes, -log p(y|x) else,
                 p(y|x) = 1/S sum_s p(y|x, w_s) with the same S draws at every call
    gradient(x)  of the sum over examples, so that each example has its own

The slope may be computed in half of the digits. An attack that goes by the sign of a slope, or by
its direction, needs no more of them, and hardware with bfloat16 units multiplies twice as fast or
better; where there are none it is slower. Predictions are never judged in it.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.core.errors import UnsupportedModelError
from bayesify.likelihoods.predictive import ClassPredictive
from bayesify.posteriors.base import Posterior

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class Slope:
    """The loss of a batch under fixed draws, and its gradient.

    Args:
        posterior: What is attacked.
        y: True targets, (B, ...), on its device.
        num_samples: Weight samples S.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        generator: Source of the weight samples, set back before each call so that they stay the
            same; None for the posterior's own fixed ones.
        precision: In which products and convolutions are computed: "float32", which leaves the
            posterior to its own, or "bfloat16", by torch's autocast and for the gradient alone.
    """

    posterior: Posterior
    y: Tensor
    num_samples: int
    chunk_size: int | None = None
    generator: torch.Generator | None = None
    precision: str = "float32"
    _state: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        state = None if self.generator is None else self.generator.get_state()
        object.__setattr__(self, "_state", state)

    def loss(self, x: Tensor) -> Float[Tensor, " batch"]:
        """What is climbed; the caller decides whether a graph is kept.

        Of classes minus the log odds of y: they rise with -log p(y|x), along the same directions,
        and keep their slope where p rounds to 1, or confident networks would only seem robust.
        """
        return self._loss(x, nullcontext())

    def gradient(self, x: Tensor) -> Tensor:
        """Of the loss in x, shaped as x; 0 where it has none.

        Raises:
            UnsupportedModelError: the outputs have no gradient in x.
        """
        half = self.precision == "bfloat16"
        if half and x.ndim == 4:  # convolutions in half of the digits want channels last
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            within = torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext()
            total = self._loss(x, within).sum()
            linked = total.requires_grad
            found = torch.autograd.grad(total, x, allow_unused=True)[0] if linked else None
        if found is None:
            raise UnsupportedModelError(
                "the outputs of the posterior have no gradient in x, which the attack follows; "
                "compute them without `torch.no_grad` or `detach`, from x itself."
            )
        return torch.nan_to_num(found)  # where the loss has no slope, there is nowhere to go

    def _loss(self, x: Tensor, within: AbstractContextManager[object]) -> Tensor:
        if self.generator is not None and self._state is not None:
            self.generator.set_state(self._state)
        with within:
            raw = self.posterior.outputs(
                x,
                num_samples=self.num_samples,
                generator=self.generator,
                chunk_size=self.chunk_size,
            )
            predictive = self.posterior.predictive(x, raw.to(x.dtype))
        if isinstance(predictive, ClassPredictive):
            return -predictive.log_odds(self.y).reshape(len(x), -1).sum(1)
        return -predictive.log_prob(self.y).reshape(len(x), -1).sum(1)
