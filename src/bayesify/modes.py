"""Run a model in a mode, or with a seed, without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bayesify.streams import salted


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in the mode it had before outside."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attention_for_vmap() -> Iterator[None]:
    """Attention inside by plain matrix products, which `torch.vmap` can batch and differentiate.

    torch's fused inference path for a transformer layer cannot be differentiated under `vmap`,
    and its flash kernel for CPUs falls back to a loop there.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


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
