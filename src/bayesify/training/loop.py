"""The loop that trains by gradients: one step reads from top to bottom in one place."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.errors import DivergenceError
from bayesify.core.types import Inputs
from bayesify.forward.checkpointing import check_graph
from bayesify.posteriors.base import Posterior


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
