"""The check of every example before any time is spent on training."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesify.batches import batch_size, split_batch, tensors_of, to_device
from bayesify.errors import BayesifyError, DataError, ShapeError, UnsupportedModelError
from bayesify.likelihoods import Likelihood
from bayesify.modes import evaluating
from bayesify.trunk import TOLERANCE, close
from bayesify.types import Inputs, Readout
from bayesify.weights.trace import call


def check_data(
    loader: DataLoader[Any], model: nn.Module, likelihood: Likelihood, readout: Readout
) -> tuple[Inputs, int]:
    """One pass over all data before any time is spent on training.

    Returns:
        The inputs of the first batch, and the number of batches.

    Raises:
        DataError: NaN or inf, no batch at all, labels out of range, all targets equal.
        ShapeError: targets that do not fit the model's output.
        UnsupportedModelError: the model cannot be called with the inputs.

    Warns when two calls in eval mode on the first batch differ: predictions would not repeat.
    """
    example, batches, seen = _pass(loader, model, likelihood, readout)
    if len(seen) == 1:
        raise DataError(
            f"all targets equal {seen.pop():g}: there is nothing to learn; expected at least two "
            f"classes (or values). Is the data sorted and cut?"
        )
    return example, batches


def check_held_out(
    loader: DataLoader[Any], model: nn.Module, likelihood: Likelihood, readout: Readout
) -> None:
    """The same pass over held-out examples, which may be few and of one class.

    Raises:
        BayesifyError: as `check_data`; the message begins with "validation".
    """
    try:
        _pass(loader, model, likelihood, readout)
    except BayesifyError as error:
        raise type(error)(f"validation: {error}") from error


def _pass(
    loader: DataLoader[Any], model: nn.Module, likelihood: Likelihood, readout: Readout
) -> tuple[Inputs, int, set[float]]:
    """First inputs, number of batches, and extreme targets of every batch."""
    device = next(model.parameters()).device
    first: Inputs | None = None
    output = torch.empty(0)
    seen: set[float] = set()  # the smallest and largest target suffice to tell "all equal"
    batches = 0
    for number, batch in enumerate(loader):
        inputs, target = split_batch(batch)
        check_batch(inputs, target, f"batch {number}")
        if first is None:
            _check_not_copied(inputs, target)
            first = to_device(inputs, device)
            output = _try(model, first, readout)
            _warn_if_random(model, first, readout, output)
        likelihood.check(output[:1].expand(len(target), *output.shape[1:]), target)
        seen |= {target.min().item(), target.max().item()}
        batches += 1
    if first is None:
        raise DataError("the loader gave no batch; expected at least one.")
    return first, batches, seen


def check_batch(inputs: Inputs, target: Tensor, where: str) -> None:
    """Check one batch; `where` begins the message.

    Raises:
        DataError: it is empty, or a number is NaN or infinite.
        ShapeError: not as many inputs as targets.
    """
    _check_finite(inputs, target, where)
    if target.ndim and batch_size(inputs) != len(target):
        raise ShapeError(f"{where}: {batch_size(inputs)} inputs, but {len(target)} targets.")
    if not target.numel():
        raise DataError(f"{where}: expected at least one example, got none.")


def _check_finite(inputs: Inputs, target: Tensor, where: str) -> None:
    """Raise `DataError` when a number of a batch is NaN or infinite."""
    named = [("inputs", each) for each in tensors_of(inputs)] + [("targets", target)]
    for what, tensor in named:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"{where}: {bad} of {tensor.numel()} numbers in the {what} are NaN or "
                f"infinite; expected finite numbers. Drop or impute these examples."
            )


def _check_not_copied(inputs: Inputs, target: Tensor) -> None:
    """Raise `DataError` when the labels of a text are the text: the identity would be learnt."""
    if target.ndim < 2 or target.is_floating_point():
        return
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(tensors_of(inputs))
    for name, each in named:
        if isinstance(each, Tensor) and each.shape == target.shape and torch.equal(each, target):
            raise DataError(
                f"the labels equal the inputs `{name}` at every position, which a network learns "
                f"by copying: expected for a language model the token that comes next. Shift them: "
                f"ids[:, :-1] as inputs, ids[:, 1:] as labels, and for outputs (batch, positions, "
                f"classes) readout=lambda output: output.logits.movedim(-1, 1)."
            )


def _warn_if_random(model: nn.Module, inputs: Inputs, readout: Readout, first: Tensor) -> None:
    with evaluating(model), torch.no_grad():
        again = readout(call(model, inputs))
    if not close(first, again, TOLERANCE):
        warnings.warn(
            f"{type(model).__name__} is random in eval mode: two calls on the first batch differ "
            f"by up to {float((first - again).abs().max()):.3g}. So predictions of its posterior "
            f"will not repeat, and will depend on how inputs are cut into batches. For samples by "
            f"dropout use nn.Dropout layers and bayesify.MCDropout, whose masks are fixed; switch "
            f"other noise off in eval mode (`training=self.training`).",
            stacklevel=2,
        )


def _try(model: nn.Module, inputs: Inputs, readout: Readout) -> Tensor:
    shapes = [f"{tuple(each.shape)} {each.dtype}" for each in tensors_of(inputs)]
    try:
        with evaluating(model), torch.no_grad():
            output = readout(call(model, inputs))
    except BayesifyError:
        raise
    except Exception as error:  # whatever a forward pass of the user's may raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be called with inputs of shape "
            f"{', '.join(map(str, shapes))}: {reason[0]}. Give it inputs of the shape and dtype "
            f"that it expects."
        ) from error
    if not bool(torch.isfinite(output).all()):
        raise DataError(
            f"{type(model).__name__} returns NaN or inf on the first batch; expected finite "
            f"outputs. Check its weights."
        )
    if output.ndim == 0 or len(output) != batch_size(inputs):
        raise ShapeError(
            f"{type(model).__name__} returns {tuple(output.shape)} for a batch of "
            f"{batch_size(inputs)}; expected the batch as the first axis."
        )
    return output
