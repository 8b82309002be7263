"""One call of a model with other weights, and many such calls at once: nothing else is done here.

All that the library computes of a model under weights that are not its own comes through `call_at`,
around `torch.func.functional_call`, and `at_once`, around `torch.vmap`. The model, the inputs and
the buffers of a network in eval mode stay as they were (`isolation.py`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesify.core.casting import cast_together
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.isolation import Fresh, copied_inputs, isolated
from bayesify.core.modes import attention_for_vmap
from bayesify.core.types import Inputs, Named, Readout
from bayesify.forward.checkpointing import check_error
from bayesify.tracing.trace import call_arguments
from bayesify.weights.held_rows import with_held_rows


def read_tensor(output: Any) -> Tensor:
    """The default readout: the tensor itself, or its `.logits`.

    Raises:
        UnsupportedModelError: when the output is neither.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise UnsupportedModelError(
        f"the model returned {type(output).__name__}, which is neither a tensor nor has a tensor "
        f"`.logits`; pass `readout=` with a function that turns it into a tensor (batch, ...)."
    )


def call_at(
    model: nn.Module,
    weights: Named,
    inputs: Inputs | Fresh,
    readout: Readout,
    *,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """What the network returns under given weights, but for rows of tables that torch holds.

    Args:
        model: The network, in the mode that the caller wants.
        weights: By name; weights and buffers that are not among them are the model's own.
        inputs: What it is called with; it is given a copy, which it may write into.
        readout: Turns what it returns into a tensor.
        within: Makes the context of the call alone, e.g. `Trunk.replay`.
    """
    given = inputs.copy if isinstance(inputs, Fresh) else copied_inputs(inputs)
    args, kwargs = call_arguments(given)
    with isolated(model, with_held_rows(model, weights)) as named, within():
        return readout(functional_call(model, named, args, kwargs))


def at_once(call: Callable[..., Any], what: str, in_dims: Any = 0) -> Callable[..., Any]:
    """`call` over a leading axis of its arguments, with random numbers of its own for each.

    Args:
        call: Of one sample, or one example.
        what: What the axis counts, for the message.
        in_dims: As of `torch.vmap`.

    Raises:
        UnsupportedModelError: by what is returned: when `torch.vmap` cannot run the model.
    """

    def run(*args: Any) -> Any:
        try:
            with attention_for_vmap(), cast_together():
                return torch.vmap(call, in_dims=in_dims, randomness="different")(*args)
        except RuntimeError as error:
            check_error(error)
            if "vmap" not in str(error) and "batching rule" not in str(error).lower():
                raise
            raise UnsupportedModelError(
                f"the model cannot run all {what} at once ({str(error).splitlines()[0]}); "
                f"pass `vectorize=False` to run them one after the other."
            ) from error

    return run
