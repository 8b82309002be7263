"""What of a batch belongs to one example: found out before training, as it decides what is cut.

Methods look at single examples (their gradients, their memory), which they take out of a batch by
its rows. A tensor that the examples have in common, but which happens to be as long as the batch,
would be cut with them, silently. So lengths are compared over all batches, and single examples are
tried.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from bayesify.core.batches import Unbatched, batch_size, leaves_of, rows
from bayesify.core.errors import BayesifyError, DataError
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs, Readout
from bayesify.tracing.trace import call

TOLERANCE = {torch.float16: 1e-1, torch.bfloat16: 1e-1}
"""How far an example's output may differ from what it is within its batch, relative to the largest
number; 1e-3 in other types."""


class Lengths:
    """Compares which tensors of the inputs are as long as the batch, over all batches."""

    def __init__(self) -> None:
        self._seen: list[set[bool]] | None = None

    def add(self, inputs: Inputs, where: str) -> None:
        """Look at one more batch; `where` begins the message.

        Raises:
            DataError: a tensor is as long as the batch in some batches only, which is chance.
        """
        if batch_size(inputs) == 1:
            return  # whatever is as long as one example is never cut
        found = leaves_of(inputs)
        if self._seen is None or len(self._seen) != len(found):
            self._seen = [set() for _ in found]
        for number, (seen, (_, batched)) in enumerate(zip(self._seen, found, strict=True)):
            seen.add(batched)
            if len(seen) > 1:
                raise _chance(inputs, number, where)


def check_examples(model: nn.Module, inputs: Inputs, readout: Readout) -> None:
    """Take examples out of a batch, and call the model with each.

    Where several tensors may be cut, the outputs must be those of the batch, or not be so with any
    of the tensors left whole either: a network may let examples depend on each other.

    Raises:
        DataError: the network cannot be called with one example, or a tensor is cut that the
            examples have in common.
    """
    size = batch_size(inputs)
    if size == 1:
        return
    shared = [
        number
        for number, (leaf, batched) in enumerate(leaves_of(inputs))
        if batched and isinstance(leaf, Tensor)
    ][1:]
    reason = _differs(model, inputs, readout) if shared else _fails(model, inputs, readout)
    if reason is None:
        return
    for number in shared:
        if _differs(model, _marked(inputs, {number}), readout) is None:
            raise _chance(inputs, number, "batch 0")
    if shared and _differs(model, _marked(inputs, set(shared)), readout) is None:
        raise _chance(inputs, shared[0], "batch 0")
    if isinstance(reason, Exception):
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        raise DataError(
            f"{type(model).__name__} cannot be called with one example of a batch of {size} "
            f"({lines[0]}); expected inputs whose tensors have a row for each example, or are "
            f"marked as bayesify.Unbatched. Nodes of a graph are no examples: give the graph as "
            f"one example with positions, x[None] and y[None], and outputs (1, classes, nodes)."
        ) from reason


def _fails(model: nn.Module, inputs: Inputs, readout: Readout) -> Exception | None:
    """The error that the first example raises alone."""
    try:
        with evaluating(model), torch.no_grad():
            readout(call(model, rows(inputs, slice(1))))
    except BayesifyError:
        raise
    except Exception as error:  # whatever a forward pass of the user's may raise
        return error
    return None


def _differs(model: nn.Module, inputs: Inputs, readout: Readout) -> Exception | bool | None:
    """None where single examples give what they give in the batch; the error if one is raised."""
    try:
        with evaluating(model), torch.no_grad():
            whole = readout(call(model, inputs))
            for number in (0, batch_size(inputs) - 1):
                alone = readout(call(model, rows(inputs, slice(number, number + 1))))
                if not _alike(whole[number : number + 1], alone):
                    return True
    except BayesifyError:
        raise
    except Exception as error:  # whatever a forward pass of the user's may raise
        return error
    return None


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = a.abs().max() if a.numel() else 0
    return bool(((a - b).abs() <= TOLERANCE.get(a.dtype, 1e-3) * scale).all())


def _marked(inputs: Inputs, numbers: set[int]) -> Inputs:
    """The same with those tensors marked."""
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    leaves, tree = tree_flatten(values, is_leaf=lambda each: isinstance(each, Unbatched))
    return tree_unflatten(
        [Unbatched(each) if n in numbers else each for n, each in enumerate(leaves)], tree
    )


def _chance(inputs: Inputs, number: int, where: str) -> DataError:
    shape = tuple(leaves_of(inputs)[number][0].shape)
    return DataError(
        f"{where}: tensor {number} of the inputs, of shape {shape}, is as long as the batch only "
        f"by chance: it has no row for each example. Mark it in every batch, so that it is never "
        f"cut: bayesify.Unbatched(tensor); a mask that each example has for itself is of shape "
        f"(batch, ...)."
    )
