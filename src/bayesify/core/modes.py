"""Run a model in a mode, or with a seed, without leaving a trace."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from bayesify.core.isolation import lock_of
from bayesify.core.streams import salted


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in the mode it had before outside; for one thread alone."""
    with lock_of(model):
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


class _PlainAttention:
    """torch's switches for attention, which are those of the whole process."""

    def __init__(self) -> None:
        self.guard, self.inside, self.before = Lock(), 0, ExitStack()

    def enter(self) -> None:
        """Switch at the first of all threads that are inside."""
        with self.guard:
            if not self.inside:
                mha = torch.backends.mha
                self.before.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
                mha.set_fastpath_enabled(False)
                self.before.enter_context(sdpa_kernel(SDPBackend.MATH))
            self.inside += 1

    def leave(self) -> None:
        """Switch back at the last."""
        with self.guard:
            self.inside -= 1
            if not self.inside:
                self.before.close()


_PLAIN = _PlainAttention()


def train_(model: nn.Module) -> nn.Module:
    """Put the model in train mode, but for what its user took out of it; returns the model.

    That is batch norm in eval mode without a weight that wants a gradient, as one freezes it to
    fine-tune on small batches, and whatever is in eval mode inside a model in train mode.
    """
    held = held_modes(model)
    model.train()
    for module in held:
        module.training = False
    return model


def held_modes(model: nn.Module) -> list[nn.Module]:
    """The modules that `train_` leaves in eval mode."""
    return [
        module
        for module in model.modules()
        if not module.training and (model.training or is_frozen_norm(module))
    ]


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is batch norm that its user froze: in eval mode, with gradients switched off."""
    weights = list(module.parameters(recurse=False))
    return (
        isinstance(module, _BatchNorm)
        and not module.training
        and bool(weights)
        and not any(each.requires_grad for each in weights)
    )


@contextmanager
def attention_for_vmap() -> Iterator[None]:
    """Attention inside by plain matrix products, which `torch.vmap` can batch and differentiate.

    torch's fused inference path for a transformer layer cannot be differentiated under `vmap`,
    and its flash kernel for CPUs falls back to a loop there.
    """
    _PLAIN.enter()
    try:
        yield
    finally:
        _PLAIN.leave()


@contextmanager
def seeded(seed: int, use: str, model: nn.Module) -> Iterator[None]:
    """Torch's global generators are a stream of `seed` inside, and as they were outside.

    For what draws from them whether one likes it or not: dropout, `reset_parameters`, shuffling.
    """
    devices = {each.device for each in model.parameters() if each.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    with torch.random.fork_rng(devices=list(devices), device_type=kind):
        torch.manual_seed(salted(seed, use))
        yield
