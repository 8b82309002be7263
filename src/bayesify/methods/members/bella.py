"""Bella: M low-rank members around one pretrained network, as an ensemble or under SVGD.

Source: Bella, Bayesian low-rank learning (Doan et al. 2025, arXiv 2407.20891, AAAI
39(15):16298-16307), as its abstract and its authors' published code describe it: a frozen network
shared by all particles, W_m = W + s B_m A_m with only B_m and A_m learnt, as a plain ensemble or
under Stein variational gradient descent, predictions averaged over particles. The full text was not
at hand: what follows is our completion where it says so.

    W_m   = W + scale * up_m @ down_m                       (distributions/low_rank_particles)
    loss  = sum_m [ mean_b -log p(y_b | x_b, W_m)  +  |up_m, down_m, ..|^2 / (2 N prior_scale^2) ]
    SVGD  : gradients mixed by a kernel, repulsion T / N    (methods/members/interaction)

Completions of ours: members that are compared by their products and factors; a little noise at the
start, without which members that share `down` coincide and nothing repels; the explicit
Gaussian prior on what is learnt; biases and gains of norms learnt too (on convolutional nets they
decide); the repulsion divided by N. The density is on what is learnt: N(0, prior_scale^2) on every
entry of the factors, from which that of the products follows (far from Gaussian, and largest at 0),
times the likelihood of W_m. It is the posterior that SVGD with T = 1 has as its limit for many
members and whole batches, with the kernels "product" and "factor". With "function" there is no such
claim. Independent members learn from batches of their own, without which they hardly differ; SVGD
mixes gradients, and needs the same batch for all. Deviations from the published code: it copies the
network for each particle, averages logits, skips the interaction at 19 steps of 20, and subtracts a
scalar as repulsion.
Cost: per member r (m + d) numbers for a matrix (m, d), and the memory of their optimiser's state;
the forward pass of every member is as long as that of the network, except for what comes before the
first matrix that differs: where members see the same batches (in predictions, and in training if
asked) it is computed once for all, and it is kept across epochs if asked.
"""

from dataclasses import dataclass
from typing import Self

import torch

from bayesify.core.errors import OptionError
from bayesify.core.modes import held_modes
from bayesify.core.options import check_options, option
from bayesify.core.types import Named, Where
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.forward.batch_norm import batch_norms, recalibrate_, statistics_of
from bayesify.forward.feature_cache import CACHE_LIMIT
from bayesify.methods.members.fresh import fresh_weights
from bayesify.methods.members.map import MAP
from bayesify.methods.members.training import INDEPENDENT, Training, train_members
from bayesify.training.loop import GradientRun
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain
from bayesify.training.problem import Problem
from bayesify.weights.named import weights_of
from bayesify.weights.select import all_weights, matching

NOISE = 0.1
"""Of the first differences, without which members around one network hardly come to differ."""


@dataclass(frozen=True)
class Bella(Method):
    """Low-rank members around a trained network, also in weights that it holds frozen.

    Example:
        >>> import bayesify
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> x, y = torch.randn(64, 40), torch.randint(3, (64,))
        >>> method = Bella(pretrain=bayesify.MAP(epochs=1), members=4, rank=1, epochs=1)
        >>> bayesify.fit(net, (x, y), method).predict(x).logits.shape
        torch.Size([4, 64, 3])
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    where: Where = option(all_weights, help="which weights the members differ in")
    members: int = option(5, help="how many members", at_least=1)
    rank: int = option(4, help="rank of each member's difference from a matrix", at_least=1)
    interaction: str = option(
        "ensemble", help="independent members, or SVGD", choices=("ensemble", "svgd")
    )
    kernel: str = option(
        "product",
        help="what SVGD compares: the factors and their products, the factors, or outputs on the "
        "batch",
        choices=("product", "factor", "function"),
    )
    temperature: float = option(
        1.0,
        help="T of SVGD's repulsion, divided by N; 1 targets the posterior, but for outputs",
        at_least=0,
    )
    epochs: int = option(5, help="passes over the data", at_least=1)
    lr: float = option(3e-3, help="initial learning rate of Adam, falls along a cosine", above=0)
    rates: tuple[float, ...] = option((), help="members' learning rates, in units of lr; none: 1")
    clip: float | None = option(1.0, help="largest norm of a member's gradient; none: any", above=0)
    weight_decay: float = option(0.0, help="decoupled decay, besides the prior", at_least=0)
    prior_scale: float = option(
        1.0, help="standard deviation of the prior on all that is learnt", above=0
    )
    scale: float = option(1.0, help="multiplies the product of the factors", above=0)
    noise: float | None = option(
        None,
        help="rms of the first differences, relative to each matrix; none: 0.1, or 0 for a single "
        "member, and where members differ by heads that each draws anew",
        at_least=0,
    )
    vectors: bool = option(True, help="whether biases and gains of norms are learnt, in full")
    heads: Where | None = option(
        None, help="weights of a new head, learnt in full by each member; none: there is none"
    )
    fresh_heads: bool = option(True, help="whether every member draws its head anew")
    batch_norm: str = option(
        "frozen",
        help="statistics of batch norm: those of the network, or moving for each member",
        choices=("frozen", "moving"),
    )
    recalibrate: bool = option(
        False, help="estimate the statistics of batch norm anew first; with the right augmentation"
    )
    batches: str = option(
        "own",
        help="whether each member learns from batches of its own; SVGD needs the same for all",
        choices=("own", "same"),
    )
    cache_features: bool = option(
        False, help="keep what comes before the first weight that differs across epochs"
    )
    cache_limit: int = option(CACHE_LIMIT, help="bytes that what is kept may take", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.rates and (len(self.rates) != self.members or min(self.rates) <= 0):
            raise OptionError(
                f"Bella(rates={self.rates}): expected {self.members} numbers above 0, one for each "
                f"member, or none."
            )

    @classmethod
    def as_published(cls, members: int = 3) -> Self:
        """The settings of the authors' code for CLIP, as far as they mean anything here.

        Rank 4 on the two matrices of each MLP, alpha / rank = 4, `up` from zero, AdamW 1e-3 with
        decay 0.1, members' rates cycling, 7 epochs, batches of their own. Theirs differ in that
        nearly all rates are constant, and in an interaction that has no direction.
        """
        cycle = (1.0, 0.9, 0.5, 0.25, 0.8)
        return cls(
            pretrain=None,
            where=matching("*c_fc.weight", "*c_proj.weight"),
            members=members,
            rank=4,
            scale=4.0,
            noise=0.0,
            vectors=False,
            epochs=7,
            lr=1e-3,
            rates=tuple(cycle[i % len(cycle)] for i in range(members)),
            weight_decay=0.1,
            prior_scale=1e3,
            clip=None,
        )

    @property
    def _own_batches(self) -> bool:
        return self.batches == "own" and self.interaction == "ensemble"

    def _noise_beside(self, fresh_heads: list[str]) -> float:
        """Members that draw heads of their own differ; what needs noise then is SVGD's kernel."""
        if self.noise is not None:
            return self.noise
        differ = self.members == 1 or (fresh_heads and self.interaction == "ensemble")
        return 0.0 if differ else NOISE

    def start(self, problem: Problem) -> GradientRun:
        """Freeze the network and put members around it."""
        heads = [] if self.heads is None else self.heads(problem.model, problem.data.example)
        names = heads if self.fresh_heads else []
        drawn = fresh_weights(problem.model, names, self.members, problem.generator)
        held = held_modes(problem.model)
        model = problem.model.eval().requires_grad_(False)
        if self.recalibrate:
            recalibrate_(model, problem.data.inputs())
        q = LowRankParticles.around(
            model,
            where=self.where,
            members=self.members,
            rank=self.rank,
            scale=self.scale,
            noise=self._noise_beside(names),
            common_down=self.interaction == "svgd",
            full=heads,
            vectors=self.vectors,
            buffers=statistics_of(model) if self.batch_norm == "moving" else (),
            example=problem.data.example,
            generator=problem.generator,
        )
        _put_heads_(q, drawn, weights_of(model))
        if self.batch_norm == "moving":
            for norm in batch_norms(model).values():
                norm.train(norm not in held)
        return train_members(
            problem,
            q,
            Training(
                self.epochs,
                self.lr,
                self.prior_scale,
                kernel=self.kernel if self.interaction == "svgd" else INDEPENDENT,
                temperature=self.temperature,
                clip=self.clip,
                rates=self.rates,
                decay=self.weight_decay,
                own_batches=self._own_batches,
                cache_features=self.cache_features,
                cache_limit=self.cache_limit,
            ),
        )


def _put_heads_(q: LowRankParticles, heads: Named, base: Named) -> None:
    """Let the members' own heads be `heads`, (M, *shape)."""
    offsets = q.offsets.named()
    with torch.no_grad():
        for name, each in heads.items():
            offsets[name].copy_(each.to(offsets[name]) - base[name].to(offsets[name]))
