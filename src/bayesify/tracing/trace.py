"""Which weights a forward pass reads, in order of execution, and how much memory it fills.

Registration order lies (a module may run its layers in any order, or use a weight without calling
its module), so the order is recorded from a real forward pass: every torch operation passes a
`TorchFunctionMode` that notes which parameters it was given.

A weight is read where it meets the inputs. What is computed of weights alone before that (an
expanded class token, a weight times its norm) stands for the weights it was computed of.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bayesify.core.batches import bare
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.isolation import copied_inputs, isolated, version
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs

Mode = TypeVar("Mode", bound=TorchFunctionMode)

FACTS = {"shape", "size", "ndim", "dim", "numel", "dtype", "device"}
"""What a graph reads of a tensor besides its values."""

ATTENTION = {
    F.scaled_dot_product_attention: ("query", "key"),
    F.multi_head_attention_forward: ("query", "key", "value", "embed_dim_to_check", "num_heads"),
}
"""Functions that may form scores, and what their first arguments are called."""


@dataclass(frozen=True)
class Use:
    """One operation on activations.

    Attributes:
        names: The weights it read.
        result_bytes: Of new memory that it fills; of attention also those of the scores, which
            some ways of computing it fill and others do not.
        looked_up: Whether it read single rows of a table.
        func: The operation.
    """

    names: tuple[str, ...]
    result_bytes: int
    looked_up: bool = False
    func: Any = None


def trace(model: nn.Module, example: Inputs) -> list[Use]:
    """Every operation on activations in a forward pass in eval mode, also those without weights."""
    return watch(model, example, _Recorder).uses


def watch(model: nn.Module, example: Inputs, kind: Callable[[nn.Module], Mode]) -> Mode:
    """A mode of that kind, which has seen a forward pass in eval mode, without gradients.

    It is made where the model holds the buffers that the pass reads, which may be copies.
    """
    given = copied_inputs(example)
    with evaluating(model), isolated(model), torch.no_grad(), kind(model) as mode:
        call_as_is(model, given)
    return mode


def execution_order(model: nn.Module, example: Inputs | None = None) -> list[str]:
    """Names of weights in the order in which a forward pass reads them; one may come twice.

    Args:
        model: The network; its state is not changed.
        example: A small batch. Without one the order is read off a symbolic trace (`torch.fx`).

    Raises:
        UnsupportedModelError: when there is no example and the model cannot be traced without.
    """
    return [name for names, _ in reads(model, example) for name in names]


def reads(model: nn.Module, example: Inputs | None = None) -> list[tuple[tuple[str, ...], Any]]:
    """The weights that each operation reads, and the operation; of those that read any, in order.

    Arguments and errors as `execution_order`. Without an example a module counts as one operation.
    """
    if example is not None:
        return [(use.names, use.func) for use in trace(model, example) if use.names]
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx raises many kinds, all meaning "not traceable"
        raise UnsupportedModelError(
            f"the order in which {type(model).__name__} runs its layers cannot be read without "
            f"running it ({error}); pass `example=` with a small batch of inputs."
        ) from error
    return [(names, func) for names, func in _reads_in_graph(model, graph.nodes) if names]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns, by a call that leaves the inputs and (in eval mode) buffers alone."""
    with isolated(model):
        return call_as_is(model, copied_inputs(inputs))


def call_as_is(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns; it is given these very inputs, and may write into them."""
    args, kwargs = call_arguments(inputs)
    return model(*args, **kwargs)


def call_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that stand for `inputs`."""
    inputs = bare(inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


class _Recorder(TorchFunctionMode):
    """Notes the uses, and what the inputs have not reached: weights and all computed of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._unreached: dict[int, tuple[Tensor, int, tuple[str, ...]]] = {}
        for each in model.buffers():
            self._note(each, ())
        for name, weight in model.named_parameters():
            self._note(weight, (name,))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        held = [self._names(each) for each in given]
        result = func(*args, **(kwargs or {}))
        results = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        if results:  # metadata (shape, dtype, ...) is no use of a weight
            names = tuple(name for each in held for name in each or ())
            if None not in held:
                for each in results:
                    self._note(each, names)
            else:
                known = {each.untyped_storage().data_ptr() for each in given}
                fresh = [each for each in results if each.untyped_storage().data_ptr() not in known]
                filled = sum(t.numel() * t.element_size() for t in fresh)
                filled = max(filled, _score_bytes(func, args, kwargs or {}))
                self.uses.append(Use(names, filled, func is F.embedding, func))
        return result

    def _note(self, tensor: Tensor, names: tuple[str, ...]) -> None:
        # held alive, as an id lasts no longer; with its version, as it may be overwritten later
        self._unreached[id(tensor)] = (tensor, version(tensor), names)

    def _names(self, tensor: Tensor) -> tuple[str, ...] | None:
        """The weights it was computed of; None once the inputs have reached it."""
        noted = self._unreached.get(id(tensor))
        return noted[2] if noted and noted[1] == version(tensor) else None


def _score_bytes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Of attention: a number for each query and key, in every head."""
    if func not in ATTENTION:
        return 0
    given = dict(zip(ATTENTION[func], args, strict=False)) | kwargs
    query, key = given["query"], given["key"]
    if "num_heads" in given:  # (T, B, D), or (T, D)
        scores = query.shape[:-1].numel() * len(key) * given["num_heads"]
    else:  # (..., heads, T, D)
        scores = query.shape[:-1].numel() * key.shape[-2]
    return scores * query.element_size()


def _reads_in_graph(
    model: nn.Module, nodes: Iterable[fx.Node]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    canonical = {id(weight): name for name, weight in model.named_parameters()}
    of_weights: dict[fx.Node, list[str]] = {}  # nodes that the inputs do not reach
    for node in nodes:
        own: Iterable[Tensor] = ()
        if node.op == "call_module":
            own = model.get_submodule(str(node.target)).parameters()
        elif node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            own = [getattr(model.get_submodule(owner), attribute)]
        names = [name for each in node.all_input_nodes for name in of_weights.get(each, ())]
        names += [canonical[id(weight)] for weight in own if id(weight) in canonical]
        if _is_fact(node):
            of_weights[node] = []
        elif node.op != "placeholder" and all(each in of_weights for each in node.all_input_nodes):
            of_weights[node] = names
        else:
            func = node.target
            yield tuple(names), getattr(Tensor, str(func)) if node.op == "call_method" else func


def _is_fact(node: fx.Node) -> bool:
    read = node.args[1] if node.target is getattr else node.target
    return node.op in ("call_method", "call_function") and read in FACTS
