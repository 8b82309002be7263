"""A shared posterior of a mean-field one: mixture, merging, outliers, blends and book in turn."""

from collections.abc import Callable

import torch

from bayesify.core.types import Named
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.methods.sharing.merging import MergeLimits, merge
from bayesify.methods.sharing.structure import Source, booked, quantisation_error, structured, top
from bayesify.numerics.mixture import fit_mixture

LLOYD = 20
"""Steps of k-means."""


def share(
    loc: Named,
    scale: Named,
    *,
    codes: int = 256,
    outliers: float = 0.01,
    blending: bool = False,
    law: str = "per_weight",
    limits: MergeLimits | None = None,
    scores: Callable[[Source, SharedNormal], Named] = quantisation_error,
    em_steps: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Source, SharedNormal]:
    """Gaussians shared by the weights of a mean-field posterior.

    Args:
        loc: Its means by name.
        scale: Its standard deviations, of the same names and shapes.
        codes: Gaussians K; merging may leave fewer, and codes that no weight has are dropped.
        outliers: Share of the weights that keep a Gaussian of their own. The few beyond the
            histogram, at most one in five thousand, come first, and in any case.
        blending: Whether weights far from their Gaussian are blended of two.
        law: See `SharedNormal`.
        limits: When Gaussians are merged; None for never.
        scores: Gives the outliers the highest scores, from a first book without any.
        em_steps: Steps of EM after k-means. None is better: k-means has cells of least distortion,
            components of a mixture are wide where weights are many.
        generator: Of the mixture's start.

    Returns:
        The posterior in the coordinates it was clustered in, and the shared one, where `loc` is.
    """
    source = Source.of(loc, scale, flat=law in ("per_layer", "fixed"))
    mixture = fit_mixture(source.histogram, codes, generator, iterations=em_steps, lloyd=LLOYD)
    if limits is not None:
        mixture, _ = merge(mixture, limits)
    chosen = top(source.loc, 0.0)
    beyond = {name: source.beyond(name) for name in source.loc}
    ranks = {name: each.float() for name, each in beyond.items()}
    if outliers:
        first = structured(source, mixture, chosen, blending=False)
        ranks = scores(source, booked(source, first, law))
        ranks = {n: each.masked_fill(beyond[n], torch.inf) for n, each in ranks.items()}
    weights = sum(map(len, ranks.values()))
    clipped = sum(int(each.sum()) for each in beyond.values())
    chosen = top(ranks, max(outliers, clipped / weights))
    structure = structured(source, mixture, chosen, blending=blending)
    q = booked(source, structure, law).compacted()
    return source, q.to(next(iter(loc.values())).device)
