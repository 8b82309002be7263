"""Where K members begin that go on from a pretraining, or from nothing.

After a pretraining of K whole networks each member goes on from one of them. Otherwise the first
begins at the network as it is, and the others at weights drawn anew.
"""

from collections.abc import Collection

from bayesify.core.errors import OptionError
from bayesify.core.types import Named
from bayesify.distributions.particles import Particles
from bayesify.methods.members.fresh import fresh_starts
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.problem import Problem
from bayesify.weights.named import buffers_of, copied, stacked, weights_of


def starts(problem: Problem, members: int, learnt: Collection[str]) -> tuple[Named, Named]:
    """Weights and buffers of K networks, (K, *shape).

    Args:
        problem: With what a pretraining left, if there was one.
        members: K.
        learnt: Names of the weights that will be learnt; in all others the networks must agree.

    Raises:
        OptionError: the pretraining left no K networks, or such that differ elsewhere.
        UnsupportedModelError: a module has no way to draw its weights anew.
    """
    if members > 1 and problem.trained is not None:
        return _trained(problem.trained, members, learnt)
    more = members - 1
    fresh = fresh_starts(problem.model, more, problem.generator) if more else []
    models = [problem.model, *fresh]
    return stacked([weights_of(e) for e in models]), stacked([buffers_of(e) for e in models])


def _trained(posterior: Posterior, members: int, learnt: Collection[str]) -> tuple[Named, Named]:
    q = posterior.q if isinstance(posterior, WeightPosterior) else None
    if not isinstance(q, Particles) or q.size(1) != members:
        raise OptionError(
            f"pretrain: expected one that leaves {members} whole networks to go on from, such as "
            f"bayesify.Ensemble(members={members}), got {posterior!r}."
        )
    weights = copied(q.members.named())
    others = {name: each for name, each in weights.items() if name not in learnt}
    if apart := [name for name, each in others.items() if (each != each[0]).any()]:
        raise OptionError(
            f"pretrain: {members} networks that differ in weights which are not learnt after it, "
            f"{', '.join(apart)}. Have all weights learnt (where=all_weights), or freeze these "
            f"layers for the pretraining too (requires_grad_(False))."
        )
    return weights, copied(q.statistics.named())
