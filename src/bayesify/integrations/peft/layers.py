"""Where peft's LoRA keeps the factors of one layer, W = base + scale * up @ down.

    Linear         lora_A = down                   lora_B = up                  scale = alpha / r
    Conv1d/2d/3d   lora_A = down (r, in, *kernel)  lora_B = up (out, r, 1, ...)
    Conv1D         lora_A = up^T                   lora_B = down^T              (weights (in, out))
    Embedding      lora_embedding_A = up^T         lora_embedding_B = down^T

Conv1D is the linear layer of Hugging Face's GPT-2. Other layers have no such form, and of these not
every one: a layer must compute what peft takes it to compute.
"""

from collections.abc import Sequence

from torch import Tensor, nn

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

PREFIX = "base_model.model."
"""Of every key, before the name of a module."""

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)

BYPASSING = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Layers that hand the weights of others to a kernel, so that an adapter is not called."""


def owner_of(name: str) -> str:
    """The module of a weight or buffer."""
    return name.rpartition(".")[0]


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """All names of each weight, by each of its names; the first one is that of the library."""
    groups: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(weight), []).append(name)
    return {name: group for group in groups.values() for name in group}


def misfit(model: nn.Module, name: str) -> str | None:
    """Why an adapter of peft cannot be a low-rank difference of the weight `name`; None if it can.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
        >>> misfit(net, "0.weight")
        'it is a convolution in 2 groups, to which peft adds one over all channels'
    """
    owner, _, attribute = name.rpartition(".")
    module, kind = model.get_submodule(owner), type(model.get_submodule(owner)).__name__
    if len(aliases(model)[name]) > 1:
        return f"it is tied ({', '.join(aliases(model)[name])}), which peft would part"
    if not owner:
        return "it is the whole network's own; put the network into an `nn.Sequential`"
    if attribute != "weight" or not (type(module) in ADAPTED or is_transposed(module)):
        known = ", ".join(each.__name__ for each in ADAPTED)
        return f"it is the `{attribute}` of {kind}; peft adapts the `weight` of {known} and Conv1D"
    parts = owner.split(".")
    for above in (model.get_submodule(".".join(parts[:i])) for i in range(len(parts))):
        if isinstance(above, BYPASSING):
            return f"{type(above).__name__} reads it without calling the {kind} that is adapted"
    if isinstance(module, nn.Embedding):
        return "its max_norm would shorten the factors" if module.max_norm is not None else None
    return _misfit_convolution(module)


def _misfit_convolution(module: nn.Module) -> str | None:
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    if module.groups > 1:
        return (
            f"it is a convolution in {module.groups} groups, to which peft adds one over all "
            f"channels"
        )
    if any(each > 1 for each in module.dilation):
        return "it is a dilated convolution, to which peft adds one that is not"
    if module.padding_mode != "zeros":
        return f"its padding is {module.padding_mode!r}, and peft's is by zeros"
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether it is Hugging Face's Conv1D; transformers itself is not needed."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def keys_of(module: nn.Module) -> tuple[str, str]:
    """What the two factors are called."""
    if isinstance(module, nn.Embedding):
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def to_peft(module: nn.Module, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (r, d) and (m, r) as peft's A and B.

    Example:
        >>> import torch
        >>> a, b = to_peft(nn.Conv2d(3, 5, 2), torch.ones(4, 12), torch.ones(5, 4))
        >>> a.shape, b.shape
        (torch.Size([4, 3, 2, 2]), torch.Size([5, 4, 1, 1]))
    """
    if isinstance(module, nn.Embedding) or is_transposed(module):
        return up.T, down.T
    shape: Sequence[int] = module.weight.shape  # type: ignore[assignment]
    return down.reshape(-1, *shape[1:]), up.reshape(*up.shape, *[1] * (len(shape) - 2))


def from_peft(module: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `to_peft`."""
    if isinstance(module, nn.Embedding) or is_transposed(module):
        return b.T, a.T
    return a.flatten(1), b.flatten(1)
