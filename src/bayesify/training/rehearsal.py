"""What is tried on a copy before training: what fails there is said in words, not raised raw."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.random import fork_rng

from bayesify.core.errors import BayesifyError, UnsupportedModelError
from bayesify.training.method import Run
from bayesify.training.problem import Problem


@contextmanager
def in_words(name: str, problem: Problem) -> Iterator[None]:
    """Around the rehearsal of a method, which leaves torch's random numbers as they were.

    Args:
        name: Of the method.
        problem: What it is started on.

    Raises:
        UnsupportedModelError: anything was raised that is no error of ours; with the reason, and
            what to do about weights or batches of a kind that is known to fail.
    """
    device = next(problem.model.parameters()).device
    kind = "cuda" if device.type == "cpu" else device.type
    devices = [] if device.type == "cpu" else [device]
    try:
        with fork_rng(devices=devices, device_type=kind):
            yield
    except BayesifyError:
        raise
    except Exception as error:  # whatever a forward or backward pass of the user's may raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"{name} cannot train {type(problem.model).__name__} "
            f"({type(error).__name__}: {lines[0]}). {_advice(problem)}"
        ) from error


def step_on_smallest(run: Run, problem: Problem) -> None:
    """A step of a run that is thrown away.

    The smallest batch is the one that fails where any does: batch norm has no statistics of one
    example, and `squeeze()` takes its axis away.
    """
    inputs, target = problem.data.smallest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data that are one batch here; the training warns
        run.step(inputs, target)


def _advice(problem: Problem) -> str:
    for name, module in problem.model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            return f"`{name}` gives sparse gradients; set its `sparse` to False."
    for name, weight in problem.model.named_parameters():
        if weight.is_complex():
            return (
                f"`{name}` is complex; keep its real and imaginary parts as a weight of their own "
                f"each, and join them in `forward` (torch.complex)."
            )
        if not weight.is_floating_point():
            return (
                f"`{name}` holds integers ({weight.dtype}), which can be neither trained nor "
                f"random; make it a buffer, or choose other weights with `where` and pretrain=None."
            )
    if len(problem.data.smallest[1]) == 1:
        return (
            "The smallest batch holds one example: let no batch be so small (drop_last=True, or "
            "pass the data set itself, which is cut into even batches)."
        )
    return "Take a step of torch's own with it to see where it fails, or try `vectorize=False`."
