"""A weight that writes down what it is multiplied with, and the gradient that comes back.

Layerwise methods need, for each linear map z = h W, the inputs h and the gradients dL/dz of all
examples. A hook on the module would miss a weight that is used without its module; the weight
itself is there at every use.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.isolation import version
from bayesify.weights.structured import Operation, StructuredWeight, formed


@dataclass
class Use:
    """One use of a weight in a forward pass, of all members that ran at once.

    Attributes:
        inputs: What it was multiplied with, (M, B, ...); (1, B, ...) where all members saw the
            same.
        output: (M, B, ...); held, so that no later tensor can come to lie at its address.
        versions: How often the memory of inputs and output had been written to.
        gradient: Of the last backward pass with respect to the output, (M, B, ...); None when
            the loss does not depend on it.
    """

    inputs: Tensor
    output: Tensor
    versions: tuple[int, int]
    gradient: Tensor | None = None


@dataclass
class Tape:
    """All uses of the taped weights, for each call of the model.

    Members that run one after the other leave a call each; together they are the member axis.
    """

    calls: list[dict[str, list[Use]]] = field(default_factory=list)
    outputs: Tensor | None = None
    """What the model returned in the last call."""
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))

    def note(self, name: str, use: Use) -> None:
        """File a use under the last call."""
        self.calls[-1].setdefault(name, []).append(use)

    def inputs(self, name: str) -> list[Tensor]:
        """For each use of the weight, what it was multiplied with: (M, B, ...) or (1, B, ...).

        Raises:
            UnsupportedModelError: the model wrote something else into that memory.
        """
        uses = [use for each in self._uses(name) for use in each]
        if any(version(use.inputs) != use.versions[0] for use in uses):
            raise UnsupportedModelError(
                f"the model overwrites the input of {name!r} after using it, so it is lost; "
                f"replace the operation in place (`x += ...`, `inplace=True`) by `x = x + ...`."
            )
        return [torch.cat([use.inputs for use in uses]) for uses in self._uses(name)]

    def gradients(self, name: str) -> list[Tensor]:
        """For each use of the weight, the gradient of its output, (M, B, ...), zero for none."""
        return [torch.cat([_gradient(use) for use in uses]) for uses in self._uses(name)]

    def results(self, name: str) -> list[Tensor]:
        """For each use of the weight, what came out of it: (M, B, ...), with its noise."""
        return [torch.cat([use.output for use in uses]) for uses in self._uses(name)]

    def is_output(self, name: str) -> bool:
        """Whether all that was done with this weight was to make what the model returned."""
        uses, outputs = self.calls[-1].get(name, []), self.outputs
        if len(uses) != 1 or outputs is None:
            return False
        made = uses[0].output
        return (
            made.untyped_storage().data_ptr() == outputs.untyped_storage().data_ptr()
            and uses[0].versions[1] == version(outputs)
            and made.numel() == outputs.numel()
        )

    def _uses(self, name: str) -> list[tuple[Use, ...]]:
        return list(zip(*(call.get(name, []) for call in self.calls), strict=True))


class TapedWeight(StructuredWeight):
    """Acts as `inner`, and puts every use on the tape's last call.

    The gradient of the tape's `anchor` drives the backward passes: no weight needs one.

    Args:
        inner: A plain tensor or another structured weight.
        name: What the uses are filed under.
        tape: Where.
    """

    wrapped: Tensor
    key: str
    tape: Tape

    def __new__(cls, inner: Tensor, name: str, tape: Tape) -> Self:
        """Wrap `inner`; the instance shares its memory."""
        with torch._C.DisableTorchFunctionSubclass():
            weight = inner.as_subclass(cls)
        weight.wrapped, weight.key, weight.tape = inner, name, tape
        return weight

    def act(self, op: Operation, x: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the wrapped weight, noted."""
        z = op(x, self.wrapped, bias)
        return _Note.apply(x, z, self.tape.anchor, self.tape, self.key, False)  # type: ignore[return-value]

    def dense(self) -> Tensor:
        """The weight as a plain tensor; what is computed of it is not noted."""
        return formed(self.wrapped)


class _Note(torch.autograd.Function):
    """The identity in z. `together`: the tensors have the member axis in front already.

    Under `torch.vmap` the batching rule, not the function, sees the tensors of all members.
    """

    @staticmethod
    def forward(
        x: Tensor, z: Tensor, anchor: Tensor, tape: Tape, key: str, together: bool
    ) -> Tensor:
        return z.detach()  # torch lets nobody write into a view that a function made of its input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, z, _, tape, key, ctx.together = inputs
        x, z = (x, z) if ctx.together else (x.unsqueeze(0), z.unsqueeze(0))
        ctx.use = Use(x.detach(), z.detach(), (version(x), version(z)))
        tape.note(key, ctx.use)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None, None, None]:  # type: ignore[override]
        ctx.use.gradient = grads[0] if ctx.together else grads[0].unsqueeze(0)
        return None, grads[0], torch.zeros(()), None, None, None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, z: Tensor, anchor: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        x = x.unsqueeze(0) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        members = info.batch_size
        z = z.expand(members, *z.shape) if in_dims[1] is None else z.movedim(in_dims[1], 0)
        return _Note.apply(x, z, anchor, *rest[:2], True), 0  # type: ignore[return-value]


def _gradient(use: Use) -> Tensor:
    return use.gradient if use.gradient is not None else torch.zeros_like(use.output)
