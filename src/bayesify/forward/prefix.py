"""Which operations of a forward pass come before its first random weight, and what later ones read.

Every torch operation passes a `TorchFunctionMode`, in the order of execution, whatever the model
is made of. What the mode cannot see (tensors from numpy, extensions in C++) leaves tensors behind
that nobody made: they may depend on a random weight, so the first operation that is given one ends
the prefix too.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bayesify.core.isolation import version
from bayesify.core.types import Inputs
from bayesify.tracing.trace import call_as_is
from bayesify.weights.structured import METADATA

Function = Callable[..., Any]

Place = tuple[int, int]
"""Where a tensor comes from: number of the operation, number of the leaf of its result."""

FACTS = METADATA | {
    *(
        getattr(Tensor, name).__get__
        for name in ("is_cuda", "is_cpu", "is_sparse", "is_quantized", "is_mkldnn", "is_meta")
    ),
    *(Tensor.is_complex, Tensor.nelement, Tensor.element_size, Tensor.get_device),
    *(torch.is_floating_point, torch.is_complex, torch.numel),
}
"""Questions whose answer needs no values. They are no operations: which of them a model asks
depends on the kind of its weights, and on whether gradients are wanted."""


class Operations(TorchFunctionMode):
    """Sees every operation that is more than a question of fact."""

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTS:
            return func(*args, **kwargs)
        return self.operation(func, args, kwargs)

    @abstractmethod
    def operation(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What it returns to the model."""


class Prefix(Operations):
    """One pass: the operations before the first that is given something random.

    Args:
        random: The `id` of every random weight.
        weights: Name of every weight by its `id`.
        outside: Tensors by `id` that were there before the pass. None collects them: then all that
            no operation made counts as such, and nothing ends the prefix.

    Attributes:
        steps: The operations.
        reads: Names of the weights that they were given.
        frontier: Where the tensors come from that later operations were given, or the model
            returned.
        end: The operation that came after, and whether it was given a random weight; None when
            none came.
    """

    def __init__(
        self,
        random: Collection[int] = (),
        weights: Mapping[int, str] | None = None,
        outside: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.steps: list[Function] = []
        self.reads: set[str] = set()
        self.frontier: set[Place] = set()
        self.end: tuple[Function, bool] | None = None
        self.outside = dict(outside or {})
        self._random, self._weights, self._collects = random, weights or {}, outside is None
        self._made: dict[int, tuple[Tensor, set[Place]]] = {}  # held alive: an id lasts no longer
        self._versions = [(each, version(each)) for each in self.outside.values()]

    @property
    def over(self) -> bool:
        """Whether anything came after."""
        return self.end is not None

    @property
    def overwritten(self) -> bool:
        """Whether anything from outside was written into, or what the prefix made after its end."""
        return any(version(each) != before for each, before in self._versions)

    def operation(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute and note it."""
        given = list(tensors_in((args, kwargs)))
        ends = [] if self.over else [self._ends_at(each) for each in given]
        if any(ends):
            self.end = func, any(id(each) in self._random for each in given)
            self._versions += [(each, version(each)) for each, _ in self._made.values()]
        if self.over:
            self.read(given)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        leaves = tree_leaves(result)
        if given or any(isinstance(each, Tensor) for each in leaves):
            for number, each in enumerate(leaves):
                if isinstance(each, Tensor):
                    places = self._made.setdefault(id(each), (each, set()))[1]
                    places.add((len(self.steps), number))
            self.steps.append(func)
            self.reads |= {self._weights[id(each)] for each in given if id(each) in self._weights}
        return result

    def read(self, tensors: Iterable[Tensor]) -> None:
        """Note what comes after the prefix, or leaves the model."""
        for each in tensors:
            if id(each) in self._made:
                self.frontier |= self._made[id(each)][1]

    def _ends_at(self, each: Tensor) -> bool:
        known = id(each) in self._made or id(each) in self.outside
        if not known and self._collects:
            self.outside[id(each)] = each
            known = True
        return id(each) in self._random or not known


def prefix(model: nn.Module, names: Collection[str], inputs: Inputs) -> tuple[Prefix, Any]:
    """What comes before the first random weight, and what the model returned.

    Two passes, in the caller's mode: one to see what comes from outside, one for the rest.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> found, _ = prefix(net, {"2.weight"}, torch.randn(4, 2))
        >>> [step.__name__ for step in found.steps], found.frontier
        (['linear', 'relu'], {(1, 0)})
    """
    with Prefix() as everything:
        call_as_is(model, inputs)
    weights = {id(each): name for name, each in model.named_parameters()}
    with Prefix(ids_of(model, names), weights, everything.outside) as found:
        output = call_as_is(model, inputs)
    found.read(output_tensors(output))
    return found, output


def ids_of(model: nn.Module, names: Collection[str]) -> frozenset[int]:
    """The `id` of every weight and buffer with one of these names; a tied one has several."""
    both = (model.named_parameters, model.named_buffers)
    found = [pair for each in both for pair in each(remove_duplicate=False)]
    return frozenset(id(tensor) for name, tensor in found if name in names)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """What an operation was given; its arguments nest in nothing else."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, slice):
        yield from tensors_in((value.start, value.stop, value.step))


def output_tensors(output: Any, depth: int = 3) -> Iterator[Tensor]:
    """Every tensor in what a model returns, also in objects that are no tree to torch."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif depth and isinstance(leaf, Mapping):
            yield from output_tensors(list(leaf.values()), depth - 1)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            yield from output_tensors(list(vars(leaf).values()), depth - 1)
