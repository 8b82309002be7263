"""How much likelier is what a posterior says of an example if it was trained on it? LiRA's score.

Some examples are easy whether one was trained on them or not, so the evidence lies not in the loss
but in how it compares with what it would be with the example, and without. Several posteriors are
fitted, each to a random half of a pool of examples; with p the probability of the true class,

    phi(p)   = ln p - ln(1 - p)                              close to normal, of either kind
    score_i  = ln N(phi_i; mean_in_i, var_in) - ln N(phi_i; mean_out_i, var_out)

where the means are over posteriors that have, or have not, seen example i. Every posterior is the
target once, and the others are its shadows.

Source: Carlini et al. 2022, arXiv 2112.03570, algorithm 1 (the online attack); each example is in
exactly half of the shadows, as in the authors' released design. With few shadows the variance is
one for all examples, as they recommend. Deviations: that variance is taken about each example's own
mean; means are means where the authors' code has medians; one query an example, no augmentation;
and for every example one shadow of the side that the target is not on is left out of its means.
Else there would always be one more shadow there, and its closer mean would betray the side.
"""

import math

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from bayesify.core.batches import split_batch, to_device
from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.data.loading import Data, as_loader
from bayesify.evaluation.checks import check_scores
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.predictions import Predicts
from bayesify.evaluation.privacy.membership import attack_auc, rounded_curve, spaced_rates, tprs_at
from bayesify.likelihoods.predictive import ClassPredictive, Predictive

OWN_VARIANCE_FROM = 64
"""Shadows from which on every example has variances of its own."""

SMALLEST_VARIANCE = 1e-12
"""Of phi, in squared nats: keeps the density finite where all shadows say the same."""


def balanced_halves(
    n: int, count: int, generator: torch.Generator
) -> Bool[Tensor, "shadows examples"]:
    """Which of `count` shadows is trained on which of `n` examples: on each exactly half of them.

    Raises:
        OptionError: `count` is odd.

    Example:
        >>> inside = balanced_halves(100, 4, torch.Generator().manual_seed(0))
        >>> inside.sum(0).unique().tolist()
        [2]
    """
    if count < 2 or count % 2:
        raise OptionError(f"count={count}: expected an even number of shadows.")
    order = torch.rand(count, n, generator=generator, dtype=torch.float64).argsort(0)
    return order < count // 2


def true_class_logit(
    predictive: Predictive, target: Integer[Tensor, "batch *positions"]
) -> Float[Tensor, " batch"]:
    """Log odds phi = ln p - ln(1 - p) of the true class' averaged probability p, on the CPU.

    1 - p is the sum over the other classes, taken of logarithms in double precision, so that phi
    stays exact where p rounds to one.

    Raises:
        ShapeError: the predictive is not of one class out of C per input.

    Example:
        >>> sure = ClassPredictive(torch.tensor([[[90.0, 0.0]]]))
        >>> true_class_logit(sure, torch.tensor([0])).item()
        90.0
    """
    if not isinstance(predictive, ClassPredictive) or predictive.logits.ndim != 3:
        raise ShapeError(
            f"expected one class out of C for each input, got a {predictive.task} predictive"
            f"{' per position' if isinstance(predictive, ClassPredictive) else ''}; use "
            f"`membership`, which takes every task."
        )
    return predictive.to("cpu").to(torch.float64).log_odds(target.cpu()).detach()


def true_class_logits(
    posterior: Predicts, data: Data, *, num_samples: int = 32, batch_size: int = 256
) -> Float[Tensor, " examples"]:
    """`true_class_logit` of all examples; it does not depend on the batch size.

    Raises:
        DataError: one is not finite.
    """
    rows = []
    for batch in as_loader(data, batch_size=batch_size, shuffle=False):
        inputs, target = to_device(split_batch(batch), posterior.device)
        rows.append(true_class_logit(posterior.predict(inputs, num_samples=num_samples), target))
    phi = torch.cat(rows)
    check_scores(phi)
    return phi


def likelihood_ratio(
    phi: Float[Tensor, "shadows examples"],
    inside: Bool[Tensor, "..."],
    target: int,
    *,
    pooled: bool | None = None,
) -> Float[Tensor, " examples"]:
    """Log of how much likelier phi[target] is if the target has seen the example than if not.

    Args:
        phi: What every posterior says of every example, nats.
        inside: Who has seen what, of the same shape; every example by half of the posteriors.
        target: Which posterior is attacked; the others are its shadows.
        pooled: Whether all examples share one variance of either kind; None: with fewer than 64
            posteriors.

    Raises:
        ShapeError: the shapes differ.
        DataError: an example is in another number of shadows than half, or too few shadows.
    """
    count, examples = phi.shape
    if inside.shape != phi.shape or not examples:
        raise ShapeError(
            f"expected `inside` of the shape of `phi`, got {tuple(inside.shape)} and "
            f"{tuple(phi.shape)}; both are (shadows, examples)."
        )
    pooled = count < OWN_VARIANCE_FROM if pooled is None else pooled
    if count < (4 if pooled else 6) or not (2 * inside.sum(0) == count).all():
        raise DataError(
            f"expected every example in exactly half of the shadows, and at least 4 of them (6 for "
            f"variances of each example's own), got {count}; draw them with `balanced_halves`."
        )
    phi = phi.double()
    others = torch.ones_like(inside)
    others[target] = False
    evened = others & ~_surplus(inside, target)
    in_, out = (
        _log_normal(
            phi[target],
            _mean(phi, side & evened),
            _pooled_variance(phi, side & others) if pooled else _variance(phi, side & evened),
        )
        for side in (inside, ~inside)
    )
    return in_ - out


def likelihood_ratio_findings(
    phi: Float[Tensor, "shadows examples"], inside: Bool[Tensor, "shadows examples"]
) -> Findings:
    """Metrics and curve of `shadow_attack`, from what every posterior says of every example."""
    count, examples = phi.shape
    rates = spaced_rates(examples // 2)
    numbers, curves = [], []
    for target in range(count):
        scores, seen = likelihood_ratio(phi, inside, target), inside[target]
        both = scores[seen], scores[~seen]
        numbers.append([attack_auc(*both), *tprs_at(*both, [0.01, 0.001])])
        curves.append(tprs_at(*both, rates))
    each = torch.tensor(numbers, dtype=torch.float64)
    mean, error = each.mean(0).tolist(), (each.std(0) / count**0.5).tolist()
    metrics = {}
    for index, name in enumerate(("lira_auc", "lira_tpr1", "lira_tpr01")):
        metrics |= {name: mean[index], f"{name}_se": error[index]}
    curve = rounded_curve(rates, torch.tensor(curves, dtype=torch.float64).mean(0).tolist())
    return Findings(metrics, {"lira": {**curve, "shadows": count, "examples": examples}})


def _surplus(
    inside: Bool[Tensor, "shadows examples"], target: int
) -> Bool[Tensor, "shadows examples"]:
    """Of each example the next shadow after the target that is on the other side.

    By the number alone, so that the choice says nothing about phi.
    """
    count, examples = inside.shape
    opposite = (inside != inside[target]).roll(-target - 1, 0)
    chosen = (opposite.int().argmax(0) + target + 1) % count
    surplus = torch.zeros_like(inside)
    surplus[chosen, torch.arange(examples)] = True
    return surplus


def _mean(phi: Tensor, among: Tensor) -> Float[Tensor, " examples"]:
    return torch.where(among, phi, 0).sum(0) / among.sum(0)


def _squares(phi: Tensor, among: Tensor) -> Float[Tensor, " examples"]:
    """Sum of the squared deviations from each example's mean."""
    return torch.where(among, phi - _mean(phi, among), 0).square().sum(0)


def _variance(phi: Tensor, among: Tensor) -> Float[Tensor, " examples"]:
    return _squares(phi, among) / (among.sum(0) - 1)


def _pooled_variance(phi: Tensor, among: Tensor) -> Float[Tensor, ""]:
    return _squares(phi, among).sum() / (among.sum(0) - 1).sum()


def _log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    variance = variance.clamp_min(SMALLEST_VARIANCE)
    return -0.5 * ((x - mean).square() / variance + variance.log() + math.log(2 * math.pi))
