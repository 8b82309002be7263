"""A small Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, eqs. 1-4).

An image is cut into patches, each a token of `dim` numbers; a class token is put in front and a
learnt position is added to each; `depth` blocks of attention and perceptron follow, with layer
norm before each and a sum around each; the class token of the last block gives the output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.core.errors import OptionError

_INITIAL_SCALE = 0.02


def vit(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
) -> "VisionTransformer":
    """Takes images (B, C, H, W), returns (B, num_outputs).

    Args:
        input_shape: (C, H, W) of one image; H and W are multiples of `patch`.
        num_outputs: Width of the last layer.
        patch: Height and width of a patch, in pixels.
        dim: Width of a token, a multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads per block.

    Example:
        >>> vit((1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if len(input_shape) != 3 or any(side % patch or side < patch for side in input_shape[1:]):
        raise OptionError(
            f"vit: expected images of shape (channels, height, width) whose sides are multiples of "
            f"patch={patch}, got {tuple(input_shape)}; choose another patch."
        )
    if dim % heads:
        raise OptionError(f"vit: expected dim to be a multiple of heads, got {dim} and {heads}.")
    channels, height, width = input_shape
    tokens = 1 + (height // patch) * (width // patch)
    embed = nn.Conv2d(channels, dim, patch, stride=patch)
    blocks = [Block(dim, heads) for _ in range(depth)]
    return VisionTransformer(embed, tokens, blocks, nn.Linear(dim, num_outputs))


class VisionTransformer(nn.Module):
    """Patches to tokens, blocks, and the class token to outputs.

    Args:
        embed: Images (B, C, H, W) to one token per patch, (B, dim, H/patch, W/patch).
        tokens: Number T of patches, plus one.
        blocks: Each maps (B, T, dim) to (B, T, dim).
        head: (B, dim) to (B, num_outputs).
    """

    def __init__(
        self, embed: nn.Conv2d, tokens: int, blocks: Sequence[nn.Module], head: nn.Linear
    ) -> None:
        super().__init__()
        dim = embed.out_channels
        self.embed = embed
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position = nn.Parameter(torch.empty(1, tokens, dim))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = head
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class token and the positions anew; sub-modules have methods of their own."""
        nn.init.normal_(self.class_token, std=_INITIAL_SCALE)
        nn.init.normal_(self.position, std=_INITIAL_SCALE)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_outputs) of images (B, C, H, W)."""
        patches = self.embed(images).flatten(2).transpose(1, 2)  # (B, T - 1, dim)
        first = self.class_token.expand(len(patches), -1, -1)
        x = torch.cat([first, patches], 1) + self.position  # (B, T, dim)
        return self.head(self.norm(self.blocks(x)[:, 0]))


class Block(nn.Module):
    """Attention over all tokens, then a perceptron on each, (B, T, dim) -> (B, T, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, dim) to tokens of the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, dim) -> (B, T, dim).

    Written out, for torch's fused attention has no batching rule for `vmap` on CPUs.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, dim) to tokens of the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, dim/heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, dim/heads)
        scores = query @ key.mT / query.shape[-1] ** 0.5  # (B, heads, T, T)
        mixed = F.softmax(scores, -1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))
