"""The loop that trains by gradients: one step reads from top to bottom in one place."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.errors import DivergenceError
from bayesify.core.types import Inputs, Named
from bayesify.forward.checkpointing import check_graph
from bayesify.posteriors.base import Posterior
from bayesify.training.objective import Objective


class GradientRun:
    """A run that descends the gradient of an objective with a torch optimiser.

    The learning rates of all groups fall to zero along a cosine over the planned epochs, unless
    they are constant.

    On a CPU every step is checked before a parameter moves. On an accelerator, where a look at a
    number waits for all that was asked for, steps return their terms as tensors on the device, and
    the check comes at the end of the epoch.

    Args:
        objective: The loss, and what is learnt.
        optimiser: Holds the parameters of the objective.
        epochs: Passes over the data, the length of the schedule.
        steps_per_epoch: Batches in one.
        constant: Whether the learning rates stay as they are.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        *,
        epochs: int,
        steps_per_epoch: int,
        constant: bool = False,
    ) -> None:
        self.objective, self.optimiser, self.epochs = objective, optimiser, epochs
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        self.schedule = None if constant else cosine(optimiser, epochs * steps_per_epoch)
        self.steps = 0
        self._last_loss = math.nan
        self._parameters = [each for group in optimiser.param_groups for each in group["params"]]
        self._looks = all(each.device.type == "cpu" for each in self._parameters)
        self._sound: Tensor | None = None

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, Any]:
        """One step of the optimiser; returns the terms of the loss.

        Raises:
            DivergenceError: when the loss or its gradient is not finite; no parameter has been
                changed by it.
        """
        self.optimiser.zero_grad()
        terms = self.objective(inputs, target)
        if self.steps == 0:
            check_graph(terms["loss"])
        terms["loss"].backward()
        log = self._checked({name: each.detach() for name, each in terms.items()})
        self.objective.direct_()
        self.optimiser.step()
        self.objective.stepped_()
        if self.schedule is not None:
            self.schedule.step()
        self.steps += 1
        return log

    def end_epoch(self, epoch: int) -> None:
        """Tell the objective, after a look at the steps that have not been looked at.

        Raises:
            DivergenceError: a loss or gradient of the epoch was not finite.
        """
        if self._sound is not None and not bool(self._sound):
            raise DivergenceError(
                f"training diverged in epoch {epoch}: a loss or its gradient is not finite; "
                f"{ADVICE}"
            )
        self._sound = None
        self.objective.end_epoch(epoch)

    def posterior(self) -> Posterior:
        """What has been learnt so far."""
        return self.objective.posterior()

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser, schedule, step and the run's own noise: enough to go on from.

        Data and torch's own random numbers are not in it, nor what an objective keeps that is no
        parameter or buffer: the iterates of SWAG, the gradients that weight sharing has noted.
        """
        return {
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "generator": self.objective.problem.generator.get_state(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the run that gave `state` was."""
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.objective.problem.generator.set_state(state["generator"])
        self.steps = state["steps"]

    def _checked(self, terms: Named) -> dict[str, Any]:
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not self._looks:
            sound = torch.isfinite(terms["loss"]) & torch.isfinite(norm)
            self._sound = sound if self._sound is None else self._sound & sound
            return dict(terms)
        log = {name: each.item() for name, each in terms.items()}
        loss = log["loss"]
        if not math.isfinite(loss) or not math.isfinite(norm.item()):
            what = ", but its gradient is not finite" if math.isfinite(loss) else ""
            raise DivergenceError(
                f"training diverged at step {self.steps}: the loss is {loss}{what}, the last "
                f"finite one was {self._last_loss}; {ADVICE}"
            )
        self._last_loss = loss
        return log


ADVICE = "lower the learning rate, and look for extreme values in the data."


def adam(
    groups: list[dict[str, Any]], *, weight_decay: float = 0.0, decoupled: bool = False
) -> torch.optim.Adam:
    """Adam over `groups`, fused where torch has it.

    Args:
        groups: Parameters and their learning rates.
        weight_decay: Added to the gradient (L2).
        decoupled: Weight decay is AdamW's instead (Loshchilov & Hutter 2019, arXiv 1711.05101).
    """
    tensors = [each for group in groups for each in group["params"]]
    fused = all(each.device.type in ("cpu", "cuda") for each in tensors)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(groups, weight_decay=weight_decay, fused=fused)
