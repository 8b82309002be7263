"""Random starts: what makes members differ that are trained on the same batches."""

from collections.abc import Collection

import torch
from torch import nn

from bayesify.clones import clone
from bayesify.errors import UnsupportedModelError
from bayesify.modes import seeded
from bayesify.types import Named


def fresh_starts(model: nn.Module, members: int, generator: torch.Generator) -> list[nn.Module]:
    """M copies of `model`, each initialised anew by its modules' own `reset_parameters`.

    Modules whose weights are all frozen keep them.

    Raises:
        UnsupportedModelError: when a module owns weights but has no way to draw them anew.
    """
    starts = [clone(model) for _ in range(members)]
    with seeded(int(torch.randint(2**62, (), generator=generator)), model):
        for start in starts:
            for name, module in reversed(list(start.named_modules())):  # a parent's word is last
                _reset_(name, module)
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
    with seeded(int(torch.randint(2**62, (), generator=generator)), model):
        for _ in range(members):
            for owner in owners:
                module = clone(model.get_submodule(owner)).requires_grad_(True)
                _reset_(owner, module)
                for name, each in module.named_parameters(owner):
                    if name in values:
                        values[name].append(each.detach())
    return {name: torch.stack(each) for name, each in values.items()}


def _reset_(name: str, module: nn.Module) -> None:
    own = list(module.parameters(recurse=False))
    if own and not any(each.requires_grad for each in own):
        return
    for method in ("reset_parameters", "_reset_parameters"):  # the latter: torch's attention
        if callable(reset := getattr(module, method, None)):
            reset()
            return
    if owned := [each for each, _ in module.named_parameters(recurse=False)]:
        raise UnsupportedModelError(
            f"M random starts are needed, but `{name or type(module).__name__}` "
            f"({type(module).__name__}) owns {', '.join(owned)} and has no `reset_parameters()` "
            f"to draw them anew; give the class one."
        )
