"""Does the model know when it is wrong? Risk among the examples it is most sure of.

A selective classifier answers only the k most confident of N examples: coverage k/N, with

    risk_k = 1/k sum of the losses of the k most confident examples
    aurc   = 1/N sum_k risk_k                         (area under the risk-coverage curve)
    excess = aurc - aurc of the best possible order   (all right answers before all wrong ones)

Loss 1 is a wrong answer. 0 is best of all three. Sources: El-Yaniv & Wiener 2010, "On the
Foundations of Noise-free Selective Classification"; Geifman & El-Yaniv 2017, arXiv 1705.08500
(coverage, selective risk); Geifman, Uziel & El-Yaniv 2019, arXiv 1805.08206 (AURC, E-AURC).

Examples of equal confidence may be answered in any order: the risk is its mean over these orders.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesify.core.errors import ShapeError
from bayesify.evaluation.checks import check_classes, check_scores
from bayesify.evaluation.metrics.calibration import tied_means


@dataclass(frozen=True)
class RiskCoverage:
    """Selective risk at the coverages 1/N, 2/N, ..., 1.

    Args:
        risk: Mean loss of the k most confident examples, k = 1, ..., N.
        best: The same in the best possible order, by growing loss.
    """

    risk: Float[Tensor, " examples"]
    best: Float[Tensor, " examples"]

    @property
    def aurc(self) -> float:
        """Mean selective risk over all coverages."""
        return float(self.risk.mean())

    @property
    def excess_aurc(self) -> float:
        """What `aurc` owes to the order alone: E-AURC."""
        return float((self.risk - self.best).mean())

    def to_json(self, *, points: int = 200) -> dict[str, list[float]]:
        """`coverage` and `risk`, at most `points` evenly spaced points, both ends included."""
        n = len(self.risk)
        kept = torch.linspace(0, n - 1, min(points, n), dtype=torch.float64).round().long()
        risk = self.risk[kept.to(self.risk.device)]
        return {
            "coverage": [round((k + 1) / n, 6) for k in kept.tolist()],
            "risk": [round(each, 6) for each in risk.tolist()],
        }


def selective_risk(
    confidence: Float[Tensor, " examples"], loss: Float[Tensor, " losses"]
) -> RiskCoverage:
    """The curve of any loss, for any score that is higher where the model is surer.

    Raises:
        ShapeError: not one loss per score.
        DataError: none at all, or some that are not finite.

    Example:
        >>> selective_risk(torch.tensor([0.9, 0.5]), torch.tensor([0.0, 1.0])).risk.tolist()
        [0.0, 0.5]
    """
    check_scores(confidence)
    check_scores(loss)
    if len(loss) != len(confidence):
        raise ShapeError(f"expected one loss per score, got {len(loss)} for {len(confidence)}.")
    descending, order = confidence.sort(descending=True)
    expected = tied_means(descending, loss.double()[order])
    coverage = torch.arange(1, len(loss) + 1, device=loss.device)
    best = loss.double().sort().values
    return RiskCoverage(expected.cumsum(0) / coverage, best.cumsum(0) / coverage)


def risk_coverage(
    probs: Float[Tensor, "examples classes"], target: Int[Tensor, " examples"]
) -> RiskCoverage:
    """The curve of wrong top labels, most probable ones first.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
        >>> risk_coverage(probs, torch.tensor([0, 0, 1])).to_json()["risk"]
        [0.0, 0.25, 0.333333]
    """
    check_classes(probs, target)
    confidence, top = probs.max(1)
    return selective_risk(confidence, (top != target).double())
