"""A step on the smallest batch, on a copy: what cannot be trained says so before training."""

import warnings

from torch.random import fork_rng

from bayesify.errors import BayesifyError, UnsupportedModelError
from bayesify.methods.base import Problem, Run


def rehearse_step(run: Run, problem: Problem, name: str) -> None:
    """One step of a run that is thrown away.

    The smallest batch is the one that fails where any does: batch norm has no statistics of one
    example, and `squeeze()` takes its axis away. Random numbers are left as they were.

    Args:
        run: Around copies of the model and the likelihood.
        problem: What it was started on.
        name: Of the method.

    Raises:
        UnsupportedModelError: the step raises; with the number of examples and the reason.
        BayesifyError: what the method itself says.
    """
    if problem.smallest is None:
        return
    device = next(problem.model.parameters()).device
    inputs, target = problem.smallest
    kind = "cuda" if device.type == "cpu" else device.type
    try:
        with (
            fork_rng(devices=[] if device.type == "cpu" else [device], device_type=kind),
            warnings.catch_warnings(action="ignore"),  # of one batch
        ):
            run.step(inputs, target)
    except BayesifyError:
        raise
    except Exception as error:  # whatever a forward or backward pass of the user's may raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        advice = (
            "The smallest batch holds one example: let no batch be so small (drop_last=True, or "
            "pass the data set itself, which is cut into even batches)."
            if len(target) == 1
            else "Train the network by a step of torch's own to see where it fails."
        )
        raise UnsupportedModelError(
            f"{name} cannot take a step with {type(problem.model).__name__} on a batch of "
            f"{len(target)} ({lines[0]}). {advice}"
        ) from error
