"""The part of a forward pass that all weight samples have in common, computed once.

Up to the first random weight a network does the same for every sample: that part is its trunk.
Samples that run at once share it without being told; samples that run one after the other compute
it each, and training computes it again in each epoch. Here it is computed once and replayed.

A `TorchFunctionMode` sees all operations of any model, in the order of execution. Of the results
of the trunk the rest of the network reads a few, the *frontier*: these are kept. In a replay,
operation number i of the trunk is not executed but returns its result again: a tensor of the
frontier, a value, or else a stand-in that has a shape and no memory, which nothing may read.

`forward/prefix.py` says where the trunk ends. A model that later writes into a tensor of its trunk,
or anywhere into its inputs, weights or buffers, has none that could be shared.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from bayesify.core.batches import batch_size, rows, tensors_of
from bayesify.core.errors import DataError, UnsupportedModelError
from bayesify.core.isolation import writes_buffers
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs
from bayesify.forward.prefix import (
    Function,
    Operations,
    Place,
    ids_of,
    output_tensors,
    prefix,
    tensors_in,
)
from bayesify.tracing.trace import call, call_as_is

TOLERANCE = 1e-5
"""How far a replayed output may be off, relative to the largest entry."""

ROOMY = 2
"""A view is copied when it keeps alive more than this many times its own bytes."""


@dataclass(frozen=True)
class Features:
    """What the trunk makes of one batch.

    Attributes:
        results: What each operation returns, with stand-ins outside the frontier.
        frontier: The tensors that the rest of the network reads; one may be at two places.
    """

    results: tuple[Any, ...]
    frontier: dict[Place, Tensor]

    @cached_property
    def hollow(self) -> frozenset[int]:
        """The `id` of every stand-in."""
        real = {id(each) for each in self.frontier.values()}
        found = [each for each in tree_leaves(self.results) if isinstance(each, Tensor)]
        return frozenset(id(each) for each in found if _is_plain(each)) - real


@dataclass(frozen=True, eq=False)
class Trunk:
    """The operations of a forward pass before the first random weight.

    Attributes:
        model: The network; never changed.
        names: The random weights (and buffers).
        reads: The weights that the trunk reads. While features are kept, these must not change.
        steps: The operations, in order of execution.
        end: The operation after them, and whether it is given a random weight.
        frontier: Where the tensors come from that the rest of the network reads.
        example: One or two rows of the example.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> x = torch.randn(5, 4)
        >>> trunk = Trunk.of(net, {"2.weight", "2.bias"}, x)
        >>> features = trunk.features(x)
        >>> [tuple(each.shape) for each in features.frontier.values()]
        [(5, 8)]
        >>> with trunk.replay(features):
        ...     output = net(x)                      # runs the last layer alone
        >>> torch.allclose(output, net(x))
        True
    """

    model: nn.Module
    names: frozenset[str]
    reads: frozenset[str]
    steps: tuple[Function, ...]
    end: tuple[Function, bool]
    frontier: frozenset[Place]
    example: Inputs

    @classmethod
    def of(cls, model: nn.Module, names: Collection[str], example: Inputs) -> Self | None:
        """The trunk of `model`; None where there is none, or it cannot be shared safely.

        There is none worth sharing when no weight is read before the first random one. All runs
        are in eval mode, on at most two examples.

        Args:
            model: The network; its state is not changed.
            names: Its random weights (and buffers).
            example: A batch of inputs, better of two or more.
        """
        with evaluating(model), torch.inference_mode(False), torch.no_grad():
            counts = sorted({min(2, batch_size(example)), 1}, reverse=True)
            batches = [_cloned(rows(example, slice(count))) for count in counts]
            call(model, batches[0])  # the model's own errors pass; what it caches is made here
            if writes_buffers(model):
                return None
            try:
                trunk = cls._of_batches(model, frozenset(names), batches)
            except Exception:  # a model may raise anything when it is given a stand-in
                return None
        return trunk

    def features(self, inputs: Inputs) -> Features:
        """Run the trunk alone, once, in eval mode and without gradients.

        Raises:
            DataError: a gradient is wanted for the inputs, which kept features would cut off.
            UnsupportedModelError: the model takes another path than on the example.
        """
        refuse_gradients(inputs)
        compute = _Compute(self)
        with evaluating(self.model), torch.inference_mode(False), torch.no_grad():
            try:
                with compute:
                    call_as_is(self.model, inputs)
            except _Stop:
                return compute.features()
        raise self.other_path(len(compute.results), "nothing")

    @contextmanager
    def replay(self, features: Features) -> Iterator[None]:
        """Inside, one call of the model on the inputs of `features` skips the trunk.

        The call may be made with other tensors in the place of the random weights, and under
        `torch.vmap` (enter this inside the mapped function). Nothing else may be computed before
        it inside. Use it in the mode of the features: eval, and their autocast.

        Raises:
            UnsupportedModelError: the model takes another path than on the example.
        """
        mode = _Replay(self, features)
        with mode:
            yield
        if 0 < mode.count < len(self.steps):
            raise self.other_path(mode.count, "nothing")

    def shared(self, inputs: Inputs) -> Callable[[], AbstractContextManager[None]]:
        """Makes the context of each call of the model on `inputs`: a replay, where one is possible.

        A model that takes another path on these inputs is simply run.
        """
        try:
            features = self.features(inputs)
        except UnsupportedModelError:
            return nullcontext
        return lambda: self.replay(features)

    def other_path(self, step: int, got: Any) -> UnsupportedModelError:
        """The error of a model that does not do what it did on the example."""
        known = _name(self.steps[step]) if step < len(self.steps) else "no use of earlier results"
        return UnsupportedModelError(
            f"{type(self.model).__name__} takes another path than on the example: expected {known} "
            f"as operation {step} before its random weights are read, got {_name(got)}; such a "
            f"model must run without shared features."
        )

    @classmethod
    def _of_batches(
        cls, model: nn.Module, names: frozenset[str], batches: list[Inputs]
    ) -> Self | None:
        found = [prefix(model, names, each) for each in batches]
        records = [record for record, _ in found]
        first = records[0]
        unlike = any((each.steps, each.end) != (first.steps, first.end) for each in records)
        if unlike or first.end is None or not first.reads or any(r.overwritten for r in records):
            return None
        frontier = frozenset(place for each in records for place in each.frontier)
        trunk = cls(
            model,
            names,
            frozenset(first.reads),
            tuple(first.steps),
            first.end,
            frontier,
            example=batches[0],
        )
        outputs = [output for _, output in found]
        safe = all(trunk._reproduces(*pair) for pair in zip(batches, outputs, strict=True))
        return trunk if safe else None

    def _reproduces(self, inputs: Inputs, output: Any) -> bool:
        """Whether replays give `output`; twice, as the first must not spoil the features."""
        features, expected = self.features(inputs), list(output_tensors(output))
        for wanted in (False, True):  # with gradients a model may take another path
            with torch.set_grad_enabled(wanted), self.replay(features):
                got = list(output_tensors(call_as_is(self.model, inputs)))
            pairs = zip(expected, got, strict=True)
            if not expected or not all(close(a, b, TOLERANCE) for a, b in pairs):
                return False
        return True


def refuse_gradients(inputs: Inputs) -> None:
    """No gradient may be wanted for inputs whose features are kept.

    Raises:
        DataError: one is.
    """
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors_of(inputs)):
        raise DataError(
            "expected inputs without gradients, got a tensor that requires one: shared features "
            "do not depend on it; run the model without them, or detach the inputs."
        )


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether all entries agree up to `tolerance` times the largest one."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    finite = a.detach()[a.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 0.0
    return torch.allclose(b, a, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def stand_in(shape: torch.Size, like: Tensor) -> Tensor:
    """A tensor of any shape that takes no memory. Who reads it all the same gets nonsense."""
    kind = like.dtype
    if kind.is_floating_point or kind.is_complex:
        nonsense = float("nan")
    else:
        nonsense = False if kind is torch.bool else torch.iinfo(kind).max
    return torch.full((), nonsense, dtype=kind, device=like.device).expand(shape)


class _Stop(BaseException):
    """The trunk is at its end. No `Exception`, which a model might catch."""


class _Compute(Operations):
    """Executes the trunk, keeps what is needed of it, and stops."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.results: list[Any] = []
        self._trunk, self._random = trunk, ids_of(trunk.model, trunk.names)
        self._frontier: dict[Place, Tensor] = {}

    def operation(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step, steps = len(self.results), self._trunk.steps
        given = list(tensors_in((args, kwargs)))
        random = any(id(each) in self._random for each in given)
        if step == len(steps) and (func, random) == self._trunk.end:
            raise _Stop
        if random:
            raise self._trunk.other_path(step, func)
        result = func(*args, **kwargs)
        leaves, tree = tree_flatten(result)
        if given or any(isinstance(each, Tensor) for each in leaves):
            if step == len(steps) or func != steps[step]:
                raise self._trunk.other_path(step, func)
            kept = [self._kept((step, number), each) for number, each in enumerate(leaves)]
            self.results.append(tree_unflatten(kept, tree))
        return result

    def features(self) -> Features:
        """Made at the end, as tensors may be written into until then."""
        owned = {id(each): _owned(each) for each in self._frontier.values()}
        results = tree_map(lambda leaf: owned.get(id(leaf), leaf), tuple(self.results))
        return Features(results, {p: owned[id(each)] for p, each in self._frontier.items()})

    def _kept(self, place: Place, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and place in self._trunk.frontier:
            self._frontier[place] = leaf
        elif isinstance(leaf, Tensor) and _is_plain(leaf):
            return stand_in(leaf.shape, leaf)
        return leaf


class _Replay(Operations):
    """Returns the results of the trunk by their number; executes everything after it."""

    def __init__(self, trunk: Trunk, features: Features) -> None:
        super().__init__()
        self.count = 0
        self._trunk, self._features = trunk, features
        # aliases, for autograd may hang a history on a tensor that a custom function returns
        self._aliases = {id(each): each.detach() for each in features.frontier.values()}

    def operation(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step, steps, hollow = self.count, self._trunk.steps, self._features.hollow
        if step < len(steps) and func == steps[step]:
            self.count += 1
            result, aliases = self._features.results[step], self._aliases
            if isinstance(result, Tensor):  # as nearly always; a walk of trees takes longer
                return aliases.get(id(result), result)
            return tree_map(lambda leaf: aliases.get(id(leaf), leaf), result)
        given = list(tensors_in((args, kwargs)))
        if (step < len(steps) and given) or any(id(each) in hollow for each in given):
            raise self._trunk.other_path(step, func)
        return func(*args, **kwargs)  # of the rest; or of no tensor, such as a change of mode


def _cloned(inputs: Inputs) -> Inputs:
    return tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, inputs)


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    return dense and type(tensor) in (Tensor, nn.Parameter)


def _owned(tensor: Tensor) -> Tensor:
    """The tensor without the rest of the memory that a view of something large keeps alive."""
    if not _is_plain(tensor):
        return tensor
    size = tensor.numel() * tensor.element_size()
    roomy = tensor.untyped_storage().nbytes() > ROOMY * size
    return tensor.clone() if roomy or tensor.is_inference() else tensor.detach()


def _name(func: Any) -> str:
    return func if isinstance(func, str) else f"`{getattr(func, '__name__', func)}`"
