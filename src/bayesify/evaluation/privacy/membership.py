"""Can one tell from a prediction whether an example was trained on? Threshold attacks.

    an example is called a member when its score is above a threshold; per example
    loss                  log p(y | x)                    the attack of Yeom et al.
    confidence            max_c p(c | x)                  needs no label, as the two below
    entropy               -H[p(y | x)]
    mutual_information    -I[y; w | x]                    what the posterior's weights differ on

Sources: Yeom et al. 2018, arXiv 1709.01604 (a threshold on the loss); Carlini et al.
2022, arXiv 2112.03570 (what counts is the true-positive rate at a low false-positive rate, on
logarithmic axes); DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837 (variance of the area).

    V_i = P(s_i > a score of the others),    V_j = P(a score of the members > s_j),    ties half
    auc = mean_i V_i,    se^2 = var_i V_i / n_members + var_j V_j / n_others

0.5 is an area of no leak. An attack that fails proves nothing: `shadow.py` in this folder has a
stronger one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bayesify.core.errors import DataError, OptionError
from bayesify.core.types import Inputs, Named
from bayesify.data.loading import Data, as_loader, evenly
from bayesify.evaluation.checks import check_scores
from bayesify.evaluation.findings import Findings
from bayesify.evaluation.predictions import OnBatch, Predictions, Predicts, collect
from bayesify.likelihoods.predictive import ClassPredictive, Predictive

MemberScores = Float[Tensor, " members"]
OtherScores = Float[Tensor, " others"]

CURVE_POINTS = 200
NO_INFORMATION = 1e-6
"""Nats. Mutual information that is nowhere above is rounding: there is but one weight sample."""


def membership(
    posterior: Predicts,
    members: Data,
    non_members: Data,
    *,
    num_samples: int = 32,
    batch_size: int = 256,
    chunk_size: int | None = None,
    on_batch: OnBatch | None = None,
) -> Findings:
    """Attack `posterior` by thresholds on what it says about examples with their labels.

    The larger set is cut to the size of the smaller one, by examples spread evenly over it. The
    area does not need that, but then a coin could have decided who is a member (the game in which
    the sources define the attack), and both rates are as sure as each other. Rates below one over
    that size cannot be seen and are left out: bring 1,000 of each for the rate at 0.1 %. Every
    position of an image-like output counts as an example, and standard errors take examples for
    independent.

    Args:
        posterior: What is attacked.
        members: Examples that it was fitted to, without augmentation.
        non_members: Examples from the same distribution that it has not seen.
        num_samples: Weight samples S.
        batch_size: For data that is no loader; the results do not depend on it.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        on_batch: Called after every batch with the number of inputs it held.

    Returns:
        Metrics "membership_auc", "membership_tpr1" and "membership_tpr01" (true-positive rates at
        false-positive rates of 1 % and 0.1 %), each with "..._se", of the attack by loss; and
        "membership_auc_..." of those by confidence (classification), entropy and mutual information
        (where it is not zero throughout). The curve "membership": `{"fpr", "tpr"}` of each attack,
        and the number of "members" and "others".

    Raises:
        DataError: fewer than two examples in a set, or predictions that are not finite.

    Example:
        >>> from bayesify import MAP, fit
        >>> x, y = torch.randn(60, 90), torch.arange(60) % 2  # labels say nothing of x
        >>> net = torch.nn.Linear(90, 2)
        >>> posterior = fit(net, (x[:30], y[:30]), MAP(epochs=300, lr=0.1, prior_scale=100.0))
        >>> found = membership(posterior, (x[:30], y[:30]), (x[30:], y[30:]))
        >>> found.metrics["membership_auc"] > 0.8  # what it knows, it knows by heart
        True
    """
    found = [
        collect(
            _Precise(posterior),
            as_loader(data, batch_size=batch_size, shuffle=False),
            num_samples=num_samples,
            chunk_size=chunk_size,
            on_batch=on_batch,
        )
        for data in (members, non_members)
    ]
    size = min(map(len, found))
    inside, outside = (attack_scores(each, evenly(len(each), size)) for each in found)
    if "mutual_information" in inside:
        both = torch.cat([inside["mutual_information"], outside["mutual_information"]])
        if -both.min() <= NO_INFORMATION:
            del inside["mutual_information"]
    curve: dict[str, Any] = {"members": size, "others": size}
    areas = {}
    for name, scores in inside.items():
        areas[f"membership_auc_{name}"] = attack_auc(scores, outside[name])
        curve[name] = attack_curve(scores, outside[name])
    loss = inside["loss"], outside["loss"]
    metrics = {
        "membership_auc": areas.pop("membership_auc_loss"),
        "membership_auc_se": attack_auc_se(*loss),
    }
    for percent, fpr in (("1", 0.01), ("01", 0.001)):
        if size * fpr < 1:
            continue  # not one false alarm is allowed: another rate than the one asked for
        rate = tpr_at(*loss, fpr)
        metrics[f"membership_tpr{percent}"] = rate
        metrics[f"membership_tpr{percent}_se"] = tpr_se(rate, size)
    return Findings(metrics | areas, {"membership": curve})


def attack_scores(predictions: Predictions, index: Shaped[Tensor, " chosen"]) -> Named:
    """A score of each chosen example by attack, higher for those more likely to be members."""
    values, task = predictions.values, predictions.task
    scores = {"loss": predictions.log_prob}
    if task == "classification":
        scores["confidence"] = predictions.probs.amax(1)
    if task != "regression":
        scores |= {
            name: -values[name] for name in ("entropy", "mutual_information") if name in values
        }
    return {name: each[index] for name, each in scores.items()}


def attack_auc(score_members: MemberScores, score_others: OtherScores) -> float:
    """P(score of a member > score of another example), ties counting half.

    Example:
        >>> attack_auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]))
        0.625
    """
    return float(_placements(score_members, score_others)[0].mean())


def attack_auc_se(score_members: MemberScores, score_others: OtherScores) -> float:
    """Standard error of `attack_auc` over draws of both sets, by DeLong's components.

    Zero for sets that scores separate wholly.

    Raises:
        DataError: fewer than two scores in a set.
    """
    members, others = _placements(score_members, score_others)
    if min(len(members), len(others)) < 2:
        raise DataError(
            f"expected at least two members and two others for a standard error, got "
            f"{len(members)} and {len(others)}; bring more examples."
        )
    return math.sqrt(float(members.var() / len(members) + others.var() / len(others)))


def tpr_at(score_members: MemberScores, score_others: OtherScores, fpr: float) -> float:
    """Share of members found by the most generous threshold with a false-positive rate <= `fpr`.

    Members and others of one score are called the same, and nothing is interpolated, so ties and
    small sets make the rate too low, never too high: below one false positive, only members above
    all others count.

    Raises:
        OptionError: `fpr` is no share.

    Example:
        >>> members, others = torch.tensor([4.0, 3.0, 2.0]), torch.tensor([3.0, 1.0])
        >>> tpr_at(members, others, 0.0), tpr_at(members, others, 0.5)
        (0.3333333333333333, 1.0)
    """
    return tprs_at(score_members, score_others, [fpr])[0]


def tprs_at(
    score_members: MemberScores, score_others: OtherScores, fprs: Sequence[float]
) -> list[float]:
    """`tpr_at` for several false-positive rates; the scores are sorted once."""
    check_scores(score_members)
    check_scores(score_others)
    if not all(0 <= fpr <= 1 for fpr in fprs):
        raise OptionError(f"fpr={list(fprs)}: expected shares from 0 to 1, such as 0.01.")
    members = score_members.detach().cpu().double().sort().values
    others = score_others.detach().cpu().double().sort(descending=True).values
    lowest = torch.tensor([-math.inf], dtype=torch.float64)  # below it lies nobody: all are called
    # With k false positives allowed, the threshold is the (k+1)-th score of the others from above.
    # The hair is for rates such as 0.29, whose product with 100 falls just short of 29.
    allowed = torch.tensor([math.floor(fpr * len(others) * (1 + 1e-12)) for fpr in fprs])
    threshold = torch.cat([others, lowest])[allowed.clamp_max(len(others))]
    above = len(members) - torch.searchsorted(members, threshold, right=True)
    return (above.double() / len(members)).tolist()


def tpr_se(tpr: float, num_members: int) -> float:
    """Binomial standard error of a true-positive rate, the threshold taken as given.

    Zero at rates of 0 and 1, where it says nothing.
    """
    return math.sqrt(tpr * (1 - tpr) / num_members)


def spaced_rates(num_others: int, points: int = CURVE_POINTS) -> list[float]:
    """False-positive rates from 0 to 1 that `num_others` can show, evenly spaced on a log axis.

    Example:
        >>> spaced_rates(100, points=4)
        [0.0, 0.01, 0.1, 1.0]
    """
    counts = torch.logspace(0, math.log10(num_others), points - 1, dtype=torch.float64)
    kept = sorted({0, num_others, *counts.round().long().tolist()})
    return [count / num_others for count in kept]


def attack_curve(
    score_members: MemberScores, score_others: OtherScores, *, points: int = CURVE_POINTS
) -> dict[str, list[float]]:
    """`tpr_at` on `spaced_rates`, both rounded to six digits after the point. JSON-ready."""
    rates = spaced_rates(len(score_others), points)
    return rounded_curve(rates, tprs_at(score_members, score_others, rates))


def rounded_curve(fpr: Sequence[float], tpr: Sequence[float]) -> dict[str, list[float]]:
    """Lists by name, rounded to six digits after the point."""
    return {"fpr": [round(each, 6) for each in fpr], "tpr": [round(each, 6) for each in tpr]}


def _placements(
    members: Tensor, others: Tensor
) -> tuple[Float[Tensor, " members"], Float[Tensor, " others"]]:
    """Of each member the share of others below it, of each other the share of members above it."""
    check_scores(members)
    check_scores(others)
    members, others = members.detach().cpu().double(), others.detach().cpu().double()
    return _share_below(members, others), 1 - _share_below(others, members)


def _share_below(scores: Tensor, reference: Tensor) -> Tensor:
    """Share of `reference` below each score, ties counting half."""
    ordered = reference.sort().values
    below = torch.searchsorted(ordered, scores, right=False)
    not_above = torch.searchsorted(ordered, scores, right=True)
    return (below + not_above).double() / (2 * len(reference))


@dataclass(frozen=True)
class _Precise:
    """The same posterior, whose class probabilities are worked out in double precision.

    In single precision every p above 1 - 6e-8 is 1: the surest examples, where an attack at a low
    false-positive rate finds its members, would all have the same loss.
    """

    posterior: Predicts

    @property
    def device(self) -> torch.device:
        return self.posterior.device

    def predict(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Predictive:
        predictive = self.posterior.predict(
            x, num_samples=num_samples, generator=generator, chunk_size=chunk_size
        )
        if isinstance(predictive, ClassPredictive) and self.device.type != "mps":  # has no doubles
            return predictive.to(torch.float64)
        return predictive
