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

from bayesify.core.errors import UnsupportedModelError

REFUSAL = (
    "the model uses gradient checkpointing (or other hooks on saved tensors), whose second run "
    "would read the model's own weights instead of the posterior's; switch it off, e.g. by "
    "`model.gradient_checkpointing_disable()`."
)

ASKS_FOR_GRADIENTS = (
    "the model calls `requires_grad_()` on its activations, as gradient checkpointing in "
    "transformers does by a hook, which torch forbids while samples run at once or a tangent is "
    "taken; switch it off by `model.gradient_checkpointing_disable()` and "
    "`model.disable_input_require_grads()`."
)

INSIDE = {
    "_NoopSaveInputs": REFUSAL,
    "CheckpointFunction": REFUSAL,
    "Tensor.requires_grad_()": ASKS_FOR_GRADIENTS,
}
"""What torch says where a transform (`torch.vmap`, `jvp`) meets checkpointing, and what we say."""

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


def check_error(error: Exception) -> None:
    """Look whether torch raised `error` because of checkpointing inside a transform.

    Raises:
        UnsupportedModelError: it did.
    """
    for name, sentence in INSIDE.items():
        if name in str(error):
            raise UnsupportedModelError(sentence) from error


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
