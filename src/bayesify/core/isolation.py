"""A call of a model that leaves nothing behind: not in its inputs, its buffers, or other threads.

Networks write where they please: into what they are given (`x.sub_(mean)`, a `ReLU(inplace=True)`
in front), and into buffers of their own, also in eval mode (caches, counters, running means).
Prediction calls a network many times on the same inputs, by `torch.vmap` with tensors that are dead
outside of the call; so every call gets inputs and buffers as the first one found them. Buffers of
modules in train mode are let be: that they move (batch norm) is what that mode is for.

And `torch.func.functional_call` puts weights into the very modules that other threads call.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bayesify.core.batches import tensors_of
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Inputs, Named

_LOCKS: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()
_NEW_LOCK = Lock()
_WRITING: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()
"""Whether a call in eval mode was seen to write into buffers; models not seen are not in it."""

if hasattr(os, "register_at_fork"):  # what another thread holds then is never given back
    os.register_at_fork(after_in_child=_LOCKS.clear)


def lock_of(model: nn.Module) -> Any:
    """The lock of this module, a context; whoever calls it, or changes its mode, holds the lock.

    A thread may take it again and again. It is no part of the module, which can be pickled.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> with lock_of(net), lock_of(net):
        ...     output = net(torch.zeros(1, 2))
    """
    held = _LOCKS.get(model)
    if held is None:
        with _NEW_LOCK:
            held = _LOCKS.setdefault(model, RLock())
    return held


class Fresh:
    """Inputs for one call after another: as they are now, whatever the calls write into them.

    The caller's tensors are never given.

    Attributes:
        copy: What the next call is given.

    Example:
        >>> x = torch.zeros(2)
        >>> given = Fresh(x)
        >>> _ = given.copy.add_(1)
        >>> given.renew()
        >>> x.tolist(), given.copy.tolist()
        ([0.0, 0.0], [0.0, 0.0])
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._make()

    def renew(self) -> None:
        """Between two calls, outside of `torch.vmap`: copy again if the last one wrote."""
        if any(each.is_inference() or version(each) != was for each, was in self._before):
            self._make()

    def _make(self) -> None:
        self.copy = copied_inputs(self._inputs)
        self._before = [(each, version(each)) for each in tensors_of(self.copy)]


def copied_inputs(inputs: Inputs) -> Inputs:
    """The same with a copy of each tensor, through which gradients pass."""
    values = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, values)


@contextmanager
def isolated(model: nn.Module, weights: Named | None = None) -> Iterator[Named]:
    """For one call of the model, alone among all threads, whose buffers come back afterwards.

    Only those of modules in eval mode. They are copied until a call is known to write into none.

    Args:
        model: The network.
        weights: What it will be called with, by name; buffers may be among them.

    Returns:
        The same, with buffers that may be written into.

    Raises:
        UnsupportedModelError: a buffer was written into by a call that came after one which wrote
            into none; what it held is lost.
    """
    given: Named = dict(weights or {})
    with lock_of(model):
        copies = _WRITING.get(model, True)
        owners = list(_owners_in_eval_mode(model))
        held = [(buffers, list(buffers.items())) for _, buffers in owners]
        places = [(buffers, key) for _, buffers in owners for key in buffers]
        places += [(given, name) for name in _put_copies(owners, given)] if copies else []
        present = [(where, key, where[key]) for where, key in places if where[key] is not None]
        before = [version(each) for *_, each in present]
        try:
            yield given
        finally:
            pairs = zip(present, before, strict=True)
            written = [key for (_, key, each), was in pairs if version(each) != was]
            assigned = any(where.get(key) is not each for where, key, each in present)
            for buffers, items in held:
                for key, each in items:
                    if buffers.get(key) is not each:
                        assigned = assigned or each is None
                        buffers[key] = each
            if written or assigned or not model.training:  # in train mode nothing is seen
                _WRITING[model] = bool(written) or assigned or _WRITING.get(model, False)
    if written and not copies:
        raise UnsupportedModelError(
            f"{type(model).__name__} wrote into a buffer (`{written[0]}`) in eval mode, which it "
            f"did not do before, so that predictions would depend on those made earlier; let its "
            f"modules write into buffers in train mode only, or give them a new tensor "
            f"(`self.{written[0]} = ...`)."
        )


def _put_copies(owners: list[tuple[str, dict[str, Any]]], given: Named) -> list[str]:
    """Copies of the buffers in their owners' places and in `given`; the names of the latter."""
    twins: dict[int, Tensor] = {}  # one tensor may have several owners
    named = []
    with torch.inference_mode(False):  # whose tensors do not count what is written into them
        for prefix, buffers in owners:
            for key, each in buffers.items():
                if each is not None:
                    buffers[key] = twins.setdefault(id(each), each.clone())
                if prefix + key in given:
                    named.append(prefix + key)
                    given[named[-1]] = given[named[-1]].clone()
    return named


def writes_buffers(model: nn.Module) -> bool:
    """Whether a call in eval mode wrote into a buffer, or assigned one; False before the first."""
    return _WRITING.get(model, False)


def version(tensor: Tensor) -> int:
    """How often the tensor's memory has been written to; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _owners_in_eval_mode(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Prefix and buffers of each module that has some; torch's own walk takes twice the time."""
    ahead: list[tuple[str, nn.Module]] = [("", model)]
    while ahead:
        prefix, module = ahead.pop()
        if (
            module._buffers
            and not module.training
            and not isinstance(module, torch.jit.ScriptModule)
        ):
            yield prefix, module._buffers
        for name, child in module._modules.items():
            if child is not None:
                ahead.append((f"{prefix}{name}.", child))
