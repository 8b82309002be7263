"""Which weights a forward pass reads, in order of execution, and how much memory it fills.

Registration order lies (a module may run its layers in any order, or use a weight without calling
its module), so the order is recorded from a real forward pass: every torch operation passes a
`TorchFunctionMode` that notes which parameters it was given.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bayesify.errors import UnsupportedModelError
from bayesify.modes import evaluating
from bayesify.types import Inputs


@dataclass(frozen=True)
class Use:
    """One operation: the weights it read, and the bytes of new memory its result takes."""

    names: tuple[str, ...]
    result_bytes: int


def trace(model: nn.Module, example: Inputs) -> list[Use]:
    """Every operation of one forward pass in eval mode, in order, also those without weights."""
    recorder = _Recorder({id(weight): name for name, weight in model.named_parameters()})
    args, kwargs = call_arguments(example)
    with evaluating(model), torch.no_grad(), recorder:
        model(*args, **kwargs)
    return recorder.uses


def execution_order(model: nn.Module, example: Inputs | None = None) -> list[str]:
    """Names of weights in the order in which a forward pass reads them; one may come twice.

    Args:
        model: The network; its state is not changed.
        example: A small batch. Without one the order is read off a symbolic trace (`torch.fx`).

    Raises:
        UnsupportedModelError: when there is no example and the model cannot be traced without.
    """
    if example is not None:
        return [name for use in trace(model, example) for name in use.names]
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx raises many kinds, all meaning "not traceable"
        raise UnsupportedModelError(
            f"the order in which {type(model).__name__} runs its layers cannot be read without "
            f"running it ({error}); pass `example=` with a small batch of inputs."
        ) from error
    return list(_names_in_graph(model, graph.nodes))


def call_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that stand for `inputs`."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


class _Recorder(TorchFunctionMode):
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: list[Use] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        if results:  # metadata (shape, dtype, ...) is no use of a weight
            given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            names = tuple(self.names[id(each)] for each in given if id(each) in self.names)
            known = {each.untyped_storage().data_ptr() for each in given}
            fresh = [each for each in results if each.untyped_storage().data_ptr() not in known]
            self.uses.append(Use(names, sum(t.numel() * t.element_size() for t in fresh)))
        return result


def _names_in_graph(model: nn.Module, nodes: Iterable[fx.Node]) -> Iterable[str]:
    canonical = {id(weight): name for name, weight in model.named_parameters()}
    for node in nodes:
        if node.op == "call_module":
            read = model.get_submodule(str(node.target)).parameters()
        elif node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            read = [getattr(model.get_submodule(owner), attribute)]
        else:
            continue
        yield from (canonical[id(weight)] for weight in read if id(weight) in canonical)
