"""M members around one network that is stored once, each a low-rank difference to it.

    W_m = W + scale * up_m @ down_m           matrices: `down` (M, r, d), `up` (M, m, r)
    v_m = v + offset_m                        weights that are learnt in full (norms, a head)

All that is learnt are differences, so a member costs r (m + d) numbers per matrix instead of m d,
and a prior N(0, s^2) on them is a prior around the network. Members may have batch-norm statistics
of their own. The network's own weights are read from the model that the members belong to, and are
not part of the state.
"""

import math
from collections.abc import Collection
from typing import Self

import torch
from torch import Tensor, nn

from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.types import Draw, Inputs, Named, Where
from bayesify.distributions.base import Members
from bayesify.numerics.kernels import Coordinates, DenseCoordinates, ProductCoordinates
from bayesify.numerics.noise import single_or_better, standard_normal
from bayesify.weights.held_rows import held_rows
from bayesify.weights.low_rank import LowRankWeight
from bayesify.weights.named import buffers_of, copied, weights_of
from bayesify.weights.select import all_weights
from bayesify.weights.store import Store, part


class LowRankParticles(Members):
    """M members.

    Args:
        down: Name -> (M, r, d).
        up: Name -> (M, m, r).
        offsets: Name -> (M, *shape), of weights that are learnt in full.
        buffers: Name -> (M, *shape), changed in place by layers in train mode.
        scale: Multiplies `up @ down`.
        base: The network's weights of these names; memory is shared.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
        >>> q = LowRankParticles.around(net, members=5, rank=2)
        >>> q.down.named()["0.weight"].shape, q.up.named()["0.weight"].shape
        (torch.Size([5, 2, 20]), torch.Size([5, 30, 2]))
    """

    scale: Tensor

    def __init__(
        self, down: Named, up: Named, offsets: Named, buffers: Named, *, scale: float, base: Named
    ) -> None:
        super().__init__()
        self.down = Store(copied(down), trainable=True)
        self.up = Store(copied(up), trainable=True)
        self.offsets = Store(copied(offsets), trainable=True)
        self.statistics = Store(copied(buffers), trainable=False)
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64))
        self._base: Named = {}
        self.attach_(base)

    @classmethod
    def around(
        cls,
        model: nn.Module,
        *,
        where: Where = all_weights,
        members: int = 5,
        rank: int = 4,
        scale: float = 1.0,
        noise: float = 0.0,
        common_down: bool = False,
        full: Collection[str] = (),
        vectors: bool = True,
        buffers: Collection[str] = (),
        example: Inputs | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Members at (or near) the network's present weights.

        `down` starts uniform in +- 1 / sqrt(d) (Kaiming), different for each member; `up` starts at
        zero, or at noise that makes the difference as large as `noise` says.

        Args:
            model: The network; not changed.
            where: Which of its weights the members differ in.
            members: M.
            rank: r; no more than the smaller side of each matrix.
            scale: Multiplies `up @ down`.
            noise: Root mean square of the first difference, relative to that of each matrix.
            common_down: Whether `down` starts the same for all members, so that their factors can
                be compared and added.
            full: Names of matrices that are learnt in full: a new head, say.
            vectors: Whether the chosen vectors (biases, gains of norms) are learnt, in full.
            buffers: Names of buffers that every member has of its own.
            example: A small batch, for selectors that ask for the order of execution.
            generator: Source of the starts.

        Raises:
            OptionError: nothing is chosen, or a number is out of range.
        """
        for name, value, least in (("members", members, 1), ("rank", rank, 1), ("noise", noise, 0)):
            if value < least:
                raise OptionError(f"{name}={value}: expected at least {least}.")
        weights = weights_of(model)
        if unknown := set(full) - set(weights):
            raise OptionError(
                f"full={sorted(unknown)}: expected names of weights of {type(model).__name__}; a "
                f"tied one goes by the first of its names."
            )
        chosen = dict.fromkeys([*where(model, example), *full])
        whole = [n for n in chosen if n in full or (vectors and weights[n].ndim < 2)]
        factored = [n for n in chosen if n not in full and weights[n].ndim >= 2]
        if not whole and not factored:
            raise OptionError(f"{where} chose no weight of {type(model).__name__} to differ in.")
        down, up, held = {}, {}, held_rows(model)
        for name in factored:
            m, d = len(weights[name]), weights[name][0].numel()
            like = weights[name].new_empty(0, dtype=single_or_better(weights[name].dtype))
            r = min(rank, m, d)
            starts = 1 if common_down else members
            uniform = torch.rand(starts, r, d, generator=generator, dtype=like.dtype)
            first = ((2 * uniform - 1) / math.sqrt(d)).to(like.device)
            down[name] = first.expand(members, r, d)
            size = weights[name].float().square().mean().sqrt().to(like)
            spread = noise * size * math.sqrt(3 * d / r) / scale  # entries of down: var 1 / (3 d)
            up[name] = spread * standard_normal(like.new_empty(members, m, r), generator)
            if name in held:
                up[name][:, held[name][0]] = 0
        statistics = buffers_of(model)
        return cls(
            down,
            up,
            {
                n: torch.zeros_like(weights[n], dtype=single_or_better(weights[n].dtype)).expand(
                    members, *weights[n].shape
                )
                for n in whole
            },
            {n: statistics[n].expand(members, *statistics[n].shape) for n in buffers},
            scale=scale,
            base=weights,
        )

    @classmethod
    def from_state(cls, state: Named) -> Self:
        """The distribution whose `state_dict()` is `state`; to be attached to its network."""
        fields = (part(state, name) for name in ("down", "up", "offsets", "statistics"))
        return cls(*fields, scale=state["scale"].item(), base={})

    @property
    def names(self) -> list[str]:
        """Names of all weights in which members differ, and of their own buffers."""
        return [*self.perturbed, *self.statistics.named()]

    @property
    def perturbed(self) -> list[str]:
        """Names of all weights in which members differ."""
        return [*self.down.named(), *self.offsets.named()]

    def attach_(self, weights: Named) -> None:
        """Differ from these weights."""
        self._base = {name: weights[name] for name in self.perturbed if name in weights}

    def stacked(self) -> Draw:
        """The factors, offsets and buffers of all members, as dictionaries."""
        stores = {"down": self.down, "up": self.up, "own": self.offsets, "buffers": self.statistics}
        return {field: store.named() for field, store in stores.items() if store.named()}

    def with_buffers(self, buffers: Named) -> Self:
        """The same members with these buffers in the place of those they had."""
        fields = (self.down.named(), self.up.named(), self.offsets.named())
        own = self.statistics.named() | buffers
        return type(self)(*fields, own, scale=self.scale.item(), base=self._base)

    def weights(self, draw_one: Draw) -> Named:
        """Structured weights that never form the difference where they multiply."""
        down, up = draw_one.get("down", {}), draw_one.get("up", {})
        factored = {
            name: LowRankWeight(self._of_base(name), each, up[name], self.scale)
            for name, each in down.items()
        }
        whole = {
            name: self._of_base(name) + each.to(self._of_base(name).dtype)
            for name, each in draw_one.get("own", {}).items()
        }
        return factored | whole | draw_one.get("buffers", {})

    def point(self) -> Named:
        """The mean over members, all around one network; integer buffers are those of the first."""
        up = self.up.named()
        means = {
            name: self.scale * torch.einsum("imr,ird->md", up[name], each) / len(each)
            for name, each in self.down.named().items()
        } | {name: each.mean(0) for name, each in self.offsets.named().items()}
        shifted = {
            name: (self._of_base(name) + each.reshape(self._of_base(name).shape)).detach()
            for name, each in means.items()
        }
        return {n: each.to(self._of_base(n).dtype) for n, each in shifted.items()} | {
            name: (each.mean(0) if each.is_floating_point() else each[0]).detach()
            for name, each in self.statistics.named().items()
        }

    def coordinates(self, space: str) -> list[Coordinates]:
        """What members are compared in, by a kernel.

        Args:
            space: "product", the factors and the differences that they make; or "factor", the
                factors alone.
        """
        if space not in ("product", "factor"):
            raise OptionError(f"kernel={space!r}: expected 'product' or 'factor'.")
        down, up = self.down.named(), self.up.named()
        whole: list[Coordinates] = [DenseCoordinates(e) for e in self.offsets.named().values()]
        if space == "factor":
            return [DenseCoordinates(e) for e in (*down.values(), *up.values())] + whole
        return [ProductCoordinates(e, up[n], self.scale.item()) for n, e in down.items()] + whole

    def _of_base(self, name: str) -> Tensor:
        if name not in self._base:
            raise UnsupportedModelError(
                f"these members differ from a network whose {name!r} is not at hand; make a "
                f"WeightPosterior of them and that network, or call `attach_(weights)`."
            )
        return self._base[name]
