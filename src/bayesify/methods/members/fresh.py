"""Random starts: what makes members differ that are trained on the same batches."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.clones import clone
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.modes import is_frozen_norm, seeded
from bayesify.core.types import Named
from bayesify.weights.named import assign_, buffers_of, copied, weights_of

RESETS = ("reset_parameters", "_reset_parameters")
"""How modules draw their own weights anew; the latter is the name in torch's attention."""


def fresh_starts(
    model: nn.Module,
    members: int,
    generator: torch.Generator,
    build: Callable[[], nn.Module] | None = None,
) -> list[nn.Module]:
    """M copies of `model`, each drawn anew.

    By `build`; or by every module's own `reset_parameters`, and then, as transformers and timm
    have it, by `_init_weights(module)` of the network around it; what is left, by the
    `init_weights()` of a module that owns it. Modules whose weights are all frozen keep them, and
    frozen batch norm its statistics.

    Args:
        model: The network; not changed.
        members: M.
        generator: Source of the starts.
        build: Makes a network of the same architecture, from torch's global generator.

    Raises:
        UnsupportedModelError: a module owns weights but has no way to draw them anew, or `build`
            makes another network.
    """
    starts = [clone(model) for _ in range(members)]
    with seeded(int(torch.randint(2**62, (), generator=generator)), "start", model):
        for start in starts:
            held = _held(start)
            if build is None:
                _draw_(start)
            else:
                _take_(start, build())
            assign_(start, held)
    return starts


def fresh_weights(
    model: nn.Module, names: Collection[str], members: int, generator: torch.Generator
) -> Named:
    """M values (M, *shape) of the weights `names`, drawn anew by the modules that own them.

    Raises:
        UnsupportedModelError: when an owner has no way to draw them.
    """
    values: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    with seeded(int(torch.randint(2**62, (), generator=generator)), "start", model):
        for _ in range(members):
            for owner in owners:
                module = clone(model.get_submodule(owner)).requires_grad_(True)
                if not _reset_(module):
                    raise _refusal(owner, module)
                for name, each in module.named_parameters(owner):
                    if name in values:
                        values[name].append(each.detach())
    return {name: torch.stack(each) for name, each in values.items()}


def _draw_(model: nn.Module) -> None:
    modules = dict(reversed(list(model.named_modules())))  # a parent's word is last
    rules = {name: rule for name, each in modules.items() if (rule := _rule(each))}
    before = {name: _stamp(each) for name, each in model.named_parameters()}
    reset: set[str] = set()
    for name, module in modules.items():
        if _is_frozen(module):
            continue
        if _reset_(module):
            reset.add(name)
        if rule := _innermost(name, rules):
            rule(module)

    def left() -> list[str]:
        """Modules that own a weight nothing has drawn."""
        return [
            name
            for name, module in modules.items()
            if name not in reset and not _is_frozen(module)
            for own, each in module.named_parameters(name, recurse=False)
            if own in before
            and before[own] == _stamp(each)
            and not (each.numel() == 1 and _innermost(name, rules))  # a constant, to the rule
        ]

    for name in left():
        initialise = getattr(modules[name], "init_weights", None)
        if callable(initialise) and name not in rules and _takes(initialise):
            initialise()
    if still := left():
        raise _refusal(still[0], modules[still[0]])


def _reset_(module: nn.Module) -> bool:
    """Whether the module drew its weights."""
    for method in RESETS:
        if callable(reset := getattr(module, method, None)):
            reset()
            return True
    return not list(module.parameters(recurse=False))


def _rule(module: nn.Module) -> Callable[[nn.Module], Any] | None:
    """How a network draws the modules inside of it, each for itself."""
    rule = getattr(module, "_init_weights", None)
    return rule if callable(rule) and _takes(rule, module) and not _takes(rule) else None


def _innermost(name: str, rules: dict[str, Callable[[nn.Module], Any]]) -> Any:
    """The rule of the module `name`, or of the closest one around it."""
    path = name.split(".") if name else []
    around = (".".join(path[:length]) for length in range(len(path), -1, -1))
    return next((rules[each] for each in around if each in rules), None)


def _takes(function: Callable[..., Any], *args: Any) -> bool:
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        return False
    return True


def _stamp(weight: Tensor) -> tuple[int, int]:
    """Changes when the weight is written, in place or by a new tensor."""
    return weight._version, weight.data_ptr()


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return is_frozen_norm(module) or bool(own and not any(each.requires_grad for each in own))


def _held(model: nn.Module) -> Named:
    """Weights and buffers of the frozen modules, copied."""
    return copied(
        {
            name: each
            for owner, module in model.named_modules()
            if _is_frozen(module)
            for named in (module.named_parameters, module.named_buffers)
            for name, each in named(owner, recurse=False)
            if name in {*weights_of(model), *buffers_of(model)}  # tied ones go by their first name
        }
    )


def _take_(start: nn.Module, built: Any) -> None:
    """Give `start` the weights and buffers of `built`."""
    if isinstance(built, nn.Module):
        own, new = (weights_of(each) | buffers_of(each) for each in (start, built))
        if {n: e.shape for n, e in own.items()} == {n: e.shape for n, e in new.items()}:
            return assign_(start, new)
    raise UnsupportedModelError(
        f"build: expected a function without arguments that makes a new {type(start).__name__} "
        f"with weights of the same names and shapes, got {type(built).__name__}."
    )


def _refusal(name: str, module: nn.Module) -> UnsupportedModelError:
    owned = ", ".join(each for each, _ in module.named_parameters(recurse=False))
    return UnsupportedModelError(
        f"M random starts are needed, but `{name or type(module).__name__}` "
        f"({type(module).__name__}) owns {owned} and has no `reset_parameters()` to draw them "
        f"anew; give the class one, or say how the network is made: bayesify.Ensemble(build=...)."
    )
