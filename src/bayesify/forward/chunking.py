"""How many weight samples to run at once.

Samples that are run together share the dispatch of every operation, and read what they have in
common once: weights that are not random, and the base of low-rank members. But their activations
together may fall out of the cache, and then the plain loop is the faster one. So as many are run at
once as keep the largest activation within a fixed budget; or, where that is more, as move less
memory of their own than a part of the weights in common, which the loop reads again for every
sample. The budgets are measured: benchmarks/README.md.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from bayesify.core.batches import batch_size, first_example
from bayesify.core.streams import stream
from bayesify.core.types import Inputs
from bayesify.distributions.base import WeightDistribution
from bayesify.tracing.trace import trace
from bayesify.weights.named import weights_of

CPU_BUDGET = 2**20
"""Bytes that the largest activation of a chunk may take on a CPU, so that it stays in cache."""

ACCELERATOR_BUDGET = 2**30
"""Bytes that the largest activation of a chunk may take on an accelerator."""

OF_COMMON = 1 / 6
"""What a chunk may move of its own, activations and weights, in bytes of the weights in common."""

WORTHWHILE = 4
"""Fewer samples than this at once cost more than the loop."""


@dataclass(frozen=True)
class Footprint:
    """What a forward pass moves, from the first random weight on.

    What comes before it is the same for all samples, and computed once.

    Attributes:
        activation: Bytes of the largest activation, per example and sample.
        common: Bytes of the weights that samples have in common; not of tables, of which single
            rows are read.
        own: Bytes of what is drawn for a sample.
    """

    activation: int
    common: int = 0
    own: int = 0

    @classmethod
    def of(cls, model: nn.Module, q: WeightDistribution, inputs: Inputs) -> "Footprint":
        """Found by running the model on one example.

        Args:
            model: The network.
            q: Over its weights.
            inputs: A batch, of which the first example is taken.
        """
        random, replaced = set(q.names), set(q.names) - set(q.perturbed)
        uses = trace(model, first_example(inputs))
        start = next((i for i, use in enumerate(uses) if random & set(use.names)), 0)
        after = uses[start:]
        read = {name for use in after if not use.looked_up for name in use.names} - replaced
        weights = weights_of(model)
        with torch.no_grad():
            drawn = tree_leaves(q.sample(1, generator=stream(0, "footprint")))
        return cls(
            activation=max((use.result_bytes for use in after), default=0),
            common=sum(weights[name].nbytes for name in read if name in weights),
            own=sum(each.nbytes for each in drawn) // q.size(1),
        )


def default_chunk_size(
    footprint: Footprint, inputs: Inputs, device: torch.device, samples: int
) -> int:
    """How many samples to run at once; 1 is the plain loop.

    Chunks are of even size, up to half above the budget: a rest of one sample would cost a call.

    Args:
        footprint: Of the network under its distribution.
        inputs: The batch, for its size.
        device: Where it is run.
        samples: How many there are.
    """
    budget = CPU_BUDGET if device.type == "cpu" else ACCELERATOR_BUDGET
    activation = max(1, footprint.activation * batch_size(inputs))
    fixed = math.floor(budget / activation)
    widened = math.floor(OF_COMMON * footprint.common / (activation + footprint.own))
    fitting = max(fixed, widened)
    if fitting < WORTHWHILE:
        return 1
    return math.ceil(samples / max(1, round(samples / fitting)))


def can_vectorize(model: nn.Module) -> bool:
    """Whether `torch.vmap` has rules for the model's layers, as far as their types tell."""
    recurrent = (nn.RNNBase, nn.RNNCellBase)
    return not any(isinstance(module, recurrent) for module in model.modules())
