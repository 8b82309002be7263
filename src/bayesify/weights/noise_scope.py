"""How far the noise of one weight may differ within a batch: by row, by example, or not at all.

The expected log likelihood is a sum over examples, so the noise of two examples need not be the
same draw of the weights. Within one example it must be: all positions of a feature map, all tokens
of a text and all uses of a tied weight see *one* draw, and their outputs vary together. Noise that
is drawn anew for each position has the right variance at each, and a far too small one of anything
that is pooled or attended over. So what is allowed depends on what the forward pass does:

    ROW      the weight multiplies one row of each example, once: local reparameterisation
             (Kingma, Salimans & Welling 2015, arXiv 1506.02557), noise of the outputs themselves
    EXAMPLE  it acts on many positions, or several times, always on a batch of examples: Flipout
             (Wen et al. 2018, arXiv 1803.04386), one draw whose signs differ by example
    BATCH    anything else (attention, norms, recurrent layers, batches along another axis): one
             draw for the whole batch

The outputs of each example have the law of a weight draw, jointly, in all three; the further up,
the less the gradients vary.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bayesify.core.batches import batch_size, rows
from bayesify.core.errors import BayesifyError
from bayesify.core.types import Inputs
from bayesify.tracing.trace import watch
from bayesify.weights.structured import ACTING, is_table, operands


class NoiseScope(Enum):
    """What shares one draw of a weight's noise; see the module."""

    ROW = "row"
    EXAMPLE = "example"
    BATCH = "batch"


Scopes = Mapping[str, NoiseScope]
"""By the weights' names; one that is missing has `NoiseScope.BATCH`."""


class OtherUseError(BayesifyError):
    """A forward pass used a weight in a way that its scope does not cover."""

    def __init__(self) -> None:
        super().__init__(
            "a forward pass uses a weight otherwise than the one over the example that its noise "
            "was planned by; expected a network that does the same for every batch."
        )


def noise_scopes(
    model: nn.Module, example: Inputs, names: Collection[str] | None = None
) -> dict[str, NoiseScope]:
    """The widest scope that each weight's noise may have in a forward pass of `model`.

    Two passes in eval mode, over two and over three of the examples: an axis that follows the
    number of examples is the batch's, and one that has its length by chance is not. A network that
    cannot be called with so few has the same draw for all.

    Args:
        model: The network; its state is not changed.
        example: A batch of inputs.
        names: The weights that are random; None for all. A bias beside a weight that is not has
            one draw.

    Returns:
        Names of weights -> `ROW` or `EXAMPLE`; all others have `BATCH`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2), nn.LayerNorm(2))
        >>> {n: each.value for n, each in noise_scopes(net, torch.ones(4, 1, 4, 4)).items()}
        {'0.weight': 'example', '2.weight': 'row', '0.bias': 'example', '2.bias': 'row'}
    """
    recorders = [_recorded(model, example, count) for count in (2, 3)]
    two, three = ({} if each is None else each.scopes(names) for each in recorders)
    return {name: each for name, each in two.items() if three.get(name) is each}


def _recorded(model: nn.Module, example: Inputs, count: int) -> "_Recorder | None":
    """What a pass over `count` of the examples does; None when it cannot be made."""
    few = rows(example, torch.arange(count) % batch_size(example))
    try:
        return watch(model, few, lambda model: _Recorder(model, count))
    except Exception:  # whatever a forward pass may raise when it is given fewer examples
        return None


@dataclass(frozen=True)
class _Use:
    """One use of a weight: whether each example has rows of its own in it, and just one.

    `partner` is the weight itself, or that which a bias stands beside.
    """

    partner: str
    batched: bool
    single: bool


class _Recorder(TorchFunctionMode):
    """Notes how each weight is used in a pass over `count` examples."""

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in model.named_parameters()}
        self._count = count
        self._weights: dict[str, list[_Use]] = {}
        self._biases: dict[str, list[_Use]] = {}
        self._others: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        named = [self._names[id(each)] for each in leaves if id(each) in self._names]
        if named and any(isinstance(each, Tensor) for each in tree_leaves(result)):
            noted = self._noted(func, *args, **kwargs)
            self._others |= {name for name in named if named.count(name) > 1 or name not in noted}
        return result

    def scopes(self, random: Collection[str] | None) -> dict[str, NoiseScope]:
        """Of the random weights and of their biases; a bias that acts beside others has none."""
        found = {}
        for name, uses in self._weights.items():
            if random is not None and name not in random:
                continue
            if name in self._others or name in self._biases or not all(e.batched for e in uses):
                continue
            alone = len(uses) == 1 and uses[0].single
            found[name] = NoiseScope.ROW if alone else NoiseScope.EXAMPLE
        for name, uses in self._biases.items():
            partners = {each.partner for each in uses}
            if len(partners) > 1 or name in self._others | self._weights.keys():
                continue
            (partner,) = partners
            if partner in found and len(uses) == len(self._weights[partner]):
                found[name] = found[partner]
        return found if random is None else {n: e for n, e in found.items() if n in random}

    def _noted(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> set[str]:
        """Names of the weight and the bias of a linear operation or of a lookup."""
        if func in ACTING or (func is torch.addmm and not kwargs):
            return self._linear(func, *args, **kwargs)
        if func is F.embedding and is_table(*args, **kwargs):
            x, weight, *_ = operands(*args, **kwargs)
            return self._note(weight, None, self._batched(x), single=False)
        return set()

    def _linear(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> set[str]:
        if func is torch.addmm:
            bias, x, weight = args
            plain = bias.ndim == 1
        else:
            x, weight, bias, *_ = operands(*args, **kwargs)
            plain = x.ndim >= 2 if func is F.linear else x.ndim == weight.ndim
        batched = plain and id(x) not in self._names and self._batched(x)
        return self._note(weight, bias, batched, single=x.ndim == 2)

    def _note(
        self, weight: Tensor, bias: Tensor | None, batched: bool, *, single: bool
    ) -> set[str]:
        name = self._names.get(id(weight))
        noted = set()
        if name is not None:
            self._weights.setdefault(name, []).append(_Use(name, batched, single))
            noted.add(name)
            if id(bias) in self._names:
                beside = self._names[id(bias)]
                self._biases.setdefault(beside, []).append(_Use(name, batched, single))
                noted.add(beside)
        return noted

    def _batched(self, x: Tensor) -> bool:
        return x.ndim > 0 and len(x) == self._count
