"""Gradient checkpointing is refused: it would give wrong gradients without a word.

A checkpointed layer runs again during the backward pass. By then the weights that a forward pass
here puts in place are gone, and the second run would read the model's own: gradients of another
network. So a model must train without (`model.gradient_checkpointing_disable()` in transformers);
predictions, which need no gradient, do not mind.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bayesify.errors import UnsupportedModelError

REFUSAL = (
    "the model uses gradient checkpointing (or other hooks on saved tensors), whose second run "
    "would read the model's own weights instead of the posterior's; switch it off, e.g. by "
    "`model.gradient_checkpointing_disable()`."
)

INSIDE = ("_NoopSaveInputs", "CheckpointFunction")
"""Names in what torch says when `torch.vmap` meets one of the two kinds."""

REENTRANT = "CheckpointFunctionBackward"
"""The node that `torch.utils.checkpoint(..., use_reentrant=True)` leaves in the graph."""


@contextmanager
def no_checkpointing() -> Iterator[None]:
    """Inside, checkpointing without re-entrance raises.

    Raises:
        UnsupportedModelError: when the model uses it.
    """
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(REFUSAL):
            yield
    except RuntimeError as error:
        if REFUSAL not in str(error):
            raise
        raise UnsupportedModelError(REFUSAL) from error


def is_checkpointing(error: Exception) -> bool:
    """Whether it came of checkpointing under `torch.vmap`, which has no rule for it."""
    return any(name in str(error) for name in INSIDE)


def check_graph(result: Tensor) -> None:
    """Walk the graph behind `result` once; re-entrant checkpointing shows only there.

    Raises:
        UnsupportedModelError: when the model uses it.
    """
    seen, ahead = set(), [result.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name() == REENTRANT:
            raise UnsupportedModelError(REFUSAL)
        seen.add(node)
        ahead += [each for each, _ in node.next_functions]
