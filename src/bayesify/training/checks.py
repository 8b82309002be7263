"""The check of every example before any time is spent on training."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from bayesify.core.batches import batch_size, split_batch, tensors_of, to_device
from bayesify.core.errors import BayesifyError, DataError, ShapeError, UnsupportedModelError
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs, Readout
from bayesify.forward.trunk import TOLERANCE, close
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.base import Posterior
from bayesify.tracing.trace import call
from bayesify.training.single_examples import Lengths, check_examples


@dataclass(frozen=True)
class Checked:
    """What a pass over all data has seen.

    Attributes:
        first: Inputs of the first batch, on the model's device.
        smallest: Inputs and target of the smallest batch, likewise.
        batches: How many there are.
        examples: How many they hold together.
        targets: The smallest and the largest number in the targets of every batch.
    """

    first: Inputs
    smallest: tuple[Inputs, Tensor]
    batches: int
    examples: int
    targets: set[float]


def check_data(
    loader: DataLoader[Any], model: nn.Module, likelihood: Likelihood, readout: Readout
) -> Checked:
    """One pass over all data before any time is spent on training.

    The model is called on the first and on the smallest batch, and on single examples.

    Raises:
        DataError: NaN or inf, no batch at all, labels out of range, all targets equal, or inputs
            of which it cannot be told what belongs to one example.
        ShapeError: targets that do not fit the model's output.
        UnsupportedModelError: the model cannot be called with the inputs.

    Warns when two calls in eval mode on the first batch differ: predictions would not repeat.
    """
    found = _pass(loader, model, likelihood, readout)
    if len(found.targets) == 1:
        raise DataError(
            f"all targets equal {found.targets.pop():g}: there is nothing to learn; expected at "
            f"least two classes (or values). Is the data sorted and cut?"
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"`{name}` of {type(model).__name__} is a batch norm without statistics "
                f"(track_running_stats=False): what it gives for an example depends on the rest of "
                f"the batch, also in eval mode. Let it keep them, or take another norm."
            )
    check_examples(model, found.first, readout)
    return found


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


def check_labelled(posterior: Any, loader: DataLoader[Any]) -> None:
    """A pass over examples that a posterior is to be judged on, before it predicts them.

    Args:
        posterior: What predicts; the targets of one that is not ours are left alone.
        loader: Batches.

    Raises:
        BayesifyError: as `check_data`, except that there may be few examples, and of one class.
    """
    output: Tensor | None = None
    for number, batch in enumerate(loader):
        inputs, target = split_batch(batch)
        check_batch(inputs, target, f"batch {number}")
        if not isinstance(posterior, Posterior):
            continue
        if output is None:
            few = to_device(inputs, posterior.device)
            output = posterior.outputs(few, num_samples=1)[0, :1].detach().cpu()
        posterior.likelihood.check(output.expand(len(target), *output.shape[1:]), target)


def _pass(
    loader: DataLoader[Any], model: nn.Module, likelihood: Likelihood, readout: Readout
) -> Checked:
    device = next(model.parameters()).device
    first: Inputs | None = None
    smallest: tuple[Inputs, Tensor] | None = None
    output = torch.empty(0)
    seen: set[float] = set()  # the smallest and largest target suffice to tell "all equal"
    batches = examples = 0
    lengths = Lengths()
    for number, batch in enumerate(loader):
        inputs, target = split_batch(batch)
        check_batch(inputs, target, f"batch {number}")
        lengths.add(inputs, f"batch {number}")
        if first is None:
            _check_not_copied(inputs, target)
            first = to_device(inputs, device)
            output = forward_once(model, first, readout)
            _warn_if_random(model, first, readout, output)
        likelihood.check(output[:1].expand(len(target), *output.shape[1:]), target)
        seen |= {target.min().item(), target.max().item()}
        if smallest is None or len(target) < len(smallest[1]):
            smallest = inputs, target
        batches, examples = batches + 1, examples + len(target)
    if first is None or smallest is None:
        raise DataError("the loader gave no batch; expected at least one.")
    smallest = to_device(smallest, device)
    if len(smallest[1]) < batch_size(first):
        likelihood.check(forward_once(model, smallest[0], readout), smallest[1])
    return Checked(first, smallest, batches, examples, seen)


def check_batch(inputs: Inputs, target: Tensor, where: str) -> None:
    """Check one batch; `where` begins the message.

    Raises:
        DataError: it is empty, or a number is NaN or infinite; -inf may stand in a mask.
        ShapeError: not as many inputs as targets, or no batch axis.
    """
    _check_finite(inputs, target, where)
    if not target.ndim:
        raise ShapeError(
            f"{where}: expected targets with a batch axis, got a single number; a DataLoader with "
            f"batch_size=None must be given whole batches."
        )
    if batch_size(inputs) != len(target):
        raise ShapeError(
            f"{where}: {batch_size(inputs)} inputs, but {len(target)} targets; expected as many. "
            f"Of several inputs the first one that is not marked as bayesify.Unbatched has a row "
            f"for each example."
        )
    if not target.numel():
        raise DataError(f"{where}: expected at least one example, got none.")


def _check_finite(inputs: Inputs, target: Tensor, where: str) -> None:
    """Raise `DataError` when a number of a batch is NaN or infinite."""
    named = [("inputs", each) for each in tensors_of(inputs)] + [("targets", target)]
    for what, tensor in named:
        if not tensor.is_floating_point():
            continue
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()) and (what == "targets" or not _is_mask(tensor)):
            raise DataError(
                f"{where}: {int(bad.sum())} of {tensor.numel()} numbers in the {what} are NaN or "
                f"infinite; expected finite numbers (or a mask that holds 0 and -inf alone). Drop "
                f"or impute these examples."
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


def _is_mask(tensor: Tensor) -> bool:
    """Whether it is one that is added to scores: 0 where these count and -inf where not."""
    return not bool(tensor.masked_fill(tensor == -math.inf, 0).any())


def forward_once(model: nn.Module, inputs: Inputs, readout: Readout) -> Tensor:
    """What the model returns for a batch in eval mode, which must be finite and have its axis."""
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
            f"{type(model).__name__} returns NaN or inf on a batch of the data; expected finite "
            f"outputs. Check its weights."
        )
    if output.ndim == 0 or len(output) != batch_size(inputs):
        raise ShapeError(
            f"{type(model).__name__} returns {tuple(output.shape)} for a batch of "
            f"{batch_size(inputs)}; expected the batch as the first axis."
        )
    return output
